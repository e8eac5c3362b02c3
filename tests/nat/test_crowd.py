"""Many peers behind one router: limits by address are far from them."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

from tests.support.nat_lab import NatLab
from tests.support.nat_peer import BEHIND_NAT, NatPeer, Place, start_all

CROWD = 24


def test_a_crowd_behind_one_router_joins_and_is_called(
    lab: NatLab, relays: list[NatPeer], say: Callable[[str], None]
) -> None:
    """All of them by one relay, at the same time, called from behind another router."""
    crowded, outside = lab.add_site("crowd", "port-restricted", peers=2), lab.add_site("outside", "symmetric")
    with ExitStack() as stack:
        homes = [stack.enter_context(Place(lab, place)) for place in crowded.peers]
        places = [homes[each % len(homes)] for each in range(CROWD)]
        begun = time.monotonic()
        crowd = start_all(stack, places, initial_peers=relays[0].addresses, **BEHIND_NAT)
        for peer in crowd:
            peer.await_relays()
        joined = time.monotonic() - begun
        elsewhere = stack.enter_context(Place(lab, outside.peers[0]))
        caller = stack.enter_context(NatPeer(elsewhere, initial_peers=relays[0].addresses, **BEHIND_NAT))
        caller.await_relays()
        with ThreadPoolExecutor(CROWD) as threads:
            seconds = list(threads.map(caller.call, crowd))
            back = list(threads.map(lambda peer: peer.call(caller), crowd))
        say(
            f"{CROWD} peers behind one router: all joined and relayed after {joined:.1f} s; first calls of all at once"
            f" {min(seconds):.2f} to {max(seconds):.2f} s, and back {min(back):.2f} to {max(back):.2f} s"
        )
