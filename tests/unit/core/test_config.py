"""Options: unknown names, wrong values."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from hivemind.config import (
    check_choice,
    check_count,
    check_fraction,
    check_seconds,
    make_options,
    option_names,
    split_options,
)
from hivemind.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Colour:
    red: int = 0
    green: int = 0


@dataclass(frozen=True, kw_only=True)
class Size:
    width: int = 0
    red: int = 9


def test_options_are_made_from_keywords() -> None:
    assert option_names(Colour) == ["red", "green"]
    assert make_options(Colour, {"green": 3}, where="paint") == Colour(green=3)


def test_an_unknown_name_is_told_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"paint option 'gren'.*'green'"):
        make_options(Colour, {"gren": 3}, where="paint")
    with pytest.raises(ConfigError, match="green, red"):
        make_options(Colour, {"zzz": 3}, where="paint")


def test_keywords_are_sorted_to_the_first_that_knows_them() -> None:
    assert split_options({"width": 1, "red": 2}, Colour, Size, where="x") == [{"red": 2}, {"width": 1}]
    with pytest.raises(ConfigError, match="height"):
        split_options({"height": 1}, Colour, Size, where="x")


@pytest.mark.parametrize(
    ("check", "values"),
    [
        (lambda value: check_seconds("x", value), [0, -1, "1", None, True, float("inf"), float("nan")]),
        (lambda value: check_count("x", value), [0, -1, 1.0, "1", None, True]),
        (lambda value: check_fraction("x", value), [-0.1, 1.1, "1", None, True, float("nan")]),
        (lambda value: check_choice("x", value, ("a", None)), ["b", 0]),
    ],
)
def test_wrong_values_name_themselves(check: Callable[[Any], None], values: list[Any]) -> None:
    for value in values:
        with pytest.raises(ConfigError, match=r"^x: got "):
            check(value)


def test_right_values() -> None:
    check_seconds("x", 0.1)
    check_seconds("x", 0, zero=True)
    check_seconds("x", None, optional=True)
    check_count("x", 1)
    check_count("x", 0, least=0)
    check_count("x", None, optional=True)
    check_fraction("x", 0)
    check_fraction("x", 1.0)
    check_choice("x", None, ("a", None))
