"""`PartMessage` is ``AveragingData`` on the wire, whatever its fields, and reads all that protobuf reads."""

from __future__ import annotations

import time

import pytest
from google.protobuf.message import DecodeError, Message
from hypothesis import example, given
from hypothesis import strategies as st

from hivemind.averaging.messages import PartMessage
from hivemind.proto.averaging_pb2 import AveragingData
from hivemind.proto.runtime_pb2 import Tensor

TENSORS = st.builds(
    Tensor,
    buffer=st.binary(max_size=300),
    size=st.lists(st.integers(0, 2**32 - 1), max_size=5),
    requires_grad=st.booleans(),
    dtype=st.sampled_from(["", "float32", "bfloat16"]),
    compression=st.integers(-1, 6),
    chunks=st.integers(0, 5),
)
MESSAGES = st.builds(
    AveragingData,
    code=st.integers(0, 18),
    group_id=st.binary(max_size=20),
    peer_id=st.binary(max_size=3),
    tensor_part=st.none() | TENSORS,
    weight=st.floats(allow_nan=False),
)


@given(MESSAGES)
@example(AveragingData(tensor_part=Tensor()))
def test_what_protobuf_writes_is_read_alike(message: AveragingData) -> None:
    read = PartMessage.FromString(message.SerializeToString())
    part, expected = read.tensor_part, message.tensor_part
    assert (read.code, read.group_id, read.weight) == (message.code, message.group_id, message.weight)
    assert bytes(part.buffer) == expected.buffer
    assert list(part.size) == list(expected.size)
    assert (part.dtype, part.requires_grad, part.compression) == (
        expected.dtype,
        expected.requires_grad,
        expected.compression,
    )


@given(MESSAGES.filter(lambda message: message.HasField("tensor_part") and not message.peer_id))
def test_what_is_packed_is_what_protobuf_reads(message: AveragingData) -> None:
    header = Tensor()
    header.CopyFrom(message.tensor_part)
    header.ClearField("buffer")
    packed = PartMessage.pack(
        header, message.tensor_part.buffer, code=message.code, group_id=message.group_id, weight=message.weight
    )
    assert AveragingData.FromString(packed.SerializeToString()) == message
    assert isinstance(packed, Message)
    if message.group_id or not message.code:
        assert packed.SerializeToString() == message.SerializeToString()


@given(st.integers(0, 18), st.binary(max_size=20), st.floats(allow_nan=False))
def test_messages_without_a_part(code: int, group_id: bytes, weight: float) -> None:
    ours = PartMessage(code=code, group_id=group_id, weight=weight).SerializeToString()
    assert ours == AveragingData(code=code, group_id=group_id, weight=weight).SerializeToString()


def test_the_buffer_is_a_view_of_what_came() -> None:
    data = bytearray(AveragingData(tensor_part=Tensor(buffer=b"abcd", dtype="float32")).SerializeToString())
    buffer = PartMessage.FromString(data).tensor_part.buffer
    position = data.index(b"abcd")
    data[position : position + 4] = b"wxyz"
    assert bytes(buffer) == b"wxyz"


@given(st.binary(max_size=100))
@example(b"\x22\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01")
@example(b"\x22\x80")
@example(b"\x22\x02\x0a\x05")
@example(b"\x20\x01")
@example(b"\x22\x02\x08\x01")
def test_random_bytes_are_read_or_refused(data: bytes) -> None:
    try:
        read = PartMessage.FromString(data)
    except DecodeError:
        return
    expected = AveragingData.FromString(data)
    assert (read.code, read.group_id) == (expected.code, expected.group_id)
    assert bytes(read.tensor_part.buffer) == expected.tensor_part.buffer


@pytest.mark.parametrize(
    "data",
    [
        b"\x22\x00\x22\x00",
        b"\x22\x04\x0a\x00\x0a\x00",
        b"\x22\x05\x0a\x7f\x00\x00\x00",
        b"\x24",
        b"\x0b",
        b"\x31\x00",
    ],
)
def test_malformed(data: bytes) -> None:
    with pytest.raises(DecodeError):
        PartMessage.FromString(data)


@pytest.mark.parametrize("filler", [b"\x38\x01", b"\x3a\x00"])
def test_a_flood_of_small_fields_costs_nothing(filler: bytes) -> None:
    started = time.process_time()
    for data in (filler * 2**22, b"\x22\x80\x80\x80\x04" + filler * 2**22):
        with pytest.raises(DecodeError):
            PartMessage.FromString(data)
    assert time.process_time() - started < 5
