"""8 bits an element: 256 equal steps over six standard deviations around the mean."""

from __future__ import annotations

import numpy as np
import torch

from hivemind.compression.base import rounding
from hivemind.compression.buffers import on_cpu
from hivemind.compression.chunks import Scratch, Spans, in_dtype, walk
from hivemind.compression.codebook import CODES, CodebookCodec, all_finite, cut_off, sums_by_index
from hivemind.compression.fused import fused
from hivemind.compression.moments import moments
from hivemind.proto import runtime_pb2

__all__ = ["Uniform8BitQuantization", "assign_steps"]

#: Standard deviations that the codes span, from the lowest to the highest.
_SIGMAS = 6
#: Deviations for which float32 is good enough for squares and inverses.
_SINGLE = (1e-15, 1e15)
#: The mean, in deviations, from which on it is subtracted first: of sums, float32 would keep too few digits.
_FAR = 16
#: About so many elements are looked at for the means of their steps. Those beyond the outermost steps, one in 400, have
#: the largest errors: their means want some dozens of elements each.
_SAMPLE = 2**15


class Uniform8BitQuantization(CodebookCodec):
    """Steps of 6/256 standard deviations around the mean; elements are decoded as the mean of those in their step, of
    which a sample is taken where there are many.

    For values without far outliers: an element within 2.95 standard deviations of the mean is off by a step at the
    most, those beyond share the outermost steps. Carries float16, bfloat16, float32 and float64; values beyond the
    range of float32 count as infinite. Infinities and NaN arrive as what they are.
    """

    compression_type = runtime_pb2.UNIFORM_8BIT

    def fit(self, values: torch.Tensor, indices: torch.Tensor, codes: int) -> torch.Tensor | None:
        work, (mean, sigma) = torch.float32, moments(values)
        if not _SINGLE[0] < sigma < _SINGLE[1]:
            if not all_finite(values):
                return None
            work, (mean, sigma) = torch.float64, moments(values, torch.float64)
        scale = CODES / (_SIGMAS * sigma) if sigma else 0.0
        # half a step more, as the conversion to whole numbers cuts off
        far, middle = abs(mean) > _FAR * sigma, CODES // 2 + 0.5
        offset = torch.tensor(middle if far else middle - mean * scale, dtype=work, device=values.device)
        assign_steps(values, indices, offset, scale, mean if far else 0.0, codes)
        every = len(values) // _SAMPLE | 1  # odd, so as not to be in step with rows
        sums, sizes = sums_by_index(indices[::every], values[::every])
        means = sums / np.maximum(sizes, 1)
        if every > 1:  # a step may be missing in the sample, and gets its middle
            means = np.where(sizes > 0, means, mean + np.arange(-CODES // 2, CODES // 2) / (scale or 1.0))
        return torch.from_numpy(means[:codes].astype(np.float32)).to(values.device)

    def error_bound(self, tensor: torch.Tensor) -> torch.Tensor:
        values = tensor.detach().float().double()
        finite = values[values.isfinite()]
        mean, sigma = moments(finite.view(-1), torch.float64)
        step = _SIGMAS * sigma / CODES
        reach = (CODES // 2 - 5) * step  # a few steps less where non-finite values take codes
        largest = float((finite - mean).abs().max()) if len(finite) else 0.0
        inner = (values - mean).abs() < reach
        bound = torch.where(inner, step * 1.01, max(step, largest - reach + step))
        return bound + rounding(values.abs() + abs(mean), tensor.dtype) + 2**-22 * abs(mean)


@fused
def assign_steps(
    values: torch.Tensor, indices: torch.Tensor, offset: torch.Tensor, scale: float, shift: float, codes: int
) -> None:
    """Write the whole number below ``(values - shift) * scale + offset``, within ``range(codes)``, to ``indices``.

    :param offset: 0-d, of the dtype in which it is computed
    """
    target = indices.numpy() if on_cpu(indices.device) else indices

    def assign(spans: Spans) -> None:
        scratch = Scratch(values, offset.dtype)
        for start, stop in spans:
            (places,) = scratch.of(stop - start)
            span = in_dtype(values[start:stop], places)
            if shift:
                span = torch.sub(span, shift, out=places)
            torch.add(offset, span, alpha=scale, out=places).clamp_(0, codes - 1)
            cut_off(places, target[start:stop])

    walk(assign, len(values), values.device)
