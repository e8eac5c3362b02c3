"""What has changed under a key: looks that miss, entries that expire, plain values and dictionaries, slow readers."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from hivemind.dht import Change
from hivemind.dht.changes import ADDED, EXPIRED, UPDATED, coalesce, entries_of, progress
from hivemind.timed_storage import ValueWithExpiration as At

NOW = 100.0


def kinds(changes: list[Change]) -> dict[Any, str]:
    return {change.subkey: change.kind for change in changes}


def test_entries_come_change_and_go() -> None:
    first, changes = progress({}, {"a": At(1, 110.0), "b": At(2, 120.0)}, NOW)
    assert kinds(changes) == {"a": ADDED, "b": ADDED}
    second, changes = progress(first, {"a": At(3, 130.0), "b": At(2, 120.0)}, NOW)
    assert changes == [Change(UPDATED, "a", 3, 130.0)]
    third, changes = progress(second, {}, 125.0)
    assert changes == [Change(EXPIRED, "b", 2, 120.0)]
    assert third == {"a": At(3, 130.0)}


def test_a_look_that_misses_or_is_behind_changes_nothing() -> None:
    known = {"a": At(1, 110.0), "b": At(2, 120.0)}
    assert progress(known, {}, NOW) == (known, [])
    assert progress(known, {"a": At(0, 105.0)}, NOW) == (known, [])
    assert progress({}, {"a": At(0, 99.0)}, NOW) == ({}, [])


def test_of_a_plain_value_and_a_dictionary_the_later_holds() -> None:
    after, changes = progress({None: At("plain", 110.0)}, {"a": At(1, 120.0)}, NOW)
    assert kinds(changes) == {None: EXPIRED, "a": ADDED}
    assert after == {"a": At(1, 120.0)}
    after, changes = progress(after, {None: At("plain", 130.0)}, NOW)
    assert kinds(changes) == {None: ADDED, "a": EXPIRED}
    assert after == {None: At("plain", 130.0)}


def test_plain_values_that_are_dictionaries_are_plain() -> None:
    assert entries_of(None) == {}
    plain = At({"a": 1}, 110.0)
    assert entries_of(plain) == {None: plain}
    assert entries_of(At({}, 110.0)) == {None: At({}, 110.0)}
    entries = {"a": At(1, 110.0)}
    assert entries_of(At(entries, 110.0)) == entries


looks = st.dictionaries(
    st.sampled_from([None, "a", "b"]),
    st.tuples(st.integers(0, 3), st.integers(90, 130).map(float)).map(lambda pair: At(*pair)),
)


@given(st.lists(st.tuples(looks, st.floats(0, 10)), max_size=8))
def test_changes_retold_give_what_holds(rounds: list[tuple[dict[Any, Any], float]]) -> None:
    """A reader of all changes, and one who reads now and then, know what holds."""
    now, known = NOW, {}  # type: ignore[var-annotated]
    told: dict[Any, Any] = {}
    slow: dict[Any, Any] = {}
    waiting: dict[Any, Change] = {}
    for count, (found, pause) in enumerate(rounds):
        now += pause
        known, changes = progress(known, found, now)
        assert len({change.subkey for change in changes}) == len(changes), "one change an entry"
        for change in changes:
            _apply(told, change)
            news = coalesce(waiting.pop(change.subkey, None), change)
            if news is not None:
                waiting[change.subkey] = news
        assert told == known
        assert all(entry.expiration_time > now for entry in known.values())
        assert len(known) == 1 or None not in known
        if count % 3 == 0:
            for change in waiting.values():
                _apply(slow, change)
            waiting.clear()
            assert slow == known


def _apply(state: dict[Any, Any], change: Change) -> None:
    if change.kind == EXPIRED:
        del state[change.subkey]
        return
    assert (change.subkey in state) == (change.kind == UPDATED)
    state[change.subkey] = (change.value, change.expiration_time)
