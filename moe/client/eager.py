"""What talks to the network stays outside of the graphs that ``torch.compile`` makes."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch

__all__ = ["outside_of_graphs"]

P = ParamSpec("P")
T = TypeVar("T")


def outside_of_graphs(function: Callable[P, T]) -> Callable[P, T]:
    """A decorator: ``torch.compile`` ends its graph before ``function`` and begins the next one behind it.

    As `torch.compiler.disable`, which takes seconds at its first use: here that is the first call, and not the import.
    """

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        disabled: Callable[P, T] | None = getattr(function, "__outside_of_graphs", None)
        if disabled is None:
            disabled = torch.compiler.disable(function)  # type: ignore[no-untyped-call]
            function.__outside_of_graphs = disabled  # type: ignore[attr-defined]
        return disabled(*args, **kwargs)

    return call
