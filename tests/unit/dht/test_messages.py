"""The messages of the DHT: golden bytes of hivemind 1.1, batches that fit one message, hostile input."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hivemind.clock import get_dht_time
from hivemind.dht.messages import drop_invalid, parse_found, parse_id, parse_neighbors, parse_record, store_requests
from hivemind.dht.records import IS_DICTIONARY, IS_REGULAR_VALUE, MAX_NEIGHBORS, MAX_RECORD_BYTES
from hivemind.dht.routing import DHTID
from hivemind.dht.storage import DHTLocalStorage, DictionaryDHTValue
from hivemind.dht.validation import DHTRecord, RecordValidatorBase
from hivemind.errors import ConfigError, ProtocolViolation
from hivemind.identity import PeerID
from hivemind.proto import dht_pb2
from hivemind.serializer import MSGPackSerializer

KEY = DHTID.generate("key")
SOON = 4e9


def dictionary_of(**entries: bytes) -> DictionaryDHTValue:
    dictionary = DictionaryDHTValue()
    for subkey, value in entries.items():
        dictionary.store(subkey, value, SOON)
    return dictionary


def test_golden_ping() -> None:
    request = dht_pb2.PingRequest(peer=dht_pb2.NodeInfo(node_id=b"\x01" * 20), validate=True)
    assert request.SerializeToString().hex() == "1216" + "0a14" + "01" * 20 + "1801"


def test_golden_store() -> None:
    request = dht_pb2.StoreRequest(
        keys=[b"k"],
        subkeys=[IS_DICTIONARY],
        values=[b"v"],
        expiration_time=[1.0],
        in_cache=[False],
        peer=dht_pb2.NodeInfo(),
    )
    assert request.SerializeToString().hex() == "12016b1a002201762a08000000000000f03f3201003a00"


def test_forms_of_stored_values() -> None:
    whole = dictionary_of(a=b"1")
    (request,) = store_requests([KEY] * 3, [b"plain", b"entry", whole], [1.0, 2.0, 3.0], [None, "a", None], None)
    assert list(request.keys) == [KEY.to_bytes()] * 3
    assert list(request.subkeys) == [b"\xc0", b"\xa1a", b""]
    assert list(request.values) == [b"plain", b"entry", MSGPackSerializer.dumps(whole)]
    assert list(request.expiration_time) == [1.0, 2.0, 3.0]
    assert list(request.in_cache) == [False] * 3


@pytest.mark.parametrize(
    ("values", "expirations", "subkeys", "in_cache", "name"),
    [
        ([b"1"], 1.0, None, None, "values"),
        ([b"1", b"2"], [1.0], None, None, "expiration_time"),
        ([b"1", b"2"], 1.0, ["a"], None, "subkeys"),
        ([b"1", b"2"], 1.0, None, [True], "in_cache"),
    ],
)
def test_sequences_belong_together(values, expirations, subkeys, in_cache, name) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ConfigError, match=name):
        list(store_requests([KEY, KEY], values, expirations, subkeys, in_cache))


def test_large_stores_travel_in_several_messages() -> None:
    sizes = [700_000] * 8 + [MAX_RECORD_BYTES] + [10] * 20_000
    requests = list(store_requests([KEY] * len(sizes), [bytes(size) for size in sizes], SOON, None, True))
    assert [len(value) for request in requests for value in request.values] == sizes
    assert all(request.ByteSize() < 4 * 1024 * 1024 - 4096 for request in requests)
    assert all(all(request.in_cache) for request in requests)


@given(st.binary(max_size=25))
def test_ids_have_160_bits(raw: bytes) -> None:
    if len(raw) <= 20:
        assert parse_id(raw) == int.from_bytes(raw, "big")
    else:
        with pytest.raises(ProtocolViolation):
            parse_id(raw)


class Refuses(RecordValidatorBase):
    def __init__(self, value: bytes) -> None:
        self.value = value

    def validate(self, record: DHTRecord) -> bool:
        assert record.value != b"bug in a validator"
        return record.value != self.value


def stored(
    *wire: tuple[bytes, bytes], validator: RecordValidatorBase | None = None
) -> tuple[list[bool], DHTLocalStorage]:
    storage = DHTLocalStorage()
    records = [parse_record(KEY, subkey, value, SOON) for subkey, value in wire]
    asyncio.run(drop_invalid(records, validator))
    return [record.store_in(storage) for record in records], storage


def test_incoming_records() -> None:
    whole = MSGPackSerializer.dumps(dictionary_of(b=b"2", c=b"3"))
    ok, storage = stored((b"\xa1a", b"1"), (IS_DICTIONARY, whole), (b"\xa1a", b"again"))
    assert ok == [True, True, False]
    found = storage.get(KEY)
    assert found is not None
    assert {subkey: value for subkey, (value, _) in found.value.items()} == {"a": b"1", "b": b"2", "c": b"3"}  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("subkey", "value"),
    [
        (IS_DICTIONARY, b""),
        (IS_DICTIONARY, b"\x01"),
        (IS_DICTIONARY, b"\xc1garbage"),
        (b"\xc1", b"1"),
        (b"\x90", b"1"),
        (b"\xa5ab", b"1"),
        (IS_REGULAR_VALUE, bytes(MAX_RECORD_BYTES + 1)),
    ],
)
def test_malformed_incoming_records_are_refused_alone(subkey: bytes, value: bytes) -> None:
    ok, storage = stored((subkey, value), (b"\xa1a", b"good"))
    assert ok == [False, True]
    assert len(storage) == 1


@given(st.binary(max_size=60), st.binary(max_size=120), st.floats())
def test_garbage_records_are_refused_or_stored(subkey: bytes, value: bytes, expiration: float) -> None:
    record = parse_record(KEY, subkey, value, expiration)
    record.valid = [True] * len(record.checked)
    record.store_in(DHTLocalStorage())


def test_validators_refuse_single_entries_of_what_is_stored() -> None:
    whole = MSGPackSerializer.dumps(dictionary_of(a=b"1", b=b"bad", c=b"bug in a validator"))
    ok, storage = stored((IS_DICTIONARY, whole), (IS_REGULAR_VALUE, b"bad"), validator=Refuses(b"bad"))
    assert ok == [False, False]
    found = storage.get(KEY)
    assert found is not None
    assert [subkey for subkey, _ in found.value.items()] == ["a"]  # type: ignore[union-attr]


def test_many_records_are_checked_in_order() -> None:
    wire = [(MSGPackSerializer.dumps(f"p{n}"), b"bad" if n % 3 == 0 else b"good") for n in range(100)]
    ok, _ = stored(*wire, validator=Refuses(b"bad"))
    assert ok == [n % 3 != 0 for n in range(100)]


def found(result: dht_pb2.FindResult, validator: RecordValidatorBase | None = None) -> object:
    return asyncio.run(parse_found(KEY, result, validator, {}))


def test_found_values() -> None:
    assert found(dht_pb2.FindResult(type=dht_pb2.NOT_FOUND)) is None
    plain = dht_pb2.FindResult(type=dht_pb2.FOUND_REGULAR, value=b"v", expiration_time=SOON)
    assert found(plain) == (b"v", SOON)
    assert found(plain, Refuses(b"v")) is None
    whole = MSGPackSerializer.dumps(dictionary_of(a=b"1", b=b"2"))
    result = dht_pb2.FindResult(type=dht_pb2.FOUND_DICTIONARY, value=whole, expiration_time=SOON)
    value = found(result)
    assert value is not None
    assert found(result, Refuses(b"2")) is None, "one bad entry spoils the dictionary"


@pytest.mark.parametrize("expiration", [0.0, -1.0, float("nan"), float("-inf")])
@pytest.mark.parametrize("kind", [dht_pb2.FOUND_REGULAR, dht_pb2.FOUND_DICTIONARY])
def test_expired_values_are_not_found(kind: dht_pb2.ResultType, expiration: float) -> None:
    assert found(dht_pb2.FindResult(type=kind, value=b"v", expiration_time=expiration)) is None


@given(st.integers(0, 5), st.binary(max_size=80), st.floats())
def test_garbage_results_are_not_found_or_values(kind: int, value: bytes, expiration: float) -> None:
    result = dht_pb2.FindResult(value=value, expiration_time=expiration)
    result.type = kind  # type: ignore[assignment]
    answer = found(result)
    assert answer is None or (isinstance(answer, tuple) and answer[1] >= get_dht_time() - 60)


@given(st.lists(st.binary(max_size=24), max_size=8), st.lists(st.binary(max_size=70), max_size=8))
def test_neighbours_from_garbage(raw_ids: list[bytes], raw_peers: list[bytes]) -> None:
    result = dht_pb2.FindResult(nearest_node_ids=raw_ids, nearest_peer_ids=raw_peers)
    for node_id, peer_id in parse_neighbors(result, (DHTID(0), PeerID(b"self"))).items():
        assert node_id != 0
        assert peer_id != PeerID(b"self")


def test_self_is_no_neighbour() -> None:
    result = dht_pb2.FindResult(
        nearest_node_ids=[DHTID(n).to_bytes() for n in (1, 2, 3)], nearest_peer_ids=[b"self", b"other", b"third"]
    )
    assert parse_neighbors(result, (DHTID(2), PeerID(b"self"))) == {DHTID(3): PeerID(b"third")}


def test_neighbors_are_bounded() -> None:
    many = [DHTID(n).to_bytes() for n in range(1, 5000)]
    result = dht_pb2.FindResult(nearest_node_ids=many, nearest_peer_ids=many)
    assert list(parse_neighbors(result, (DHTID(0), None))) == list(range(1, MAX_NEIGHBORS + 1))
