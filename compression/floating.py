"""Codecs that store numbers with fewer bits of floating point."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from hivemind.compression.base import BufferCodec, CompressionInfo, bits_per_element, rounding
from hivemind.compression.buffers import Buffer, Elements, allocate, from_buffer, on_cpu
from hivemind.compression.chunks import CPU_SPAN, Scratch, Spans, in_dtype, walk
from hivemind.compression.fused import fused
from hivemind.compression.moments import moments
from hivemind.compression.output import Output
from hivemind.errors import SerializationError
from hivemind.proto import runtime_pb2

__all__ = ["Float16Compression", "ScaledFloat16Compression", "round_to_half", "scale_rows", "unscale_rows"]

FP16_MAX = 65504.0
#: Relative error of rounding to float16, and absolute error where float16 has no more digits.
FP16_ROUNDING, FP16_SMALLEST = 2**-11, 2**-25
_FLOATS = (torch.float16, torch.float32, torch.float64)
#: Below it a row counts as constant, as in hivemind 1.1: the distance of 1 from the next float32.
_LEAST_STD = 2**-23


class Float16Compression(BufferCodec):
    """Half precision: 2 bytes an element, values beyond ±65504, infinities too, become ±65504; NaN stays.

    Carries float16, float32 and float64.
    """

    compression_type = runtime_pb2.FLOAT16
    light = True
    linear = True

    def encode(
        self, tensor: torch.Tensor, info: CompressionInfo, allow_inplace: bool = False
    ) -> tuple[runtime_pb2.Tensor, Buffer]:
        header = self._header(tensor, _FLOATS)
        values = tensor.detach().contiguous().view(-1)
        output = Output(2 * len(values), values.device)
        round_to_half(values, output.octets.view(torch.float16))
        return header, output.buffer()

    def decode(self, buffer: Buffer, dtype: torch.dtype, shape: torch.Size, device: torch.device) -> torch.Tensor:
        if dtype == torch.float16:
            return from_buffer(buffer, torch.float16, device).reshape(shape)
        half, values = Elements(buffer, torch.float16, device), allocate(shape.numel(), dtype, device)

        def decode(spans: Spans) -> None:
            scratch = Scratch(values, torch.float16)
            for start, stop in spans:
                values[start:stop] = half.read(start, stop, *scratch.of(stop - start))

        walk(decode, len(values), device)
        return values.reshape(shape)

    def buffer_lengths(self, shape: torch.Size, dtype: torch.dtype) -> Sequence[int]:
        if not dtype.is_floating_point:
            raise SerializationError(f"FLOAT16 does not carry {dtype}")
        return (2 * shape.numel(),)

    def error_bound(self, tensor: torch.Tensor) -> torch.Tensor:
        size = tensor.detach().double().abs()
        # rounded to float32 first, which may take it over the middle between two halves
        rounding = (size * (FP16_ROUNDING + 2**-24)).clamp(min=FP16_SMALLEST)
        return torch.where(size > FP16_MAX, size - FP16_MAX, rounding)

    def estimate_compression_ratio(self, info: CompressionInfo) -> float:
        return 16 / bits_per_element(info)


class ScaledFloat16Compression(BufferCodec):
    """Half precision of what is normalised over the last axis, for values that float16 itself has no range for.

    2 bytes an element, and mean and standard deviation of each row in float32. A finite value may be off by 2**-11 of
    its distance from the row's mean, and by 65504 standard deviations less than that distance. NaN and infinities stay
    what they are, and have no share in mean and deviation (in hivemind 1.1 they spoil their row). Carries float16,
    float32 and float64, from one dimension on.
    """

    compression_type = runtime_pb2.MEANSTD_16BIT

    def encode(
        self, tensor: torch.Tensor, info: CompressionInfo, allow_inplace: bool = False
    ) -> tuple[runtime_pb2.Tensor, Buffer]:
        count, width = _rows_of(tensor.shape)
        header = self._header(tensor, _FLOATS)
        rows = tensor.detach().contiguous().view(count, width)
        output = Output(self.encoded_bytes(tensor.shape, tensor.dtype), tensor.device)
        half = output.octets[: 2 * count * width].view(torch.float16).view(count, width)
        scales = torch.empty(2, count, 1, dtype=torch.float32, device=tensor.device)  # means, then deviations

        def encode(spans: Spans) -> None:
            for start, stop in spans:
                half[start:stop], scales[0, start:stop], scales[1, start:stop] = _normalised(rows[start:stop])

        if rows.numel() and not on_cpu(rows.device):
            _normalise(rows, half, scales)
        elif width > CPU_SPAN:
            for row in range(count):
                _normalise_long(rows[row], half[row], scales[:, row])
        else:
            walk(encode, count, rows.device, unit=max(1, width))
        output.octets[2 * count * width :] = scales.view(-1).view(torch.uint8)
        return header, output.buffer()

    def decode(self, buffer: Buffer, dtype: torch.dtype, shape: torch.Size, device: torch.device) -> torch.Tensor:
        count, width = _rows_of(shape)
        octets, values = memoryview(buffer), allocate(count * width, dtype, device)
        means, stds = from_buffer(octets[2 * len(values) :], torch.float32, device).view(2, count, 1)
        rows, octets = values.view(count, width), octets[: 2 * len(values)]
        if not on_cpu(device):
            unscale_rows(rows, from_buffer(octets, torch.float16, device).view(count, width), means, stds)
            return rows.reshape(shape)
        half = Elements(octets, torch.float16, device)

        def decode(spans: Spans) -> None:
            scratch = Scratch(values, torch.float16, unit=width)
            for start, stop in spans:
                read = half.read(start * width, stop * width, *scratch.of((stop - start) * width)).view(-1, width)
                unscale_rows(rows[start:stop], read, means[start:stop], stds[start:stop])

        if width > CPU_SPAN:
            for row in range(count):
                _decode_long(half, row * width, means[row], stds[row], rows[row])
        elif width:
            walk(decode, count, device, unit=width)
        return rows.reshape(shape)

    def buffer_lengths(self, shape: torch.Size, dtype: torch.dtype) -> Sequence[int]:
        if dtype not in _FLOATS:
            raise SerializationError(f"MEANSTD_16BIT does not carry {dtype}")
        count, width = _rows_of(shape)
        return (2 * count * width + 8 * count,)

    def error_bound(self, tensor: torch.Tensor) -> torch.Tensor:
        rows = tensor.detach().double().reshape(_rows_of(tensor.shape))
        _, means, stds = (part.double() for part in _normalised_carefully(rows.float()))
        distance = (rows - means).abs()
        bound = (distance * FP16_ROUNDING).clamp(min=FP16_SMALLEST * stds)
        bound = torch.where(distance > FP16_MAX * stds, distance - FP16_MAX * stds, bound)
        # mean and deviation are rounded, and so is the result: to the digits of the tensor's dtype
        coarsest = tensor.dtype if tensor.dtype == torch.float16 else torch.float32
        bound += 4 * rounding(rows.abs() + means.abs() + distance, coarsest)
        # close to the end of its range a value may be decoded as infinity
        largest = min(torch.finfo(tensor.dtype).max, torch.finfo(torch.float32).max)
        return torch.where(rows.abs() + bound > largest, math.inf, bound).reshape(tensor.shape)

    def estimate_compression_ratio(self, info: CompressionInfo) -> float:
        return 16 / bits_per_element(info)


@fused
def round_to_half(values: torch.Tensor, half: torch.Tensor) -> None:
    """Write ``values``, 1-d, to ``half``, those beyond its range as the ends of that."""

    def encode(spans: Spans) -> None:
        scratch = Scratch(values, torch.float32)
        for start, stop in spans:
            # via float32, as the wire format asks: float64 is rounded twice
            (single,) = scratch.of(stop - start)
            half[start:stop] = torch.clamp(in_dtype(values[start:stop], single), -FP16_MAX, FP16_MAX, out=single)

    walk(encode, len(values), values.device)


@fused
def scale_rows(rows: torch.Tensor, means: torch.Tensor, stds: torch.Tensor, half: torch.Tensor) -> None:
    """Write to ``half`` each row, without its mean, in its deviations; these two are float32 ``(rows, 1)``."""
    half.copy_(rows.to(torch.float32).sub(means).div_(stds).clamp_(-FP16_MAX, FP16_MAX))


@fused
def unscale_rows(rows: torch.Tensor, half: torch.Tensor, means: torch.Tensor, stds: torch.Tensor) -> None:
    """Write to ``rows`` what `scale_rows` made ``half`` of."""
    rows.copy_(half).mul_(stds).add_(means)


def _rows_of(shape: torch.Size) -> tuple[int, int]:
    """Number and length of the rows of a tensor of this shape."""
    if not shape:
        raise SerializationError("MEANSTD_16BIT got a tensor of shape (), allowed: at least one dimension")
    return shape[:-1].numel(), shape[-1]


def _normalised(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Float16 of each row without its mean, in its standard deviations, and these two, float32, ``(rows, 1)``."""
    single = rows.to(torch.float32)
    mean = single.mean(dim=1, keepdim=True)
    centered = single - mean
    std = torch.linalg.vector_norm(centered, dim=1, keepdim=True).div_(math.sqrt(rows.shape[1])).clamp_(min=_LEAST_STD)
    if rows.numel() and not bool(torch.isfinite(std).all()):
        return _normalised_carefully(single)
    return centered.div_(std).clamp_(-FP16_MAX, FP16_MAX).to(torch.float16), mean, std


