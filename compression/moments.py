"""Mean and deviation of many values in one pass over the memory."""

from __future__ import annotations

import math

import torch

from hivemind.compression.chunks import Spans, scratch_for, span_of, spans_in, walk

__all__ = ["moments"]


def moments(values: torch.Tensor, dtype: torch.dtype = torch.float32) -> tuple[float, float]:
    """Mean and standard deviation (of the population) of 1-d ``values``; not finite where one of the values is not.

    Each span's own moments are merged (Chan, Golub and LeVeque, 1979), so that neither a mean far from 0 nor the number
    of values costs digits, and the result does not depend on the threads.

    :param dtype: in which it is computed. In float32 squares overflow from values of 1e19 on, and vanish below 1e-19
    """
    length, device = len(values), values.device
    if not length:
        return 0.0, 0.0
    step = span_of(device)
    means, squares = [0.0] * spans_in(length, device), [0.0] * spans_in(length, device)

    def add(spans: Spans) -> None:
        (scratch,) = scratch_for(values, dtype)
        for start, stop in spans:
            span = values[start:stop].to(dtype)
            means[start // step] = mean = float(span.sum()) / len(span)
            centered = torch.sub(span, mean, out=scratch[: len(span)])
            squares[start // step] = float(centered.mul_(centered).sum())  # a dot product would wake MKL's threads

    walk(add, length, device)
    sizes = [step] * (len(means) - 1) + [length - step * (len(means) - 1)]
    mean = sum(size * part for size, part in zip(sizes, means, strict=True)) / length
    between = sum(size * (part - mean) ** 2 for size, part in zip(sizes, means, strict=True))
    variance = (sum(squares) + between) / length
    return mean, math.sqrt(variance) if variance >= 0 else math.nan
