"""Experts on the wire: what is asked, what is answered, and how an error keeps its name (hivemind 1.1 wire format, 7.3
and 7.4).

Requests and answers of up to `MAX_UNARY_BYTES` of tensors are one message; more go as a stream of chunks. Everything
that is read here comes from another peer and is checked before memory is taken.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, TypedDict

import torch

from hivemind.compression import (
    BatchTensorDescriptor,
    TensorMessage,
    TensorView,
    assemble,
    codec_for,
    deserialize_torch_tensor,
    encode_torch_tensor,
    split_view,
)
from hivemind.errors import (
    DeadlineExceeded,
    ExpertFailed,
    HivemindError,
    InputMismatch,
    MessageTooLarge,
    P2PHandlerError,
    ProtocolViolation,
    SerializationError,
    ServerBusy,
    TensorLengthError,
    UnknownExpert,
)
from hivemind.moe.wire import MAX_TENSORS, ExpertRequest, ExpertResponse
from hivemind.p2p import DEFAULT_MAX_MSG_SIZE, MAX_UNARY_PAYLOAD_SIZE, named_arguments, retry_seconds
from hivemind.proto import runtime_pb2
from hivemind.runtime import in_pool
from hivemind.serializer import MSGPackSerializer

__all__ = [
    "CHUNK_BYTES",
    "MAX_UNARY_BYTES",
    "ExpertSchema",
    "as_told",
    "decode",
    "encode",
    "fits_unary",
    "named_error",
    "pack_schema",
    "read_requests",
    "read_responses",
    "read_schema",
    "split_requests",
    "split_responses",
]

#: Bytes of all tensors together, uncompressed, up to which a call is unary.
MAX_UNARY_BYTES: Final = MAX_UNARY_PAYLOAD_SIZE
#: Bytes of buffer per message of a stream.
CHUNK_BYTES: Final = DEFAULT_MAX_MSG_SIZE
#: Bytes from which on tensors are encoded and decoded off the network thread, and the same where that goes over the
#: memory once at most: to wake another thread takes as long.
_INLINE_BYTES: Final = 2**16
_INLINE_LIGHT_BYTES: Final = 2**18
_MAX_SCHEMA_DEPTH: Final = 16
#: Messages of a stream after which others have their turn on the network thread.
_CHUNKS_AT_ONCE: Final = 32


# -- rpc_info ------------------------------------------------------------------------------------------------------


class ExpertSchema(TypedDict):
    """What an expert takes and gives.

    ``forward_schema`` is ``(descriptors of positional arguments, descriptors by keyword)``, ``outputs_schema`` a
    descriptor or a nested structure of them.
    """

    forward_schema: tuple[tuple[Any, ...], dict[str, Any]]
    outputs_schema: Any
    keyword_names: tuple[str, ...]


def pack_schema(schema: ExpertSchema) -> runtime_pb2.ExpertInfo:
    """The answer of ``rpc_info``."""
    args, kwargs = schema["forward_schema"]
    ordered = {
        "forward_schema": (tuple(args), dict(kwargs)),
        "outputs_schema": schema["outputs_schema"],
        "keyword_names": tuple(schema["keyword_names"]),
    }
    return runtime_pb2.ExpertInfo(serialized_info=MSGPackSerializer.dumps(ordered))


def read_schema(message: runtime_pb2.ExpertInfo) -> ExpertSchema:
    """
    :raises SerializationError: if the message of a server is no such answer
    """
    info = MSGPackSerializer.loads(message.serialized_info)
    if not isinstance(info, dict) or not info.keys() >= ExpertSchema.__required_keys__:
        raise SerializationError(f"an expert's info: expected {', '.join(sorted(ExpertSchema.__required_keys__))}")
    forward, outputs, names = info["forward_schema"], info["outputs_schema"], info["keyword_names"]
    if not isinstance(forward, tuple | list) or len(forward) != 2:
        raise SerializationError("an expert's forward_schema: expected (positional, by keyword)")
    args, kwargs = forward
    if not isinstance(args, tuple | list) or not isinstance(kwargs, dict):
        raise SerializationError("an expert's forward_schema: expected (positional, by keyword)")
    if not isinstance(names, tuple | list) or not all(isinstance(name, str) for name in names):
        raise SerializationError("an expert's keyword_names: expected texts")
    if set(names) != set(kwargs):
        raise SerializationError("an expert's keyword_names and forward_schema: expected the same keywords")
    if _count_descriptors((args, kwargs, outputs)) > MAX_TENSORS:
        raise SerializationError(f"an expert's info: over {MAX_TENSORS} descriptors")
    return {"forward_schema": (tuple(args), kwargs), "outputs_schema": outputs, "keyword_names": tuple(names)}


def _count_descriptors(schema: object, depth: int = 0) -> int:
    if isinstance(schema, BatchTensorDescriptor):
        return 1
    if depth > _MAX_SCHEMA_DEPTH or not isinstance(schema, tuple | list | dict):
        raise SerializationError("an expert's info: expected descriptors of tensors, nested in tuples, lists or dicts")
    items = schema.values() if isinstance(schema, dict) else schema
    return sum(_count_descriptors(item, depth + 1) for item in items)


# -- tensors -------------------------------------------------------------------------------------------------------


def fits_unary(tensors: Iterable[torch.Tensor]) -> bool:
    """Whether a call with these inputs is one message; else it is a stream."""
    return sum(tensor.nbytes for tensor in tensors) <= MAX_UNARY_BYTES


async def encode(tensors: Sequence[torch.Tensor], descriptors: Sequence[BatchTensorDescriptor]) -> list[TensorView]:
    """Tensors as messages, each compressed as its descriptor says; large ones off the network thread.

    What is not compressed is not copied: send it before the tensor changes.

    :param descriptors: one for each tensor; a tensor that is not of floating point is not compressed
    :raises SerializationError: if a codec cannot carry a dtype
    """
    codecs = [
        descriptor.compression if tensor.is_floating_point() else runtime_pb2.NONE
        for tensor, descriptor in zip(tensors, descriptors, strict=True)
    ]

    def work() -> list[TensorView]:
        return [
            encode_torch_tensor(tensor, codec, key=index)
            for index, (tensor, codec) in enumerate(zip(tensors, codecs, strict=True))
        ]

    on_host = all(tensor.device.type == "cpu" for tensor in tensors)
    quick = on_host and _is_quick(sum(tensor.nbytes for tensor in tensors), codecs)
    return work() if quick else await in_pool(work)


async def decode(messages: Sequence[TensorMessage]) -> list[torch.Tensor]:
    """The tensors of messages, on the CPU; large ones are decoded off the network thread.

    :raises SerializationError: if one is malformed
    """
    if len(messages) > MAX_TENSORS:
        raise SerializationError(f"{len(messages)} tensors in one message, allowed: {MAX_TENSORS}")

    def work() -> list[torch.Tensor]:
        return [deserialize_torch_tensor(message) for message in messages]

    quick = _is_quick(sum(len(message.buffer) for message in messages), [message.compression for message in messages])
    return work() if quick else await in_pool(work)


def _is_quick(size: int, codecs: Iterable[int]) -> bool:
    return size <= _INLINE_BYTES or (size <= _INLINE_LIGHT_BYTES and all(codec_for(codec).light for codec in codecs))


# -- streams -------------------------------------------------------------------------------------------------------


def split_requests(uid: str, tensors: Iterable[TensorView]) -> Iterator[ExpertRequest]:
    """The messages of a streamed request."""
    for tensor in tensors:
        for chunk in split_view(tensor, CHUNK_BYTES):
            yield ExpertRequest(uid=uid, tensors=[chunk])


def split_responses(tensors: Iterable[TensorView]) -> Iterator[ExpertResponse]:
    """The messages of a streamed answer."""
    for tensor in tensors:
        for chunk in split_view(tensor, CHUNK_BYTES):
            yield ExpertResponse(tensors=[chunk])


async def read_requests(requests: AsyncIterable[ExpertRequest], *, max_bytes: float) -> tuple[str, list[torch.Tensor]]:
    """The uid and the tensors of a streamed request.

    :param max_bytes: bound on all buffers together, checked before they are kept
    :raises ProtocolViolation: if messages name different uids, or there are none
    :raises SerializationError: if a tensor is malformed or a bound is passed
    """
    uids: set[str] = set()

    async def chunks() -> AsyncIterator[Sequence[TensorMessage]]:
        async for request in requests:
            uids.add(request.uid)
            if len(uids) > 1:
                raise ProtocolViolation("messages of one request name different experts")
            yield request.tensors

    tensors = await _join(chunks(), max_bytes)
    if not uids:
        raise ProtocolViolation("a request without a single message")
    return uids.pop(), tensors


async def read_responses(responses: AsyncIterable[ExpertResponse], *, max_bytes: float) -> list[torch.Tensor]:
    """The tensors of a streamed answer.

    :param max_bytes: bound on all buffers together, checked before they are kept
    :raises SerializationError: if a tensor is malformed or a bound is passed
    """

    async def chunks() -> AsyncIterator[Sequence[TensorMessage]]:
        async for response in responses:
            yield response.tensors

    return await _join(chunks(), max_bytes)


async def _join(messages: AsyncIterable[Sequence[TensorMessage]], max_bytes: float) -> list[torch.Tensor]:
    """Tensors of messages with chunks; one with a dtype begins a new tensor. They are put together off the network
    thread."""
    groups: list[list[TensorMessage]] = []
    received = count = 0
    async for chunks in messages:
        # honest messages are full but for the last of each tensor; a sender of smaller ones gets some leeway
        count += max(1, len(chunks))
        received += sum(len(chunk.buffer) for chunk in chunks)
        begun = len(groups) + sum(bool(chunk.dtype) for chunk in chunks)
        if received > max_bytes or begun > MAX_TENSORS or count > 2 * MAX_TENSORS + received // 1024:
            raise SerializationError(f"a stream of tensors over the bounds of {max_bytes} bytes, {MAX_TENSORS} tensors")
        for chunk in chunks:
            if chunk.dtype:
                groups.append([])
            elif not groups:
                raise SerializationError("a stream of tensors begins inside of one")
            groups[-1].append(chunk)
        if count % _CHUNKS_AT_ONCE == 0:  # messages that are there already are no wait
            await asyncio.sleep(0)
    return await in_pool(lambda: [deserialize_torch_tensor(assemble(group)) for group in groups])


# -- errors --------------------------------------------------------------------------------------------------------

_NAMED: Mapping[str, type[HivemindError]] = {
    kind.__name__: kind
    for kind in (
        *(UnknownExpert, InputMismatch, ExpertFailed),
        *(SerializationError, TensorLengthError, ProtocolViolation, MessageTooLarge, DeadlineExceeded),
    )
}


def as_told(error: HivemindError) -> str:
    """The text under which an error travels, on unary calls and streams alike: its repr."""
    return repr(error)


def named_error(error: P2PHandlerError) -> HivemindError:
    """The error that a server has told, by its name; ``error`` itself if it has none that is known here."""
    match named_arguments(str(error)):
        case "ServerBusy", (str() as reason, told) if (seconds := retry_seconds(told)) is not None:
            return ServerBusy(reason, seconds)
        case "KeyError", str() as text:  # what hivemind 1.1 says of an unknown uid
            return UnknownExpert(text)
        case str() as kind, str() as text if kind in _NAMED:
            return _NAMED[kind](text)
    return error
