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
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch

from hivemind.compression.buffers import Buffer, TensorMessage, dtype_name, from_buffer, read_header, to_buffer
from hivemind.compression.spec import TensorDescriptor
from hivemind.errors import SerializationError, TensorLengthError
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

    #: The number under which this codec's messages travel.
    compression_type: ClassVar[runtime_pb2.CompressionType.ValueType]
    #: Whether it only goes over the memory once or twice, so that a thread of its own is not worth it for small parts.
    light: bool = False

    @abstractmethod
    def compress(self, tensor: torch.Tensor, info: CompressionInfo, allow_inplace: bool = False) -> runtime_pb2.Tensor:
        """Encode.

        :param tensor: any shape, strides and device
        :param allow_inplace: the codec may overwrite ``tensor`` to save memory
        :raises SerializationError: if the codec cannot carry this dtype
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

    def extract(self, serialized_tensor: TensorMessage) -> torch.Tensor:
        """Decode a message of this codec, whoever sent it.

        :returns: a CPU tensor of the message's shape and dtype; its memory is its own, or the message's if that may be
            written to
        :raises SerializationError: if dtype, shape and buffer do not fit each other or this codec
        """
        shape, dtype = read_header(serialized_tensor)
        lengths, buffer = self.buffer_lengths(shape.numel(), dtype), serialized_tensor.buffer
        if len(buffer) not in lengths:
            raise TensorLengthError(
                f"a {dtype_name(dtype)} tensor of shape {tuple(shape)} came with {len(buffer)} bytes, not {lengths[0]}"
            )
        return self.decode(buffer, dtype, shape)

    @abstractmethod
    def estimate_compression_ratio(self, info: CompressionInfo) -> float:
        """Encoded bytes per byte of the tensor, 1 for no compression. Every member of an averaging group must get the
        same number, as the partition follows from it."""

    def buffer_lengths(self, elements: int, dtype: torch.dtype) -> Sequence[int]:
        """The valid lengths of a buffer for so many elements, in bytes, ascending.

        :raises SerializationError: if this codec does not carry ``dtype``
        """
        raise SerializationError(f"{type(self).__name__} reads no messages")

    def decode(self, buffer: Buffer, dtype: torch.dtype, shape: torch.Size) -> torch.Tensor:
        """The tensor of a buffer of valid length."""
        raise SerializationError(f"{type(self).__name__} reads no messages")


class BufferCodec(CompressionBase):
    """A codec that is defined by `encode`, `decode` and `buffer_lengths`."""

    @abstractmethod
    def encode(
        self, tensor: torch.Tensor, info: CompressionInfo, allow_inplace: bool = False
    ) -> tuple[runtime_pb2.Tensor, Buffer]: ...

    def compress(self, tensor: torch.Tensor, info: CompressionInfo, allow_inplace: bool = False) -> runtime_pb2.Tensor:
        message, buffer = self.encode(tensor, info, allow_inplace)
        message.buffer = bytes(buffer)
        return message

    def _header(self, tensor: torch.Tensor) -> runtime_pb2.Tensor:
        """The message for ``tensor``, without a buffer."""
        return runtime_pb2.Tensor(compression=self.compression_type, size=tensor.shape, dtype=dtype_name(tensor.dtype))


class NoCompression(BufferCodec):
    """The elements as they are, little-endian, in C order."""

    compression_type = runtime_pb2.NONE
    light = True

    def encode(
        self, tensor: torch.Tensor, info: CompressionInfo, allow_inplace: bool = False
    ) -> tuple[runtime_pb2.Tensor, Buffer]:
        header, data = self._header(tensor), tensor.detach()
        if data.dtype == torch.bfloat16 and USE_LEGACY_BFLOAT16:
            data = data.to(torch.float32)
        return header, to_buffer(data)

    def decode(self, buffer: Buffer, dtype: torch.dtype, shape: torch.Size) -> torch.Tensor:
        if dtype == torch.bool:  # from bytes, as a byte that is neither 0 nor 1 is no valid bool in memory
            return from_buffer(buffer, torch.uint8).ne(0).reshape(shape)
        if dtype == torch.bfloat16 and len(buffer) == 4 * shape.numel():
            return from_buffer(buffer, torch.float32).to(torch.bfloat16).reshape(shape)
        return from_buffer(buffer, dtype).reshape(shape)

    def estimate_compression_ratio(self, info: CompressionInfo) -> float:
        return 1.0

    def buffer_lengths(self, elements: int, dtype: torch.dtype) -> Sequence[int]:
        length = elements * dtype.itemsize
        return (length, 2 * length) if dtype == torch.bfloat16 else (length,)


def bits_per_element(info: CompressionInfo) -> int:
    """Size of an element of the tensor that ``info`` describes.

    :raises SerializationError: if its descriptor has no dtype
    """
    if info.descriptor.dtype is None:
        raise SerializationError(f"the descriptor of tensor {info.key!r} has no dtype")
    return info.descriptor.dtype.itemsize * 8
