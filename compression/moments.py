"""Mean and deviation of many values in one pass over the memory."""

from __future__ import annotations

import math

import torch

from hivemind.compression.chunks import Scratch, Spans, walk
from hivemind.compression.fused import fused

__all__ = ["moments", "sum_blocks"]

#: Values whose sums are computed in the dtype itself: a multiple of them is a span.
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
    blocks = -(-len(values) // BLOCK)
    sums, norms = torch.empty(2, blocks, dtype=dtype, device=values.device)
    sum_blocks(values, BLOCK, shift, sums, norms)
    mean = float(sums.sum(dtype=torch.float64)) / len(values)
    variance = float(norms.double().square().sum()) / len(values) - mean * mean
    # a constant's may come out as less than nothing
    return mean, max(variance, 0.0) if math.isfinite(variance) else math.nan


@fused
def sum_blocks(values: torch.Tensor, block: int, shift: float, sums: torch.Tensor, norms: torch.Tensor) -> None:
    """Write sum and norm of each ``block`` elements of ``values - shift``, in the dtype of ``sums``."""

    def add(spans: Spans) -> None:
        scratch = None if values.dtype == sums.dtype and not shift else Scratch(values, sums.dtype)
        for start, stop in spans:
            span = values[start:stop]
            if scratch is not None:
                span = scratch.of(stop - start)[0].copy_(span).sub_(shift)
            whole = (stop - start) // block
            first, last = start // block, start // block + whole
            rows, rest = span[: whole * block].view(whole, block), span[whole * block :]
            # a dot product holds the interpreter's lock in numpy, and takes long in torch
            if whole:
                torch.linalg.vector_norm(rows, dim=1, out=norms[first:last])
                torch.sum(rows, dim=1, out=sums[first:last])
            if whole * block < stop - start:
                torch.linalg.vector_norm(rest, out=norms[last])
                torch.sum(rest, dim=0, out=sums[last])

    walk(add, len(values), values.device)
