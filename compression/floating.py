"""Codecs that store numbers with fewer bits of floating point."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from hivemind.compression.base import BufferCodec, CompressionInfo, bits_per_element
from hivemind.compression.buffers import Buffer, from_buffer, to_buffer
from hivemind.errors import SerializationError
from hivemind.proto import runtime_pb2

__all__ = ["Float16Compression"]

FP16_MAX = 65504.0


class Float16Compression(BufferCodec):
    """Half precision: 2 bytes an element, values beyond ±65504 become ±65504. Carries float16, float32 and float64."""

    compression_type = runtime_pb2.FLOAT16
    light = True

    def encode(
        self, tensor: torch.Tensor, info: CompressionInfo, allow_inplace: bool = False
    ) -> tuple[runtime_pb2.Tensor, Buffer]:
        if tensor.dtype not in (torch.float16, torch.float32, torch.float64):
            raise SerializationError(
                f"Float16Compression does not support {tensor.dtype} tensors, only float16, float32 and float64"
            )
        # via float32, as the wire format asks (float64 is thus rounded twice). The result is a new tensor, also for
        # float16; what was too large is infinite in it by now, and is clamped there
        half = tensor.detach().to(torch.float32).to(torch.float16).clamp_(-FP16_MAX, FP16_MAX)
        return self._header(tensor), to_buffer(half)

    def decode(self, buffer: Buffer, dtype: torch.dtype, shape: torch.Size) -> torch.Tensor:
        return from_buffer(buffer, torch.float16).to(dtype).reshape(shape)

    def estimate_compression_ratio(self, info: CompressionInfo) -> float:
        return 16 / bits_per_element(info)

    def buffer_lengths(self, elements: int, dtype: torch.dtype) -> Sequence[int]:
        if not dtype.is_floating_point:
            raise SerializationError(f"FLOAT16 does not carry {dtype}")
        return (2 * elements,)
