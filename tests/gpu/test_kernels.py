"""Kernels of Triton on a GPU, beside torch's operations there."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from hivemind.compression import BufferCodec, fused, known_codecs, serialize_torch_tensor
from hivemind.compression.fused import ENVIRONMENT, agree
from tests.support.codec_steps import STEPS

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU that torch can use")

GPU = torch.device("cuda", 0)


@pytest.fixture
def kernels() -> Any:
    return pytest.importorskip("hivemind.compression.triton_kernels", reason="Triton comes with torch on Linux only")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("length", [1, 1023, 4096, 2**20 + 1])
@pytest.mark.parametrize("name", sorted(STEPS))
def test_a_kernel_computes_what_torch_does(kernels: Any, name: str, length: int, dtype: torch.dtype) -> None:
    plain, kernel = (kernels.example(name, GPU, dtype, length) for _ in range(2))
    STEPS[name].plain(*plain)
    getattr(kernels, name)(*kernel)
    assert agree(plain, kernel)


@pytest.mark.parametrize("name", sorted(STEPS))
def test_trying_a_kernel_out_raises_nothing(kernels: Any, name: str, caplog: pytest.LogCaptureFixture) -> None:
    for length in (2**18, 2**22):
        fused.try_out(STEPS[name], GPU, torch.float32, length)
    assert not [record for record in caplog.records if record.levelname == "WARNING"]


@pytest.mark.parametrize("codec", known_codecs(), ids=lambda codec: type(codec).__name__)
@pytest.mark.parametrize("switch", ["1", "0"])
def test_both_ways_keep_the_bounds(codec: BufferCodec, switch: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ENVIRONMENT, switch)
    tensor = torch.randn(1000, 300, generator=torch.Generator().manual_seed(0))
    message = serialize_torch_tensor(tensor.to(GPU), codec.compression_type)
    for restored in (codec.extract(message), codec.extract(message, GPU).cpu()):
        assert ((restored - tensor).abs() <= codec.error_bound(tensor)).all()
