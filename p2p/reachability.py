"""Whether and how other peers reach this one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
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
    #: the NAT between this peer and the internet, for TCP and for UDP (RFC 4787, section 4.1). "none": there is no
    #: translation; "cone": all peers see the same address, so that holes can be punched; "symmetric": each sees another
    #: one; "unknown": fewer than two peers of the internet have been called
    nat_of_tcp: str = "unknown"
    nat_of_udp: str = "unknown"
    #: addresses at which connected peers see this one, with the number of those that do, the most first
    observed: Mapping[Multiaddr, int] = field(default_factory=dict)
    #: where the farthest peer so far was: on this "machine", in its "network" or on the "internet"; "" = there was none
    farthest_peer: str = ""
    #: the protocol by which the router forwards ports to this peer, "NAT-PMP" or "UPnP"; "" = none does
    port_mapping: str = ""


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
        nat_of_tcp=answer["nat"]["tcp"],
        nat_of_udp=answer["nat"]["udp"],
        observed={Multiaddr(each["addr"]): each["peers"] for each in answer["observed"]},
        farthest_peer=answer["widest"],
        port_mapping=answer["mapped_by"],
    )
