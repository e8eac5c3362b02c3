"""Options: keyword arguments gathered into frozen dataclasses, checked in one place.

Public constructors keep the wide keyword lists of hivemind 1.1; each list lives in one frozen dataclass whose fields
document unit, default and cost. `make_options` is the only way from keywords to dataclass.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Mapping
from dataclasses import fields
from typing import TYPE_CHECKING, Any, TypeVar

from hivemind.errors import ConfigError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

__all__ = [
    "check_choice",
    "check_count",
    "check_fraction",
    "check_seconds",
    "make_options",
    "option_names",
    "reject_unknown",
    "split_options",
]

Options = TypeVar("Options", bound="DataclassInstance")


def option_names(kind: type[DataclassInstance]) -> list[str]:
    """The names of the options of ``kind`` in order of declaration."""
    return [field.name for field in fields(kind) if field.init]


def reject_unknown(given: Iterable[str], known: Iterable[str], *, where: str) -> None:
    """
    :raises ConfigError: if a name is unknown; names the nearest known one
    """
    allowed = list(known)
    for name in given:
        if name not in allowed:
            near = difflib.get_close_matches(name, allowed, n=1)
            hint = f"did you mean {near[0]!r}?" if near else "one of " + ", ".join(sorted(allowed))
            raise ConfigError(f"{where} option {name!r}", "an unknown name", hint)


def make_options(kind: type[Options], given: Mapping[str, Any], *, where: str) -> Options:
    """Build the options ``kind`` from keywords.

    :param where: the public name whose keywords these are, for the error's text
    :raises ConfigError: on an unknown name (with the nearest match) or, from the dataclass itself, on a wrong value
    """
    reject_unknown(given, option_names(kind), where=where)
    return kind(**given)


def split_options(given: Mapping[str, Any], *kinds: type[DataclassInstance], where: str) -> list[dict[str, Any]]:
    """Sort keywords to the first of ``kinds`` that has an option of that name; same order as ``kinds``.

    :raises ConfigError: on a name that none of them has
    """
    names = [option_names(kind) for kind in kinds]
    reject_unknown(given, [name for group in names for name in group], where=where)
    parts: list[dict[str, Any]] = [{} for _ in kinds]
    for key, value in given.items():
        index = next(i for i, group in enumerate(names) if key in group)
        parts[index][key] = value
    return parts


def check_seconds(name: str, value: float | None, *, optional: bool = False, zero: bool = False) -> None:
    """
    :raises ConfigError: unless ``value`` is a finite number of seconds > 0 (>= 0 with ``zero``; None with ``optional``)
    """
    if value is None and optional:
        return
    ok = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if not ok or not (value >= 0 if zero else value > 0):  # type: ignore[operator]
        allowed = "seconds >= 0" if zero else "seconds > 0"
        raise ConfigError(name, value, allowed + (", or None" if optional else ""))


def check_count(name: str, value: int | None, *, least: int = 1, optional: bool = False) -> None:
    """
    :raises ConfigError: unless ``value`` is an int >= ``least`` (None with ``optional``)
    """
    if value is None and optional:
        return
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ConfigError(name, value, f"an integer >= {least}" + (", or None" if optional else ""))


def check_fraction(name: str, value: float) -> None:
    """
    :raises ConfigError: unless ``value`` is a number in [0, 1]
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise ConfigError(name, value, "a number from 0 to 1")


def check_choice(name: str, value: object, choices: Iterable[object]) -> None:
    """
    :raises ConfigError: unless ``value`` is one of ``choices``
    """
    allowed = list(choices)
    if value not in allowed:
        raise ConfigError(name, value, "one of " + ", ".join(map(repr, allowed)))
