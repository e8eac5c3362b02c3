"""Requests and answers of experts as the p2p layer takes them, without copies of the tensors that come.

On the wire they are ``ExpertRequest`` and ``ExpertResponse`` (hivemind 1.1 wire format, 7.3). What is sent is put
together once; the tensors of what has come are views of the bytes that came.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Final, Self, cast

from google.protobuf.message import DecodeError, Message

from hivemind.compression import Buffer, TensorView, take_tensors, tensor_field
from hivemind.proto import runtime_pb2

__all__ = ["MAX_TENSORS", "ExpertRequest", "ExpertResponse"]

#: Tensors in one request or answer, and descriptors in a schema.
MAX_TENSORS: Final = 1024
#: Bytes up to which protobuf reads a message, with copies, faster than it is walked through.
_COPIED_BYTES: Final = 2**14
#: Number of the field ``tensors`` in both messages.
_TENSORS: Final = 2


class _ExpertMessage(Message):
    """
    :param tensors: whole, or chunks of a stream
    :param uid: of the expert that is asked
    """

    __slots__ = ("tensors", "uid")

    _rest: ClassVar[type[runtime_pb2.ExpertRequest | runtime_pb2.ExpertResponse]]

    def __init__(self, *, tensors: Sequence[TensorView] = (), uid: str = "") -> None:
        self.tensors, self.uid = tensors, uid

    def SerializeToString(self, **kwargs: Any) -> bytes:
        """The bytes on the wire. The first tensor begins them, for its alignment."""
        pieces = [piece for tensor in self.tensors for piece in tensor_field(_TENSORS, tensor)]
        return b"".join((*pieces, runtime_pb2.ExpertRequest(uid=self.uid).SerializeToString()))

    @classmethod
    def FromString(cls, data: Buffer) -> Self:
        """Read a message; its tensors are views of ``data``, unless that is small.

        :raises DecodeError: if ``data`` is no such message, or has more than `MAX_TENSORS` tensors
        """
        if len(data) > _COPIED_BYTES:
            rest, tensors = take_tensors(memoryview(data), _TENSORS, MAX_TENSORS)
            message = cls._rest.FromString(rest)
        else:
            message = cls._rest.FromString(cast("bytes", data))
            if len(message.tensors) > MAX_TENSORS:
                raise DecodeError(f"more than {MAX_TENSORS} tensors")
            tensors = [TensorView.of(tensor) for tensor in message.tensors]
        return cls(tensors=tensors, uid=getattr(message, "uid", ""))


class ExpertRequest(_ExpertMessage):
    """A question to an expert, or a part of one."""

    _rest = runtime_pb2.ExpertRequest


class ExpertResponse(_ExpertMessage):
    """The answer, or a part of one."""

    _rest = runtime_pb2.ExpertResponse
