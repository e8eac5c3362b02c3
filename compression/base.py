"""The interface of codecs, and the codec that changes nothing.

A codec turns a tensor into one ``Tensor`` message and back (hivemind 1.1 wire format, "Tensor message"). It works on
the tensor's own device; only the encoded bytes are brought to the CPU. Codecs are immutable and thread-safe. A message
comes from another peer: dtype, shape and buffer are checked against each other before memory is set aside. Hosts are
little-endian, as the wire is.
"""

from __future__ import annotations

import enum
import os
from abc import ABC, abstractmethod
from collections.abc import Collection, Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch

from hivemind.compression.buffers import (
    CPU,
    WIRE_DTYPES,
    Buffer,
    TensorMessage,
    dtype_name,
    from_buffer,
    read_header,
    to_buffer,
)
from hivemind.compression.output import as_bytes
from hivemind.compression.spec import TensorDescriptor
from hivemind.errors import SerializationError, TensorLengthError
from hivemind.large_blocks import keep_large_blocks
from hivemind.proto import runtime_pb2

__all__ = [
    "USE_LEGACY_BFLOAT16",
    "BufferCodec",
    "CompressionBase",
    "CompressionInfo",
    "Key",
    "NoCompression",
    "TensorRole",
    "bits_per_element",
    "rounding",
]

#: Whether bfloat16 travels as float32 (4 bytes an element), as hivemind 1.1 does unless the environment variable of
#: this name is "0". Readers take both. May be changed at run time.
USE_LEGACY_BFLOAT16: bool = os.environ.get("USE_LEGACY_BFLOAT16", "1") not in ("0", "")

Key = Hashable


class TensorRole(enum.Enum):
    """What a tensor is to the model; some strategies choose by it."""

    ACTIVATION = enum.auto()
    PARAMETER = enum.auto()
    GRADIENT = enum.auto()
    OPTIMIZER = enum.auto()
    UNSPECIFIED = enum.auto()


@dataclass(frozen=True)
class CompressionInfo:
    """What a codec may know of a tensor beyond its values.

    :param key: name or number of the tensor among those it travels with
    :param descriptor: of the *whole* tensor, also where only a part of it is encoded
    :param part_index: number of the part, 0 for a whole tensor
    :param part_size: number of elements of the part, None for a whole tensor
    """

    key: Key
    descriptor: TensorDescriptor
    role: TensorRole = TensorRole.UNSPECIFIED
    part_index: int = 0
    part_size: int | None = None

    @classmethod
    def from_tensor(
        cls, tensor: torch.Tensor, key: Key = None, descriptor: TensorDescriptor | None = None, **kwargs: Any
    ) -> CompressionInfo:
        """The info of a whole tensor; ``kwargs`` are further fields."""
        return cls(key, descriptor or TensorDescriptor.from_tensor(tensor), **kwargs)

    def get_part(self, part_index: int, part_size: int | None) -> CompressionInfo:
        """The info of one part of this tensor."""
        return replace(self, part_index=part_index, part_size=part_size)


class CompressionBase(ABC):
    """A codec, or a strategy that chooses among codecs."""

    #: Whether it only goes over the memory once or twice, so that a thread of its own is not worth it for small parts.
    light: bool = False

    @abstractmethod
    def compress(self, tensor: torch.Tensor, info: CompressionInfo, allow_inplace: bool = False) -> runtime_pb2.Tensor:
        """Encode.

        :param tensor: any shape, strides and device
        :param allow_inplace: the codec may overwrite ``tensor`` to save memory
        :raises SerializationError: if the codec cannot carry this dtype, or the tensor is sparse or has no memory
        """

    def encode(
        self, tensor: torch.Tensor, info: CompressionInfo, allow_inplace: bool = False
    ) -> tuple[runtime_pb2.Tensor, Buffer]:
        """As `compress`, with the buffer beside the message, so that it needs not be copied into it.

        The buffer may be the tensor's own memory: use it before the tensor changes.
        """
        message = self.compress(tensor, info, allow_inplace)
        buffer = message.buffer
        message.ClearField("buffer")
        return message, buffer

    def extract(self, serialized_tensor: TensorMessage, device: torch.device = CPU) -> torch.Tensor:
        """Decode a message, whoever sent it.

        :param device: where to decode; only the bytes of the message are moved there
        :returns: a tensor of the message's shape and dtype; its memory is its own, or the message's if that may be
            written to
        :raises SerializationError: if dtype, shape and buffer do not fit each other or this codec
        """
        raise SerializationError(f"{type(self).__name__} reads no messages")

    @abstractmethod
    def estimate_compression_ratio(self, info: CompressionInfo) -> float:
        """Encoded bytes per byte of the tensor, 1 for no compression. Every member of an averaging group must get the
        same number, as the partition follows from it."""

    def codec_of(self, info: CompressionInfo) -> BufferCodec:
        """The codec that writes the tensor that ``info`` describes: it tells its number, sizes, errors and linearity.

        :raises SerializationError: if it is not known, as of a subclass that only compresses
        """
        raise SerializationError(f"{type(self).__name__} does not tell its codec")


