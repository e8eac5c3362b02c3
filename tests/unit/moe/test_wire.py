"""Requests and answers whose tensors are not copied are those that protobuf reads and writes."""

from __future__ import annotations

import pytest
import torch
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st

from hivemind.compression import TensorView, deserialize_torch_tensor, encode_torch_tensor
from hivemind.moe.wire import MAX_TENSORS, ExpertRequest, ExpertResponse
from hivemind.proto import runtime_pb2

tensors = st.builds(
    runtime_pb2.Tensor,
    buffer=st.builds(lambda tail, times: bytes(times) + tail, st.binary(max_size=300), st.sampled_from([0, 2**14])),
    size=st.lists(st.integers(0, 2**32 - 1), max_size=4),
    requires_grad=st.booleans(),
    dtype=st.text(max_size=9),
    compression=st.sampled_from(list(runtime_pb2.CompressionType.values())),
    chunks=st.integers(-(2**31), 2**31 - 1),
)
requests = st.builds(
    runtime_pb2.ExpertRequest, uid=st.text(max_size=200), tensors=st.lists(tensors, max_size=5), metadata=st.binary()
)


def whole(view: TensorView) -> runtime_pb2.Tensor:
    message = runtime_pb2.Tensor()
    message.CopyFrom(view.header)
    message.buffer = bytes(view.buffer)
    return message


@given(requests)
def test_what_protobuf_writes_is_read(request: runtime_pb2.ExpertRequest) -> None:
    read = ExpertRequest.FromString(request.SerializeToString())
    assert read.uid == request.uid
    assert [whole(tensor) for tensor in read.tensors] == list(request.tensors)
    answer = runtime_pb2.ExpertResponse(tensors=request.tensors, metadata=request.metadata)
    assert [whole(each) for each in ExpertResponse.FromString(answer.SerializeToString()).tensors] == list(
        request.tensors
    )


@given(requests)
def test_what_is_written_protobuf_reads(request: runtime_pb2.ExpertRequest) -> None:
    written = ExpertRequest(uid=request.uid, tensors=[TensorView.of(tensor) for tensor in request.tensors])
    read = runtime_pb2.ExpertRequest.FromString(written.SerializeToString())
    request.ClearField("metadata")
    assert read == request


def test_tensors_are_views_of_what_came() -> None:
    data = bytearray(ExpertResponse(tensors=[encode_torch_tensor(torch.ones(2**14))]).SerializeToString())
    (tensor,) = ExpertResponse.FromString(data).tensors
    decoded = deserialize_torch_tensor(tensor)
    assert torch.equal(decoded, torch.ones(2**14))
    data[data.index(b"\x00\x00\x80\x3f")] = 1
    assert decoded[0] != 1


def test_too_many_tensors() -> None:
    fits = runtime_pb2.ExpertRequest(tensors=[runtime_pb2.Tensor()] * MAX_TENSORS).SerializeToString()
    assert len(ExpertRequest.FromString(fits).tensors) == MAX_TENSORS
    with pytest.raises(DecodeError):
        ExpertRequest.FromString(fits + b"\x12\x00")


@given(requests, st.data())
def test_what_is_cut_off_is_refused_as_protobuf_does(request: runtime_pb2.ExpertRequest, data: st.DataObject) -> None:
    whole_message = request.SerializeToString()
    cut = whole_message[: data.draw(st.integers(0, len(whole_message)))]
    try:
        expected = runtime_pb2.ExpertRequest.FromString(cut)
    except DecodeError:
        with pytest.raises(DecodeError):
            ExpertRequest.FromString(cut)
    else:
        assert [whole(tensor) for tensor in ExpertRequest.FromString(cut).tensors] == list(expected.tensors)
