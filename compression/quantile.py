"""8 bits an element: 256 codes, each for the same number of elements."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import numpy as np
import torch

from hivemind.compression.base import rounding
from hivemind.compression.buffers import Array, on_cpu
from hivemind.compression.chunks import Scratch, Spans, span_of, spans_in, walk
from hivemind.compression.codebook import CodebookCodec, all_finite
from hivemind.compression.fused import fused
from hivemind.compression.one_thread import one_thread
from hivemind.proto import runtime_pb2

__all__ = ["Quantile8BitQuantization", "assign_patterns", "count_patterns"]

#: So many elements are sorted; of more, so many are looked at to see where they lie.
_SAMPLE = 8192
#: Bit patterns of a float16, that of -0.0 among them, and the largest finite value.
_PATTERNS, _NEGATIVE_ZERO, _FP16_MAX = 2**16, 2**15, 65504.0
#: What `_patterns` needs.
_SCRATCH = (torch.float32, torch.float16)


class Quantile8BitQuantization(CodebookCodec):
    """Codes for equal shares of the elements, each decoded as the mean of its share, wherever the values lie.

    An element is off by no more than the distance to the element 1/100 of all ranks away, and 2**-11 of its distance
    from where most values are. Carries float16, bfloat16, float32 and float64; values beyond the range of float32 count
    as infinite. Infinities and NaN arrive as what they are.
    """

    compression_type = runtime_pb2.QUANTILE_8BIT

    def fit(self, values: torch.Tensor, indices: torch.Tensor, codes: int) -> torch.Tensor | None:
        places = None if len(values) <= _SAMPLE else _places(len(values), values.device)
        # sorted by numpy: torch would wake its threads for it, and find places as well
        sample = _on_cpu(values if places is None else values.index_select(0, places))
        if not np.isfinite(sample).all():
            return None
        if places is None:
            distinct, inverse, counts = np.unique(sample, return_inverse=True, return_counts=True)
            shares, means = _shares(distinct.astype(np.float64), counts, codes)
            indices.copy_(torch.from_numpy(shares[inverse.reshape(-1)]))
            return torch.from_numpy(means).float().to(values.device)
        sample.sort()
        scaling = _Scaling.of(sample)
        if scaling.tells_apart(sample, codes):
            return _fit_to_patterns(values, indices, codes, scaling)
        return _fit_to_sorted(values, indices, codes)

    def error_bound(self, tensor: torch.Tensor) -> torch.Tensor:
        values = tensor.detach().float().double().reshape(-1)
        ordered = values[values.isfinite()].sort().values
        if not len(ordered):
            return values.reshape(tensor.shape)
        reach, last = math.ceil(len(ordered) / 100), len(ordered) - 1
        above = ordered[(torch.searchsorted(ordered, values, right=True) - 1 + reach).clamp(max=last)] - values
        below = values - ordered[(torch.searchsorted(ordered, values) - reach).clamp(min=0, max=last)]
        scaling = _Scaling.of(_on_cpu(ordered))
        bound = torch.maximum(above, below) + 2**-10 * (values - scaling.center).abs() + scaling.scale * 2**-24
        return (bound + rounding(values, tensor.dtype) + 2**-22 * abs(scaling.center)).reshape(tensor.shape)


@dataclass(frozen=True)
class _Scaling:
    """Brings values to the range of float16: where most of them lie it has the most digits."""

    center: float
    scale: float  # a power of 2, so that it costs no digits

    @classmethod
    def of(cls, sample: Array) -> _Scaling:
        """For values like those of ``sample``, float32, ascending."""
        center, spread = 0.0, _median_size(sample)
        median = float(sample[len(sample) // 2])
        around = _median_size(sample - sample[len(sample) // 2])
        if abs(median) > 4 * around:  # all lie far from 0; otherwise 0 itself, which is often exact, is to stay so
            center, spread = median, around
        return cls(center, 2.0 ** max(-120, min(120, math.frexp(spread)[1])) if spread else 1.0)

    def tells_apart(self, sample: Array, codes: int) -> bool:
        """Whether the bounds of equal shares of ``sample``, which ascends, have patterns of their own."""
        bounds = torch.from_numpy(sample[:: max(1, len(sample) // codes)].copy())
        found = np.unique(
            _patterns(bounds, self.center, self.scale, Scratch(bounds, *_SCRATCH).of(len(bounds))).numpy()
        )
        return len(found) >= 0.9 * len(np.unique(bounds.numpy()))


def _patterns(values: torch.Tensor, center: float, scale: float, scratch: list[torch.Tensor]) -> torch.Tensor:
    """The bit pattern of each of ``values`` in a `_Scaling` as a float16, as a whole number from 0 to 65535.

    :param scratch: as `_SCRATCH`, for just as many values
    """
    scaled, half = scratch
    torch.mul(values.to(torch.float32), 1 / scale, out=scaled)
    if center:
        scaled.sub_(center / scale)
    return half.copy_(scaled.clamp_(-_FP16_MAX, _FP16_MAX)).view(torch.uint16)


def _median_size(values: Array) -> float:
    """The median of the magnitudes that are not 0; 0 if there are none."""
    sizes = np.abs(values)
    zeros = len(sizes) - int(np.count_nonzero(sizes))
    middle = zeros + (len(sizes) - zeros) // 2  # as zeros come first
    return float(np.partition(sizes, middle)[middle]) if zeros < len(sizes) else 0.0


def _on_cpu(values: torch.Tensor) -> Array:
    """A copy of ``values`` as float32."""
    array: Array = values.to("cpu", torch.float32, copy=True).numpy()
    return array


@functools.cache
def _jitter(device: torch.device) -> torch.Tensor:
    return torch.rand(_SAMPLE, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(device)


def _places(length: int, device: torch.device) -> torch.Tensor:
    """Where to look: one place in each of many equal stretches, always the same ones, but not in step with rows."""
    jitter = _jitter(device)
    stretches = torch.arange(len(jitter), dtype=torch.float64, device=device)
    return ((stretches + jitter) * (length / len(jitter))).long().clamp_(max=length - 1)


@functools.cache
def _ordered_patterns() -> tuple[Array, Array]:
    """The patterns of all finite values of float16, ascending by value, and the values, float64."""
    values = np.arange(_PATTERNS, dtype=np.uint16).view(np.float16).astype(np.float64)
    order = np.argsort(values, kind="stable")
    order = order[np.isfinite(values[order])]
    return order, values[order]


def _shares(values: Array, counts: Array, codes: int) -> tuple[Array, Array]:
    """Put values in shares of about equal counts.

    :param values: float64, ascending
    :param counts: how often each occurs, at least once
    :returns: the share of each value, uint8, and the mean of each share, float64 (0 for those without a value)
    """
    upper = np.cumsum(counts)
    shares = np.minimum((upper - counts / 2) * (codes / upper[-1]), codes - 1).astype(np.int64)
    sizes = np.bincount(shares, counts, codes)
    means = np.bincount(shares, counts * values, codes) / np.maximum(sizes, 1)
    return shares.astype(np.uint8), means


def _fit_to_patterns(values: torch.Tensor, indices: torch.Tensor, codes: int, scaling: _Scaling) -> torch.Tensor | None:
    device = values.device
    order, ordered = _ordered_patterns()
    counts = _counts(values, scaling)[order]
    suspect = counts.sum() < len(values) or counts[0] > 0 or counts[-1] > 0  # NaN, or clamped
    if suspect and not all_finite(values):
        return None
    present = np.flatnonzero(counts > 0)
    shares, means = _shares(ordered[present], counts[present], codes)
    table = np.zeros(_PATTERNS, np.uint8)
    table[order[present]] = shares
    table[_NEGATIVE_ZERO] = table[0]
    assign_patterns(values, scaling.center, scaling.scale, torch.from_numpy(table).to(device), indices)
    return torch.from_numpy(means * scaling.scale + scaling.center).float().to(device)


def _counts(values: torch.Tensor, scaling: _Scaling) -> Array:
    """How many of ``values`` have each pattern, int64 ``(65536,)``. Both zeros count as 0.0: in an order of patterns
    one would come after all of the other. Numpy goes on with them, as torch would spread each step over its threads."""
    counts = torch.from_numpy(np.zeros(_PATTERNS, np.int64)).to(values.device)
    count_patterns(values, scaling.center, scaling.scale, counts)
    total: Array = counts.cpu().numpy()
    total[0] += total[_NEGATIVE_ZERO]
    total[_NEGATIVE_ZERO] = 0
    return total


@fused
def count_patterns(values: torch.Tensor, center: float, scale: float, counts: torch.Tensor) -> None:
    """Add to ``counts``, int64 ``(65536,)``, how many of ``values`` have each pattern of `_Scaling`."""
    tables: list[torch.Tensor] = []

    def count(spans: Spans) -> None:
        table = torch.from_numpy(np.zeros(_PATTERNS, np.int32)).to(values.device)
        tables.append(table)
        scratch, ones = Scratch(values, *_SCRATCH, torch.int64), Scratch(values, torch.int32)
        ones.all[0].fill_(1)
        for start, stop in spans:
            *steps, whole = scratch.of(stop - start)
            whole.copy_(_patterns(values[start:stop], center, scale, steps))
            table.scatter_add_(0, whole, *ones.of(stop - start))

    walk(count, len(values), values.device)
    with one_thread():
        for table in tables:
            counts += table


@fused
def assign_patterns(
    values: torch.Tensor, center: float, scale: float, share_of: torch.Tensor, indices: torch.Tensor
) -> None:
    """Write what the table ``share_of`` has for the pattern of each of ``values`` to ``indices``."""

    def assign(spans: Spans) -> None:
        scratch = Scratch(values, *_SCRATCH, torch.int32)
        for start, stop in spans:
            *steps, whole = scratch.of(stop - start)
            whole.copy_(_patterns(values[start:stop], center, scale, steps))
            torch.index_select(share_of, 0, whole, out=indices[start:stop])

    walk(assign, len(values), values.device)


def _fit_to_sorted(values: torch.Tensor, indices: torch.Tensor, codes: int) -> torch.Tensor | None:
    """The slow way, for values that lie close together in several places far apart."""
    if not all_finite(values):
        return None
    single = values.to(torch.float32)
    ordered = torch.from_numpy(np.sort(single.numpy())) if on_cpu(single.device) else single.sort().values
    bounds = ordered[torch.arange(1, codes, device=values.device) * len(ordered) // codes]
    step = span_of(values.device)
    sums = torch.empty(spans_in(len(values), values.device), codes, dtype=torch.float64, device=values.device)

    def assign(spans: Spans) -> None:
        for start, stop in spans:
            chosen = indices[start:stop].copy_(torch.bucketize(single[start:stop], bounds))
            sums[start // step] = torch.bincount(chosen, single[start:stop].double(), minlength=codes)

    walk(assign, len(values), values.device)
    counts = torch.bincount(indices, minlength=codes)
    return (sums.sum(0) / counts.clamp(min=1)).float()
