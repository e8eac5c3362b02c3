"""Messages with parts of tensors, without copies of the tensor.

A protobuf object copies a part of 512 KiB four times on its way out and three times on its way in. `PartMessage` is
``AveragingData`` on the wire: what is sent is put together once, and what has come is a view of the bytes that came.
"""

from __future__ import annotations

from typing import Any, Final

from google.protobuf.message import Message

from hivemind.compression import Buffer, TensorView, take_tensors, tensor_field
from hivemind.proto import averaging_pb2, runtime_pb2

__all__ = ["PartMessage"]

#: Number of the field ``AveragingData.tensor_part``.
_TENSOR_PART: Final = 4


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
        if not group_id:  # the tensor goes first, for its alignment
            head, tail = b"", head + tail
        wire = b"".join((head, *tensor_field(_TENSOR_PART, TensorView(header, buffer)), tail))
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
        fields, tensors = take_tensors(memoryview(data), _TENSOR_PART, 1)
        message = averaging_pb2.AveragingData.FromString(fields)
        part = tensors[0] if tensors else None
        return cls(code=message.code, group_id=message.group_id, weight=message.weight, tensor_part=part)


def _fields_around(code: int, group_id: bytes, weight: float) -> tuple[bytes, bytes]:
    """The fields before and after the tensor."""
    head = averaging_pb2.AveragingData(code=code, group_id=group_id)  # type: ignore[arg-type]
    return head.SerializeToString(), averaging_pb2.AveragingData(weight=weight).SerializeToString()
