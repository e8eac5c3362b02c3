"""One DHT of hivemind 1.1.12 and this library: each reads what the other stored, whoever was the bootstrap peer."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest

from tests.compat.nodes import Node, start_node
from tests.compat.pairs import KINDS, Kind, other
from tests.support.legacy_repeat import LegacyPeers, repeat_on_legacy_fault

#: Up to 10 KB: a call over 16 KiB crosses the pipe between the processes of 1.1.12 in two writes, which ends its DHT.
VALUES: list[Any] = [
    None,
    True,
    -7,
    2**40,
    1.5,
    "text",
    "",
    b"\x00\xffbytes",
    b"",
    [1, [2, "three"], None],
    (1, ("nested", b"tuple"), ()),
    {"key": {"inner": [1.0, (2,)]}, "k": b"v"},
    [(1, "mixed"), {"d": (b"x",)}],
    "long " * 2_000,
]
KEYS: list[Any] = ["text key", b"bytes key", ("tuple", 1), 5, "expert.3.5", ""]
SUBKEYS: list[Any] = ["name", b"raw", 3, -1, ("a", 2), 1.5, True]

LIFETIME = 300.0


@pytest.fixture(params=KINDS)
def bootstrap(request: pytest.FixtureRequest) -> Kind:
    """The kind of the first node, through which the other one joins."""
    kind: Kind = request.param
    return kind


def pair(stack: contextlib.ExitStack, legacy: LegacyPeers, bootstrap: Kind) -> tuple[Node, Node]:
    """Two nodes of different kinds: the bootstrap peer and the one that joined through it."""
    first = stack.enter_context(start_node(bootstrap, legacy, []))
    return first, stack.enter_context(start_node(other(bootstrap), legacy, first.maddrs))


@repeat_on_legacy_fault
def test_plain_values(legacy: LegacyPeers, bootstrap: Kind) -> None:
    """Every type of value and of key, stored by either and read by the other, with its type."""
    with contextlib.ExitStack() as stack:
        nodes = pair(stack, legacy, bootstrap)
        for turn, (writer, reader) in enumerate((nodes, nodes[::-1])):
            for number, value in enumerate(VALUES):
                key = (KEYS[number % len(KEYS)], turn, number)
                assert writer.store(key, value, LIFETIME)
                assert_same(reader.get(key), value)
            for key in KEYS:
                assert writer.store(key, [turn], LIFETIME * (1 + turn))
                assert reader.get(key) == [turn]
            assert reader.get(("missing", turn)) is None


@repeat_on_legacy_fault
def test_a_large_value_of_ours(legacy: LegacyPeers, bootstrap: Kind) -> None:
    """200 KB that this library stored are read by 1.1.12, plain and under a subkey."""
    with contextlib.ExitStack() as stack:
        nodes = pair(stack, legacy, bootstrap)
        ours, theirs = sorted(nodes, key=lambda node: node.kind != "ours")
        value = b"large" * 40_000
        assert ours.store("large", value, LIFETIME)
        assert ours.store("large part", value, LIFETIME, subkey="s")
        assert theirs.get("large") == value
        assert theirs.get("large part") == {"s": value}


@repeat_on_legacy_fault
def test_dictionaries(legacy: LegacyPeers, bootstrap: Kind) -> None:
    """Entries under subkeys of one key, some stored by each, are one dictionary at both."""
    with contextlib.ExitStack() as stack:
        nodes = pair(stack, legacy, bootstrap)
        expected: dict[Any, Any] = {}
        for number, subkey in enumerate(SUBKEYS):
            value = VALUES[number]
            assert nodes[number % 2].store("shared", value, LIFETIME, subkey=subkey)
            expected[subkey] = value
        for node in nodes:
            assert node.get("shared") == expected
            found = {subkey: type(value) for subkey, value in node.get("shared").items()}
            assert found == {subkey: type(value) for subkey, value in expected.items()}


@repeat_on_legacy_fault
def test_newer_wins(legacy: LegacyPeers, bootstrap: Kind) -> None:
    """The later expiration replaces the earlier one, plain and in a dictionary, whoever stored either; the earlier is
    refused."""
    with contextlib.ExitStack() as stack:
        nodes = pair(stack, legacy, bootstrap)
        for turn, (first, second) in enumerate((nodes, nodes[::-1])):
            for subkey in (None, "s"):
                key = ("contested", turn, subkey)
                assert first.store(key, "old", LIFETIME, subkey=subkey)
                assert second.store(key, "new", 2 * LIFETIME, subkey=subkey)
                assert not first.store(key, "older", LIFETIME / 2, subkey=subkey)
                for node in nodes:
                    assert node.get(key) == ("new" if subkey is None else {"s": "new"})


@repeat_on_legacy_fault
def test_a_swarm_of_both(legacy: LegacyPeers, bootstrap: Kind) -> None:
    """Seven nodes, alternating in kind, each joined through the one before: what any stores, every other one reads."""
    with contextlib.ExitStack() as stack:
        nodes: list[Node] = []
        for number in range(7):
            kind = bootstrap if number % 2 == 0 else other(bootstrap)
            if kind == "legacy" and number > 3:
                kind = "ours"
            initial_peers = nodes[-1].maddrs if nodes else []
            nodes.append(stack.enter_context(start_node(kind, legacy, initial_peers)))
        for number, node in enumerate(nodes):
            assert node.store(f"plain {number}", number, LIFETIME)
            assert node.store("members", node.peer_id, LIFETIME, subkey=node.peer_id)
        for node in nodes:
            assert [node.get(f"plain {number}") for number in range(len(nodes))] == list(range(len(nodes)))
            assert node.get("members") == {peer.peer_id: peer.peer_id for peer in nodes}


@repeat_on_legacy_fault
def test_client_mode(legacy: LegacyPeers, bootstrap: Kind) -> None:
    """A client-mode node of either kind stores at and reads from a node of the other, and holds nothing itself."""
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(start_node(bootstrap, legacy, []))
        client = stack.enter_context(start_node(other(bootstrap), legacy, server.maddrs, client_mode=True))
        assert client.store("from client", (1, 2), LIFETIME)
        assert server.get("from client") == (1, 2)
        assert server.store("from server", b"x", LIFETIME, subkey="s")
        assert client.get("from server") == {"s": b"x"}


def assert_same(found: Any, expected: Any) -> None:
    """Equal, also in type: 1 is not True, a list is not a tuple."""
    assert repr(found) == repr(expected)
