"""8 bits an element: the same 256 fractions for all, of the largest element of each block."""

from __future__ import annotations

import functools
import struct
from collections.abc import Sequence

import torch

from hivemind.compression.base import BufferCodec, CompressionInfo, bits_per_element, rounding
from hivemind.compression.buffers import Buffer, allocate, from_buffer
from hivemind.compression.chunks import Scratch, Spans, walk
from hivemind.compression.codebook import (
    CODES,
    FINITE_CODES,
    FLOATS,
    Indices,
    Lookup,
    all_finite,
    check_count,
    indices_in,
    mark_non_finite,
)
from hivemind.compression.fused import fused
from hivemind.compression.one_thread import one_thread
from hivemind.compression.output import Output
from hivemind.errors import SerializationError
from hivemind.proto import runtime_pb2

__all__ = ["BlockwiseQuantization", "decode_blocks", "dynamic_map", "encode_blocks"]

#: Consecutive elements that share a scale.
BLOCK = 4096
_COUNTS_BYTES = 16
#: Half of the widest gap between codes, and what rounding the fraction to float16 first may add.
_WIDEST, _ROUNDING = 0.00704, 2**-11


@functools.cache
def dynamic_map() -> torch.Tensor:
    """The codes that bitsandbytes calls its dynamic map (8-bit Optimizers via Block-wise Quantization, 2110.02861).

    256 fractions from about -1 to 1, ascending, float32: for each power of ten from -6 to 0 twice as many as for the
    one before, at equal distances; and 0 and 1.
    """
    codes = [0.0, 1.0]
    for exponent in range(7):
        borders = torch.linspace(0.1, 1, 2**exponent + 1)
        middles = (borders[:-1] + borders[1:]) / 2 * 10.0 ** (exponent - 6)
        codes += [*middles.tolist(), *(-middles).tolist()]
    return torch.tensor(sorted(codes))


class BlockwiseQuantization(BufferCodec):
    """An index into `dynamic_map` for each element, and the largest magnitude of each 4096 elements in a row.

    An outlier costs the digits of its own block only, and small elements keep theirs, as codes are dense around 0: no
    element is off by more than 0.75 % of the largest in its block. Carries float16, bfloat16, float32 and float64;
    values beyond the range of float32 count as infinite. Infinities and NaN arrive as what they are.

    Peers of hivemind 1.1 send whole numbers this way as well: those are read, and rounded towards 0 as there.
    """

    compression_type = runtime_pb2.BLOCKWISE_8BIT

    def encode(
        self, tensor: torch.Tensor, info: CompressionInfo, allow_inplace: bool = False
    ) -> tuple[runtime_pb2.Tensor, Buffer]:
        header = self._header(tensor, FLOATS)
        values, device = tensor.detach().contiguous().view(-1), tensor.device
        blocks = _blocks_in(len(values))
        output = Output(self.encoded_bytes(tensor.shape, tensor.dtype), device)
        counts, scales, codes, indices = output.octets.split_with_sizes(
            [_COUNTS_BYTES, 4 * blocks, 4 * CODES, len(values)]
        )
        scales, codes = scales.view(torch.float32), codes.view(torch.float32)
        counts.view(torch.int64).copy_(torch.tensor([blocks, CODES]))
        codes.copy_(_codes(CODES))
        encode_blocks(values, BLOCK, _nearest(CODES, device), scales, indices)
        if not all_finite(scales):
            single = values.to(torch.float32)
            finite = torch.where(torch.isfinite(single), single, 0)
            codes[:FINITE_CODES] = _codes(FINITE_CODES)
            encode_blocks(finite, BLOCK, _nearest(FINITE_CODES, device), scales, indices)
            mark_non_finite(single, indices, codes)
        return header, output.buffer()

    def decode(self, buffer: Buffer, dtype: torch.dtype, shape: torch.Size, device: torch.device) -> torch.Tensor:
        octets, length = memoryview(buffer), shape.numel()
        blocks, (scale_count, code_count) = _blocks_in(length), struct.unpack_from("<qq", octets)
        check_count(code_count)
        start, stop = _COUNTS_BYTES + 4 * blocks, _COUNTS_BYTES + 4 * blocks + 4 * code_count
        if scale_count != blocks or len(octets) != stop + length:
            raise SerializationError(
                f"{scale_count} scales and {code_count} codes in {len(octets)} bytes for {length} elements"
            )
        scales = from_buffer(octets[_COUNTS_BYTES:start], torch.float32, device)
        codes = from_buffer(octets[start:stop], torch.float32, device)
        indices = indices_in(octets[stop:], code_count, device)
        values = allocate(length, dtype, device)
        decode_blocks(values, BLOCK, codes, scales, indices)
        return values.reshape(shape)

    def buffer_lengths(self, shape: torch.Size, dtype: torch.dtype) -> Sequence[int]:
        if dtype.is_complex:
            raise SerializationError(f"BLOCKWISE_8BIT does not carry {dtype}")
        shortest = _COUNTS_BYTES + 4 * _blocks_in(shape.numel()) + shape.numel()
        return range(shortest + 4, shortest + 4 * CODES + 1, 4)

    def error_bound(self, tensor: torch.Tensor) -> torch.Tensor:
        values = tensor.detach().reshape(-1).float().double()
        size = torch.nn.functional.pad(torch.where(values.isfinite(), values.abs(), 0), (0, -len(values) % BLOCK))
        largest = size.view(-1, BLOCK).amax(dim=1, keepdim=True).expand(-1, BLOCK).reshape(-1)[: len(values)]
        bound = _WIDEST * largest + _ROUNDING * values.abs() + rounding(values, tensor.dtype)
        return bound.reshape(tensor.shape)

    def estimate_compression_ratio(self, info: CompressionInfo) -> float:
        return 8 / bits_per_element(info)


