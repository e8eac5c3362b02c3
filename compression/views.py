"""`Tensor` messages whose buffers are not copied: they stand beside the message on their way out, and are views of the
bytes that came on their way in.

A protobuf object copies a buffer when it is set, put into another message, serialized, parsed, and each time it is
read. Here all but the buffers is left to protobuf. Messages come from other peers: the walk through one is short
whatever it holds. Functions are pure and thread-safe.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from google.protobuf.message import DecodeError

from hivemind.compression.buffers import Buffer
from hivemind.proto import runtime_pb2

__all__ = ["TensorView", "take_tensors", "tensor_field"]

#: Number of the field ``Tensor.buffer``.
_BUFFER: Final = 1
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
#: More fields than a sane message has besides its tensors, so that the walk through a hostile one is short.
_MAX_FIELDS: Final = 256


class TensorView:
    """A ``Tensor`` message with its buffer beside it (`hivemind.compression.TensorMessage`).

    :param header: the message without its buffer
    """

    __slots__ = ("buffer", "header")

    def __init__(self, header: runtime_pb2.Tensor, buffer: Buffer) -> None:
        self.header = header
        self.buffer = buffer

    @classmethod
    def of(cls, message: runtime_pb2.Tensor) -> TensorView:
        """A whole message, with copies."""
        header = runtime_pb2.Tensor()
        header.CopyFrom(message)
        header.ClearField("buffer")
        return cls(header, message.buffer)

    @property
    def size(self) -> Sequence[int]:
        """The shape."""
        return self.header.size

    @property
    def dtype(self) -> str:
        """Name of the dtype."""
        return self.header.dtype

    @property
    def requires_grad(self) -> bool:
        """Whether the tensor required a gradient."""
        return self.header.requires_grad

    @property
    def compression(self) -> int:
        """Number of the codec."""
        return self.header.compression


def tensor_field(number: int, tensor: TensorView) -> tuple[Buffer, ...]:
    """Field ``number`` of a message, a ``Tensor``, in pieces that follow each other; one of them is its buffer.

    The buffer mostly begins at a multiple of 8 bytes if the field begins at one.
    """
    buffer, rest = tensor.buffer, tensor.header.SerializeToString()
    prefix = b"\x0a" + _varint(len(buffer)) if len(buffer) else b""
    length = len(prefix) + len(buffer) + len(rest)
    return _varint(number << 3 | _BYTES) + _varint(length) + prefix, buffer, rest


def take_tensors(message: memoryview, number: int, most: int) -> tuple[bytes, list[TensorView]]:
    """A message without the field ``number``, and the tensors in that field, whose buffers are views of ``message``.

    :param most: tensors that are taken
    :raises DecodeError: if the message or a tensor is malformed, or there are more of them
    """
    rest, fields = _take_out(message, number, most)
    return rest, [_read_tensor(field) for field in fields]


def _read_tensor(field: memoryview) -> TensorView:
    header, buffers = _take_out(field, _BUFFER, 1)
    return TensorView(runtime_pb2.Tensor.FromString(header), buffers[0] if buffers else b"")


def _take_out(message: memoryview, number: int, most: int) -> tuple[bytes, list[memoryview]]:
    """A message without one of its fields, and the contents of that field."""
    contents: list[memoryview] = []
    kept: list[memoryview] = []
    kept_from = 0
    for field, kind, start, value, end in _walk(message, _MAX_FIELDS + most):
        if field != number:
            continue
        if kind != _BYTES or len(contents) == most:
            raise DecodeError(f"field {number}: not up to {most} runs of bytes")
        contents.append(message[value:end])
        kept.append(message[kept_from:start])
        kept_from = end
    kept.append(message[kept_from:])
    return b"".join(kept), contents


def _walk(message: memoryview, most: int) -> Iterator[tuple[int, int, int, int, int]]:
    """The fields of a message: number, wire type, where it starts, where its value starts, where it ends."""
    position, length = 0, len(message)
    for _ in range(most):
        if position == length:
            return
        start = position
        tag, value = _read_varint(message, position)
        kind = tag & 7
        if kind == _BYTES:
            size, value = _read_varint(message, value)
            position = value + size
        elif kind == _VARINT:
            _, position = _read_varint(message, value)
        elif kind in (_FIXED64, _FIXED32):
            position = value + (8 if kind == _FIXED64 else 4)
        else:
            raise DecodeError(f"wire type {kind}")
        if position > length:
            raise DecodeError("a field is longer than its message")
        yield tag >> 3, kind, start, value, position
    raise DecodeError(f"more than {most} fields")


def _read_varint(data: memoryview, position: int) -> tuple[int, int]:
    value = shift = 0
    for octet in data[position : position + 10]:
        position += 1
        value |= (octet & 0x7F) << shift
        if octet < 0x80:
            return value, position
        shift += 7
    raise DecodeError("a number that does not end")


def _varint(value: int) -> bytes:
    octets = bytearray()
    while value > 0x7F:
        octets.append(value & 0x7F | 0x80)
        value >>= 7
    octets.append(value)
    return bytes(octets)
