"""Codecs on a GPU: the same bytes to others, the same values from others, and the work where the tensor is."""

from __future__ import annotations

import pytest
import torch

from benchmarks import device_codecs
from hivemind.averaging.reduction import reduce_part
from hivemind.compression import BufferCodec, known_codecs, serialize_torch_tensor
from hivemind.compression.fused import ENVIRONMENT
from hivemind.errors import SerializationError
from hivemind.proto import runtime_pb2

every_codec = pytest.mark.parametrize("codec", known_codecs(), ids=lambda codec: type(codec).__name__)
GPU = torch.device("cuda", 0)
LENGTHS = [0, 1, 300, 8193, 3_000_001]
SIXTEEN_BITS = (runtime_pb2.FLOAT16, runtime_pb2.MEANSTD_16BIT)


def values(length: int) -> torch.Tensor:
    return torch.randn(length, generator=torch.Generator().manual_seed(length))


@every_codec
@pytest.mark.parametrize("length", LENGTHS)
def test_what_a_gpu_encodes_is_within_the_bound(codec: BufferCodec, length: int) -> None:
    tensor = values(length)
    message = serialize_torch_tensor(tensor.to(GPU), codec.compression_type)
    assert len(message.buffer) == codec.encoded_bytes(tensor.shape, tensor.dtype)
    restored = codec.extract(message)
    assert restored.device.type == "cpu"
    assert ((restored - tensor).abs() <= codec.error_bound(tensor)).all()


@every_codec
@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64], ids=str)
def test_both_devices_encode_about_alike_and_decode_alike(codec: BufferCodec, length: int, dtype: torch.dtype) -> None:
    tensor = values(length).to(dtype)
    messages = [serialize_torch_tensor(each, codec.compression_type) for each in (tensor, tensor.to(GPU))]
    for message in messages:
        on_gpu = codec.extract(message, GPU)
        assert on_gpu.is_cuda
        # a product and a sum may be rounded once or twice
        torch.testing.assert_close(on_gpu.cpu(), codec.extract(message), rtol=1e-6, atol=1e-6)
    first, second = (codec.extract(message) for message in messages)
    if length:
        assert (first - second).abs().mean() <= 0.05 * (first - tensor).abs().mean() + 1e-6


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
@every_codec
def test_dtypes_and_strides(codec: BufferCodec, dtype: torch.dtype) -> None:
    if dtype == torch.bfloat16 and codec.compression_type in SIXTEEN_BITS:
        with pytest.raises(SerializationError, match="does not support"):
            serialize_torch_tensor(torch.zeros(3, dtype=dtype, device=GPU), codec.compression_type)
        return
    tensor = values(60 * 80).view(60, 80).to(GPU, dtype).t()[::2, 1:]
    restored = codec.extract(serialize_torch_tensor(tensor, codec.compression_type), GPU)
    assert (restored.dtype, restored.shape) == (dtype, tensor.shape)
    assert ((restored.double() - tensor.double()).abs() <= codec.error_bound(tensor)).all()


@every_codec
def test_values_that_are_not_finite(codec: BufferCodec) -> None:
    tensor = values(100_000)
    tensor[:3] = torch.tensor([float("nan"), float("inf"), float("-inf")])
    restored = codec.extract(serialize_torch_tensor(tensor.to(GPU), codec.compression_type), GPU).cpu()
    assert restored[0].isnan()
    if codec.compression_type != runtime_pb2.FLOAT16:
        assert torch.equal(restored[1:3], tensor[1:3])
    assert restored[3:].isfinite().all()


@every_codec
def test_values_far_apart(codec: BufferCodec) -> None:
    tensor = values(20_000)
    tensor[5000:] *= 1e-12
    tensor[::4] += 1e6
    restored = codec.extract(serialize_torch_tensor(tensor.to(GPU), codec.compression_type), GPU).cpu()
    assert ((restored - tensor).abs() <= codec.error_bound(tensor)).all()


@every_codec
def test_parts_are_reduced_where_they_are(codec: BufferCodec) -> None:
    local, sent = values(50_000).to(GPU), values(50_001)[:50_000]
    message = serialize_torch_tensor(sent, codec.compression_type)
    reduced = reduce_part(local, 0, {0: (None, 1.0), 1: (message, 1.0)})
    assert reduced.average is not None
    assert reduced.average.is_cuda
    expected = (local.cpu() + codec.extract(message)) / 2
    torch.testing.assert_close(reduced.average.cpu(), expected)


def test_the_table_for_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ENVIRONMENT, "1")
    monkeypatch.setattr(device_codecs, "SECONDS", 0.0)
    table = device_codecs.lines(GPU, {"small": 2**16})
    ways = {codec for codec, *_ in table if codec.startswith("UNIFORM_8BIT")}
    assert ways == {
        "UNIFORM_8BIT: its bytes alone", "UNIFORM_8BIT with kernels", "UNIFORM_8BIT with torch's operations"
    }  # fmt: skip
    assert all(float(rate) > 0 for _, _, *rates in table for rate in rates)
