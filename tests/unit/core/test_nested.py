"""Nested structures: one order, the same structure back, and clear refusals."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hivemind.errors import ConfigError
from hivemind.nested import is_namedtuple, nested_compare, nested_flatten, nested_map, nested_pack


class Pair(NamedTuple):
    a: Any
    b: Any


structures = st.recursive(
    st.none() | st.integers() | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(st.text(max_size=3), inner, max_size=3)
        | st.builds(Pair, inner, inner)
    ),
    max_leaves=12,
)


@given(structures)
def test_packing_what_was_flattened_gives_the_structure_back(structure: Any) -> None:
    packed = nested_pack(nested_flatten(structure), structure)
    assert packed == structure
    assert nested_compare(packed, structure)


def test_dictionaries_go_by_sorted_key() -> None:
    structure = OrderedDict(b=[1, (2, 3)], a=(4, 5))
    assert list(nested_flatten(structure)) == [4, 5, 1, 2, 3]
    assert list(nested_pack(range(5), structure).items()) == [("a", (0, 1)), ("b", [2, (3, 4)])]


def test_named_tuples_stay_what_they_are() -> None:
    assert is_namedtuple(Pair(1, 2))
    assert not is_namedtuple((1, 2))
    assert nested_pack([3, 4], Pair(1, 2)) == Pair(3, 4)
    assert isinstance(nested_map(str, Pair(1, 2)), Pair)


@pytest.mark.parametrize(
    ("left", "right", "same"),
    [
        ([1], (1,), False),
        ([1], [2], True),
        ({"a": 1}, {"a": 2}, True),
        ({"a": 1}, {"b": 1}, False),
        (1, [1], False),
        ([1], 1, False),
        ([1, 2], [1], False),
        (Pair(1, 2), (1, 2), False),
        ((1, 2), Pair(1, 2), False),
        (OrderedDict(a=1), {"a": 1}, True),
        (None, 1, True),
    ],
)
def test_comparison_is_of_structure(left: Any, right: Any, same: bool) -> None:
    assert nested_compare(left, right) is same


def test_map_takes_the_leaves_of_all() -> None:
    assert nested_map(lambda x, y: x + y, {"a": [1, 2]}, {"a": [10, 20]}) == {"a": [11, 22]}


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: nested_pack([1], [0, 0]), "too few leaves"),
        (lambda: nested_pack([1, 2, 3], [0, 0]), "too many leaves"),
        (lambda: nested_map(str), "one or more"),
        (lambda: nested_map(max, [1], [1, 2]), "structures like"),
    ],
)
def test_what_does_not_fit_is_refused(call: Any, text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        call()
