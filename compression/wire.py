"""Tensors from and to messages and streams of messages.

Messages come from other peers: what is wrong with one is a `SerializationError`, found before memory is set aside for
it. Functions are pure and thread-safe.
"""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Iterable, Iterator
from typing import Any

import torch

from hivemind.compression.base import CompressionInfo
from hivemind.compression.buffers import CPU, Buffer, TensorMessage, allocate, read_header
from hivemind.compression.registry import codec_for
from hivemind.compression.views import TensorView
from hivemind.errors import ConfigError, SerializationError, TensorLengthError
from hivemind.proto import runtime_pb2

__all__ = [
    "DEFAULT_CHUNK_BYTES",
    "assemble",
    "combine_from_streaming",
    "deserialize_tensor_stream",
    "deserialize_torch_tensor",
    "encode_torch_tensor",
    "serialize_torch_tensor",
    "split_for_streaming",
    "split_view",
]

#: Bytes of buffer per message when a tensor is split for a stream.
DEFAULT_CHUNK_BYTES = 2**16


def serialize_torch_tensor(
    tensor: torch.Tensor,
    compression_type: runtime_pb2.CompressionType.ValueType = runtime_pb2.NONE,
    info: CompressionInfo | None = None,
    allow_inplace: bool = False,
    **kwargs: Any,
) -> runtime_pb2.Tensor:
    """Encode ``tensor`` into one message.

    :param tensor: any shape, strides and device
    :param info: what the codec may know; ``kwargs`` are its fields where it is not given
    :param allow_inplace: the codec may overwrite ``tensor``
    :raises SerializationError: if the codec cannot carry the dtype, or there is no such codec
    """
    info = info if info is not None else CompressionInfo.from_tensor(tensor, **kwargs)
    message = codec_for(compression_type).compress(tensor, info, allow_inplace)
    message.requires_grad = tensor.requires_grad
    return message


def encode_torch_tensor(
    tensor: torch.Tensor, compression_type: runtime_pb2.CompressionType.ValueType = runtime_pb2.NONE, **kwargs: Any
) -> TensorView:
    """As `serialize_torch_tensor`, with the buffer beside the message.

    The buffer may be the tensor's own memory: use it before the tensor changes.
    """
    header, buffer = codec_for(compression_type).encode(tensor, CompressionInfo.from_tensor(tensor, **kwargs))
    header.requires_grad = tensor.requires_grad
    return TensorView(header, buffer)


def deserialize_torch_tensor(serialized_tensor: TensorMessage) -> torch.Tensor:
    """Decode one message.

    :returns: a CPU tensor; its memory is its own, or that of a `TensorView` which may be written to
    :raises SerializationError: if the message is malformed; `TensorLengthError` (which is a ``RuntimeError`` too, as in
        hivemind 1.1) if its buffer is too short or too long
    """
    tensor = codec_for(serialized_tensor.compression).extract(serialized_tensor)
    return tensor.requires_grad_() if serialized_tensor.requires_grad else tensor


