"""Messages and streams of tensors: splitting, joining, and what hostile peers may send."""

from __future__ import annotations

import asyncio
import tracemalloc
from collections.abc import AsyncIterator, Iterable

import pytest
import torch
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st

from hivemind.compression import (
    combine_from_streaming,
    deserialize_tensor_stream,
    deserialize_torch_tensor,
    serialize_torch_tensor,
    split_for_streaming,
)
from hivemind.errors import ConfigError, SerializationError
from hivemind.proto import runtime_pb2


def test_golden_split() -> None:
    message = serialize_torch_tensor(torch.arange(40000, dtype=torch.float32))
    chunks = list(split_for_streaming(message, 65536))
    assert [len(chunk.buffer) for chunk in chunks] == [65536, 65536, 28928]
    assert [chunk.chunks for chunk in chunks] == [3, 0, 0]
    assert [chunk.dtype for chunk in chunks] == ["float32", "", ""]
    assert combine_from_streaming(chunks) == message


def test_an_empty_tensor_is_one_chunk() -> None:
    chunks = list(split_for_streaming(serialize_torch_tensor(torch.empty(0, 3))))
    assert [(chunk.chunks, chunk.dtype) for chunk in chunks] == [(0, "float32")]
    assert deserialize_torch_tensor(combine_from_streaming(chunks)).shape == (0, 3)


@given(st.lists(st.integers(0, 50), max_size=6), st.integers(1, 64), st.integers(1, 5))
def test_streams_keep_tensors(sizes: list[int], chunk: int, batch: int) -> None:
    tensors = [torch.arange(size, dtype=torch.float32) for size in sizes]
    chunks = [part for tensor in tensors for part in split_for_streaming(serialize_torch_tensor(tensor), chunk)]
    restored = asyncio.run(deserialize_tensor_stream(_batches(chunks, batch)))
    assert len(restored) == len(tensors)
    assert all(torch.equal(a, b) for a, b in zip(restored, tensors, strict=True))


@pytest.mark.parametrize(
    ("bounds", "passes"),
    [({"max_bytes": 80, "max_tensors": 2}, True), ({"max_bytes": 79}, False), ({"max_tensors": 1}, False)],
)
def test_streams_are_bounded(bounds: dict[str, float], passes: bool) -> None:
    chunks = [part for _ in range(2) for part in split_for_streaming(serialize_torch_tensor(torch.ones(10)), 16)]
    if passes:
        assert len(asyncio.run(deserialize_tensor_stream(_batches(chunks, 1), **bounds))) == 2
    else:
        with pytest.raises(SerializationError, match="bounds"):
            asyncio.run(deserialize_tensor_stream(_batches(chunks, 1), **bounds))


@pytest.mark.parametrize("change", [-4, -1, 1, 4])
def test_a_buffer_of_the_wrong_length_is_a_runtime_error_too(change: int) -> None:
    message = serialize_torch_tensor(torch.ones(5))
    message.buffer = message.buffer[:change] if change < 0 else message.buffer + bytes(change)
    with pytest.raises(SerializationError, match="bytes"):
        deserialize_torch_tensor(message)
    with pytest.raises(RuntimeError):
        deserialize_torch_tensor(message)


@pytest.mark.parametrize(
    "fields",
    [
        {"dtype": ""},
        {"dtype": "nn"},
        {"dtype": "torch.float32"},
        {"dtype": "float32\x00"},
        {"dtype": "__class__"},
        {"dtype": "x" * 100_000},
        {"size": [2**32 - 1] * 8},
        {"size": [2**31, 2**31]},
        {"size": [0] + [2**32 - 1] * 3},
        {"size": [1] * 65},
        {"size": [5, 2**20]},
        {"compression": 6},
        {"compression": -1},
        {"compression": runtime_pb2.BLOCKWISE_8BIT},
        {"compression": runtime_pb2.FLOAT16},
        {"compression": runtime_pb2.FLOAT16, "dtype": "int64"},
        {"dtype": "bfloat16", "buffer": bytes(15)},
        {"dtype": "int32", "requires_grad": True},
    ],
    ids=lambda fields: ",".join(f"{name}={value!r}"[:30] for name, value in fields.items()),
)
def test_lies_in_the_header(fields: dict[str, object]) -> None:
    message = serialize_torch_tensor(torch.ones(5))
    for name, value in fields.items():
        if name == "size":
            del message.size[:]
            message.size.extend(value)  # type: ignore[arg-type]
        else:
            setattr(message, name, value)
    tracemalloc.start()
    try:
        with pytest.raises(SerializationError) as raised:
            deserialize_torch_tensor(message)
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()
    assert len(str(raised.value)) < 500


def test_bool_bytes_that_are_no_bools() -> None:
    message = runtime_pb2.Tensor(buffer=b"\x00\x01\x02\xff", size=[4], dtype="bool")
    assert deserialize_torch_tensor(message).tolist() == [False, True, True, True]


def test_chunks_over_the_header_are_refused_before_they_are_kept() -> None:
    head, *rest = split_for_streaming(serialize_torch_tensor(torch.ones(10)), 16)
    with pytest.raises(SerializationError, match="over 40 bytes"):
        combine_from_streaming([head, *rest, *rest])
    with pytest.raises(SerializationError, match="second tensor"):
        combine_from_streaming([head, head])
    with pytest.raises(SerializationError, match="without a single chunk"):
        combine_from_streaming([])
    with pytest.raises(SerializationError, match="dtype"):
        combine_from_streaming(rest)
    with pytest.raises(SerializationError, match="with 16 bytes, not 40"):
        deserialize_torch_tensor(combine_from_streaming([head]))


def test_chunk_size_is_checked() -> None:
    with pytest.raises(ConfigError, match="chunk_size_bytes"):
        list(split_for_streaming(serialize_torch_tensor(torch.ones(1)), 0))


@given(st.binary(max_size=200))
def test_random_bytes_never_raise_anything_else(data: bytes) -> None:
    try:
        message = runtime_pb2.Tensor.FromString(data)
    except DecodeError:
        return
    try:
        deserialize_torch_tensor(message)
    except SerializationError:
        return


@given(
    st.builds(
        runtime_pb2.Tensor,
        buffer=st.binary(max_size=64),
        size=st.lists(st.integers(0, 2**32 - 1) | st.integers(0, 4), max_size=4),
        dtype=st.sampled_from(["float32", "bfloat16", "bool", "int64", "float16", "complex64", "x"]),
        compression=st.integers(-1, 6),
        requires_grad=st.booleans(),
    )
)
def test_random_messages_never_raise_anything_else(message: runtime_pb2.Tensor) -> None:
    try:
        tensor = deserialize_torch_tensor(message)
    except SerializationError:
        return
    assert tuple(tensor.shape) == tuple(message.size)
    assert tensor.numel() <= max(1, len(message.buffer))


async def _batches(chunks: list[runtime_pb2.Tensor], batch: int) -> AsyncIterator[Iterable[runtime_pb2.Tensor]]:
    for start in range(0, len(chunks), batch):
        yield chunks[start : start + batch]
