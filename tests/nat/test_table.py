"""Every kind of router against every other: each peer calls each by its id alone, directly where that can be."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from tests.support.nat_lab import KINDS, NatLab
from tests.support.nat_peer import BEHIND_NAT, NatPeer, Place, start_all
from tests.support.waiting import eventually_sync

#: How two peers are connected in the end. "direct": one has a public address, or they share a router. "punched": both
#: routers were made to expect the other. "relayed": one router has another port for each destination, and the other
#: lets in only the ports that it was told of, which nobody can know beforehand.
DIRECT, PUNCHED, RELAYED = "direct", "punched", "relayed"
#: Seconds in which a connection that was relayed at first is direct.
SOON = 15.0
SAME_ROUTER = ("same router", "same router")
PAIRS = [SAME_ROUTER, *((caller, callee) for caller in KINDS for callee in KINDS)]


def expected(one: str, other: str) -> str:
    kinds = {one, other}
    if kinds & {"none", "same router"}:
        return DIRECT
    return RELAYED if "symmetric" in kinds and "full cone" not in kinds else PUNCHED


class Table:
    """Two peers behind routers of each kind and two behind the same, and lines of what was measured."""

    def __init__(self, lab: NatLab, inside: Callable[[str], Place], relays: list[NatPeer], stack: ExitStack) -> None:
        sites = [lab.add_site("shared", "port-restricted", peers=2)]
        sites += [lab.add_site(f"{kind[:4].strip()}{each}", kind) for kind in KINDS for each in range(2)]
        places = [inside(place) for site in sites for place in site.peers]
        joined = [address for relay in relays for address in relay.addresses]
        # as clients of the routing they meet nobody before they are called
        peers = start_all(stack, places, initial_peers=joined, dht_mode="client", **BEHIND_NAT)
        kinds = ["same router", *KINDS]
        self._peers = {kind: (peers[2 * each], peers[2 * each + 1]) for each, kind in enumerate(kinds)}
        self.lines: list[tuple[str, str, str, str, str]] = []
        for peer in peers:
            peer.await_reachable()

    def pair(self, caller: str, callee: str) -> tuple[NatPeer, NatPeer]:
        """Peers that no other pair consists of."""
        if caller == callee:
            return self._peers[caller]
        which = 0 if list(KINDS).index(caller) < list(KINDS).index(callee) else 1
        return self._peers[caller][which], self._peers[callee][which]

    def __str__(self) -> str:
        head = ("caller behind", "callee behind", "first call", "connected", "direct after")
        return "\n".join("| {:<15} | {:<15} | {:>10} | {:<9} | {:>12} |".format(*line) for line in (head, *self.lines))


@pytest.fixture(scope="module")
def table(
    lab: NatLab,
    inside: Callable[[str], Place],
    relays: list[NatPeer],
    cleanup: ExitStack,
    say: Callable[[str], None],
) -> Iterator[Table]:
    table = Table(lab, inside, relays, cleanup)
    yield table
    say(f"\n{table}\n")


@pytest.mark.parametrize("kinds", PAIRS, ids=" to ".join)
def test_two_peers_reach_each_other(table: Table, kinds: tuple[str, str]) -> None:
    caller, callee = table.pair(*kinds)
    assert not caller.ways_to(callee), "they have met before"
    begun = time.monotonic()
    first = caller.call(callee)
    way, after = expected(*kinds), ""
    if way == RELAYED:
        assert not caller.direct_ways_to(callee)
    else:
        eventually_sync(lambda: caller.direct_ways_to(callee), f"{way} connection", seconds=SOON)
        after = f"{time.monotonic() - begun:.2f} s"
    callee.call(caller)
    table.lines.append((*kinds, f"{first:.2f} s", way, after))
