"""An optimizer's state as a flat list of tensors and values, as newcomers download it (hivemind 1.1 wire format).

``optimizer.state_dict()`` is walked depth first, maps by sorted key, lists and tuples in order. Each leaf becomes
``{"type": "tensor", "index": n}`` or ``{"type": "value", "value": v}``; tensors are sent apart, in order. The names
are not sent: a reader puts the leaves into the structure of its own optimizer, which must be of the same kind.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

import torch

from hivemind.errors import SerializationError

__all__ = ["flatten_optimizer_state", "tensor_leaves", "unflatten_optimizer_state"]

_SCALARS = (bool, int, float, str, bytes)
#: An optimizer of a model of a million tensors has a few million leaves; more than that is an attack.
_MAX_LEAVES = 10_000_000


def flatten_optimizer_state(state: dict[str, Any]) -> tuple[list[dict[str, Any]], list[torch.Tensor]]:
    """
    :param state: ``optimizer.state_dict()``
    :returns: one entry per leaf, and the tensors they refer to
    :raises SerializationError: if a leaf is neither a tensor nor None, bool, int, float, str or bytes
    """
    metadata: list[dict[str, Any]] = []
    tensors: list[torch.Tensor] = []
    for path, leaf in _leaves(state, ""):
        if isinstance(leaf, torch.Tensor):
            metadata.append({"type": "tensor", "index": len(tensors)})
            tensors.append(leaf)
        elif leaf is None or type(leaf) in _SCALARS:
            metadata.append({"type": "value", "value": leaf})
        else:
            raise SerializationError(f"optimizer state {path}: {type(leaf).__name__} cannot be sent to other peers")
    return metadata, tensors


def tensor_leaves(state: dict[str, Any]) -> list[torch.Tensor]:
    """The tensors of ``state`` in the order in which they are sent."""
    return [leaf for _, leaf in _leaves(state, "") if isinstance(leaf, torch.Tensor)]


def unflatten_optimizer_state(
    structure: dict[str, Any], metadata: object, tensors: Sequence[torch.Tensor]
) -> dict[str, Any]:
    """Put what a peer sent into the structure of the own optimizer. Nothing is changed in place.

    Versions of torch differ in the options that an optimizer's groups have. Where therefore the leaves of the sender
    do not line up with the own ones but its tensors do, in number and shape, the tensors are taken and the options
    stay the own ones.

    :param structure: the own ``optimizer.state_dict()``, with all its statistics
    :param metadata: what the peer sent as ``optimizer_metadata``; checked here
    :param tensors: the tensors it refers to
    :returns: a new state for ``optimizer.load_state_dict``
    :raises SerializationError: if it does not fit
    """
    entries = _checked(metadata, len(tensors))
    own = list(_leaves(structure, ""))
    own_tensors = [(path, leaf) for path, leaf in own if isinstance(leaf, torch.Tensor)]
    if len(own_tensors) != len(tensors):
        raise SerializationError(f"the optimizer has {len(own_tensors)} tensors, the peer sent {len(tensors)}")
    for (path, leaf), tensor in zip(own_tensors, tensors, strict=True):
        if leaf.shape != tensor.shape:
            raise SerializationError(f"optimizer state {path}: shape {tuple(tensor.shape)}, not {tuple(leaf.shape)}")

    if _lines_up([leaf for _, leaf in own], entries):
        values = iter(tensors[e["index"]] if e["type"] == "tensor" else e["value"] for e in entries)
        rebuilt = _rebuild(structure, lambda leaf: next(values))
    else:
        in_order = iter(tensors)
        rebuilt = _rebuild(structure, lambda leaf: next(in_order) if isinstance(leaf, torch.Tensor) else leaf)
    return cast("dict[str, Any]", rebuilt)


def _checked(metadata: object, tensors: int) -> list[dict[str, Any]]:
    if not isinstance(metadata, list | tuple) or len(metadata) > _MAX_LEAVES:
        raise SerializationError("optimizer_metadata is not a list of leaves")
    indices = []
    for entry in metadata:
        kind = entry.get("type") if isinstance(entry, dict) else None
        if kind == "tensor" and type(entry.get("index")) is int:
            indices.append(entry["index"])
        elif kind != "value" or "value" not in entry:
            raise SerializationError("optimizer_metadata holds an entry that is neither a tensor nor a value")
    if indices != list(range(tensors)):
        raise SerializationError(f"optimizer_metadata refers to {len(indices)} tensors, {tensors} were sent")
    return list(metadata)


def _lines_up(own: Sequence[Any], entries: Sequence[dict[str, Any]]) -> bool:
    return len(own) == len(entries) and all(
        entry["type"] == "tensor" if isinstance(leaf, torch.Tensor) else _same_kind(leaf, entry)
        for leaf, entry in zip(own, entries, strict=True)
    )


def _same_kind(leaf: object, entry: dict[str, Any]) -> bool:
    if entry["type"] != "value":
        return False
    value = entry["value"]
    if type(leaf) in (int, float) and type(value) in (int, float):
        return True
    return type(leaf) is type(value)


def _leaves(node: Any, path: str) -> Iterator[tuple[str, Any]]:
    if isinstance(node, dict):
        for key in sorted(node):
            yield from _leaves(node[key], f"{path}[{key!r}]")
    elif isinstance(node, list | tuple):
        for index, item in enumerate(node):
            yield from _leaves(item, f"{path}[{index}]")
    else:
        yield path, node


def _rebuild(node: Any, leaf: Callable[[Any], Any]) -> Any:
    """A copy of ``node`` with every leaf replaced, visited in the order of `_leaves`."""
    if isinstance(node, dict):
        replaced = {key: _rebuild(node[key], leaf) for key in sorted(node)}
        return {key: replaced[key] for key in node}
    if isinstance(node, list | tuple):
        items = [_rebuild(item, leaf) for item in node]
        return items if isinstance(node, list) else tuple(items)
    return leaf(node)
