"""A peer's address changes while others call it: it is reached by its id again."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

from tests.support.nat_lab import NatLab, Site
from tests.support.nat_peer import BEHIND_NAT, NatPeer, Place, first_answer, start_all

#: Seconds until it is reached again.
REACHED_AGAIN = 20.0

MOVES: dict[str, tuple[str, Callable[[Site], None]]] = {
    "of a peer in its network": ("port-restricted", lambda site: site.change_address(0)),
    "of a router": ("port-restricted", lambda site: site.change_public_address()),
    "of a public peer": ("none", lambda site: site.change_public_address()),
}


def test_addresses_change(lab: NatLab, relays: list[NatPeer], say: Callable[[str], None]) -> None:
    """All kinds of changes at once, each peer with a caller of its own that is connected to it."""
    with ExitStack() as stack:
        moving = [lab.add_site(f"move{each}", kind) for each, (kind, _) in enumerate(MOVES.values())]
        still = [lab.add_site(f"still{each}", "symmetric") for each in range(len(MOVES))]
        places = [stack.enter_context(Place(lab, site.peers[0])) for site in (*moving, *still)]
        joined = [address for relay in relays for address in relay.addresses]
        peers = start_all(stack, places, initial_peers=joined, **BEHIND_NAT)
        for peer in peers:
            peer.await_reachable()
        movers, callers = peers[: len(MOVES)], peers[len(MOVES) :]
        for caller, mover in zip(callers, movers, strict=True):
            first_answer(caller, mover)
        for (_, change), site in zip(MOVES.values(), moving, strict=True):
            change(site)

        def call_again(caller: NatPeer, mover: NatPeer) -> tuple[float, int]:
            return first_answer(caller, mover, seconds=REACHED_AGAIN)

        with ThreadPoolExecutor(len(MOVES)) as threads:
            again = list(threads.map(call_again, callers, movers))
            back = list(threads.map(call_again, movers, callers))
        for what, (seconds, failed), (more, _) in zip(MOVES, again, back, strict=True):
            say(
                f"the address {what} changes: it is called again after {seconds:.1f} s ({failed} calls failed before),"
                f" and calls again after another {more:.1f} s"
            )
