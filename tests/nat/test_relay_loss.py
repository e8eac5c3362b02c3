"""A relay dies, or is cut off: the peers behind it take another one, and calls go on."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from itertools import count

import pytest

from tests.support.nat_lab import PUBLIC, NatLab
from tests.support.nat_peer import BEHIND_NAT, Place, first_answer, start_all, start_relays

#: Seconds until calls go on, and until both peers have two relays again.
ANSWERS_AGAIN = {"killed": 5.0, "cut off": 20.0}
RELAYED_AGAIN = {"killed": 15.0, "cut off": 60.0}

_sites = count()


@pytest.mark.parametrize("how", ["killed", "cut off"])
def test_a_relay_is_lost(lab: NatLab, say: Callable[[str], None], how: str) -> None:
    with ExitStack() as stack:
        relays = start_relays(stack, lab, stack.enter_context(Place(lab, PUBLIC)), 6)
        sites = [lab.add_site(f"lost{next(_sites)}", "symmetric") for _ in range(2)]
        places = [stack.enter_context(Place(lab, site.peers[0])) for site in sites]
        joined = [address for relay in relays for address in relay.addresses]
        one, other = start_all(stack, places, initial_peers=joined, **BEHIND_NAT)
        for peer in (one, other):
            peer.await_relays(2)
        first_answer(one, other)
        ways = one.ways_to(other)
        lost = [relay for relay in relays if any(str(relay.id) in way for way in ways)]
        for relay in lost:
            if how == "killed":
                relay.kill()
            else:
                lab.cut_public_host(relay.host)
        answered, failed = first_answer(one, other)
        relayed = [peer.await_relays(2, besides=lost) for peer in (one, other)]
        back, _ = first_answer(other, one)
        say(
            f"relay {how}: calls go on after {answered:.2f} s ({failed} failed), two relays again after another"
            f" {sum(relayed):.2f} s, call back {back:.2f} s"
        )
        assert answered < ANSWERS_AGAIN[how]
        assert sum(relayed) < RELAYED_AGAIN[how]
