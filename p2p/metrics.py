"""What a peer's daemon has counted: calls by protocol and by peer."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from hivemind.errors import ConfigError
from hivemind.identity import PeerID

__all__ = [
    "LATENCY_BOUNDS",
    "CallStats",
    "P2PMetrics",
    "PeerStats",
    "ProtocolStats",
    "parse_peer",
    "parse_protocol",
]

#: Upper bounds of the latency buckets in seconds; one more bucket has what is longer.
LATENCY_BOUNDS: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)

#: The entry of all that has no place of its own in the daemon's tables.
OTHER: Final = "(other)"


@dataclass(frozen=True)
class CallStats:
    """Calls and streams of one direction since the daemon's start."""

    #: begun; a stream counts as one call
    calls: int
    #: under way now
    in_flight: int
    #: bytes that came from and went to the other side, envelopes included, encryption and multiplexing not
    bytes_received: int
    bytes_sent: int
    #: failed calls by kind: "handler" (it raised), "busy" (a limit, or the handler raised `HandlerBusy`), "cancelled",
    #: "deadline", "unreachable", "not_supported", "reset", "too_large", "malformed", "truncated", "not_found",
    #: "closing", "internal"; those that were seen
    errors: Mapping[str, int]
    #: seconds that the finished calls took together, and the longest of them: from opening to the end
    seconds: float
    longest: float
    #: finished calls by duration, see `LATENCY_BOUNDS`
    buckets: tuple[int, ...]

    @property
    def finished(self) -> int:
        """Calls that have ended, well or not."""
        return sum(self.buckets)

    @property
    def failed(self) -> int:
        """Those of them that failed."""
        return sum(self.errors.values())

    @property
    def mean_seconds(self) -> float:
        """The mean duration of finished calls; nan if there are none."""
        return self.seconds / self.finished if self.finished else math.nan

    def quantile(self, share: float) -> float:
        """The seconds within which ``share`` (0 to 1) of the finished calls have ended, as exactly as the buckets
        tell; nan if there are none.

        :raises ConfigError: if ``share`` is not from 0 to 1
        """
        if not 0 <= share <= 1:
            raise ConfigError("share", share, "a number from 0 to 1")
        rank, seen = share * self.finished, 0
        if not self.finished:
            return math.nan
        lower = 0.0
        for count, upper in zip(self.buckets, (*LATENCY_BOUNDS, self.longest), strict=True):
            upper = min(upper, self.longest)
            if count and seen + count >= rank:
                return lower + max(0.0, upper - lower) * (rank - seen) / count
            seen += count
            lower = upper
        return self.longest


@dataclass(frozen=True)
class ProtocolStats:
    """Calls of one handler name."""

    name: str
    #: calls that peers make to this one
    incoming: CallStats
    #: calls that this peer makes
    outgoing: CallStats


@dataclass(frozen=True)
class PeerStats:
    """Calls from and to one peer."""

    #: None: all peers together that have no place of their own
    peer_id: PeerID | None
    #: calls that it makes to this one
    incoming: CallStats
    #: calls that this peer makes to it
    outgoing: CallStats
    #: connections made so far, by either side
    connects: int
    #: how it is connected now: "direct", "punched" (directly, by a hole punch), "relayed", or None: it is not
    connection: str | None
    #: it floods this peer and is slowed down (docs/limits.md)
    slowed: bool


@dataclass(frozen=True)
class P2PMetrics:
    """What the daemon has counted since its start. Its tables hold 256 protocols and 1,024 peers; those used least
    recently make room and are then counted together."""

    protocols: Mapping[str, ProtocolStats]
    peers: Mapping[PeerID, PeerStats]
    #: all that have no place of their own (any more)
    other_protocols: ProtocolStats
    other_peers: PeerStats


def _calls(entry: Mapping[str, Any]) -> CallStats:
    return CallStats(
        calls=entry["calls"],
        in_flight=entry["in_flight"],
        bytes_received=entry["received"],
        bytes_sent=entry["sent"],
        errors=dict(entry.get("errors", {})),
        seconds=entry["seconds"],
        longest=entry["longest"],
        buckets=tuple(entry["buckets"]),
    )


def parse_protocol(entry: Mapping[str, Any]) -> ProtocolStats:
    """An entry of the answer of ``protocol_metrics``."""
    return ProtocolStats(entry["name"], _calls(entry["in"]), _calls(entry["out"]))


def parse_peer(entry: Mapping[str, Any]) -> PeerStats:
    """An entry of the answer of ``peer_metrics``."""
    return PeerStats(
        peer_id=None if entry["id"] == OTHER else PeerID.from_base58(entry["id"]),
        incoming=_calls(entry["in"]),
        outgoing=_calls(entry["out"]),
        connects=entry["connects"],
        connection=entry["connection"] or None,
        slowed=entry["slowed"],
    )
