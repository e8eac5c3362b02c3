"""Group keys, the walk through the grid, and what a record under a key may hold."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hivemind.averaging.group import GroupInfo
from hivemind.averaging.group_key import (
    GroupKeyManager,
    check_bits,
    check_prefix,
    is_valid_group,
    next_bits,
    peers_by_expiration,
)
from hivemind.errors import ConfigError
from hivemind.identity import PeerID
from hivemind.timed_storage import ValueWithExpiration

PEERS = [PeerID(bytes([0x12, 0x20, *([n] * 32)])) for n in range(16)]


@pytest.mark.parametrize("key", ["pre.0b", "pre.0b0110", "a b.0b1"])
def test_valid_keys(key: str) -> None:
    assert is_valid_group(key)


@pytest.mark.parametrize("key", ["pre.0b2", "pre", "pre.x.0b", ".0b", "pre.0b1\n", "0b1", "pre.0b01 "])
def test_invalid_keys(key: str) -> None:
    assert not is_valid_group(key)


@pytest.mark.parametrize("prefix", ["", "a.b", "a\nb", None, 3])
def test_wrong_prefixes(prefix: object) -> None:
    with pytest.raises(ConfigError, match="prefix"):
        check_prefix(prefix)  # type: ignore[arg-type]


@pytest.mark.parametrize("bits", ["2", "0b1", None, " "])
def test_wrong_bits(bits: object) -> None:
    with pytest.raises(ConfigError, match="group bits"):
        check_bits(bits)  # type: ignore[arg-type]


def test_cells_of_the_wire_format() -> None:
    """Vectors of hivemind 1.1: ``random.Random(group_id).sample(range(cells), group_size)``."""
    group_id = bytes(range(20))
    assert [next_bits("00", group_id, index, 3, 4) for index in range(3)] == ["00", "01", "11"]
    assert [next_bits("0000", bytes(20), index, 5, 16) for index in range(5)] == [
        format(cell, "04b") for cell in (6, 8, 14, 15, 10)
    ]
    # without a target size the cells are the next power of two
    assert [next_bits("00", group_id, index, 3, None) for index in range(3)] == ["00", "01", "11"]


def test_only_as_many_bits_as_before() -> None:
    assert next_bits("1", bytes(range(20)), 2, 3, 4) == "1"
    assert next_bits("10110", bytes(range(20)), 1, 3, 4) == "11001"
    assert next_bits("", bytes(range(20)), 1, 3, 4) == ""


@given(st.binary(min_size=20, max_size=20), st.integers(1, 16), st.none() | st.sampled_from([2, 4, 8, 16]))
def test_members_of_a_group_part(group_id: bytes, size: int, target: int | None) -> None:
    new = [next_bits("0" * 8, group_id, index, size, target) for index in range(size)]
    assert len(set(new)) == size
    assert all(len(bits) == 8 for bits in new)


def test_records_are_read_with_care() -> None:
    entries = {
        PEERS[0].to_bytes(): ValueWithExpiration(True, 10.0),
        PEERS[1].to_bytes(): ValueWithExpiration(False, 11.0),
        PEERS[2].to_bytes(): ValueWithExpiration(True, math.nan),
        b"": ValueWithExpiration(True, 12.0),
        b"x" * 200: ValueWithExpiration(True, 12.0),
        "text": ValueWithExpiration(True, 12.0),
        PEERS[3].to_bytes(): "no entry",
    }
    record = ValueWithExpiration(entries, 12.0)
    assert peers_by_expiration(record, PEERS[5]) == {PEERS[0]: (True, 10.0), PEERS[1]: (False, 11.0)}
    assert peers_by_expiration(record, PEERS[0]) == {PEERS[1]: (False, 11.0)}
    for nothing in (None, ValueWithExpiration("text", 1.0), 5):
        assert peers_by_expiration(nothing) == {}


class FakeDHT:
    """Remembers what is stored; as a DHT, takes only later expirations."""

    def __init__(self) -> None:
        self.entries: dict[str, dict[bytes, ValueWithExpiration[object]]] = {}

    async def store(self, key: str, value: object, expiration_time: float, subkey: object = None) -> bool:
        assert isinstance(subkey, bytes)
        entries = self.entries.setdefault(key, {})
        if subkey in entries and entries[subkey].expiration_time >= expiration_time:
            return False
        entries[subkey] = ValueWithExpiration(value, expiration_time)
        return True

    async def get(self, key: str, latest: bool = False) -> object:
        assert latest
        return ValueWithExpiration(dict(self.entries.get(key, {})), 1e12)


@pytest.mark.asyncio
async def test_declaring_and_retracting() -> None:
    dht = FakeDHT()
    first, second = (GroupKeyManager(dht, "pre", "", None, own=peer) for peer in PEERS[:2])
    key = first.current_key
    assert key == "pre.0b"
    assert await first.declare_averager(key, 4e9)
    assert await second.get_averagers(key) == [(PEERS[0], 4e9)]
    assert await first.get_averagers(key) == []
    assert await first.retract_averager(key, 4e9)
    assert dht.entries[key][PEERS[0].to_bytes()] == (False, math.nextafter(4e9, math.inf))
    assert await second.get_averagers(key) == []
    assert await second.get_averagers(key, only_active=False) == [(PEERS[0], math.nextafter(4e9, math.inf))]
    # a time before that of the retraction would not be taken any more
    again = first.declarable(key, 3.9e9)
    assert again > math.nextafter(4e9, math.inf)
    assert await first.declare_averager(key, again)
    assert await second.get_averagers(key) == [(PEERS[0], again)]


def test_the_retraction_is_the_next_number_of_the_wire_format() -> None:
    assert math.nextafter(100.5, math.inf) == 100.50000000000001


@pytest.mark.asyncio
async def test_moving_to_the_next_cell() -> None:
    managers = [GroupKeyManager(FakeDHT(), "pre", "00", 4, own=peer) for peer in PEERS[:3]]
    group = GroupInfo(bytes(range(20)), tuple(PEERS[:3]), (b"", b"", b""))
    for manager in managers:
        await manager.update_key_on_group_assembled(group)
    assert [manager.current_key for manager in managers] == ["pre.0b00", "pre.0b01", "pre.0b11"]
