"""The interface of codecs, and the codec that changes nothing.

A codec turns a tensor into one ``Tensor`` message and back (hivemind 1.1 wire format, "Tensor message"). It works on
the tensor's own device; only the encoded bytes are brought to the CPU. Codecs are immutable and thread-safe. A message
comes from another peer: dtype, shape and buffer are checked against each other before memory is set aside. Hosts are
little-endian, as the wire is.
"""

from __future__ import annotations

import enum
import math
import os
from abc import ABC, abstractmethod
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch

from hivemind.compression.spec import TensorDescriptor
from hivemind.errors import SerializationError, TensorLengthError
from hivemind.proto import runtime_pb2

__all__ = [
    "USE_LEGACY_BFLOAT16",
    "WIRE_DTYPES",
    "CompressionBase",
    "CompressionInfo",
    "Key",
    "NoCompression",
    "TensorRole",
    "bits_per_element",
    "dtype_name",
    "from_bytes",
    "read_header",
    "to_bytes",
]

#: Whether bfloat16 travels as float32 (4 bytes an element), as hivemind 1.1 does unless the environment variable of
#: this name is "0". Readers take both. May be changed at run time.
USE_LEGACY_BFLOAT16: bool = os.environ.get("USE_LEGACY_BFLOAT16", "1") not in ("0", "")

Key = Hashable

#: The dtypes that may stand in a message, by their name there. No other name is looked up, whoever sends it.
WIRE_DTYPES: dict[str, torch.dtype] = {
    "float32": torch.float32,
    "float64": torch.float64,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "int8": torch.int8,
    "int16": torch.int16,
    "int32": torch.int32,
    "int64": torch.int64,
    "uint8": torch.uint8,
    "bool": torch.bool,
    "complex64": torch.complex64,
    "complex128": torch.complex128,
}
_NAMES = {dtype: name for name, dtype in WIRE_DTYPES.items()}

#: More dimensions than any tensor operation of torch takes.
MAX_DIMENSIONS = 64
#: Elements in one tensor; also bounds the strides of tensors that have no elements.
MAX_ELEMENTS = 2**48


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

    @abstractmethod
    def compress(self, tensor: torch.Tensor, info: CompressionInfo, allow_inplace: bool = False) -> runtime_pb2.Tensor:
        """Encode.

        :param tensor: any shape, strides and device
        :param allow_inplace: the codec may overwrite ``tensor`` to save memory
        :raises SerializationError: if the codec cannot carry this dtype
        """

    def extract(self, serialized_tensor: runtime_pb2.Tensor) -> torch.Tensor:
        """Decode a message of this codec, whoever sent it.

        :returns: a CPU tensor of the message's shape and dtype, with memory of its own
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

    def decode(self, buffer: bytes, dtype: torch.dtype, shape: torch.Size) -> torch.Tensor:
        """The tensor of a buffer of valid length."""
        raise SerializationError(f"{type(self).__name__} reads no messages")


class NoCompression(CompressionBase):
    """The elements as they are, little-endian, in C order."""

    compression_type = runtime_pb2.NONE

    def compress(self, tensor: torch.Tensor, info: CompressionInfo, allow_inplace: bool = False) -> runtime_pb2.Tensor:
        name, data = dtype_name(tensor.dtype), tensor.detach()
        if data.dtype == torch.bfloat16:
            data = data.to(torch.float32) if USE_LEGACY_BFLOAT16 else data.contiguous().view(torch.int16)
        return runtime_pb2.Tensor(
            compression=self.compression_type,
            buffer=to_bytes(data),
            size=tensor.shape,
            dtype=name,
        )

    def decode(self, buffer: bytes, dtype: torch.dtype, shape: torch.Size) -> torch.Tensor:
        if dtype == torch.bool:  # from bytes, as a byte that is neither 0 nor 1 is no valid bool in memory
            return from_bytes(buffer, torch.uint8).ne(0).reshape(shape)
        if dtype == torch.bfloat16 and len(buffer) == 4 * shape.numel():
            return from_bytes(buffer, torch.float32).to(torch.bfloat16).reshape(shape)
        return from_bytes(buffer, dtype).reshape(shape)

    def estimate_compression_ratio(self, info: CompressionInfo) -> float:
        return 1.0

    def buffer_lengths(self, elements: int, dtype: torch.dtype) -> Sequence[int]:
        length = elements * dtype.itemsize
        return (length, 2 * length) if dtype == torch.bfloat16 else (length,)


def read_header(message: runtime_pb2.Tensor) -> tuple[torch.Size, torch.dtype]:
    """Shape and dtype of a message, checked; allocates nothing and does not look at the buffer.

    :raises SerializationError: if one of them is not allowed
    """
    dtype = WIRE_DTYPES.get(message.dtype)
    if dtype is None:
        raise SerializationError(f"dtype: got {message.dtype[:32]!r}, allowed: {', '.join(WIRE_DTYPES)}")
    if message.requires_grad and not (dtype.is_floating_point or dtype.is_complex):
        raise SerializationError(f"a {message.dtype} tensor cannot require a gradient")
    size = message.size
    if len(size) > MAX_DIMENSIONS or math.prod(max(1, length) for length in size) > MAX_ELEMENTS:
        raise SerializationError(
            f"shape: got {len(size)} dimensions, allowed: {MAX_DIMENSIONS} dimensions, {MAX_ELEMENTS} elements"
        )
    return torch.Size(size), dtype


def dtype_name(dtype: torch.dtype) -> str:
    """The name of ``dtype`` in messages.

    :raises SerializationError: if it has none
    """
    try:
        return _NAMES[dtype]
    except KeyError:
        raise SerializationError(f"dtype: got {dtype}, allowed: {', '.join(WIRE_DTYPES)}") from None


def bits_per_element(info: CompressionInfo) -> int:
    """Size of an element of the tensor that ``info`` describes.

    :raises SerializationError: if its descriptor has no dtype
    """
    if info.descriptor.dtype is None:
        raise SerializationError(f"the descriptor of tensor {info.key!r} has no dtype")
    return info.descriptor.dtype.itemsize * 8


def to_bytes(tensor: torch.Tensor) -> bytes:
    """The elements in C order; one copy, from whatever device."""
    return tensor.detach().cpu().resolve_conj().numpy().tobytes()


def from_bytes(data: bytes, dtype: torch.dtype) -> torch.Tensor:
    """A 1-d CPU tensor that owns a copy of ``data``, whose length is a multiple of the element's size."""
    if not data:  # torch.frombuffer refuses empty buffers
        return torch.empty(0, dtype=dtype)
    return torch.frombuffer(bytearray(data), dtype=dtype)
