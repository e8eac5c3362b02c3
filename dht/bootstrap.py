"""Joining: the first contact with peers whose addresses were given."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from multiaddr import Multiaddr
from multiaddr.exceptions import Error as MultiaddrError

from hivemind.aio import TaskScope, with_deadline
from hivemind.clock import Deadline
from hivemind.dht.contacts import Contacts
from hivemind.dht.finding import Finder
from hivemind.dht.routing import DHTID, ID_BITS
from hivemind.errors import BootstrapError, ConfigError, ControlFailure, HivemindError, WrongTypeError
from hivemind.identity import PeerID
from hivemind.log import get_logger
from hivemind.networking import peer_of

__all__ = ["Reunion", "bootstrap", "get_acquainted", "join_through_home", "look_around", "parse_initial_peers"]

logger = get_logger(__name__)

#: Initial peers that are not known: how many are tried in a round of maintenance, and seconds between two tries of one,
#: at first and at the longest.
_TRIED_PER_ROUND: Final = 2
_FIRST_PAUSE: Final = 15.0
_LAST_PAUSE: Final = 600.0


#: In a swarm of up to so many nodes all know each other. They are looked for in parts that share so many
#: leading bits, so many at a time.
_SMALL_SWARM: Final = 64
_PARTS_BITS: Final = 2
_MET_AT_A_TIME: Final = 4


def parse_initial_peers(initial_peers: object) -> tuple[Multiaddr, ...]:
    """Addresses of peers, each ``/…/p2p/<id>``.

    :raises WrongTypeError: if it is one address and not several
    :raises ConfigError: if one is no such address
    """
    if initial_peers is None:
        return ()
    if not isinstance(initial_peers, Sequence) or isinstance(initial_peers, str | bytes | Multiaddr):
        allowed = "a list of addresses such as ['/ip4/203.0.113.5/tcp/31337/p2p/12D3Koo…'], or None"
        raise WrongTypeError("initial_peers", initial_peers, allowed)
    return tuple(_parse_address(each) for each in initial_peers)


def _parse_address(address: object) -> Multiaddr:
    allowed = "an address such as /ip4/203.0.113.5/tcp/31337/p2p/12D3Koo…"
    if not isinstance(address, str | Multiaddr):
        raise ConfigError("initial_peers", address, allowed)
    try:
        parsed = Multiaddr(address)
        peer_of(parsed)
    except (ValueError, MultiaddrError) as error:
        raise ConfigError("initial_peers", str(address), f"{allowed} ({error})") from error
    return parsed


async def bootstrap(contacts: Contacts, finder: Finder, scope: TaskScope) -> bool:
    """Meet the initial peers, then find the nodes nearest to oneself through them.

    Goes on as soon as the first has answered and others had as long again; the rest are met in the background.

    :param scope: owns what goes on in the background
    :returns: whether one has answered
    :raises BootstrapError: if none has and ``ensure_bootstrap_success``; names each address and why
    """
    options = contacts.options
    seconds = options.bootstrap_timeout if options.bootstrap_timeout is not None else options.wait_timeout
    targets = _by_peer(contacts.initial_peers)
    targets.pop(contacts.peer_id, None)
    deadline = Deadline.after(seconds)
    loop = asyncio.get_running_loop()
    began = loop.time()
    meetings = {scope.start(_meet(contacts, peer, known, deadline)): known for peer, known in targets.items()}
    reasons: dict[str, str] = {}
    pending, met = set(meetings), False
    while pending:
        patience = loop.time() - began if met else None
        done, pending = await asyncio.wait(pending, timeout=patience, return_when=asyncio.FIRST_COMPLETED)
        if not done:
            break
        for meeting in done:
            reason = meeting.result()
            met = met or reason is None
            if reason is not None:
                reasons.update(dict.fromkeys(map(str, meetings[meeting]), reason))
    if met:
        await look_around(finder, seconds)
    elif options.ensure_bootstrap_success:
        raise BootstrapError(reasons)
    elif reasons:
        logger.warning("no initial peer has answered: %s", BootstrapError(reasons))
    return met


async def _meet(contacts: Contacts, peer: PeerID, addresses: list[Multiaddr], deadline: Deadline) -> str | None:
    """Connect and ping.

    :returns: why it failed, or None
    """
    try:
        await contacts.protocol.p2p.connect(peer, addresses, timeout=deadline.remaining())
        ping = contacts.protocol.ping(peer, validate=True, strict=contacts.options.strict)
        await with_deadline(ping, deadline, f"ping of {peer}")
    except HivemindError as error:
        return f"{type(error).__name__}: {error}"
    return None


class Reunion:
    """Initial peers that this node does not know are tried again now and then: when the swarm has split, or began as
    two, they lead to the other part. Owned by the network thread."""

    def __init__(self, contacts: Contacts) -> None:
        self._contacts = contacts
        # by the clock of the loop: when each is tried next, and after how long once more
        self._due: dict[PeerID, float] = {}
        self._pause: dict[PeerID, float] = {}

    async def round(self) -> bool:
        """Try those that are due.

        :returns: whether one has answered
        """
        contacts, now = self._contacts, asyncio.get_running_loop().time()
        strangers = _by_peer(contacts.initial_peers)
        strangers = {peer: known for peer, known in strangers.items() if peer not in contacts.protocol.routing_table}
        strangers.pop(contacts.peer_id, None)
        due = [peer for peer in strangers if self._due.get(peer, now) <= now][:_TRIED_PER_ROUND]
        deadline = Deadline.after(contacts.options.wait_timeout)
        reasons = await asyncio.gather(*(_meet(contacts, peer, strangers[peer], deadline) for peer in due))
        for peer, reason in zip(due, reasons, strict=True):
            doubled = min(2 * self._pause.get(peer, _FIRST_PAUSE / 2), _LAST_PAUSE)
            self._pause[peer] = doubled if reason is not None else _LAST_PAUSE
            self._due[peer] = now + self._pause[peer]
            if reason is not None:
                logger.debug("initial peer %s: %s", peer, reason)
        return None in reasons


def _by_peer(addresses: Iterable[Multiaddr]) -> dict[PeerID, list[Multiaddr]]:
    peers: dict[PeerID, list[Multiaddr]] = {}
    for address in addresses:
        peers.setdefault(peer_of(address), []).append(address)
    return peers


async def join_through_home(contacts: Contacts, finder: Finder) -> None:
    """Meet whom the node of the same peer in another process knows, and that node itself.

    :raises ControlFailure: if it does not answer
    """
    protocol, own_id = contacts.protocol, contacts.node_id
    answer = await protocol.call_find(contacts.peer_id, [own_id], values=False)
    if answer is None:
        raise ControlFailure(
            "the DHT that this one is a copy of does not answer: it was shut down, or its process ended"
        )
    _, neighbors = answer[own_id]
    known = protocol.routing_table.get_nearest_neighbors(own_id, protocol.bucket_size)
    await look_around(finder, contacts.options.wait_timeout, {**neighbors, **dict(known)})


async def look_around(finder: Finder, seconds: float, begin: Mapping[DHTID, PeerID] | None = None) -> None:
    """Look for the nodes nearest to oneself for so long; what was found by then is known.

    :param begin: where to begin; default the nodes known nearest
    """
    try:
        async with asyncio.timeout(seconds):
            await finder.around_self(begin)
    except TimeoutError:
        logger.debug("the first search took longer than %s s", seconds)


async def get_acquainted(contacts: Contacts, finder: Finder) -> None:
    """Meet everybody, if the swarm is small: no request has to wait for a first contact then, which takes many times as
    long as a request."""
    if finder.swarm_size() <= _SMALL_SWARM:
        parts = [DHTID(contacts.node_id ^ (part << (ID_BITS - _PARTS_BITS))) for part in range(1 << _PARTS_BITS)]
        width = _MET_AT_A_TIME
        await finder.nearest(parts, 1, contacts.protocol.bucket_size, width, most_workers=width)
