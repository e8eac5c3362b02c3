"""Whether and how other peers reach this one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from multiaddr import Multiaddr

from hivemind.identity import PeerID

__all__ = ["Reachability", "RelayInUse", "parse_reachability"]


@dataclass(frozen=True)
class RelayInUse:
    """A relay that takes calls for this peer. A circuit ends at its limits, and the next call makes another."""

    peer_id: PeerID
    #: seconds that one circuit may last; 0 = no limit
    seconds: float
    #: bytes that one circuit carries each way; 0 = no limit
    bytes: int


@dataclass(frozen=True)
class Reachability:
    """What a peer knows of the ways to itself."""

    #: "public": others connect to it by themselves; "private": they do not; "unknown": not found out yet
    verdict: str
    #: the verdict is the option ``force_reachability``
    forced: bool
    #: relays through which it is reached
    relays: tuple[RelayInUse, ...]
    #: advertised addresses; each "public" or "private" as found by peers that dialled it, "relayed", "unknown", or
    #: "local" for one that only this machine or network can use
    addresses: Mapping[Multiaddr, str]
    #: connected peers: directly, those of them by a hole punched through both routers, and only through a relay
    direct_peers: int
    punched_peers: int
    relayed_peers: int


def parse_reachability(answer: Mapping[str, Any]) -> Reachability:
    """The answer of the control request of that name."""
    return Reachability(
        verdict=answer["verdict"],
        forced=answer["forced"],
        relays=tuple(
            RelayInUse(PeerID.from_base58(each["id"]), each["seconds"], each["bytes"]) for each in answer["relays"]
        ),
        addresses={Multiaddr(each["addr"]): each["state"] for each in answer["addrs"]},
        direct_peers=answer["peers"]["direct"],
        punched_peers=answer["peers"]["punched"],
        relayed_peers=answer["peers"]["relayed"],
    )
