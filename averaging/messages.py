"""Messages with parts of tensors, without copies of the tensor.

A protobuf object copies a part of 512 KiB four times on its way out and three times on its way in. `PartMessage` is
``AveragingData`` on the wire: what is sent is put together once, and what has come is a view of the
bytes that came. All but the tensor's buffer is left to protobuf.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from google.protobuf.message import DecodeError, Message

from hivemind.compression import Buffer
from hivemind.proto import averaging_pb2, runtime_pb2

__all__ = ["PartMessage", "TensorView"]

#: Numbers of fields: ``AveragingData.tensor_part`` and ``Tensor.buffer``.
_TENSOR_PART, _BUFFER = 4, 1
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
#: More fields than a sane message has, so that the walk through a hostile one is short.
_MAX_FIELDS = 256


class TensorView:
    """A ``Tensor`` message whose buffer is a view (`hivemind.compression.TensorMessage`)."""

    __slots__ = ("_header", "buffer")

    def __init__(self, header: runtime_pb2.Tensor, buffer: Buffer) -> None:
        self._header = header
        self.buffer = buffer

    @property
    def size(self) -> Sequence[int]:
        """The shape."""
        return self._header.size

    @property
    def dtype(self) -> str:
        """Name of the dtype."""
        return self._header.dtype

    @property
    def requires_grad(self) -> bool:
        """Whether the tensor required a gradient."""
        return self._header.requires_grad

    @property
    def compression(self) -> int:
        """Number of the codec."""
        return self._header.compression


class PartMessage(Message):
    """``AveragingData``, to be sent (by `pack`) or received (by `FromString`). Stubs and handlers take it as a message.

    :param code: what it is
    :param group_id: the round, in the first message of a stream
    :param weight: of the part
    :param tensor_part: the part that has come; what was packed has none
    """

    __slots__ = ("_wire", "code", "group_id", "tensor_part", "weight")

    def __init__(
        self,
        *,
        code: int = averaging_pb2.NO_CODE,
        group_id: bytes = b"",
        weight: float = 0.0,
        tensor_part: TensorView | None = None,
        wire: bytes | None = None,
    ) -> None:
        self.code, self.group_id, self.weight = code, group_id, weight
        self.tensor_part = tensor_part if tensor_part is not None else TensorView(runtime_pb2.Tensor(), b"")
        self._wire = wire

    @classmethod
    def pack(
        cls,
        header: runtime_pb2.Tensor,
        buffer: Buffer,
        *,
        code: int = averaging_pb2.NO_CODE,
        group_id: bytes = b"",
        weight: float = 0.0,
    ) -> PartMessage:
        """A message to be sent; the buffer is copied once, here.

        :param header: of the tensor, without its buffer
        """
        head, tail = _fields_around(code, group_id, weight)
        if not group_id:  # the tensor goes first: its buffer then mostly begins at a multiple of 8 bytes
            head, tail = b"", head + tail
        rest = header.SerializeToString()
        prefix = b"\x0a" + _varint(len(buffer)) if len(buffer) else b""
        length = len(prefix) + len(buffer) + len(rest)
        wire = b"".join((head, b"\x22", _varint(length), prefix, buffer, rest, tail))
        return cls(code=code, group_id=group_id, weight=weight, wire=wire)

    def SerializeToString(self, **kwargs: Any) -> bytes:
        """The bytes on the wire."""
        if self._wire is not None:
            return self._wire
        return b"".join(_fields_around(self.code, self.group_id, self.weight))

    @classmethod
    def FromString(cls, data: Buffer) -> PartMessage:
        """Read a message; its tensor's buffer is a view of ``data``.

        :raises DecodeError: if ``data`` is no such message
        """
        view = memoryview(data)
        fields, tensor = _take_out(view, _TENSOR_PART)
        message = averaging_pb2.AveragingData.FromString(fields)
        part = None
        if tensor is not None:
            header, buffer = _take_out(tensor, _BUFFER)
            part = TensorView(runtime_pb2.Tensor.FromString(header), b"" if buffer is None else buffer)
        return cls(code=message.code, group_id=message.group_id, weight=message.weight, tensor_part=part)


def _fields_around(code: int, group_id: bytes, weight: float) -> tuple[bytes, bytes]:
    """The fields before and after the tensor."""
    head = averaging_pb2.AveragingData(code=code, group_id=group_id)  # type: ignore[arg-type]
    return head.SerializeToString(), averaging_pb2.AveragingData(weight=weight).SerializeToString()


def _take_out(message: memoryview, number: int) -> tuple[bytes, memoryview | None]:
    """A message without one of its fields, and the content of that field.

    :raises DecodeError: if the message is malformed, or has the field twice
    """
    content: memoryview | None = None
    kept: list[memoryview] = []
    kept_from = 0
    for field, kind, start, value, end in _walk(message):
        if field != number:
            continue
        if kind != _BYTES or content is not None:
            raise DecodeError(f"field {number}: not one run of bytes")
        content = message[value:end]
        kept.append(message[kept_from:start])
        kept_from = end
    kept.append(message[kept_from:])
    return b"".join(kept), content


def _walk(message: memoryview) -> Iterator[tuple[int, int, int, int, int]]:
    """The fields of a message: number, wire type, where it starts, where its value starts, where it ends."""
    position, length = 0, len(message)
    for _ in range(_MAX_FIELDS):
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
    raise DecodeError(f"more than {_MAX_FIELDS} fields")


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
