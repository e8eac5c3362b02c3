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

    As `torch.compiler.disable`, which loads the compiler: seconds, here spent only where something is compiled.
    """

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        if not torch.compiler.is_compiling():
            return function(*args, **kwargs)
        disabled: Callable[P, T] = torch.compiler.disable(function)  # type: ignore[no-untyped-call]
        return disabled(*args, **kwargs)

    return call
