"""The kernels of Triton compile for GPUs that are not here, for every dtype."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

REASON = "Triton comes with torch on Linux only"
compiler = pytest.importorskip("triton.compiler", reason=REASON)
jit = pytest.importorskip("triton.runtime.jit", reason=REASON)
GPUTarget = pytest.importorskip("triton.backends.compiler", reason=REASON).GPUTarget
triton_kernels = pytest.importorskip("hivemind.compression.triton_kernels", reason=REASON)

TARGETS = {
    "Turing": GPUTarget("cuda", 75, 32),
    "Ampere": GPUTarget("cuda", 80, 32),
    "Hopper": GPUTarget("cuda", 90, 32),
    "CDNA3": GPUTarget("hip", "gfx942", 64),
}
LAUNCHERS = sorted({*triton_kernels.__all__} - {"example"})


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", LAUNCHERS)
def test_a_kernel_compiles(name: str, target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    compiled: list[Any] = []

    def compile_only(kernel: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        constants = {key: value for key, value in kwargs.items() if key in kernel.arg_names}
        options = {key: value for key, value in kwargs.items() if key not in constants}
        types = dict(zip(kernel.arg_names, map(jit.mangle_type, args), strict=False))
        # tensors of torch begin at multiples of 16 bytes, which decides on how they are read
        aligned = {(place,): [["tt.divisibility", 16]] for place, kind in enumerate(types.values()) if kind[0] == "*"}
        source = compiler.ASTSource(kernel, types | dict.fromkeys(constants, "constexpr"), constants, aligned)
        compiled.append(compiler.compile(source, target=TARGETS[target], options=options))

    monkeypatch.setattr(jit.JITFunction, "run", compile_only)
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        getattr(triton_kernels, name)(*triton_kernels.example(name, torch.device("cpu"), dtype, 20_000))
    assert len(compiled) == 3
    for kernel in compiled:
        assert len(kernel.asm["hsaco" if target == "CDNA3" else "cubin"]) > 1000
        # what one program keeps for all its threads, bytes: each of these GPUs has 64 KiB
        assert kernel.metadata.shared <= 2**16
