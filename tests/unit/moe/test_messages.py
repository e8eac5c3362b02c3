"""Requests, answers and errors of experts on the wire."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from typing import Any, TypeVar

import pytest
import torch

from hivemind.compression import BatchTensorDescriptor
from hivemind.errors import (
    ExpertError,
    ExpertFailed,
    InputMismatch,
    P2PHandlerError,
    ProtocolViolation,
    SerializationError,
    ServerBusy,
    UnknownExpert,
)
from hivemind.moe import messages
from hivemind.proto import runtime_pb2
from hivemind.serializer import MSGPackSerializer

T = TypeVar("T")

X, Y = BatchTensorDescriptor(4, dtype=torch.float32), BatchTensorDescriptor(2, 3, dtype=torch.int64)
SCHEMA: messages.ExpertSchema = {
    "forward_schema": ((X,), {"mask": Y}),
    "outputs_schema": [X, {"y": Y}],
    "keyword_names": ("mask",),
}


async def stream(items: Iterable[T]) -> AsyncIterator[T]:
    for item in items:
        yield item


def test_a_schema_crosses_the_wire() -> None:
    packed = messages.pack_schema(SCHEMA)
    assert list(MSGPackSerializer.loads(packed.serialized_info)) == [
        "forward_schema",
        "outputs_schema",
        "keyword_names",
    ]
    assert messages.read_schema(packed) == SCHEMA


@pytest.mark.parametrize(
    "info",
    [
        [],
        {},
        {**SCHEMA, "forward_schema": ((X,),)},
        {**SCHEMA, "forward_schema": (X, {"mask": Y})},
        {**SCHEMA, "forward_schema": ((X,), [Y])},
        {**SCHEMA, "keyword_names": ("other",)},
        {**SCHEMA, "keyword_names": (1,)},
        {**SCHEMA, "outputs_schema": None},
        {**SCHEMA, "outputs_schema": [X] * 2000},
        {**SCHEMA, "outputs_schema": "x"},
    ],
    ids=lambda info: repr(info)[:40],
)
def test_no_schema(info: Any) -> None:
    with pytest.raises(SerializationError):
        messages.read_schema(runtime_pb2.ExpertInfo(serialized_info=MSGPackSerializer.dumps(info)))


def test_tensors_travel_as_their_descriptors_say() -> None:
    half = BatchTensorDescriptor(4, dtype=torch.float32, compression=runtime_pb2.FLOAT16)
    tensors = [torch.randn(3, 4), torch.arange(3)]
    encoded = asyncio.run(messages.encode(tensors, [half, half]))
    assert [message.compression for message in encoded] == [runtime_pb2.FLOAT16, runtime_pb2.NONE]
    decoded = asyncio.run(messages.decode(encoded))
    assert torch.allclose(decoded[0], tensors[0], atol=1e-2)
    assert torch.equal(decoded[1], tensors[1])


def test_a_stream_keeps_tensors_apart() -> None:
    tensors = [torch.randn(2**20 + 5), torch.empty(0, 3), torch.arange(4)]

    async def round_trip() -> tuple[str, list[torch.Tensor], list[torch.Tensor]]:
        encoded = await messages.encode(tensors, [X, X, X])
        requests = list(messages.split_requests("e.1", encoded))
        assert [len(request.tensors[0].buffer) for request in requests] == [messages.CHUNK_BYTES, 20, 0, 32]
        assert {request.uid for request in requests} == {"e.1"}
        uid, asked = await messages.read_requests(stream(requests), max_bytes=2**23)
        responses = messages.split_responses(encoded)
        return uid, asked, await messages.read_responses(stream(responses), max_bytes=2**23)

    uid, asked, answered = asyncio.run(round_trip())
    assert uid == "e.1"
    assert all(torch.equal(a, b) and torch.equal(a, c) for a, b, c in zip(tensors, asked, answered, strict=True))


def test_unary_up_to_two_mebibytes() -> None:
    assert messages.fits_unary([torch.empty(2**18), torch.empty(2**18)])
    assert not messages.fits_unary([torch.empty(2**18), torch.empty(2**18 + 1)])


Request = runtime_pb2.ExpertRequest
WHOLE = runtime_pb2.Tensor(buffer=b"1234", size=[1], dtype="float32")
REST = runtime_pb2.Tensor(buffer=b"1234")


@pytest.mark.parametrize(
    ("requests", "error"),
    [
        ([], ProtocolViolation),
        ([Request(uid="a.1", tensors=[WHOLE]), Request(uid="a.2", tensors=[WHOLE])], ProtocolViolation),
        ([Request(uid="a.1", tensors=[REST])], SerializationError),
        ([Request(uid="a.1", tensors=[WHOLE, REST])], SerializationError),
        ([Request(uid="a.1", tensors=[WHOLE] * 300)], SerializationError),
        ([Request(uid="a.1", tensors=[runtime_pb2.Tensor(dtype="float32", size=[0])])] * 2000, SerializationError),
    ],
    ids=["empty", "two uids", "no head", "too long", "too many bytes", "too many tensors"],
)
def test_lies_in_a_stream(requests: list[runtime_pb2.ExpertRequest], error: type[Exception]) -> None:
    with pytest.raises(error):
        asyncio.run(messages.read_requests(stream(requests), max_bytes=1024))


@pytest.mark.parametrize(
    "error",
    [
        UnknownExpert("e.1"),
        InputMismatch('it\'s "2" tensors'),
        ExpertFailed("NaN"),
        ServerBusy("the queue of e.1 is full", 0.25),
    ],
    ids=lambda error: type(error).__name__,
)
def test_errors_keep_their_names(error: ExpertError) -> None:
    named = messages.named_error(P2PHandlerError(messages.as_told(error)))
    assert type(named) is type(error)
    assert str(named) == str(error)
    assert named.args == error.args


@pytest.mark.parametrize(
    "text",
    [
        "",
        "RuntimeError('x')",
        "ServerBusy('x')",
        "ServerBusy('x', -1)",
        "ServerBusy('x', 1e9)",
        "ServerBusy('x', float('nan'))",
        "ExpertFailed(3)",
        "ExpertFailed(__import__('os').getpid())",
        "ConfigError('x')",
        f"ExpertFailed({'(' * 4000}{')' * 4000})",
    ],
    ids=lambda text: text[:30],
)
def test_texts_that_name_no_error(text: str) -> None:
    error = P2PHandlerError(text)
    assert messages.named_error(error) is error


def test_the_word_of_hivemind_1_for_an_unknown_uid() -> None:
    assert isinstance(messages.named_error(P2PHandlerError("KeyError('e.1')")), UnknownExpert)
