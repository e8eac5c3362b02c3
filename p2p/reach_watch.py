"""What users are told when it changes how others reach their peer: one line each time, and once what to do about it."""

from __future__ import annotations

import asyncio
import enum
import ipaddress
from collections.abc import Mapping
from typing import Any, Final

from hivemind.log import get_logger
from hivemind.networking import ip_of
from hivemind.p2p.config import P2PConfig
from hivemind.p2p.reachability import Reachability, parse_reachability

__all__ = ["Advice", "ReachabilityWatch", "advise", "describe"]

logger = get_logger(__name__)

#: Seconds between two lines: relays that come and go, and peers that say now this and now that, must not fill the log.
_LINE_PERIOD: Final = 10.0


class Advice(enum.Enum):
    """What is wrong and what to do, in words; and after how many seconds it is told if it still holds."""

    ONLY_THIS_MACHINE = (
        0.0,
        "only programs on this machine can call this peer: it is known by loopback addresses alone ({addresses}), and"
        " the peers that it has joined are elsewhere. Listen on all interfaces: host_maddrs=['/ip4/0.0.0.0/tcp/0'],"
        " or, where a port is forwarded to this machine, name that address in announce_maddrs",
    )
    ONLY_THIS_NETWORK = (
        10.0,
        "only machines of the same network can call this peer: it is known by addresses of that network alone"
        " ({addresses}), and the peers that it has joined are on the internet. Forward a port of the router to this"
        " machine and name its public address in announce_maddrs, or be reached through relays (use_auto_relay=True)",
    )
    NOBODY = (
        10.0,
        "other peers cannot connect to this one (tried: {addresses}). Be reached through relays (use_auto_relay=True),"
        " or forward a port of the router to this machine and name its public address in announce_maddrs",
    )
    NO_RELAY = (
        30.0,
        "other peers cannot connect to this one (tried: {addresses}), and no relay has taken it. Join through a relay"
        " (one is started by hivemind-relay), or name one in trusted_relays",
    )

    @property
    def seconds(self) -> float:
        """How long it must hold before it is told."""
        return self.value[0]

    def text(self, known: Reachability) -> str:
        """The warning."""
        return self.value[1].format(addresses=", ".join(map(str, known.addresses)))


def describe(known: Reachability) -> str:
    """The ways to this peer in one line."""
    count = len(known.relays)
    relays = f"through {count} relay{'s' * (count != 1)} ({', '.join(str(each.peer_id) for each in known.relays)})"
    if known.verdict == "public":
        by = f", by ports that the router forwards ({known.port_mapping})" if known.port_mapping else ""
        return f"other peers connect to this one directly{by}"
    nats = {"TCP": known.nat_of_tcp, "UDP": known.nat_of_udp}
    nat = ", ".join(f"{name} {kind}" for name, kind in nats.items() if kind != "unknown")
    behind = f"; NAT: {nat}" if nat else ""
    if known.verdict == "private":
        way = f"it is reached {relays}" if count else "no relay takes their calls"
        return f"other peers cannot connect to this one directly; {way}{behind}"
    if count:
        return f"this peer is reached {relays}; whether others can connect to it is not found out yet{behind}"
    return f"whether other peers can connect to this one is not found out yet{behind}"


def advise(known: Reachability, config: P2PConfig) -> Advice | None:
    """What to warn of; None if all is as its user has asked for."""
    if config.no_listen or config.dht_mode == "client" or not known.addresses:
        return None  # it only calls others
    states = set(known.addresses.values())
    if "relayed" in states or known.farthest_peer in ("", "machine"):
        return None
    if all(_is_loopback(each) for each in known.addresses):
        return Advice.ONLY_THIS_MACHINE
    if known.verdict == "public" or known.farthest_peer == "network":
        return None
    unreached = Advice.NO_RELAY if config.use_auto_relay else Advice.NOBODY
    if states == {"local"}:
        return Advice.NO_RELAY if config.use_auto_relay else Advice.ONLY_THIS_NETWORK
    return unreached if known.verdict == "private" else None


def _is_loopback(address: Any) -> bool:
    ip = ip_of(address)
    return ip is not None and ipaddress.ip_address(ip).is_loopback


class ReachabilityWatch:
    """Turns what the daemon tells into lines of the log. Owned by one event loop.

    :param config: what the peer was asked to be
    """

    def __init__(self, config: P2PConfig) -> None:
        self._config = config
        self._loop = asyncio.get_running_loop()
        self._known: Reachability | None = None
        self._said: tuple[object, ...] = (config.force_reachability or "unknown", frozenset())
        self._line: asyncio.TimerHandle | None = None
        self._next_line = 0.0
        self._advice: Advice | None = None
        self._warning: asyncio.TimerHandle | None = None
        self._warned: set[Advice] = set()

    def take(self, content: Mapping[str, Any]) -> None:
        """An answer or event ``reachability`` of the daemon."""
        self._known = known = parse_reachability(content)
        if self._line is None and _gist(known) != self._said:
            self._line = self._loop.call_at(max(self._loop.time(), self._next_line), self._say)
        advice = advise(known, self._config)
        if advice is self._advice:
            return
        self._advice = advice
        if self._warning is not None:
            self._warning.cancel()
            self._warning = None
        if advice is not None and advice not in self._warned:
            self._warning = self._loop.call_later(advice.seconds, self._warn, advice)

    def _say(self) -> None:
        """One line for all changes of a while."""
        self._line = None
        assert self._known is not None
        if _gist(self._known) == self._said:
            return
        self._said = _gist(self._known)
        self._next_line = self._loop.time() + _LINE_PERIOD
        logger.info("%s", describe(self._known))

    def _warn(self, advice: Advice) -> None:
        assert self._known is not None
        self._warned.add(advice)
        logger.warning("%s", advice.text(self._known))

    def close(self) -> None:
        """Say no more. Idempotent."""
        for handle in (self._line, self._warning):
            if handle is not None:
                handle.cancel()


def _gist(known: Reachability) -> tuple[object, ...]:
    """What a line is written for when it changes."""
    return known.verdict, frozenset(each.peer_id for each in known.relays)