class BufferCodec(CompressionBase):
    """A codec: one way to turn elements into bytes, with a number of its own. What has to be told of it is here.

    Those of other packages are registered with `hivemind.compression.register_codec`.
    """

    #: The number under which its messages travel, a ``CompressionType``.
    compression_type: ClassVar[int]
    #: Whether buffers are arrays of numbers whose sums, element by element, encode the sums of tensors.
    linear: ClassVar[bool] = False

    @abstractmethod
    def encode(
        self, tensor: torch.Tensor, info: CompressionInfo, allow_inplace: bool = False
    ) -> tuple[runtime_pb2.Tensor, Buffer]: ...

    @abstractmethod
    def decode(self, buffer: Buffer, dtype: torch.dtype, shape: torch.Size, device: torch.device) -> torch.Tensor:
        """The tensor in a buffer of a valid length, on ``device``.

        :raises SerializationError: if the buffer contradicts itself
        """

    @abstractmethod
    def buffer_lengths(self, shape: torch.Size, dtype: torch.dtype) -> Sequence[int]:
        """The valid lengths of a buffer for such a tensor, in bytes, ascending. Takes no memory.

        :raises SerializationError: if this codec does not carry ``dtype`` or ``shape``
        """

    @abstractmethod
    def error_bound(self, tensor: torch.Tensor) -> torch.Tensor:
        """By how much each element of ``tensor``, once decoded, may be off: same shape, float64.

        It holds for finite elements. For people and tests that choose a codec: it may take longer than the codec.
        """

    def encoded_bytes(self, shape: torch.Size, dtype: torch.dtype) -> int:
        """Length of the buffer that `encode` writes for such a tensor."""
        return self.buffer_lengths(shape, dtype)[-1]

    def codec_of(self, info: CompressionInfo) -> BufferCodec:
        return self

    def compress(self, tensor: torch.Tensor, info: CompressionInfo, allow_inplace: bool = False) -> runtime_pb2.Tensor:
        keep_large_blocks()
        message, buffer = self.encode(tensor, info, allow_inplace)
        message.buffer = as_bytes(buffer)  # protobuf copies once more
        return message

    def extract(self, serialized_tensor: TensorMessage, device: torch.device = CPU) -> torch.Tensor:
        shape, dtype = read_header(serialized_tensor)
        lengths, buffer = self.buffer_lengths(shape, dtype), serialized_tensor.buffer
        if len(buffer) not in lengths:
            allowed = f"{lengths[0]}" if len(lengths) == 1 else f"{lengths[0]} to {lengths[-1]}"
            raise TensorLengthError(
                f"a {dtype_name(dtype)} tensor of shape {tuple(shape)} came with {len(buffer)} bytes, not {allowed}"
            )
        return self.decode(buffer, dtype, shape, device)

    def _header(
        self, tensor: torch.Tensor, dtypes: Collection[torch.dtype] = tuple(WIRE_DTYPES.values())
    ) -> runtime_pb2.Tensor:
        """The message for ``tensor``, without a buffer.

        :raises SerializationError: if it is not a dense tensor of one of ``dtypes`` that has memory
        """
        if tensor.dtype not in dtypes:
            names = ", ".join(dtype_name(dtype) for dtype in dtypes)
            raise SerializationError(f"{type(self).__name__} does not support {tensor.dtype} tensors, only {names}")
        if tensor.layout != torch.strided or tensor.is_meta:
            kind = "a meta tensor, which has no values" if tensor.is_meta else f"a {tensor.layout} tensor"
            raise SerializationError(f"{type(self).__name__} got {kind}, allowed: dense tensors")
        return runtime_pb2.Tensor(
            compression=self.compression_type,  # type: ignore[arg-type]  # other packages have numbers of their own
            size=tensor.shape,
            dtype=dtype_name(tensor.dtype),
        )


class NoCompression(BufferCodec):
    """The elements as they are, little-endian, in C order."""

    compression_type = runtime_pb2.NONE
    light = True
    linear = True

    def encode(
        self, tensor: torch.Tensor, info: CompressionInfo, allow_inplace: bool = False
    ) -> tuple[runtime_pb2.Tensor, Buffer]:
        header, data = self._header(tensor), tensor.detach()
        if data.dtype == torch.bfloat16 and USE_LEGACY_BFLOAT16:
            data = data.to(torch.float32)
        return header, to_buffer(data)

    def decode(self, buffer: Buffer, dtype: torch.dtype, shape: torch.Size, device: torch.device) -> torch.Tensor:
        if dtype == torch.bool:  # from bytes, as a byte that is neither 0 nor 1 is no valid bool in memory
            return from_buffer(buffer, torch.uint8, device).ne(0).reshape(shape)
        if dtype == torch.bfloat16 and len(buffer) == 4 * shape.numel():
            return from_buffer(buffer, torch.float32, device).to(torch.bfloat16).reshape(shape)
        return from_buffer(buffer, dtype, device).reshape(shape)

    def buffer_lengths(self, shape: torch.Size, dtype: torch.dtype) -> Sequence[int]:
        length = shape.numel() * dtype.itemsize
        return (length, 2 * length) if dtype == torch.bfloat16 else (length,)

    def encoded_bytes(self, shape: torch.Size, dtype: torch.dtype) -> int:
        return self.buffer_lengths(shape, dtype)[-1 if USE_LEGACY_BFLOAT16 else 0]

    def error_bound(self, tensor: torch.Tensor) -> torch.Tensor:
        return torch.zeros_like(tensor, dtype=torch.float64)

    def estimate_compression_ratio(self, info: CompressionInfo) -> float:
        return 1.0


def bits_per_element(info: CompressionInfo) -> int:
    """Size of an element of the tensor that ``info`` describes.

    :raises SerializationError: if its descriptor has no dtype
    """
    if info.descriptor.dtype is None:
        raise SerializationError(f"the descriptor of tensor {info.key!r} has no dtype")
    return info.descriptor.dtype.itemsize * 8


def rounding(values: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """What numbers about as large as ``values`` may lose when they are stored as ``dtype``, for error bounds."""
    return (values.abs() + torch.finfo(dtype).tiny) * torch.finfo(dtype).eps
