"""What a node keeps: the rules of hivemind 1.1 (without its bug), golden blobs, and bounds."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hivemind.clock import get_dht_time, simulated_time
from hivemind.dht import storage as storage_module
from hivemind.dht.records import MAX_ENTRIES
from hivemind.dht.routing import DHTID
from hivemind.dht.storage import DHTLocalStorage, DictionaryDHTValue
from hivemind.errors import ConfigError, SerializationError
from hivemind.serializer import MSGPackSerializer
from hivemind.timed_storage import TimedStorage, ValueWithExpiration

KEY = DHTID(5)


class Clock:
    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


@pytest.fixture
def clock() -> Iterator[Clock]:
    clock = Clock()
    with simulated_time(clock):
        yield clock


def after(seconds: float) -> float:
    return get_dht_time() + seconds


# -- timed storage -------------------------------------------------------------------------------------------------


def test_newer_wins_and_equal_is_refused(clock: Clock) -> None:
    kept: TimedStorage[str, int] = TimedStorage()
    assert kept.store("k", 1, after(10))
    assert not kept.store("k", 2, after(10))
    assert not kept.store("k", 2, after(5))
    assert kept.get("k") == (1, after(10))
    assert kept.store("k", 3, after(11))
    assert not kept.store("old", 1, after(-1))
    assert not kept.store("nan", 1, float("nan"))
    assert kept.store("for ever", 1, float("inf"))


def test_refused_store_does_not_hasten_the_end(clock: Clock) -> None:
    """In hivemind 1.1 a refused older expiration evicts the newer entry early."""
    kept: TimedStorage[str, int] = TimedStorage()
    kept.store("k", 1, after(10))
    kept.store("k", 2, after(5))
    clock.seconds = 7
    assert len(kept) == 1
    assert "k" in kept
    clock.seconds = 10.5
    assert not kept
    assert kept.get("k") is None


def test_the_soonest_to_expire_go_from_a_full_storage(clock: Clock) -> None:
    kept: TimedStorage[int, int] = TimedStorage(maxsize=3)
    for n in (5, 1, 4, 2):
        kept.store(n, n, after(n))
    assert sorted(kept) == [2, 4, 5]
    assert kept.top() == (2, (2, after(2)))
    assert not kept.store(0, 0, after(1)), "it would be the first to go"
    with pytest.raises(ConfigError, match="maxsize"):
        TimedStorage(maxsize=-1)


def test_frozen_storage_keeps_all(clock: Clock) -> None:
    kept: TimedStorage[int, int] = TimedStorage()
    kept.store(1, 1, after(1))
    clock.seconds = 5
    with kept.freeze():
        assert kept.get(1) == (1, after(-4))
        assert len(kept) == 1
    assert len(kept) == 0


def test_refreshing_a_key_for_ever_costs_no_memory(clock: Clock) -> None:
    kept: TimedStorage[str, int] = TimedStorage()
    for n in range(5000):
        kept.store("k", n, after(10 + n))
    assert len(kept._heap) < 100
    clock.seconds = 5008
    assert kept.get("k") == (4999, after(1))


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 30), st.integers(0, 3)), max_size=60), st.integers(1, 4))
def test_timed_storage_behaves_as_its_model(events: list[tuple[int, int, int]], maxsize: int) -> None:
    clock = Clock()
    with simulated_time(clock):
        kept: TimedStorage[int, int] = TimedStorage(maxsize)
        model: dict[int, float] = {}
        for number, (key, life, passes) in enumerate(events):
            clock.seconds += passes
            model = {k: e for k, e in model.items() if e >= get_dht_time()}
            expiration = after(life) + number / 1000  # no two are equal
            accepted = kept.store(key, life, expiration)
            newer = expiration > model.get(key, 0)
            if newer:
                model[key] = expiration
                if len(model) > maxsize:
                    del model[min(model, key=lambda each: model[each])]
            assert accepted == (newer and key in model)
            assert {k: v.expiration_time for k, v in kept.items()} == model


# -- dictionaries --------------------------------------------------------------------------------------------------


def test_golden_dictionaries() -> None:
    dictionary = DictionaryDHTValue()
    dictionary.store("k", b"\x01", 4e9)
    dictionary.store(b"b", b"\x02", 5e9)
    expected = (
        "c7335093cb7ff0000000000000cb41f2a05f200000009293a16bc40101cb41edcd650000000093c40162c40102cb41f2a05f20000000"
    )
    assert MSGPackSerializer.dumps(dictionary).hex() == expected
    bounded = DictionaryDHTValue(maxsize=7)
    bounded.store(3, b"\x01", 4e9)
    assert MSGPackSerializer.dumps(bounded).hex() == "c71a509307cb41edcd6500000000919303c40101cb41edcd6500000000"
    for raw in (bytes.fromhex(expected), MSGPackSerializer.dumps(bounded)):
        loaded = MSGPackSerializer.loads(raw)
        assert isinstance(loaded, DictionaryDHTValue)
        assert MSGPackSerializer.dumps(loaded) == raw


subkeys = (
    st.text(max_size=4) | st.binary(max_size=4) | st.integers(2, 9) | st.tuples(st.integers(2, 4), st.text(max_size=2))
)


@given(st.dictionaries(subkeys, st.tuples(st.binary(max_size=9), st.floats(4e9, 5e9)), max_size=8))
def test_dictionary_round_trip(entries: dict[object, tuple[bytes, float]]) -> None:
    dictionary = DictionaryDHTValue()
    for subkey, (value, expiration) in entries.items():
        dictionary.store(subkey, value, expiration)
    loaded = DictionaryDHTValue.unpackb(dictionary.packb())
    assert loaded.data == dictionary.data == entries
    assert loaded.nbytes == dictionary.nbytes
    if entries:
        assert loaded.latest_expiration_time == max(expiration for _, expiration in entries.values())
        assert len(dictionary.packb()) <= dictionary.nbytes + 30


def test_expired_entries_stay_when_unpacked_and_go_when_packed(clock: Clock) -> None:
    dictionary = DictionaryDHTValue()
    dictionary.store("short", b"", after(1))
    dictionary.store("long", b"", after(9))
    raw = dictionary.packb()
    clock.seconds = 5
    loaded = DictionaryDHTValue.unpackb(raw)
    assert set(loaded.data) == {"short", "long"}
    assert set(DictionaryDHTValue.unpackb(loaded.packb()).data) == {"long"}


@pytest.mark.parametrize(
    "content",
    [
        5,
        [],
        [1, 2.0],
        [-1, 2.0, []],
        [float("nan"), 2.0, []],
        ["inf", 2.0, []],
        [1, 2, []],
        [1, 2.0, {}],
        [1, 2.0, [["k", b"v"]]],
        [1, 2.0, [["k", "text", 3.0]]],
        [1, 2.0, [["k", b"v", 3]]],
        [1, 2.0, [["k", b"v", float("nan")]]],
        [1, 2.0, [[["list"], b"v", 3.0]]],
        [1, 2.0, [[([],), b"v", 3.0]]],
        [1, 2.0, [[None, b"v", 3.0]]],
        [1, 2.0, [[DictionaryDHTValue(), b"v", 3.0]]],
    ],
)
def test_malformed_dictionaries_are_refused(content: object) -> None:
    with pytest.raises(SerializationError):
        DictionaryDHTValue.unpackb(MSGPackSerializer.dumps(content))


@given(st.binary(max_size=200))
def test_garbage_is_no_dictionary(raw: bytes) -> None:
    with contextlib.suppress(SerializationError):
        assert isinstance(DictionaryDHTValue.unpackb(raw), DictionaryDHTValue)


# -- local storage -------------------------------------------------------------------------------------------------


def entries_of(storage: DHTLocalStorage) -> dict[object, ValueWithExpiration[bytes]]:
    found = storage.get(KEY)
    assert found is not None
    assert isinstance(found.value, DictionaryDHTValue)
    return dict(found.value.items())


def test_subkeys_make_a_dictionary(clock: Clock) -> None:
    storage = DHTLocalStorage()
    assert storage.store(KEY, b"1", after(10), "a")
    assert storage.store(KEY, b"2", after(5), "b"), "each entry has its own expiration"
    assert not storage.store(KEY, b"3", after(10), "a")
    assert storage.store(KEY, b"3", after(20), "a")
    assert entries_of(storage) == {"a": (b"3", after(20)), "b": (b"2", after(5))}
    found = storage.get(KEY)
    assert found is not None
    assert found.expiration_time == after(20)
    clock.seconds = 6
    assert set(entries_of(storage)) == {"a"}
    clock.seconds = 21
    assert storage.get(KEY) is None


def test_dictionary_over_plain_value_and_back(clock: Clock) -> None:
    storage = DHTLocalStorage()
    storage.store(KEY, b"plain", after(10))
    assert not storage.store(KEY, b"1", after(10), "a")
    assert not storage.store(KEY, b"1", after(9), "a")
    assert storage.store(KEY, b"1", after(11), "a")
    assert set(entries_of(storage)) == {"a"}
    storage.store(KEY, b"2", after(15), "b")
    assert not storage.store(KEY, b"plain", after(15))
    assert storage.store(KEY, b"plain", after(16))
    assert storage.get(KEY) == (b"plain", after(16))


def test_expired_entry_makes_no_dictionary(clock: Clock) -> None:
    storage = DHTLocalStorage()
    assert not storage.store(KEY, b"1", after(-1), "a")
    assert not storage.store(KEY, b"1", float("nan"), "a")
    assert storage.get(KEY) is None


def test_whole_dictionary_is_stored_entry_by_entry(clock: Clock) -> None:
    """Hivemind 1.1 stops at the first entry that is refused."""
    storage = DHTLocalStorage()
    storage.store(KEY, b"newer", after(10), "a")
    given = DictionaryDHTValue()
    for subkey, life in (("a", 5), ("b", 6), ("c", 7)):
        given.store(subkey, b"given", after(life))
    assert not storage.store_dictionary(KEY, given)
    assert {subkey: value for subkey, (value, _) in entries_of(storage).items()} == {
        "a": b"newer",
        "b": b"given",
        "c": b"given",
    }


def test_storage_is_bounded_in_bytes(clock: Clock) -> None:
    storage = DHTLocalStorage(max_bytes=10_000)
    for n in range(100):
        storage.store(DHTID(n), bytes(300), after(1 + n))
        storage.store(DHTID(1000), bytes(10), after(1000 + n), f"peer {n}")
    assert storage.nbytes <= 10_000
    assert storage.nbytes == sum(storage._counted.values())
    assert DHTID(99) in storage
    assert DHTID(0) not in storage


def test_dictionary_is_bounded_in_bytes(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage_module, "MAX_RECORD_BYTES", 1000)
    storage = DHTLocalStorage()
    for n in range(100):
        storage.store(KEY, bytes(20), after(10 + n), n)
    left = entries_of(storage)
    assert 5 < len(left) < 40
    assert set(left) == set(range(100 - len(left), 100)), "those that expire soonest went"


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 3), st.integers(0, 9), st.integers(0, 2)), max_size=60))
def test_bookkeeping_of_bytes_is_exact(events: list[tuple[int, int, int, int]]) -> None:
    clock = Clock()
    with simulated_time(clock):
        storage = DHTLocalStorage()
        for key, subkey, life, passes in events:
            clock.seconds += passes
            storage.store(DHTID(key), bytes(life), after(life), subkey or None)
            storage.remove_outdated()
            assert storage.nbytes == sum(storage._counted.values())
            assert storage._counted.keys() == storage.data.keys()
        clock.seconds += 20
        storage.remove_outdated()
        assert storage.nbytes == 0


class Model:
    """What the wire format says that a node keeps (3.2), by the simplest means: everything, filtered when asked."""

    def __init__(self) -> None:
        self.plain: dict[int, tuple[bytes, float]] = {}
        self.entries: dict[int, dict[object, tuple[bytes, float]]] = {}

    def state(self, key: int) -> tuple[object, float] | None:
        """The live value of a key and its expiration."""
        now = get_dht_time()
        if key in self.plain and self.plain[key][1] >= now:
            return self.plain[key]
        live = {name: entry for name, entry in self.entries.get(key, {}).items() if entry[1] >= now}
        return (live, max(until for _, until in live.values())) if live else None

    def store(self, key: int, value: bytes, until: float, subkey: object = None) -> bool:
        present = self.state(key)
        if until < get_dht_time():
            return False
        if subkey is not None and present is not None and isinstance(present[0], dict):
            if subkey in present[0] and until <= present[0][subkey][1]:
                return False
            self.entries[key][subkey] = (value, until)
            return True
        if present is not None and until <= present[1]:
            return False
        self.plain.pop(key, None)
        self.entries.pop(key, None)
        if subkey is None:
            self.plain[key] = (value, until)
        else:
            self.entries[key] = {subkey: (value, until)}
        return True


stores = st.tuples(
    st.integers(0, 1), st.sampled_from([None, "a", b"a", 1]), st.integers(-2, 9), st.integers(0, 3), st.booleans()
)


@given(st.lists(stores, max_size=60))
def test_storage_behaves_as_its_model(events: list[tuple[int, object, int, int, bool]]) -> None:
    """Plain values and entries, singly or as whole dictionaries, stored and expired in any order."""
    clock = Clock()
    with simulated_time(clock):
        storage, model = DHTLocalStorage(), Model()
        for number, (key, subkey, life, passes, whole) in enumerate(events):
            clock.seconds += passes
            value = number.to_bytes(2, "big")
            if whole and subkey is not None:
                dictionary = DictionaryDHTValue()
                for name, until in ((subkey, after(life)), ("more", after(life + 1))):
                    dictionary.store(name, value, until)
                expected = [model.store(key, *entry, name) for name, entry in dictionary.items()]
                assert storage.store_dictionary(DHTID(key), dictionary) == all(expected)
            else:
                assert storage.store(DHTID(key), value, after(life), subkey) == model.store(
                    key, value, after(life), subkey
                )
            for each in (0, 1):
                found, state = storage.get(DHTID(each)), model.state(each)
                if found is not None and isinstance(found.value, DictionaryDHTValue):
                    packed = DictionaryDHTValue.unpackb(found.value.packb())
                    assert (dict(packed.data), found.expiration_time) == state
                else:
                    assert found == state


def test_a_dictionary_has_a_bounded_number_of_entries(clock: Clock) -> None:
    """The cost of a dictionary is that of its entries, however small they are."""
    entries = [[number, b"", after(100 + number)] for number in range(MAX_ENTRIES + 1)]
    raw = MSGPackSerializer.dumps([float("inf"), after(10**6), entries])
    with pytest.raises(SerializationError, match="16385 entries"):
        DictionaryDHTValue.unpackb(raw)
    dictionary = DictionaryDHTValue.unpackb(MSGPackSerializer.dumps([float("inf"), after(10**6), entries[:-1]]))
    assert dictionary.store("last", b"", after(10**6))
    assert len(dictionary.data) == MAX_ENTRIES
    assert 0 not in dictionary, "the one that would have expired first"
    assert not dictionary.store("soon", b"", after(1))
