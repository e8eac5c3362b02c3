"""Tensors that hivemind 1.1.12 serialised are read by this library, and the reverse; bytes are equal too."""

from __future__ import annotations

import pytest
import torch

from hivemind.compression import deserialize_torch_tensor, serialize_torch_tensor
from hivemind.proto import runtime_pb2
from tests.compat.packing import pack_tensor, unpack_tensor
from tests.support.legacy_repeat import LegacyPeers, repeat_on_legacy_fault

FLOATS = ["float32", "float64", "float16"]
DTYPES = {
    "NONE": [*FLOATS, "bfloat16", "int64", "int32", "int8", "uint8", "bool"],
    "FLOAT16": FLOATS,
}
SHAPES: list[list[int]] = [[], [0], [1], [5], [3, 4], [2, 0, 3], [1000, 33]]


def tensors(compression: str) -> list[torch.Tensor]:
    """Every shape in every dtype that the codec takes, values over its whole range, some that need a gradient."""
    generator = torch.Generator().manual_seed(0)
    made = []
    for name in DTYPES[compression]:
        dtype = getattr(torch, name)
        for shape in SHAPES:
            values = torch.randn(shape, generator=generator) * 50
            tensor = values.to(torch.int32).to(dtype) if not dtype.is_floating_point else values.to(dtype)
            made.append(tensor)
    made.append(torch.tensor([1.0, -1e30, 1e-30, 70000.0, float("inf"), -0.0]))
    made.append(torch.randn(7, generator=generator).requires_grad_())
    made.append(torch.randn(6, 8, generator=generator).t())
    return made


@pytest.mark.parametrize("compression", list(DTYPES))
@repeat_on_legacy_fault
def test_each_reads_the_other(legacy: LegacyPeers, compression: str) -> None:
    """Same shape, dtype, requires_grad and values as the other library reads from the same bytes; same bytes out."""
    peer = legacy.spawn()
    kind = runtime_pb2.CompressionType.Value(compression)
    for tensor in tensors(compression):
        theirs: bytes = peer.call("tensor_serialize", tensor=pack_tensor(tensor), compression=compression)
        ours = serialize_torch_tensor(tensor, kind).SerializeToString()
        assert ours == theirs, f"{tensor.dtype} {list(tensor.shape)}"

        read_by_ours = deserialize_torch_tensor(runtime_pb2.Tensor.FromString(theirs))
        read_by_theirs = unpack_tensor(peer.call("tensor_deserialize", message=ours))
        for read in (read_by_ours, read_by_theirs):
            assert read.dtype == tensor.dtype
            assert read.shape == tensor.shape
            assert read.requires_grad == tensor.requires_grad
        assert torch.equal(read_by_ours, read_by_theirs)
        if compression == "NONE":
            assert torch.equal(read_by_ours, tensor)
