"""What codecs have in common that store an index of 8 bits for each element, and the values behind the indices.

A buffer is ``int64`` number of values (256 as a rule), ``float32`` values, ``uint8`` indices (hivemind 1.1 wire format,
"Tensor message"). Elements that are not finite get values of their own, so that they arrive as what they are and their
neighbours as if they were not there.
"""

from __future__ import annotations

import struct
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import torch

from hivemind.compression.base import BufferCodec, CompressionInfo, bits_per_element
from hivemind.compression.buffers import Array, Buffer, allocate, dtype_name, from_buffer, on_cpu
from hivemind.compression.chunks import Spans, span_of, spans_in, walk
from hivemind.compression.fused import fused
from hivemind.compression.output import Output
from hivemind.errors import SerializationError
from hivemind.proto import runtime_pb2

__all__ = [
    "CODES",
    "FINITE_CODES",
    "FLOATS",
    "CodebookCodec",
    "Indices",
    "Lookup",
    "all_finite",
    "check_count",
    "cut_off",
    "indices_in",
    "look_up",
    "mark_non_finite",
    "sums_by_index",
]

#: Values that an index of 8 bits can choose from.
CODES = 256
#: Values that take the last places of a codebook if there is an element that is not finite, and the places before them.
_NON_FINITE = (float("nan"), float("inf"), float("-inf"))
FINITE_CODES = CODES - len(_NON_FINITE)
#: The dtypes that codecs of 8 bits carry.
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)

#: Indices of one byte: on a CPU an array, as torch takes no memory that is not to be written to.
Indices: TypeAlias = "np.ndarray[Any, np.dtype[np.uint8]] | torch.Tensor"

#: Indices from which on a table of all pairs is worth it.
_MANY = 2**18

_COUNT_BYTES = 8


class CodebookCodec(BufferCodec):
    """A codec with one codebook for the whole tensor.

    Carries float16, bfloat16, float32 and float64; values beyond the range of float32 count as infinite.
    """

    @abstractmethod
    def fit(self, values: torch.Tensor, indices: torch.Tensor, codes: int) -> torch.Tensor | None:
        """Choose a codebook, and an index for each element.

        :param values: 1-d, at least one
        :param indices: uint8, of the same length, to be written to
        :param codes: how many values the codebook may have
        :returns: at most ``codes`` values, float32, on the device of ``values``; None if some of these are not finite
        """

    def encode(
        self, tensor: torch.Tensor, info: CompressionInfo, allow_inplace: bool = False
    ) -> tuple[runtime_pb2.Tensor, Buffer]:
        header = self._header(tensor, FLOATS)
        values = tensor.detach().contiguous().view(-1)
        output = Output(self.encoded_bytes(tensor.shape, tensor.dtype), tensor.device)
        count, codebook, indices = output.octets.split_with_sizes([_COUNT_BYTES, 4 * CODES, len(values)])
        count.view(torch.int64).fill_(CODES)
        codebook = codebook.view(torch.float32).zero_()
        if len(values):
            fitted = self.fit(values, indices, CODES)
            if fitted is None:
                self._fit_finite(values.to(torch.float32), indices, codebook)
            else:
                codebook[: len(fitted)] = fitted
        return header, output.buffer()

    def _fit_finite(self, values: torch.Tensor, indices: torch.Tensor, codebook: torch.Tensor) -> None:
        """`fit` for values some of which are not finite."""
        finite = torch.isfinite(values)
        rest = values[finite]
        if len(rest):
            chosen = torch.empty(len(rest), dtype=torch.uint8, device=values.device)
            fitted = self.fit(rest, chosen, FINITE_CODES)
            if fitted is None:
                raise AssertionError("finite values were taken for others")
            codebook[: len(fitted)] = fitted
            indices[finite] = chosen
        mark_non_finite(values, indices, codebook)

    def decode(self, buffer: Buffer, dtype: torch.dtype, shape: torch.Size, device: torch.device) -> torch.Tensor:
        octets = memoryview(buffer)
        (count,) = struct.unpack_from("<q", octets)
        check_count(count)
        start = _COUNT_BYTES + 4 * count
        if len(octets) - start != shape.numel():
            raise SerializationError(f"{count} codes in {len(octets)} bytes for {shape.numel()} elements")
        codebook = from_buffer(octets[_COUNT_BYTES:start], torch.float32, device).to(dtype)
        indices = indices_in(octets[start:], count, device)
        values, lookup = allocate(shape.numel(), dtype, device), Lookup(codebook, shape.numel())

        def decode(spans: Spans) -> None:
            for first, last in spans:
                lookup.take(indices[first:last], values[first:last])

        walk(decode, len(values), device)
        return values.reshape(shape)

    def buffer_lengths(self, shape: torch.Size, dtype: torch.dtype) -> Sequence[int]:
        if dtype not in FLOATS:
            raise SerializationError(f"{type(self).__name__} does not carry {dtype_name(dtype)}")
        shortest = _COUNT_BYTES + shape.numel()
        return range(shortest + 4, shortest + 4 * CODES + 1, 4)

    def estimate_compression_ratio(self, info: CompressionInfo) -> float:
        return 8 / bits_per_element(info)


