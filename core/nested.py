"""Nested structures of lists, tuples and dictionaries as flat sequences, in one order that all peers share.

Lists and tuples are walked in order, dictionaries by sorted key; all else is a leaf (hivemind 1.1 wire format,
"rpc_forward / rpc_backward"). Functions are pure and thread-safe.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from hivemind.errors import ConfigError

__all__ = ["is_namedtuple", "nested_compare", "nested_flatten", "nested_map", "nested_pack"]


def is_namedtuple(value: object) -> bool:
    """Whether ``value`` is of a type made by `collections.namedtuple` or `typing.NamedTuple`."""
    return isinstance(value, tuple) and hasattr(type(value), "_fields")


def nested_flatten(structure: Any) -> Iterator[Any]:
    """The leaves of ``structure`` in order."""
    if isinstance(structure, list | tuple):
        for item in structure:
            yield from nested_flatten(item)
    elif isinstance(structure, dict):
        for key in sorted(structure):
            yield from nested_flatten(structure[key])
    else:
        yield structure


def nested_pack(flat: Iterable[Any], structure: Any) -> Any:
    """A structure like ``structure`` whose leaves are those of ``flat``, in order.

    :returns: lists, tuples and named tuples as they are in ``structure``; any dictionary as a ``dict`` by sorted key
    :raises ConfigError: if ``flat`` has too few or too many leaves
    """
    leaves = iter(flat)
    packed = _pack(leaves, structure)
    if next(leaves, _END) is not _END:
        raise ConfigError(
            "flat", "too many leaves", f"{sum(1 for _ in nested_flatten(structure))}, as the structure has"
        )
    return packed


#: stands for a leaf that is not there
_END = object()


def _pack(leaves: Iterator[Any], structure: Any) -> Any:
    if isinstance(structure, list | tuple):
        items = [_pack(leaves, item) for item in structure]
        if is_namedtuple(structure):
            return type(structure)(*items)
        return items if isinstance(structure, list) else tuple(items)
    if isinstance(structure, dict):
        return {key: _pack(leaves, structure[key]) for key in sorted(structure)}
    leaf = next(leaves, _END)
    if leaf is _END:
        raise ConfigError("flat", "too few leaves", "as many as the structure has")
    return leaf


def nested_map(function: Callable[..., Any], *structures: Any) -> Any:
    """A structure like the first one, with ``function`` applied to the leaves that stand at the same place in all.

    :raises ConfigError: if there is no structure, or two of them differ
    """
    if not structures:
        raise ConfigError("structures", "none", "one or more")
    for other in structures[1:]:
        if not nested_compare(structures[0], other):
            raise ConfigError("structures", "two that differ", f"structures like {_outline(structures[0])}")
    flat = [nested_flatten(structure) for structure in structures]
    return nested_pack(map(function, *flat), structures[0])


def nested_compare(left: Any, right: Any) -> bool:
    """Whether both have the same structure; the leaves themselves may differ.

    A list is none like a tuple, a named tuple none like one of another type; all dictionaries are alike.
    """
    if isinstance(left, list | tuple):
        same_kind = isinstance(right, list) if isinstance(left, list) else isinstance(right, tuple)
        if not same_kind or len(left) != len(right):
            return False
        if (is_namedtuple(left) or is_namedtuple(right)) and type(left) is not type(right):
            return False
        return all(map(nested_compare, left, right))
    if isinstance(left, dict):
        if not isinstance(right, dict) or left.keys() != right.keys():
            return False
        return all(nested_compare(left[key], right[key]) for key in left)
    return not isinstance(right, list | tuple | dict)


def _outline(structure: Any) -> str:
    """The structure in words, without its leaves."""
    return repr(nested_pack(("…" for _ in nested_flatten(structure)), structure)).replace("'…'", "…")
