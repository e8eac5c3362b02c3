"""Ids, buckets and the routing table, against brute force."""

from __future__ import annotations

import pickle
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hivemind.dht.routing import DHTID, KBucket, RoutingTable
from hivemind.errors import ConfigError, SerializationError
from hivemind.identity import PeerID

KEYS = [
    ("expert.", "18b7483e6b745d431f46ab6597dedb6db6a88e02"),
    (b"expert.", "a723b8a1e902c5d87013e6445c02b4f4ec144057"),
    ("run_progress", "238ce237adb7607e7230e2f38e3399674e67f1b7"),
    ("pre.0b", "d645d99eb891fa6d8b1e57f266793516ddc41f8f"),
    ("pre.all_averagers", "8a2d8641b05f2c0db5ae3cadf97a0ed29b25ae1d"),
    (("a", 1), "edd01de4b5be93353047fae489cc36b2e8f20fb1"),
    (5, "8dc00598417d4eb788a77ac6ccef3cb484905d8b"),
    ("expert.3.", "746a6600bd8abc8d6fcf58cb266f2155f68d73d3"),
    ("expert.3.5", "06cccd6d6fc71d5f136eb80c89518d545b2d9edb"),
]
ids = st.integers(0, DHTID.MAX - 1).map(DHTID)
# many ids that share long prefixes, so that buckets split deep
close_ids = st.builds(lambda high, low: DHTID((high << 140) | low), st.integers(0, 7), st.integers(0, 2**12))


def peer(node_id: DHTID) -> PeerID:
    return PeerID(b"peer of " + node_id.to_bytes())


@pytest.mark.parametrize(("key", "expected"), KEYS)
def test_golden_ids_of_keys(key: Any, expected: str) -> None:
    assert DHTID.generate(source=key).to_bytes().hex() == expected


def test_an_id_is_no_key() -> None:
    with pytest.raises(SerializationError):
        DHTID.generate(source=DHTID(5))


def test_ids_are_20_bytes_and_survive_pickling() -> None:
    assert DHTID(1).to_bytes() == bytes(19) + b"\x01"
    assert DHTID.from_bytes(b"\x01\x00") == 256
    assert type(pickle.loads(pickle.dumps(DHTID(7)))) is DHTID
    assert len({DHTID.generate() for _ in range(100)}) == 100
    for wrong in (-1, DHTID.MAX):
        with pytest.raises(ConfigError, match="160 bits"):
            DHTID(wrong)


@given(ids, st.lists(ids, min_size=1, max_size=5))
def test_distances(one: DHTID, others: list[DHTID]) -> None:
    assert one.xor_distance(others) == [one ^ other for other in others]
    assert one.xor_distance(others[0]) == others[0].xor_distance(one)
    common = DHTID.longest_common_prefix_length(one, *others)
    texts = [f"{each:0160b}" for each in (one, *others)]
    assert all(text[:common] == texts[0][:common] for text in texts)
    assert common == 160 or len({text[common] for text in texts}) == 2


@given(
    ids,
    st.lists(close_ids | ids, max_size=120, unique=True),
    ids,
    st.integers(1, 30),
    st.integers(1, 8),
    st.integers(1, 6),
)
def test_nearest_is_what_brute_force_finds(
    own: DHTID, nodes: list[DHTID], query: DHTID, k: int, bucket_size: int, modulo: int
) -> None:
    table = RoutingTable(own, bucket_size, modulo)
    for node_id in nodes:
        table.add_or_update_node(node_id, peer(node_id))
    members = [node_id for node_id, _ in table]
    excluded = members[0] if members else None
    for exclude in (None, excluded):
        expected = sorted((each for each in members if each != exclude), key=lambda each: each ^ query)[:k]
        found = table.get_nearest_neighbors(query, k, exclude=exclude)
        assert [node_id for node_id, _ in found] == expected
        assert all(peer_id == peer(node_id) for node_id, peer_id in found)
    check_consistent(table)


