"""Tensors that hivemind 1.1.12 serialised are read by this library, and the reverse.

What either library reads from the same bytes is equal bit by bit. Codecs whose writer has no choice write equal bytes,
and the others lose no more than 1.1.12 does.
"""

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
    "MEANSTD_16BIT": FLOATS,
    "QUANTILE_8BIT": [*FLOATS, "bfloat16"],
    "UNIFORM_8BIT": [*FLOATS, "bfloat16"],
    "BLOCKWISE_8BIT": [*FLOATS, "bfloat16"],
}
SAME_BYTES = ("NONE", "FLOAT16")
SHAPES: list[list[int]] = [[], [0], [1], [5], [3, 4], [2, 0, 3], [1000, 33]]


def tensors(compression: str) -> list[torch.Tensor]:
    """Every shape in every dtype that the codec takes, values over its whole range, some that need a gradient."""
    generator = torch.Generator().manual_seed(0)
    made = []
    for name in DTYPES[compression]:
        dtype = getattr(torch, name)
        for shape in SHAPES:
            if compression == "MEANSTD_16BIT" and not shape:
                continue
            values = torch.randn(shape, generator=generator) * 50
            tensor = values.to(torch.int32).to(dtype) if not dtype.is_floating_point else values.to(dtype)
            made.append(tensor)
    if compression in SAME_BYTES:
        made.append(torch.tensor([1.0, -1e30, 1e-30, 70000.0, float("inf"), -0.0]))
    made.append(torch.randn(7, generator=generator).requires_grad_())
    made.append(torch.randn(6, 8, generator=generator).t())
    return made


def refused_by_legacy(compression: str, tensor: torch.Tensor) -> bool:
    """1.1.12 writes no empty tensor with a codebook, and its UNIFORM_8BIT no float64."""
    if not tensor.numel():
        return compression in ("QUANTILE_8BIT", "UNIFORM_8BIT")
    return compression == "UNIFORM_8BIT" and tensor.dtype == torch.float64


@pytest.mark.parametrize("compression", list(DTYPES))
@repeat_on_legacy_fault
def test_each_reads_the_other(legacy: LegacyPeers, compression: str) -> None:
    """Same shape, dtype, requires_grad and values as the other library reads from the same bytes; same bytes out."""
    peer = legacy.spawn()
    kind = runtime_pb2.CompressionType.Value(compression)
    for tensor in tensors(compression):
        ours = serialize_torch_tensor(tensor, kind).SerializeToString()
        messages = [ours]
        if not refused_by_legacy(compression, tensor):
            theirs: bytes = peer.call("tensor_serialize", tensor=pack_tensor(tensor), compression=compression)
            messages.append(theirs)
            assert ours == theirs or compression not in SAME_BYTES, f"{tensor.dtype} {list(tensor.shape)}"
        errors = []
        for message in messages:
            read_by_ours = deserialize_torch_tensor(runtime_pb2.Tensor.FromString(message))
            read_by_theirs = unpack_tensor(peer.call("tensor_deserialize", message=message))
            for read in (read_by_ours, read_by_theirs):
                assert read.dtype == tensor.dtype
                assert read.shape == tensor.shape
                assert read.requires_grad == tensor.requires_grad
            assert torch.equal(read_by_ours, read_by_theirs)
            errors.append(float((read_by_ours.double() - tensor.double()).detach().square().sum()))
        if tensor.numel() > 1000:  # of few elements chance decides
            assert errors[0] <= 1.05 * errors[-1], f"{tensor.dtype} {list(tensor.shape)}: {errors}"
        if compression == "NONE":
            assert torch.equal(read_by_ours, tensor)


@pytest.mark.parametrize("compression", ["MEANSTD_16BIT", "QUANTILE_8BIT", "UNIFORM_8BIT", "BLOCKWISE_8BIT"])
@repeat_on_legacy_fault
def test_they_read_what_is_not_finite(legacy: LegacyPeers, compression: str) -> None:
    """1.1.12 itself spoils the neighbours, or ends with a segmentation fault; it reads well what we write."""
    tensor = torch.randn(5000, generator=torch.Generator().manual_seed(1))
    tensor[::1000] = torch.tensor([float("nan"), float("inf"), float("-inf"), float("nan"), 0.0])
    ours = serialize_torch_tensor(tensor, runtime_pb2.CompressionType.Value(compression)).SerializeToString()
    read = unpack_tensor(legacy.spawn().call("tensor_deserialize", message=ours))
    assert torch.equal(read.isnan(), tensor.isnan())
    assert torch.equal(read.isinf(), tensor.isinf())
    assert torch.equal(read[[1000, 2000]], tensor[[1000, 2000]])
    finite = tensor.isfinite()
    assert float((read - tensor)[finite].abs().mean()) < 0.02