def _blocks_in(length: int) -> int:
    return -(-length // BLOCK)


@functools.cache
def _codes(count: int) -> torch.Tensor:
    """What is sent: `dynamic_map` and -1, so that the largest element is exact on either side, without those codes next
    to 0 that are too many for ``count``; ascending."""
    codes = [-1.0, *dynamic_map().tolist()]
    spare = sorted(filter(None, codes), key=abs)[: len(codes) - count]
    return torch.tensor(sorted(set(codes) - set(spare)))


@functools.cache
@one_thread()
def _nearest(count: int, device: torch.device) -> torch.Tensor:
    """For each bit pattern of a float16: the index of the nearest of `_codes`, uint8 ``(65536,)``."""
    codes = _codes(count)
    halves = torch.arange(2**16).to(torch.uint16).view(torch.float16).float().nan_to_num(0)
    return torch.bucketize(halves, (codes[1:] + codes[:-1]) / 2).to(torch.uint8).to(device)


@fused
def encode_blocks(
    values: torch.Tensor, block: int, nearest: torch.Tensor, scales: torch.Tensor, indices: torch.Tensor
) -> None:
    """Write ``scales``, one for each ``block`` of ``values``, and ``indices``, found in the table ``nearest``.

    A scale is not finite if its block has an element that is not.
    """
    length = len(values)

    def encode(spans: Spans) -> None:
        scratch = Scratch(values, torch.float32, torch.float16, torch.int32, unit=block)
        for first, last in spans:
            start, stop, whole = first * block, min(last * block, length), (last - first) * block
            span, (work, half, pattern) = values[start:stop], scratch.of(whole)
            if span.dtype != torch.float32 or len(span) < whole:
                work[: len(span)] = span
                work[len(span) :] = 0
                span = work
            blocks, largest = span.view(-1, block), scales[first:last]
            _largest(blocks, largest)
            torch.div(blocks, largest[:, None], out=work.view(-1, block))
            # a float16 has digits enough to tell codes apart, and few enough for a table of all its patterns
            pattern.copy_(half.copy_(work).view(torch.uint16))
            torch.index_select(nearest, 0, pattern[: stop - start], out=indices[start:stop])

    walk(encode, len(scales), values.device, unit=block)


@fused
def decode_blocks(
    values: torch.Tensor, block: int, codes: torch.Tensor, scales: torch.Tensor, indices: Indices
) -> None:
    """Write the code at each of ``indices``, times the scale of its block, to ``values``, 1-d."""
    lookup = Lookup(codes, len(values))

    def decode(spans: Spans) -> None:
        for first, last in spans:
            span = slice(first * block, last * block)
            _decode_few(values[span], block, lookup, scales[first:last, None], indices[span])

    walk(decode, len(scales), values.device, unit=block)


def _largest(blocks: torch.Tensor, out: torch.Tensor) -> None:
    """Write the largest magnitude of each block, or 1 if that is 0, so that fractions of it are finite."""
    # magnitudes of all elements first would take longer
    torch.maximum(blocks.amax(dim=1), -blocks.amin(dim=1), out=out)
    out.masked_fill_(out == 0, 1)


def _decode_few(values: torch.Tensor, block: int, lookup: Lookup, scales: torch.Tensor, indices: Indices) -> None:
    """Write ``values`` of a few blocks, the last of which may be shorter; ``scales`` is ``(blocks, 1)``."""
    single = values if values.dtype == torch.float32 else torch.empty_like(values, dtype=torch.float32)
    lookup.take(indices, single)
    whole = len(single) // block
    if whole == len(scales):
        single.view(whole, block).mul_(scales)
    else:
        single[: whole * block].view(whole, block).mul_(scales[:whole])
        single[whole * block :].mul_(scales[whole])
    if single is not values:
        values.copy_(single)
