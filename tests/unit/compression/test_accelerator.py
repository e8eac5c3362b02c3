"""What codecs compute on an accelerator, which is torch alone, computed on this processor."""

from __future__ import annotations

import sys

import pytest
import torch

from hivemind.compression import BufferCodec, known_codecs, serialize_torch_tensor
from hivemind.proto import runtime_pb2

every_codec = pytest.mark.parametrize("codec", known_codecs(), ids=lambda codec: type(codec).__name__)
MODULES = ("codebook", "floating", "quantile", "uniform")


def as_on_an_accelerator(patch: pytest.MonkeyPatch) -> None:
    for name in MODULES:
        patch.setattr(sys.modules[f"hivemind.compression.{name}"], "on_cpu", lambda device: False)


def values(length: int) -> torch.Tensor:
    return torch.randn(length, generator=torch.Generator().manual_seed(length))


@every_codec
@pytest.mark.parametrize("length", [0, 1, 300, 8193, 300_001])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64], ids=str)
def test_both_ways_give_the_same(codec: BufferCodec, length: int, dtype: torch.dtype) -> None:
    tensor = values(length).to(dtype)
    here = serialize_torch_tensor(tensor, codec.compression_type)
    with pytest.MonkeyPatch.context() as patch:
        as_on_an_accelerator(patch)
        there = serialize_torch_tensor(tensor, codec.compression_type)
        restored = codec.extract(there)
    assert len(here.buffer) == len(there.buffer)
    assert ((restored.double() - tensor.double()).abs() <= codec.error_bound(tensor)).all()
    # read by the other way, and read from the other way
    torch.testing.assert_close(codec.extract(there), restored, rtol=1e-6, atol=1e-6)
    first, second = codec.extract(here).double(), restored.double()
    if length:
        assert (first - second).abs().mean() <= 0.05 * (first - tensor).abs().mean() + 1e-6


@every_codec
def test_values_that_are_not_finite_and_values_far_apart(codec: BufferCodec) -> None:
    tensor = values(20_000)
    tensor[5000:] *= 1e-12
    tensor[::4] += 1e6
    if codec.compression_type not in (runtime_pb2.NONE, runtime_pb2.FLOAT16, runtime_pb2.MEANSTD_16BIT):
        tensor[100], tensor[200], tensor[300] = float("nan"), float("inf"), float("-inf")
    with pytest.MonkeyPatch.context() as patch:
        as_on_an_accelerator(patch)
        restored = codec.extract(serialize_torch_tensor(tensor, codec.compression_type))
    finite = tensor.isfinite()
    assert torch.equal(restored[~finite].nan_to_num(7), tensor[~finite].nan_to_num(7))
    assert ((restored - tensor).abs() <= codec.error_bound(tensor))[finite].all()
