"""The kernels of Triton in its interpreter, beside torch's operations: whole codecs, and each step by itself."""

from __future__ import annotations

import pytest
import torch

from hivemind.compression import BufferCodec, fused, known_codecs, serialize_torch_tensor
from hivemind.compression.fused import Step, agree, is_suitable
from hivemind.proto import runtime_pb2
from tests.support.codec_steps import MODULES, STEPS

pytest.importorskip("triton", reason="Triton comes with torch on Linux only")

from hivemind.compression import triton_kernels

FLOATS = [torch.float16, torch.bfloat16, torch.float32]
CPU = torch.device("cpu")


def test_there_is_a_kernel_for_each_step() -> None:
    assert set(triton_kernels.__all__) == {*STEPS, "example"}


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("length", [1, 1023, 4096, 20_001])
@pytest.mark.parametrize("name", sorted(STEPS))
def test_a_kernel_computes_what_torch_does(name: str, length: int, dtype: torch.dtype) -> None:
    plain, kernel = (triton_kernels.example(name, CPU, dtype, length) for _ in range(2))
    if name == "decode_blocks":
        plain[-1] = plain[-1].numpy()
    STEPS[name].plain(*plain)
    getattr(triton_kernels, name)(*kernel)
    untouched = triton_kernels.example(name, CPU, dtype, length)
    if name == "decode_blocks":
        plain[-1] = kernel[-1]
    assert agree(plain, kernel)
    assert not agree(plain, untouched) or length == 1


@pytest.fixture
def with_kernels(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Codecs compute as on a GPU, on this processor, each step with its kernel. The names of those that were used."""
    used: list[str] = []

    def call(step: Step[...], *args: object) -> None:
        if is_suitable(args):
            used.append(step.name)
            getattr(triton_kernels, step.name)(*args)
        else:
            step.plain(*args)

    monkeypatch.setattr(Step, "__call__", call)
    monkeypatch.setattr(fused, "LEAST_ELEMENTS", 1)
    for module in MODULES:
        monkeypatch.setattr(module, "on_cpu", lambda device: False, raising=False)
    return used


every_codec = pytest.mark.parametrize("codec", known_codecs(), ids=lambda codec: type(codec).__name__)
SIXTEEN_BITS = (runtime_pb2.FLOAT16, runtime_pb2.MEANSTD_16BIT)


every_codec_and_dtype = pytest.mark.parametrize(
    ("codec", "dtype"),
    [
        pytest.param(codec, dtype, id=f"{type(codec).__name__}-{dtype}")
        for codec in known_codecs()
        for dtype in FLOATS
        if dtype != torch.bfloat16 or codec.compression_type not in SIXTEEN_BITS
    ],
)


@every_codec_and_dtype
@pytest.mark.parametrize("shape", [(0,), (1,), (300,), (8193,), (20, 1025), (1500, 7), (2, 3, 1)], ids=str)
def test_codecs_keep_their_bounds(
    with_kernels: list[str], codec: BufferCodec, dtype: torch.dtype, shape: tuple[int, ...]
) -> None:
    random = torch.Generator().manual_seed(len(shape))
    for tensor in (torch.randn(shape, generator=random), 1000 + torch.randn(shape, generator=random)):
        tensor = tensor.to(dtype)
        message = serialize_torch_tensor(tensor, codec.compression_type)
        assert len(message.buffer) == codec.encoded_bytes(tensor.shape, dtype)
        restored = codec.extract(message)
        assert (restored.dtype, restored.shape) == (dtype, tensor.shape)
        assert ((restored.double() - tensor.double()).abs() <= codec.error_bound(tensor)).all()
    assert with_kernels or codec.compression_type == runtime_pb2.NONE or not tensor.numel()


@every_codec
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # of numpy, with which the interpreter computes
def test_values_that_are_not_finite(with_kernels: list[str], codec: BufferCodec) -> None:
    tensor = torch.randn(10, 1000, generator=torch.Generator().manual_seed(0))
    tensor[0, :3] = torch.tensor([float("nan"), float("inf"), float("-inf")])
    tensor[1] = 0
    restored = codec.extract(serialize_torch_tensor(tensor, codec.compression_type))
    assert restored[0, 0].isnan()
    if codec.compression_type != runtime_pb2.FLOAT16:
        assert torch.equal(restored[0, 1:3], tensor[0, 1:3])
    finite = tensor.isfinite()
    assert ((restored - tensor).abs() <= codec.error_bound(tensor))[finite].all()


@every_codec_and_dtype
def test_what_kernels_read_is_what_torch_reads(
    with_kernels: list[str], monkeypatch: pytest.MonkeyPatch, codec: BufferCodec, dtype: torch.dtype
) -> None:
    tensor = torch.randn(3, 2000, generator=torch.Generator().manual_seed(0)).to(dtype)
    message = serialize_torch_tensor(tensor, codec.compression_type)
    read = codec.extract(message)
    monkeypatch.undo()
    if dtype == torch.bfloat16:  # the interpreter cuts it off, where a GPU rounds
        assert agree([codec.extract(message)], [read])
        return
    assert torch.equal(codec.extract(message), read)
    plain = codec.extract(serialize_torch_tensor(tensor, codec.compression_type))
    assert (plain.double() - read.double()).abs().mean() <= 0.05 * (plain.double() - tensor).abs().mean() + 1e-6
