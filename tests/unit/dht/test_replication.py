"""Who is to be given a record: against a brute-force model of all holders."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from hivemind.dht import DHTID
from hivemind.dht.replication import NEGLECT_SECONDS, heirs, is_due
from hivemind.identity import PeerID

REPLICAS = 3
ids = st.integers(0, 63).map(DHTID)
swarms = st.sets(ids, min_size=2, max_size=14)


def peer(node_id: DHTID) -> PeerID:
    return PeerID(b"\x00\x01" + bytes([node_id]))


def holders(key: DHTID, nodes: set[DHTID]) -> set[DHTID]:
    return set(sorted(nodes, key=lambda node: node ^ key)[:REPLICAS])


def known_to(node: DHTID, key: DHTID, nodes: set[DHTID]) -> list[tuple[DHTID, PeerID]]:
    nearest = sorted(nodes - {node}, key=lambda each: each ^ key)[: 2 * REPLICAS]
    return [(each, peer(each)) for each in nearest]


@given(ids, swarms, st.data())
def test_when_holders_go_exactly_one_gives_to_each_heir(key: DHTID, nodes: set[DHTID], data: st.DataObject) -> None:
    gone = dict.fromkeys(data.draw(st.sets(st.sampled_from(sorted(nodes)), max_size=len(nodes) - 1)), 100.0)
    living = nodes - gone.keys()
    met = dict.fromkeys(living, 0.0)
    given_to = [
        heir
        for node in holders(key, nodes) & living
        for heir, _ in heirs(key, node, gone, known_to(node, key, living), met, REPLICAS)
    ]
    expected = holders(key, living) - holders(key, nodes) if holders(key, nodes) & living else set()
    assert sorted(given_to) == sorted(expected)
    bystanders = living - holders(key, nodes)
    assert not any(heirs(key, node, gone, known_to(node, key, living), met, REPLICAS) for node in bystanders)


@given(ids, swarms, st.data())
def test_newcomers_that_the_dead_should_have_greeted_are_heirs(
    key: DHTID, nodes: set[DHTID], data: st.DataObject
) -> None:
    """The nearest holder dies, and others come before anybody notices: none of them was given the key."""
    nearest = min(nodes, key=lambda node: node ^ key)
    newcomers = data.draw(st.sets(ids.filter(lambda each: each not in nodes), max_size=REPLICAS))
    living = (nodes - {nearest}) | newcomers
    heard = 100.0
    met = dict.fromkeys(living, 0.0) | dict.fromkeys(newcomers, heard - NEGLECT_SECONDS / 2)
    left = holders(key, nodes) - {nearest}
    givers = {node: heirs(key, node, {nearest: heard}, known_to(node, key, living), met, REPLICAS) for node in left}
    given_to = [heir for heirs_of_one in givers.values() for heir, _ in heirs_of_one]
    assert sorted(given_to) == sorted(holders(key, living) - left if left else set())
    # to those who came in good time the dead one gave what they should hold: who is nearest now is in charge
    early = dict.fromkeys(living, 0.0)
    in_charge = min(living, key=lambda node: node ^ key)
    for node in left - {in_charge}:
        assert not heirs(key, node, {nearest: heard}, known_to(node, key, living), early, REPLICAS)


@given(ids, swarms, ids)
def test_a_newcomer_is_given_what_it_should_hold_by_one_node(key: DHTID, nodes: set[DHTID], newcomer: DHTID) -> None:
    nodes -= {newcomer}
    givers = [node for node in nodes if is_due(key, newcomer, node, known_to(node, key, nodes), REPLICAS)]
    if not nodes:
        return
    nearest = min(nodes, key=lambda node: node ^ key)
    due = newcomer in holders(key, nodes | {newcomer})
    if due:
        assert nearest in givers
    assert set(givers) <= {nearest}