def split_for_streaming(
    serialized_tensor: runtime_pb2.Tensor,
    chunk_size_bytes: int = DEFAULT_CHUNK_BYTES,
    buffer: Buffer | None = None,
) -> Iterator[runtime_pb2.Tensor]:
    """Split one message into several of at most ``chunk_size_bytes`` bytes of buffer each; the first has the header.

    :param buffer: where it is beside the message, as `CompressionBase.encode` has it
    """
    if chunk_size_bytes < 1:
        raise ConfigError("chunk_size_bytes", chunk_size_bytes, "an integer >= 1")
    data = memoryview(serialized_tensor.buffer if buffer is None else buffer)
    yield runtime_pb2.Tensor(
        compression=serialized_tensor.compression,
        buffer=bytes(data[:chunk_size_bytes]),
        chunks=-(-len(data) // chunk_size_bytes),
        size=serialized_tensor.size,
        dtype=serialized_tensor.dtype,
        requires_grad=serialized_tensor.requires_grad,
    )
    for start in range(chunk_size_bytes, len(data), chunk_size_bytes):
        yield runtime_pb2.Tensor(buffer=bytes(data[start : start + chunk_size_bytes]))


def split_view(tensor: TensorView, chunk_bytes: int) -> Iterator[TensorView]:
    """As `split_for_streaming`, without copies."""
    data = memoryview(tensor.buffer)
    tensor.header.chunks = -(-len(data) // chunk_bytes)
    yield TensorView(tensor.header, data[:chunk_bytes])
    for start in range(chunk_bytes, len(data), chunk_bytes):
        yield TensorView(runtime_pb2.Tensor(), data[start : start + chunk_bytes])


def combine_from_streaming(stream: Iterable[runtime_pb2.Tensor]) -> runtime_pb2.Tensor:
    """The message that `split_for_streaming` has split.

    :raises SerializationError: if there are no chunks, or more bytes than the header allows
    """
    whole = assemble(stream)
    message = whole.header
    message.buffer = bytes(whole.buffer)
    return message


def assemble(chunks: Iterable[TensorMessage]) -> TensorView:
    """As `combine_from_streaming`, with the buffer beside the message: that of the only chunk, or one of its own.

    :raises SerializationError: as that does
    """
    assembly = _Assembly()
    for chunk in chunks:
        assembly.add(chunk)
    return assembly.finish()


async def deserialize_tensor_stream(
    stream: AsyncIterator[Iterable[runtime_pb2.Tensor]],
    *,
    max_bytes: float = math.inf,
    max_tensors: float = math.inf,
) -> list[torch.Tensor]:
    """Decode the tensors of a stream, each of which may be split over several messages.

    :param stream: batches of chunks; a chunk with a dtype begins a new tensor
    :param max_bytes: bound on all buffers together, checked before they are kept
    :param max_tensors: bound on the number of tensors
    :raises SerializationError: if a tensor is malformed or a bound is passed
    """
    tensors: list[torch.Tensor] = []
    assembly = _Assembly()
    received = 0
    async for chunks in stream:
        for chunk in chunks:
            if chunk.dtype and not assembly.empty:
                tensors.append(deserialize_torch_tensor(assembly.finish()))
                assembly = _Assembly()
            received += len(chunk.buffer)
            if received > max_bytes or len(tensors) >= max_tensors:
                raise SerializationError(
                    f"a stream of tensors over the bounds of {max_bytes} bytes, {max_tensors} tensors"
                )
            assembly.add(chunk)
    if not assembly.empty:
        tensors.append(deserialize_torch_tensor(assembly.finish()))
    return tensors


class _Assembly:
    """The chunks of one tensor, as far as they have come. Never holds more bytes than the header allows."""

    def __init__(self) -> None:
        self._head: TensorMessage | None = None
        self._buffers: list[Buffer] = []
        self._length = self._most = 0

    @property
    def empty(self) -> bool:
        return self._head is None

    def add(self, chunk: TensorMessage) -> None:
        if self._head is None:
            self._head = chunk
            shape, dtype = read_header(chunk)
            self._most = codec_for(chunk.compression).buffer_lengths(shape, dtype)[-1]
        elif chunk.dtype:
            raise SerializationError("a second tensor begins among the chunks of one")
        buffer = chunk.buffer
        self._length += len(buffer)
        if self._length > self._most:
            raise TensorLengthError(f"a tensor came with over {self._most} bytes")
        self._buffers.append(buffer)

    def finish(self) -> TensorView:
        if self._head is None:
            raise SerializationError("a tensor came without a single chunk")
        header = runtime_pb2.Tensor(
            compression=self._head.compression,  # type: ignore[arg-type]  # other packages have numbers of their own
            size=self._head.size,
            dtype=self._head.dtype,
            requires_grad=self._head.requires_grad,
        )
        return TensorView(header, self._buffers[0] if len(self._buffers) == 1 else _joined(self._buffers, self._length))


def _joined(buffers: Iterable[Buffer], length: int) -> memoryview:
    """One buffer, for which memory is there that was used before, or in large pages."""
    whole: memoryview = allocate(length, torch.uint8, CPU).numpy().data
    position = 0
    for buffer in buffers:
        whole[position : position + len(buffer)] = buffer
        position += len(buffer)
    return whole