def _normalise(rows: torch.Tensor, half: torch.Tensor, scales: torch.Tensor) -> None:
    """`_normalised` of all rows, as accelerators do it: ``half`` and ``scales`` ``(2, rows, 1)`` are written to."""
    variances, scales[0] = torch.var_mean(rows.to(torch.float32), dim=1, correction=0, keepdim=True)
    scales[1] = variances.sqrt_().clamp_(min=_LEAST_STD)
    if not bool(torch.isfinite(scales[1]).all()):
        half[:], scales[0], scales[1] = _normalised_carefully(rows.to(torch.float32))
    else:
        scale_rows(rows, scales[0], scales[1], half)


def _normalised_carefully(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The same where values are not finite, or too large to be squared in float32."""
    values = rows.double()
    finite = torch.isfinite(values)
    count = finite.sum(dim=1, keepdim=True).clamp_(min=1)
    mean = torch.where(finite, values, 0).sum(dim=1, keepdim=True).div_(count)
    centered = values - mean
    std = torch.where(finite, centered, 0).square().sum(dim=1, keepdim=True).div_(count).sqrt_().clamp_(min=_LEAST_STD)
    scaled = torch.where(finite, centered.div_(std).clamp(-FP16_MAX, FP16_MAX), values)
    return scaled.to(torch.float16), mean.float(), std.float()


def _normalise_long(row: torch.Tensor, half: torch.Tensor, scales: torch.Tensor) -> None:
    """`_normalised` of one row that is too long for a span: ``half`` and ``scales`` ``(2, 1)`` are written to."""
    mean, std = moments(row)
    if not math.isfinite(std):
        parts = _normalised_carefully(row.float().view(1, -1))
        half[:], scales[0], scales[1] = (part[0] for part in parts)
        return
    std = max(std, _LEAST_STD)
    scales[0], scales[1] = mean, std
    offset = torch.tensor(-mean / std, dtype=torch.float32, device=row.device)

    def encode(spans: Spans) -> None:
        scratch = Scratch(row, torch.float32)
        for start, stop in spans:
            (single,) = scratch.of(stop - start)
            torch.add(offset, in_dtype(row[start:stop], single), alpha=1 / std, out=single)
            half[start:stop] = single.clamp_(-FP16_MAX, FP16_MAX)

    walk(encode, len(row), row.device)


def _decode_long(half: Elements, first: int, mean: torch.Tensor, std: torch.Tensor, row: torch.Tensor) -> None:
    """Write to ``row``, whose elements begin at ``first`` in ``half``."""

    def decode(spans: Spans) -> None:
        scratch = Scratch(row, torch.float16)
        for start, stop in spans:
            read = half.read(first + start, first + stop, *scratch.of(stop - start))
            row[start:stop].copy_(read).mul_(std).add_(mean)

    walk(decode, len(row), row.device)