@settings(max_examples=60)
@given(ids, st.lists(st.tuples(close_ids | ids, st.integers(0, 12), st.booleans()), max_size=150))
def test_table_stays_consistent(own: DHTID, events: list[tuple[DHTID, int, bool]]) -> None:
    """Peers come under changing ids, go, and come back."""
    table = RoutingTable(own, bucket_size=3, depth_modulo=3)
    for node_id, number, goes in events:
        peer_id = PeerID(bytes([number + 1]))
        if goes and peer_id in table:
            del table[table.peer_id_to_uid[peer_id]]
        else:
            table.add_or_update_node(node_id, peer_id)
        check_consistent(table)


def check_consistent(table: RoutingTable) -> None:
    members = dict(table)
    assert members == table.uid_to_peer_id
    assert {peer_id: node_id for node_id, peer_id in members.items()} == table.peer_id_to_uid
    assert table.node_id not in members
    assert table.buckets[0].lower == 0
    assert table.buckets[-1].upper == DHTID.MAX
    for bucket, following in zip(table.buckets, table.buckets[1:], strict=False):
        assert bucket.upper == following.lower
    for bucket in table.buckets:
        assert len(bucket.nodes_to_peer_id) <= bucket.size
        assert len(bucket.replacement_nodes) <= bucket.size
        assert all(bucket.has_in_range(node_id) for node_id in (*bucket.nodes_to_peer_id, *bucket.replacement_nodes))
        assert bucket.nodes_requested_for_ping <= bucket.nodes_to_peer_id.keys()


def test_an_id_is_not_taken_from_the_replacement_that_came_in() -> None:
    """A peer comes under a new id, which was that of the peer who replaces it under the old one."""
    table = RoutingTable(DHTID(16), bucket_size=3, depth_modulo=3)
    for node_id in (0, 2, 3):
        table.add_or_update_node(DHTID(node_id), peer(DHTID(node_id)))
    table.add_or_update_node(DHTID(1), peer(DHTID(1)))
    table.add_or_update_node(DHTID(1), peer(DHTID(0)))
    check_consistent(table)
    assert table.get(node_id=DHTID(1)) == peer(DHTID(1))


def test_full_bucket_keeps_who_is_alive() -> None:
    """The member longest unseen is to be pinged; it is replaced only if it goes."""
    table = RoutingTable(DHTID(0), bucket_size=2, depth_modulo=1)
    far = [DHTID((1 << 159) + n) for n in range(4)]
    near = DHTID(1)
    for node_id in (near, far[0], far[1]):
        assert table.add_or_update_node(node_id, peer(node_id)) is None
    assert table.add_or_update_node(far[2], peer(far[2])) == (far[0], peer(far[0]))
    assert far[2] not in table
    # asked already: the next in line
    assert table.add_or_update_node(far[3], peer(far[3])) == (far[1], peer(far[1]))
    table.add_or_update_node(far[0], peer(far[0]))  # it answered
    del table[far[1]]  # it did not
    assert far[0] in table
    assert far[3] in table, "the replacement heard of last takes the place"
    assert near in table


def test_an_id_is_not_taken_from_its_holder() -> None:
    table = RoutingTable(DHTID(0), 20, 5)
    first, second = PeerID(b"first"), PeerID(b"second")
    table.add_or_update_node(DHTID(9), first)
    table.add_or_update_node(DHTID(9), second)
    assert table.get(node_id=DHTID(9)) == first
    assert table.get(peer_id=second) is None


def test_a_peer_has_one_id() -> None:
    table = RoutingTable(DHTID(0), 20, 5)
    restarted = PeerID(b"restarted")
    for n in range(1, 100):
        table.add_or_update_node(DHTID(n), restarted)
    assert list(table) == [(DHTID(99), restarted)]


def test_bucket_splits_into_halves() -> None:
    bucket = KBucket(0, 16, 4)
    for n in (1, 8, 15):
        bucket.add_or_update_node(DHTID(n), peer(DHTID(n)))
    left, right = bucket.split()
    assert (list(left.nodes_to_peer_id), list(right.nodes_to_peer_id)) == ([1], [8, 15])
    assert left.depth == right.depth == 1
