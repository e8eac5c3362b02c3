"""Memory that codecs write to: how much of it there is, and that nobody else writes there."""

from __future__ import annotations

import tracemalloc

import pytest
import torch

from hivemind.compression import BufferCodec, CompressionInfo, known_codecs, serialize_torch_tensor
from hivemind.compression.buffers import CPU, to_buffer
from hivemind.compression.output import Output, as_bytes
from hivemind.proto import runtime_pb2

LENGTHS = [0, 1, 2, 1000, 2**22 - 1, 2**22 + 5]


@pytest.mark.parametrize("length", LENGTHS)
def test_what_is_written_is_what_is_there(length: int) -> None:
    written = torch.randint(0, 256, (length,), dtype=torch.uint8, generator=torch.Generator().manual_seed(length))
    first, second = Output(length, CPU), Output(length, CPU)
    first.octets.copy_(written)
    second.octets.zero_()
    assert first.octets.shape == (length,)
    assert first.buffer() == bytes(written.numpy())
    assert second.buffer() == bytes(length)


def test_an_output_is_aligned_for_every_number() -> None:
    for length in (8, 1000, 2**22):
        assert Output(length, CPU).octets.data_ptr() % 8 == 0


@pytest.mark.parametrize("length", LENGTHS)
def test_buffers_become_bytes(length: int) -> None:
    data = bytearray(index % 251 for index in range(length))
    copy = as_bytes(memoryview(data))
    assert (type(copy), copy) == (bytes, data)
    assert as_bytes(copy) is copy


@pytest.mark.parametrize("codec", known_codecs(), ids=lambda codec: type(codec).__name__)
def test_messages_are_made_with_one_copy_of_their_buffer(codec: BufferCodec) -> None:
    """Of those that Python knows of: protobuf has its own."""
    tensor = torch.randn(2**22, generator=torch.Generator().manual_seed(0))
    length = codec.encoded_bytes(tensor.shape, tensor.dtype)
    serialize_torch_tensor(tensor, codec.compression_type)  # tables are made once
    tracemalloc.start()
    try:
        message = serialize_torch_tensor(tensor, codec.compression_type)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(message.buffer) == length
    assert length <= peak < 1.5 * length


def test_bytes_of_before_stay_as_they_were() -> None:
    codec, tensor = known_codecs()[runtime_pb2.FLOAT16], torch.ones(1000)
    _, first = codec.encode(tensor, CompressionInfo.from_tensor(tensor))
    kept = bytearray(first)
    _, second = codec.encode(-tensor, CompressionInfo.from_tensor(tensor))
    assert (first, second) == (kept, bytes(to_buffer(-tensor.half())))
