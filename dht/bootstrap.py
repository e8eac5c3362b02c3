"""Joining: the first contact with peers whose addresses were given."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from multiaddr import Multiaddr
from multiaddr.exceptions import Error as MultiaddrError

from hivemind.aio import TaskScope, with_deadline
from hivemind.clock import Deadline
from hivemind.dht.routing import DHTID
from hivemind.errors import BootstrapError, ConfigError, ControlFailure, HivemindError, WrongTypeError
from hivemind.identity import PeerID
from hivemind.log import get_logger
from hivemind.networking import peer_of

if TYPE_CHECKING:
    from hivemind.dht.node import DHTNode

__all__ = ["bootstrap", "join_through_home", "look_around", "parse_initial_peers"]

logger = get_logger(__name__)


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


async def bootstrap(node: DHTNode, addresses: Sequence[Multiaddr], scope: TaskScope) -> bool:
    """Meet the peers behind ``addresses``, then find the nodes nearest to oneself through them.

    Goes on as soon as the first has answered and others had as long again; the rest are met in the background.

    :param scope: owns what goes on in the background
    :returns: whether one has answered
    :raises BootstrapError: if none has and ``ensure_bootstrap_success``; names each address and why
    """
    options = node.options
    seconds = options.bootstrap_timeout if options.bootstrap_timeout is not None else options.wait_timeout
    targets: dict[PeerID, list[Multiaddr]] = {}
    for address in addresses:
        targets.setdefault(peer_of(address), []).append(address)
    targets.pop(node.peer_id, None)
    deadline = Deadline.after(seconds)
    loop = asyncio.get_running_loop()
    began = loop.time()
    meetings = {scope.start(_meet(node, peer, known, deadline)): known for peer, known in targets.items()}
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
        await look_around(node, seconds)
    elif options.ensure_bootstrap_success:
        raise BootstrapError(reasons)
    elif reasons:
        logger.warning("no initial peer has answered: %s", BootstrapError(reasons))
    return met


async def _meet(node: DHTNode, peer: PeerID, addresses: list[Multiaddr], deadline: Deadline) -> str | None:
    """Connect and ping.

    :returns: why it failed, or None
    """
    try:
        await node.p2p.connect(peer, addresses, timeout=deadline.remaining())
        ping = node.protocol.ping(peer, validate=True, strict=node.options.strict)
        await with_deadline(ping, deadline, f"ping of {peer}")
    except HivemindError as error:
        return f"{type(error).__name__}: {error}"
    return None


async def join_through_home(node: DHTNode) -> None:
    """Meet whom the node of the same peer in another process knows, and that node itself.

    :raises ControlFailure: if it does not answer
    """
    answer = await node.protocol.call_find(node.peer_id, [node.node_id], values=False)
    if answer is None:
        raise ControlFailure(
            "the DHT that this one is a copy of does not answer: it was shut down, or its process ended"
        )
    _, neighbors = answer[node.node_id]
    known = node.protocol.routing_table.get_nearest_neighbors(node.node_id, node.protocol.bucket_size)
    await look_around(node, node.options.wait_timeout, {**neighbors, **dict(known)})


async def look_around(node: DHTNode, seconds: float, begin: Mapping[DHTID, PeerID] | None = None) -> None:
    """Look for the nodes nearest to oneself for so long; what was found by then is known.

    :param begin: where to begin; default the nodes known nearest
    """
    try:
        async with asyncio.timeout(seconds):
            await node.find_nearest_nodes([node.node_id], node_to_peer_id=begin, exclude_self=True)
    except TimeoutError:
        logger.debug("the first search took longer than %s s", seconds)
