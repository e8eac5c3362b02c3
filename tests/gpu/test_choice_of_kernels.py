"""Which way a step is computed on a GPU is found out once for each dtype and size, whoever comes first."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from hivemind.compression import fused
from hivemind.compression.fused import ENVIRONMENT, Step

GPU = torch.device("cuda", 0)


class Kernels:
    """Stands in for the module of kernels: counts examples and calls."""

    def __init__(self) -> None:
        self.examples: list[tuple[torch.dtype, int]] = []
        self.calls = 0

    def example(self, name: str, device: torch.device, dtype: torch.dtype, length: int) -> list[Any]:
        self.examples.append((dtype, length))
        return [torch.ones(8, dtype=dtype, device=device), torch.zeros(8, dtype=dtype, device=device)]

    def double(self, values: torch.Tensor, out: torch.Tensor) -> None:
        self.calls += 1
        torch.mul(values, 2, out=out)


@pytest.fixture
def kernels(monkeypatch: pytest.MonkeyPatch) -> Kernels:
    kernels = Kernels()
    monkeypatch.setenv(ENVIRONMENT, "1")
    monkeypatch.setitem(sys.modules, "hivemind.compression.triton_kernels", kernels)
    monkeypatch.setattr(fused, "_choices", {})
    return kernels


def step(seconds: float, monkeypatch: pytest.MonkeyPatch) -> tuple[Step[Any], SimpleNamespace]:
    """A step whose kernel takes ``seconds`` where torch takes one; counts what torch has done of it."""
    torch_did = SimpleNamespace(calls=0)

    def double(values: torch.Tensor, out: torch.Tensor) -> None:
        torch_did.calls += 1
        torch.add(values, values, out=out)

    times = iter([seconds, 1.0] * 10)
    monkeypatch.setattr(fused, "_seconds", lambda device, call: next(times))
    return Step(double), torch_did


def test_a_faster_kernel_is_used_from_then_on(kernels: Kernels, monkeypatch: pytest.MonkeyPatch) -> None:
    double, torch_did = step(0.5, monkeypatch)
    for length in (fused.LEAST_ELEMENTS, 2**18, 2**22, 2**22):
        out = torch.zeros(length, device=GPU)
        double(torch.ones(length, device=GPU), out)
        assert int((out == 2).sum()) == length
    double(torch.ones(2**18, dtype=torch.float16, device=GPU), torch.zeros(2**18, dtype=torch.float16, device=GPU))
    # two examples for each trial, one for either way
    assert kernels.examples == 2 * [(torch.float32, 2**18)] + 2 * [(torch.float32, 2**22)] + 2 * [
        (torch.float16, 2**18)
    ]
    assert torch_did.calls == 3  # in the trials
    assert kernels.calls == 3 + 5


def test_a_slower_one_and_one_for_small_tensors_are_not(kernels: Kernels, monkeypatch: pytest.MonkeyPatch) -> None:
    double, torch_did = step(2.0, monkeypatch)
    for _ in range(3):
        double(torch.ones(2**18, device=GPU), torch.zeros(2**18, device=GPU))
    assert (torch_did.calls, kernels.calls) == (4, 1)
    double(torch.ones(9, device=GPU), torch.zeros(9, device=GPU))
    double(torch.ones(2**18, device=GPU).double(), torch.zeros(2**18, device=GPU).double())
    assert (torch_did.calls, kernels.calls) == (6, 1)


def test_threads_try_it_out_once(kernels: Kernels, monkeypatch: pytest.MonkeyPatch) -> None:
    double, _ = step(0.5, monkeypatch)

    def work(_: int) -> int:
        out = torch.zeros(2**16, device=GPU)
        double(torch.ones(2**16, device=GPU), out)
        return int((out == 2).sum())

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(work, range(8))) == [2**16] * 8
    assert len(kernels.examples) == 2


def test_a_kernel_that_fails_later_is_not_used_again(
    kernels: Kernels, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    double, torch_did = step(0.5, monkeypatch)
    working = kernels.double

    def fails_at_an_odd_place(values: torch.Tensor, out: torch.Tensor) -> None:
        if values.storage_offset() % 2:
            raise RuntimeError("misaligned")
        working(values, out)

    monkeypatch.setattr(kernels, "double", fails_at_an_odd_place)
    ones = torch.ones(2**18 + 1, device=GPU)
    for first in (0, 1, 1, 0):
        out = torch.zeros(2**18, device=GPU)
        double(ones[first : first + 2**18], out)
        assert int((out == 2).sum()) == 2**18
    assert caplog.text.count("the kernel fails") == 1
    assert (kernels.calls, torch_did.calls) == (2, 4)  # one of each in the trial
