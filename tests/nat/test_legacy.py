"""A peer of hivemind 1.1.12 and two of this library behind a router each, and relays of this library."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from tests.compat.service import Arithmetic, call
from tests.support.legacy import LegacyMissing, LegacyNursery, find_legacy_python
from tests.support.nat_lab import PUBLIC, NatLab
from tests.support.nat_peer import BEHIND_NAT, Place, start_all, start_relays
from tests.support.waiting import eventually_sync

#: 1.1.12 looks for 3 minutes whether it finds so many relays before it is content with fewer.
RELAYS = 4


@pytest.fixture
def nursery() -> Iterator[LegacyNursery]:
    try:
        find_legacy_python()
    except LegacyMissing as reason:
        pytest.skip(str(reason))
    nursery = LegacyNursery()
    yield nursery
    nursery.close()


def test_both_call_each_other_by_their_ids(lab: NatLab, nursery: LegacyNursery) -> None:
    with ExitStack() as stack:
        relays = start_relays(stack, lab, stack.enter_context(Place(lab, PUBLIC)), RELAYS)
        joined = [address for relay in relays for address in relay.addresses if "/tcp/" in address]
        ours = [lab.add_site(f"ours{each}", "symmetric") for each in range(2)]
        theirs = lab.add_site("theirs", "port-restricted")

        legacy = nursery.spawn()
        stack.callback(legacy.close)
        legacy.call("enter_namespace", namespace=lab.namespace(theirs.peers[0]))
        options: dict[str, Any] = {"host_maddrs": ["/ip4/0.0.0.0/tcp/0"], "use_auto_relay": True}
        options |= {"trusted_relays": joined, "force_reachability": "private"}
        legacy_id = legacy.call("p2p_start", name="p", initial_peers=joined, **options)["peer_id"]
        legacy.call("service_start", name="p")

        places = [stack.enter_context(Place(lab, site.peers[0])) for site in ours]
        caller, callee = start_all(stack, places, initial_peers=joined, **BEHIND_NAT)
        callee.place.run(Arithmetic().add_p2p_handlers(callee.p2p))
        for peer in (caller, callee):
            peer.await_relays()

        def legacy_answers() -> bool:
            return bool(caller.place.run(call(caller.p2p, legacy_id, "square", 5)) == 25)

        def legacy_is_answered() -> bool:
            asked = {"name": "p", "peer_id": str(callee.id), "method": "square", "argument": 6}
            return bool(legacy.call("service_call", **asked) == 36)

        eventually_sync(legacy_answers, "1.1.12 answers")
        eventually_sync(legacy_is_answered, "1.1.12 is answered")
