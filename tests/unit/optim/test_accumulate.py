"""Microbatches add up to one large batch."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hivemind.errors import ConfigError
from hivemind.optim.accumulate import GradientAccumulator


def make_model() -> torch.nn.Module:
    torch.manual_seed(1)
    return torch.nn.Sequential(torch.nn.Linear(5, 4), torch.nn.Tanh(), torch.nn.Linear(4, 3)).double()


def backward(model: torch.nn.Module, x: torch.Tensor, y: torch.Tensor) -> None:
    torch.nn.functional.cross_entropy(model(x), y).backward()


def mean_gradients(accumulator: GradientAccumulator) -> list[torch.Tensor]:
    targets = [torch.full_like(p, 7.0) for p in accumulator.parameters]
    accumulator.write_mean(targets)
    return targets


def big_batch(x: torch.Tensor, y: torch.Tensor) -> list[torch.Tensor]:
    model = make_model()
    backward(model, x, y)
    return [p.grad for p in model.parameters() if p.grad is not None]


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=6))
def test_mean_is_that_of_one_large_batch(sizes: Sequence[int]):
    torch.manual_seed(sum(sizes))
    x, y = torch.randn(sum(sizes), 5).double(), torch.randint(0, 3, (sum(sizes),))
    model = make_model()
    accumulator = GradientAccumulator(model.parameters())
    for part_x, part_y in zip(x.split(list(sizes)), y.split(list(sizes)), strict=True):
        model.zero_grad()
        backward(model, part_x, part_y)
        accumulator.add(len(part_x))
    assert (accumulator.samples, accumulator.microbatches) == (sum(sizes), len(sizes))
    for ours, theirs in zip(mean_gradients(accumulator), big_batch(x, y), strict=True):
        assert torch.allclose(ours, theirs, atol=1e-12)


def test_reused_buffers_add_up_by_themselves():
    x, y = torch.randn(12, 5).double(), torch.randint(0, 3, (12,))
    model = make_model()
    accumulator = GradientAccumulator(model.parameters(), reuse_grad_buffers=True)
    for part in range(3):
        backward(model, x[4 * part : 4 * part + 4], y[4 * part : 4 * part + 4])
        accumulator.add(4)
    for ours, theirs in zip(mean_gradients(accumulator), big_batch(x, y), strict=True):
        assert torch.allclose(ours, theirs, atol=1e-12)
    accumulator.reset()
    assert all(p.grad is not None and not p.grad.any() for p in model.parameters())


def test_sums_stay_within_half_precision():
    # 64 microbatches of gradients near the top of fp16 would overflow if they were scaled by their size
    weight = torch.nn.Parameter(torch.zeros(2, dtype=torch.float16))
    accumulator = GradientAccumulator([weight])
    for _ in range(64):
        weight.grad = torch.tensor([900.0, -900.0], dtype=torch.float16)
        accumulator.add(128)
    assert mean_gradients(accumulator)[0].tolist() == pytest.approx([900.0, -900.0], rel=0.01)


def test_reset_forgets():
    weight = torch.nn.Parameter(torch.zeros(2))
    accumulator = GradientAccumulator([weight])
    assert mean_gradients(accumulator)[0].tolist() == [0.0, 0.0]
    weight.grad = torch.ones(2)
    accumulator.add(3)
    accumulator.reset()
    assert (accumulator.samples, accumulator.microbatches) == (0, 0)
    assert mean_gradients(accumulator)[0].tolist() == [0.0, 0.0]
    accumulator.add(5)
    assert mean_gradients(accumulator)[0].tolist() == [1.0, 1.0]


def test_parameters_without_gradient_count_as_zero():
    used, unused = torch.nn.Parameter(torch.zeros(2)), torch.nn.Parameter(torch.zeros(3), requires_grad=False)
    accumulator = GradientAccumulator([used, unused])
    used.grad = torch.ones(2)
    accumulator.add(1)
    assert [g.tolist() for g in mean_gradients(accumulator)] == [[1.0, 1.0], [0.0, 0.0, 0.0]]


def test_mean_may_be_taken_more_than_once():
    weight = torch.nn.Parameter(torch.zeros(1))
    accumulator = GradientAccumulator([weight])
    weight.grad = torch.ones(1)
    accumulator.add(1)
    accumulator.add(1)
    assert mean_gradients(accumulator) == mean_gradients(accumulator)


@pytest.mark.parametrize("size", [0, -1, 2.0, True, None])
def test_wrong_batch_size(size: object):
    with pytest.raises(ConfigError, match="batch_size"):
        GradientAccumulator([torch.nn.Parameter(torch.zeros(1))]).add(size)  # type: ignore[arg-type]
