"""Going over the elements of a tensor span by span.

On a CPU a span is so short that what is computed for it stays in the cache from one operation to the next, and so long
that calling an operation takes little beside the operation itself. The threads of hivemind's bounded pool take whole
spans; torch does not spread a single operation over its own. On an accelerator a span is as long as memory allows.

Results must not depend on which thread takes which span: what is summed up is kept by span, and added in order.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import torch

from hivemind.compression.one_thread import can_limit, one_thread
from hivemind.runtime import share_with_pool

__all__ = ["CPU_SPAN", "Scratch", "Spans", "in_dtype", "span_of", "spans_in", "walk"]

#: Elements of a span on a CPU, a multiple of 4096. Of shorter ones, two threads that wait for the interpreter's lock
#: after each operation take longer than one. Where torch cannot be held to one thread: below the 2**15 from which it
#: uses several.
CPU_SPAN = 64 * 4096 if can_limit() else 7 * 4096
#: The same elsewhere: bounds the memory for intermediate results.
DEVICE_SPAN = 2**26
#: From so many elements on, the threads of the pool help: waking them up takes as long as half as many. Smaller tensors
#: mostly come many at a time, as parts do.
SHARED_ELEMENTS = 2**21

#: Where spans begin and end, in order.
Spans = Iterator[tuple[int, int]]


class _Spans:
    """Hands out the spans of a range, each to one of the threads that ask."""

    def __init__(self, length: int, step: int) -> None:
        self._length, self._step = length, step
        self._next = 0
        self._lock = threading.Lock()

    def __iter__(self) -> Spans:
        return self

    def __next__(self) -> tuple[int, int]:
        with self._lock:
            start, self._next = self._next, self._next + self._step
        if start >= self._length:
            raise StopIteration
        return start, min(start + self._step, self._length)


def span_of(device: torch.device, unit: int = 1) -> int:
    """Items in a span, for items of ``unit`` elements; at least one."""
    return max(1, (CPU_SPAN if device.type == "cpu" else DEVICE_SPAN) // unit)


def spans_in(length: int, device: torch.device, unit: int = 1) -> int:
    """How many spans `walk` makes of ``length`` items."""
    return -(-length // span_of(device, unit))


class Scratch:
    """Memory for what is computed for a span of ``values``, in each of some dtypes: taken once in each thread, it stays
    in the core's cache.

    :param unit: as for `walk`; the memory is for whole items
    """

    def __init__(self, values: torch.Tensor, *dtypes: torch.dtype, unit: int = 1) -> None:
        length = min(-(-len(values) // unit), span_of(values.device, unit)) * unit
        self.all = [torch.empty(length, dtype=dtype, device=values.device) for dtype in dtypes]
        self._views = self.all

    def of(self, length: int) -> list[torch.Tensor]:
        """The first ``length`` elements of each: almost always as many as the last time, as slices take long."""
        if len(self._views[0]) != length:
            self._views = [each[:length] for each in self.all]
        return self._views


def in_dtype(span: torch.Tensor, place: torch.Tensor) -> torch.Tensor:
    """``span`` in the dtype of ``place``, which is as long: itself, or a copy there."""
    return span if span.dtype == place.dtype else place.copy_(span)


def walk(work: Callable[[Spans], None], length: int, device: torch.device, *, unit: int = 1) -> None:
    """Call ``work`` with the spans of ``range(length)``: once, or on a CPU once in each thread that takes part.

    :param unit: elements that belong to one item of the range (1 for elements, more for rows)
    """
    spans = _Spans(length, span_of(device, unit))
    if device.type != "cpu":
        work(spans)
        return

    def alone() -> None:
        with one_thread():
            work(spans)

    if length * unit >= SHARED_ELEMENTS:
        share_with_pool(alone)
    else:
        alone()
