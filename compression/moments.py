"""Mean and deviation of many values in one pass over the memory."""

from __future__ import annotations

import math

import numpy as np
import torch

from hivemind.compression.buffers import Array, on_cpu
from hivemind.compression.chunks import Scratch, Spans, walk

__all__ = ["moments"]

#: Values whose sums are computed in the dtype itself: a multiple of them is a span. Below the 10,000 from which
#: OpenBLAS spreads a dot product over its threads.
BLOCK = 4096
#: The mean squared, in variances, from which on squares are those of distances from it: they would lose digits.
_FAR = 4.0


def moments(values: torch.Tensor, dtype: torch.dtype = torch.float32) -> tuple[float, float]:
    """Mean and standard deviation (of the population) of 1-d ``values``; not finite where one of the values is not.

    Sums of short blocks are added up in float64, so that the number of values costs no digits, and the result does not
    depend on the threads. Where the mean is far from 0, a second pass looks at distances from it.

    :param dtype: in which it is computed. In float32 squares overflow from values of 1e19 on, and vanish below 1e-19
    """
    if not len(values):
        return 0.0, 0.0
    mean, variance = _about(values, 0.0, dtype)
    if mean * mean > _FAR * variance:
        shift = float(torch.tensor(mean, dtype=dtype))
        mean, variance = _about(values, shift, dtype)
        mean += shift
    return mean, math.sqrt(variance) if variance >= 0 else math.nan


def _about(values: torch.Tensor, shift: float, dtype: torch.dtype) -> tuple[float, float]:
    """Mean and variance of ``values - shift``."""
    compute = _sums_on_cpu if on_cpu(values.device) else _sums
    with np.errstate(all="ignore"):
        total, squares = (float(each.sum(dtype=np.float64)) for each in compute(values, shift, dtype))
        mean = total / len(values)
        variance = squares / len(values) - mean * mean
    # a constant's may come out as less than nothing
    return mean, max(variance, 0.0) if math.isfinite(variance) else math.nan


def _sums_on_cpu(values: torch.Tensor, shift: float, dtype: torch.dtype) -> tuple[Array, Array]:
    """Sum and sum of squares of each block, by dot products: numpy takes those to a BLAS in one call for all of them,
    while torch would wake its threads for each."""
    blocks = -(-len(values) // BLOCK)
    kind = np.float32 if dtype == torch.float32 else np.float64
    sums, squares = np.empty((blocks, 1, 1), kind), np.empty((blocks, 1, 1), kind)
    ones = np.ones((BLOCK, 1), kind)

    def add(spans: Spans) -> None:
        scratch = Scratch(values, dtype)
        with np.errstate(all="ignore"):  # infinities and NaN say so themselves
            for start, stop in spans:
                span = values[start:stop]
                if span.dtype != dtype:
                    span = scratch.of(len(span))[0].copy_(span)
                if shift:
                    span = torch.sub(span, shift, out=scratch.of(len(span))[0])
                whole = len(span) // BLOCK
                first, last = start // BLOCK, start // BLOCK + whole
                array = span.numpy()
                rows, rest = array[: whole * BLOCK].reshape(whole, 1, BLOCK), array[whole * BLOCK :]
                np.matmul(rows, ones, out=sums[first:last])
                np.matmul(rows, rows.transpose(0, 2, 1), out=squares[first:last])
                if len(rest):
                    sums[last], squares[last] = rest.sum(), rest @ rest

    as_they_are = values.dtype == dtype and not shift
    walk(add, len(values), values.device, span=64 * BLOCK if as_they_are else None)
    return sums, squares


def _sums(values: torch.Tensor, shift: float, dtype: torch.dtype) -> tuple[Array, Array]:
    """The same for spans of an accelerator."""
    sums: list[torch.Tensor] = []

    def add(spans: Spans) -> None:
        for start, stop in spans:
            span = values[start:stop].to(dtype) - shift
            sums.append(torch.stack([span.sum(dtype=torch.float64), span.square().sum(dtype=torch.float64)]))

    walk(add, len(values), values.device)
    total = torch.stack(sums).cpu().numpy()
    return total[:, 0], total[:, 1]
