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
from hivemind.compression.buffers import Buffer, dtype_name, from_buffer, to_buffer
from hivemind.compression.chunks import Spans, walk
from hivemind.errors import SerializationError
from hivemind.proto import runtime_pb2

__all__ = [
    "CODES",
    "FINITE_CODES",
    "FLOATS",
    "CodebookCodec",
    "Indices",
    "add_by_index",
    "check_count",
    "indices_in",
    "mark_non_finite",
    "take",
]

#: Values that an index of 8 bits can choose from.
CODES = 256
#: Values that take the last places of a codebook if there is an element that is not finite, and the places before them.
_NON_FINITE = (float("nan"), float("inf"), float("-inf"))
FINITE_CODES = CODES - len(_NON_FINITE)
#: The dtypes that codecs of 8 bits carry.
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)

#: Indices of one byte that have come: on a CPU in place, as an array that is not to be written to.
Indices: TypeAlias = "np.ndarray[Any, np.dtype[np.uint8]] | torch.Tensor"

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
        octets = torch.empty(self.encoded_bytes(tensor.shape, tensor.dtype), dtype=torch.uint8, device=tensor.device)
        count, codebook, indices = octets.split_with_sizes([_COUNT_BYTES, 4 * CODES, len(values)])
        count.view(torch.int64).fill_(CODES)
        codebook = codebook.view(torch.float32).zero_()
        if len(values):
            fitted = self.fit(values, indices, CODES)
            if fitted is None:
                self._fit_finite(values.to(torch.float32), indices, codebook)
            else:
                codebook[: len(fitted)] = fitted
        return header, to_buffer(octets)

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
        values = torch.empty(shape.numel(), dtype=dtype, device=device)

        def decode(spans: Spans) -> None:
            for first, last in spans:
                take(codebook, indices[first:last], values[first:last])

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
    """The indices in ``buffer``, for `take`.

    :raises SerializationError: if one of them is none of ``count`` codes
    """
    indices = np.frombuffer(buffer, np.uint8) if device.type == "cpu" else from_buffer(buffer, torch.uint8, device)
    if count < CODES and len(indices) and int(indices.max()) >= count:
        raise SerializationError(f"index {int(indices.max())} into a codebook of {count} codes")
    return indices


def add_by_index(sums: torch.Tensor, indices: torch.Tensor, values: torch.Tensor) -> None:
    """``sums[index] += value`` for all pairs; ``indices`` are int64, the others float64."""
    if sums.device.type == "cpu":
        sums.scatter_add_(0, indices, values)
    else:  # where thousands of threads would wait for one of 256 sums
        sums += torch.bincount(indices, values, minlength=len(sums))


def take(codebook: torch.Tensor, indices: Indices, out: torch.Tensor) -> None:
    """``out[:] = codebook[indices]``, all 1-d and on one device."""
    if isinstance(indices, torch.Tensor):
        torch.index_select(codebook, 0, indices.int(), out=out)
        return
    # numpy looks up by bytes as they are. It needs to know how large a value is, not what, and has no bfloat16
    plain = {2: torch.int16, 4: torch.int32, 8: torch.int64}[out.element_size()]
    np.take(codebook.view(plain).numpy(), indices, out=out.view(plain).numpy(), mode="clip")
