"""What a class answers: its methods ``rpc_*``, the messages they take and give, and their names on the network."""

from __future__ import annotations

import collections.abc
import inspect
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, get_args, get_origin, get_type_hints

__all__ = ["RPCHandler", "handlers_of", "wire_name"]

_ITERATORS = (
    collections.abc.AsyncIterator,
    collections.abc.AsyncIterable,
    collections.abc.AsyncGenerator,
)


@dataclass(frozen=True)
class RPCHandler:
    """A method that others can call.

    :param method_name: ``rpc_…``
    :param input_type: message of a request, or of each one with ``stream_input``
    :param output_type: message of an answer, or of each one with ``stream_output``
    """

    method_name: str
    input_type: type
    output_type: type
    stream_input: bool
    stream_output: bool


def wire_name(servicer: type, method_name: str, namespace: str | None) -> str:
    """The name of a handler on the network: ``[namespace::]ClassName.method`` (hivemind 1.1 wire format, 1.5)."""
    name = f"{servicer.__name__}.{method_name}"
    return name if namespace is None else f"{namespace}::{name}"


def handlers_of(servicer: type) -> tuple[RPCHandler, ...]:
    """The handlers of a class, by the annotations of its methods ``async def rpc_x(self, request, context)``.

    :raises ValueError: if a method has too few arguments or lacks annotations
    """
    # kept in the class itself, never inherited: names on the network are those of the concrete class
    known: tuple[RPCHandler, ...] | None = vars(servicer).get("_rpc_handlers")
    if known is None:
        methods = inspect.getmembers(servicer, predicate=inspect.isfunction)
        known = tuple(_handler(servicer, name, method) for name, method in methods if name.startswith("rpc_"))
        servicer._rpc_handlers = known  # type: ignore[attr-defined]
    return known


def _handler(servicer: type, name: str, method: Any) -> RPCHandler:
    where = f"{servicer.__name__}.{name}"
    parameters = list(inspect.signature(method).parameters.values())
    if len(parameters) < 3:
        raise ValueError(
            f"{where}: expected the arguments (self, request, context), got {[p.name for p in parameters]}"
        )
    annotations = method.__annotations__
    if parameters[1].name not in annotations or "return" not in annotations:
        raise ValueError(f"{where}: annotate {parameters[1].name!r} and the return value with their message types")
    # only these two: others may name what is imported for type checkers alone
    wanted = SimpleNamespace(
        __annotations__={"input": annotations[parameters[1].name], "output": annotations["return"]}
    )
    try:
        hints = get_type_hints(wanted, globalns=inspect.unwrap(method).__globals__, localns=dict(vars(servicer)))
    except NameError as error:
        raise ValueError(f"{where}: the annotations cannot be read: {error}") from error
    input_type, stream_input = _strip_iterator(hints["input"], where)
    output_type, stream_output = _strip_iterator(hints["output"], where)
    return RPCHandler(name, input_type, output_type, stream_input, stream_output)


def _strip_iterator(hint: Any, where: str) -> tuple[type, bool]:
    stream = get_origin(hint) in _ITERATORS
    kind = get_args(hint)[0] if stream else hint
    if not inspect.isclass(kind):
        raise ValueError(f"{where}: {hint!r} is neither a message type nor AsyncIterator of one")
    return kind, stream
