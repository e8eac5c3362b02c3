"""Who is to be given a record: against a brute-force model of all holders."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from hivemind.dht import DHTID
from hivemind.dht.replication import heirs, is_due
from hivemind.identity import PeerID

REPLICAS = 3
ids = st.integers(0, 63).map(DHTID)
swarms = st.sets(ids, min_size=2, max_size=14)


def peer(node_id: DHTID) -> PeerID:
    return PeerID(b"\x00\x01" + bytes([node_id]))


def holders(key: DHTID, nodes: set[DHTID]) -> set[DHTID]:
    return set(sorted(nodes, key=lambda node: node ^ key)[:REPLICAS])


def known_to(node: DHTID, key: DHTID, nodes: set[DHTID]) -> list[tuple[DHTID, PeerID]]:
    nearest = sorted(nodes - {node}, key=lambda each: each ^ key)[:REPLICAS]
    return [(each, peer(each)) for each in nearest]


@given(ids, swarms, st.data())
def test_when_holders_go_exactly_one_gives_to_each_heir(key: DHTID, nodes: set[DHTID], data: st.DataObject) -> None:
    gone = data.draw(st.sets(st.sampled_from(sorted(nodes)), max_size=len(nodes) - 1))
    living = nodes - gone
    given_to = [
        heir
        for node in holders(key, nodes) & living
        for heir, _ in heirs(key, node, gone, known_to(node, key, living), REPLICAS)
    ]
    expected = holders(key, living) - holders(key, nodes) if holders(key, nodes) & living else set()
    assert sorted(given_to) == sorted(expected)
    bystanders = living - holders(key, nodes)
    assert not any(heirs(key, node, gone, known_to(node, key, living), REPLICAS) for node in bystanders)


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
