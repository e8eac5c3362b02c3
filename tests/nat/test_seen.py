"""What a peer finds out about the ways to itself behind each kind of router, and what its user is told."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator

import pytest

from tests.support.nat_lab import KINDS, NatLab
from tests.support.nat_peer import BEHIND_NAT, NatPeer, Place
from tests.support.waiting import eventually_sync

#: The type of the NAT by how it maps ports; which packets it lets in, nobody can see from inside.
SEEN = {"none": "none", "full cone": "cone", "port-restricted": "cone", "symmetric": "symmetric"}


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> Iterator[Callable[[], list[str]]]:
    """What users are told."""
    with caplog.at_level(logging.INFO, logger="hivemind"):
        yield lambda: [record.getMessage() for record in caplog.records if record.name == "hivemind.p2p.reach_watch"]


@pytest.mark.parametrize("transport", ["tcp", "udp"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_type_of_the_router(
    lab: NatLab, relays: list[NatPeer], kind: str, transport: str, lines: Callable[[], list[str]]
) -> None:
    site = lab.add_site(f"{transport}{list(KINDS).index(kind)}", kind)
    joined = [address for relay in relays for address in relay.addresses if f"/{transport}/" in address]
    hosts = [each for each in BEHIND_NAT["host_maddrs"] if f"/{transport}/" in each]
    options = {**BEHIND_NAT, "initial_peers": joined, "host_maddrs": hosts}
    with Place(lab, site.peers[0]) as place, NatPeer(place, **options) as peer:

        def seen() -> str:
            return str(getattr(peer.reachability(), f"nat_of_{transport}"))

        eventually_sync(lambda: seen() != "unknown", f"{kind} is recognised")
        known = peer.reachability()
        assert seen() == SEEN[kind], known.observed
        assert known.farthest_peer == "internet"
        assert site.public_address in str(next(iter(known.observed)))
        if kind == "none":
            eventually_sync(lambda: peer.reachability().verdict == "public", "others connect to it")
            eventually_sync(lambda: any("connect to this one directly" in line for line in lines()), "its user is told")
        elif kind == "full cone":  # lets everybody in once a port is mapped: that may be found before there are relays
            ways = ("connect to this one directly", "reached through")
            eventually_sync(lambda: any(way in line for line in lines() for way in ways), "its user is told")
        else:
            peer.await_relays()
            eventually_sync(lambda: any("reached through" in line for line in lines()), "its user is told")


def test_a_peer_on_loopback_is_warned(lab: NatLab, relays: list[NatPeer], lines: Callable[[], list[str]]) -> None:
    """The default of hivemind 1.1, and why its quickstart between two machines fails without a word."""
    site = lab.add_site("loop", "none")
    options = {"initial_peers": relays[0].addresses, "nat_port_map": False}
    with Place(lab, site.peers[0]) as place, NatPeer(place, **options) as peer:
        assert peer.reachability().farthest_peer == "internet"
        eventually_sync(lambda: any("only programs on this machine" in line for line in lines()), "its user is warned")
        assert "host_maddrs=['/ip4/0.0.0.0/tcp/0']" in " ".join(lines())


def test_a_peer_that_nobody_reaches_is_warned(
    lab: NatLab, relays: list[NatPeer], lines: Callable[[], list[str]]
) -> None:
    site = lab.add_site("lost", "port-restricted")
    joined = [address for relay in relays for address in relay.addresses]
    options = {**BEHIND_NAT, "use_auto_relay": False, "initial_peers": joined}
    words = ("only machines of the same network can call", "other peers cannot connect to this one (tried:")
    with Place(lab, site.peers[0]) as place, NatPeer(place, **options):
        eventually_sync(
            lambda: any(word in line for line in lines() for word in words), "its user is warned", seconds=90
        )
        assert "use_auto_relay=True" in " ".join(lines())