def check_count(count: int) -> None:
    """
    :raises SerializationError: unless an index of 8 bits can choose from ``count`` codes
    """
    if not 0 < count <= CODES:
        raise SerializationError(f"codebook: got {count} codes, allowed: 1 to {CODES}")


def mark_non_finite(values: torch.Tensor, indices: torch.Tensor, codebook: torch.Tensor) -> None:
    """Give the last places of ``codebook`` to NaN and infinities, and let such ``values`` point there."""
    codebook[FINITE_CODES:] = torch.tensor(_NON_FINITE)
    masks = (values.isnan(), values == float("inf"), values == float("-inf"))
    for index, mask in enumerate(masks, start=FINITE_CODES):
        indices[mask] = index


def indices_in(buffer: memoryview, count: int, device: torch.device) -> Indices:
    """The indices in ``buffer``, for a `Lookup`; on a CPU in place.

    :raises SerializationError: if one of them is none of ``count`` codes
    """
    indices = np.frombuffer(buffer, np.uint8) if on_cpu(device) else from_buffer(buffer, torch.uint8, device)
    if count < CODES and len(indices) and int(indices.max()) >= count:
        raise SerializationError(f"index {int(indices.max())} into a codebook of {count} codes")
    return indices


def all_finite(values: torch.Tensor) -> bool:
    """Whether all of 1-d ``values`` are finite in float32."""
    finite = [True] * spans_in(len(values), values.device)
    step = span_of(values.device)

    def check(spans: Spans) -> None:
        for start, stop in spans:
            # infinities and NaN are what is no number any more when 0 times it is added up
            finite[start // step] = float(values[start:stop].to(torch.float32).mul(0).sum()) == 0

    walk(check, len(values), values.device)
    return all(finite)


def cut_off(places: torch.Tensor, out: Indices) -> None:
    """``out[:] = places``, floats from 0 to 255, which become the bytes below them."""
    if isinstance(out, torch.Tensor):
        out.copy_(places)
    else:  # numpy on a CPU, where torch takes six times as long
        np.copyto(out, places.numpy(), casting="unsafe")


def sums_by_index(indices: torch.Tensor, values: torch.Tensor) -> tuple[Array, Array]:
    """For each of `CODES` indices, the sum and the number of the ``values`` that have it, float64 and int64."""
    if on_cpu(indices.device):
        chosen = indices.numpy()
        weights = (values.float() if values.dtype == torch.bfloat16 else values).numpy()
        return np.bincount(chosen, weights, CODES), np.bincount(chosen, minlength=CODES)
    sums = torch.bincount(indices, values.double(), CODES), torch.bincount(indices, minlength=CODES)
    return sums[0].cpu().numpy(), sums[1].cpu().numpy()


class Lookup:
    """Values by indices of 8 bits. Where there are many on a CPU, two at a time, as it is looking up that takes long.

    :param values: the codebook, on the device of what is to be looked up
    :param length: how many indices there will be
    """

    def __init__(self, values: torch.Tensor, length: int) -> None:
        self._values = values
        worth_it = on_cpu(values.device) and length >= _MANY and len(values) == CODES
        self._pairs = _pairs_of(values) if worth_it and values.element_size() <= 4 else None

    def take(self, indices: Indices, out: torch.Tensor) -> None:
        """``out[:] = values[indices]``, both 1-d. ``out`` begins at an even place of its memory."""
        if isinstance(indices, torch.Tensor):
            look_up(out, self._values, indices)
            return
        if self._pairs is None or len(indices) % 2:
            torch.index_select(self._values, 0, torch.from_numpy(indices.astype(np.int32)), out=out)
        else:
            two = torch.from_numpy(indices.view(np.uint16).astype(np.int32))
            torch.index_select(self._pairs, 0, two, out=out.view(self._pairs.dtype))


@fused
def look_up(values: torch.Tensor, codebook: torch.Tensor, indices: torch.Tensor) -> None:
    """Write the element of ``codebook`` at each of ``indices``, uint8, to ``values``."""
    torch.index_select(codebook, 0, indices.int(), out=values)


def _pairs_of(values: torch.Tensor) -> torch.Tensor:
    """All pairs of 256 ``values`` of 2 or 4 bytes each, as numbers of twice their size, by indices of 16 bits."""
    size = values.element_size()
    each = values.contiguous().view(torch.uint8).numpy().view(f"u{size}")
    pairs = np.empty((CODES, CODES, 2), each.dtype)
    pairs[:, :, 0], pairs[:, :, 1] = each, each[:, None]  # the first of two is the lower byte of their index
    return torch.from_numpy(pairs.view(f"i{2 * size}").reshape(-1))
