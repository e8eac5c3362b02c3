"""A router that forwards ports to who asks for it: a peer behind it is called from outside as if there was none."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack

import pytest

from tests.support.nat_lab import NatLab
from tests.support.nat_peer import BEHIND_NAT, NatPeer, Place
from tests.support.nat_router import HomeRouter, NatPmpRouter, UpnpRouter
from tests.support.waiting import eventually_sync

#: Seconds in which a peer that ends removes what it has left elsewhere.
SHUTDOWN = 1.0

ROUTERS: dict[str, tuple[str, Callable[..., HomeRouter], dict[str, object]]] = {
    "NAT-PMP": ("NAT-PMP", NatPmpRouter, {"lease": 4.0}),
    "UPnP": ("UPnP", UpnpRouter, {}),
    "UPnP without leases": ("UPnP", UpnpRouter, {"leases": False}),
}


@pytest.mark.parametrize("kind", ROUTERS)
def test_a_port_is_forwarded(lab: NatLab, relays: list[NatPeer], say: Callable[[str], None], kind: str) -> None:
    """Found, used, renewed while the peer runs, and removed when it ends."""
    protocol, router_of, options = ROUTERS[kind]
    number = list(ROUTERS).index(kind)
    home, away = lab.add_site(f"home{number}", "symmetric"), lab.add_site(f"away{number}", "symmetric")
    joined = [address for relay in relays for address in relay.addresses]
    with ExitStack() as stack:
        router = stack.enter_context(router_of(lab, home, **options))
        places = [stack.enter_context(Place(lab, site.peers[0])) for site in (home, away)]
        begun = time.monotonic()
        asking = {**BEHIND_NAT, "nat_port_map": True, "use_auto_relay": False, "initial_peers": joined}
        peer = stack.enter_context(NatPeer(places[0], **asking))
        eventually_sync(lambda: {each for each, _ in router.mapped} == {"tcp", "udp"}, "ports are forwarded")
        mapped = time.monotonic() - begun
        eventually_sync(lambda: peer.reachability().verdict == "public", "others have connected to it")
        public = time.monotonic() - begun
        known = peer.reachability()
        assert known.port_mapping == protocol
        told = {str(each).partition("/p2p")[0] for each in known.addresses if home.public_address in str(each)}
        forwarded = dict(list(router.mapped))
        assert told >= {  # beside those at which others see its own connections
            f"/ip4/{home.public_address}/tcp/{forwarded['tcp']}",
            f"/ip4/{home.public_address}/udp/{forwarded['udp']}/quic-v1",
        }
        caller = stack.enter_context(NatPeer(places[1], initial_peers=joined, **BEHIND_NAT))
        called = caller.call(peer)
        assert all(home.public_address in way for way in caller.ways_to(peer)), caller.ways_to(peer)
        assert len(caller.direct_ways_to(peer)) == len(caller.ways_to(peer)) > 0
        if kind == "NAT-PMP":
            eventually_sync(lambda: router.events["renewed"] >= 4, "leases are renewed")
        assert router.events["expired"] == 0
        ending = time.monotonic()
        places[0].run(peer.p2p.shutdown())
        ended = time.monotonic() - ending
        assert not router.mapped
        assert router.events["removed"] == 2
        assert ended < SHUTDOWN
        say(
            f"{kind}: ports forwarded {mapped:.1f} s after the start, known to be public after {public:.1f} s, first"
            f" call from behind another router {called:.2f} s; ended in {ended:.2f} s"
        )


#: A peer in a process of its own.
_PEER = """
import asyncio
from hivemind.p2p import P2P

async def run():
    peer = await P2P.create(host_maddrs=["/ip4/0.0.0.0/tcp/0", "/ip4/0.0.0.0/udp/0/quic-v1"], startup_timeout=60)
    print("ready", flush=True)
    await asyncio.sleep(600)

asyncio.run(run())
"""


def test_the_ports_of_a_killed_process(lab: NatLab) -> None:
    """Its daemon lives a moment longer, and has the router forward them no more."""
    home = lab.add_site("killed", "symmetric")
    with NatPmpRouter(lab, home) as router:
        command = [*lab.inside(home.peers[0]), sys.executable, "-c", _PEER]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
            try:
                assert process.stdout is not None
                assert process.stdout.readline() == b"ready\n"
                eventually_sync(lambda: {each for each, _ in router.mapped} == {"tcp", "udp"}, "ports are forwarded")
            finally:
                process.kill()
        eventually_sync(lambda: not router.mapped, "nothing is left at the router", seconds=10 * SHUTDOWN)
        assert (router.events["removed"], router.events["expired"]) == (2, 0)
