"""A peer is cut off without a word: whoever is connected to it notices, and a call that waits for it ends."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

from hivemind.errors import HivemindError
from hivemind.p2p import SwarmKey
from tests.support.nat_lab import PUBLIC, NatLab
from tests.support.nat_peer import NatPeer, Place
from tests.support.waiting import eventually_sync

#: Seconds until the connection is closed, at both ends.
NOTICED = 12.0

KEY = SwarmKey.generate()
#: How the peers are connected: the transport, and options of both.
WAYS: dict[str, tuple[str, dict[str, Any]]] = {
    "TCP, TLS": ("tcp", {}),
    "TCP, noise": ("tcp", {"tls": False}),
    "QUIC": ("udp", {}),
    "a private swarm": ("tcp", {"swarm_key": KEY}),
}


def test_silence_is_noticed(lab: NatLab, say: Callable[[str], None]) -> None:
    """All ways at once."""
    with ExitStack() as stack:
        outside = stack.enter_context(Place(lab, PUBLIC))
        pairs: dict[str, tuple[NatPeer, NatPeer]] = {}
        for number, (way, (transport, options)) in enumerate(WAYS.items()):
            host = lab.add_public_host()
            listen = {"tcp": f"/ip4/{host}/tcp/4001", "udp": f"/ip4/{host}/udp/4001/quic-v1"}[transport]
            common = {"nat_port_map": False, "auto_nat": False, **options}
            callee = stack.enter_context(NatPeer(outside, host_maddrs=[listen], **common))
            callee.host = host
            place = stack.enter_context(Place(lab, lab.add_site(f"silent{number}", "port-restricted").peers[0]))
            anywhere = ["/ip4/0.0.0.0/tcp/0"] if way != "QUIC" else ["/ip4/0.0.0.0/udp/0/quic-v1"]
            joined = {"initial_peers": callee.addresses, "host_maddrs": anywhere}
            caller = stack.enter_context(NatPeer(place, **joined, **common))
            caller.call(callee)
            pairs[way] = caller, callee
        for _, callee in pairs.values():
            lab.cut_public_host(callee.host)
        cut = time.monotonic()

        def notice(way: str) -> tuple[float, float, float]:
            """Seconds until a call ends that was begun at once, and until each end has closed the connection."""
            caller, callee = pairs[way]
            try:
                caller.call(callee, seconds=30.0)
            except HivemindError:
                ended = time.monotonic() - cut
            else:
                raise AssertionError("a call went through where nothing can")
            eventually_sync(lambda: not caller.ways_to(callee), f"{way}: the caller has noticed", seconds=60)
            here = time.monotonic() - cut
            eventually_sync(lambda: not callee.ways_to(caller), f"{way}: the callee has noticed", seconds=60)
            return ended, here, time.monotonic() - cut

        with ThreadPoolExecutor(len(WAYS)) as threads:
            noticed = dict(zip(WAYS, threads.map(notice, WAYS), strict=True))
        for way, (ended, here, there) in noticed.items():
            say(f"{way}: cut off, a call ends after {ended:.1f} s; the ends notice within {here:.1f} and {there:.1f} s")
        assert all(max(seconds) < NOTICED for seconds in noticed.values()), noticed
