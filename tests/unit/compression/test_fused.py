"""Which way a step of a codec is computed, and that its kernels compile for GPUs that are not here."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from hivemind.compression import fused
from hivemind.compression.fused import ENVIRONMENT, Step, agree, is_suitable, pays

CPU = torch.device("cpu")


def double(values: torch.Tensor, out: torch.Tensor) -> None:
    out.copy_(values * 2)


def double_in_a_kernel(values: torch.Tensor, out: torch.Tensor) -> None:
    torch.add(values, values, out=out)


def forget(values: torch.Tensor, out: torch.Tensor) -> None:
    pass


def example() -> list[Any]:
    return [torch.arange(1.0, 100.0), torch.zeros(99)]


def clock(kernel: float, plain: float) -> Callable[[Callable[[], None]], float]:
    """Takes times in the order in which they are asked for."""
    times: Iterator[float] = iter((kernel, plain))
    return lambda call: next(times)


@pytest.mark.parametrize(("kernel", "plain", "chosen"), [(0.5, 1, True), (0.95, 1, False), (2, 1, False)])
def test_a_kernel_is_used_if_it_takes_less_time(kernel: float, plain: float, chosen: bool) -> None:
    assert pays(double, double_in_a_kernel, example, clock(kernel, plain)) is chosen


def test_a_kernel_that_computes_something_else_is_not_used(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert not pays(double, forget, example, clock(0.1, 1))
    assert "double: the kernel computes something else" in caplog.text


def test_what_counts_as_the_same() -> None:
    numbers, indices = torch.linspace(1, 2, 5000), torch.arange(5000) // 20
    few, many, far = indices.clone(), indices.clone(), indices.clone()
    few[7] += 1
    many[:10] += 1
    far[7] += 2
    assert agree([numbers, 3, indices.to(torch.uint8)], [numbers * (1 + 2**-18), 3, few.to(torch.uint8)])
    assert not agree([numbers], [numbers * (1 + 2**-12)])
    assert not agree([indices], [many])
    assert not agree([indices], [far])
    assert agree([torch.tensor(float("nan"))], [torch.tensor(float("nan"))])


def test_kernels_are_for_large_tensors_of_their_dtypes(monkeypatch: pytest.MonkeyPatch) -> None:
    large = torch.zeros(fused.LEAST_ELEMENTS)
    assert is_suitable([large, 3, large.half()])
    assert not is_suitable([large[1:], large])
    assert not is_suitable([large.double(), large])
    assert not is_suitable([large, large.double()])
    assert not is_suitable([large.int()])
    monkeypatch.setenv(ENVIRONMENT, "0")
    assert not is_suitable([large, 3, large.half()])


def test_without_triton_and_with_a_compiler_that_fails_it_is_torch(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    step = Step(double)
    monkeypatch.setitem(sys.modules, "hivemind.compression.triton_kernels", None)
    assert fused.try_out(step, CPU, torch.float32, 99) is None

    class Broken:
        example = staticmethod(lambda name, device, dtype, length: example())

        @staticmethod
        def double(values: torch.Tensor, out: torch.Tensor) -> None:
            raise RuntimeError("no such instruction")

    monkeypatch.setitem(sys.modules, "hivemind.compression.triton_kernels", Broken)
    with caplog.at_level(logging.WARNING):
        assert fused.try_out(step, CPU, torch.float32, 99) is None
    assert "no such instruction" in caplog.text


def test_on_a_cpu_a_step_is_what_it_decorates() -> None:
    values, out = torch.ones(2**17), torch.zeros(2**17)
    Step(double)(values, out)
    assert (out == 2).all()
