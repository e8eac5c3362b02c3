"""Arithmetic on parts. Pure, on the device of the tensors; safe in any thread as long as the tensors are."""

from __future__ import annotations

from collections.abc import Sequence

import torch

__all__ = ["accumulator_dtype", "is_finite", "weighted_mean", "write_answer"]


def accumulator_dtype(dtype: torch.dtype) -> torch.dtype:
    """In what parts of ``dtype`` are summed up: float32, or float64 where float32 would lose digits of it."""
    if dtype == torch.float64 or (not dtype.is_floating_point and dtype.itemsize > 2):
        return torch.float64
    return torch.float32


def is_finite(values: torch.Tensor) -> bool:
    """Whether there is neither infinity nor NaN."""
    if not values.is_floating_point():
        return True
    # either one makes the sum not finite; the sum of large finite values may overflow, and then each is looked at
    return bool(torch.isfinite(values.sum())) or bool(torch.isfinite(values).all())


def weighted_mean(values: Sequence[torch.Tensor], weights: Sequence[float]) -> torch.Tensor:
    """``sum(weight * value) / sum(weight)``, summed up in the order given.

    Values of weight 0 are not looked at, so that whatever they are does no harm.

    :param values: of one shape, dtype and device
    :param weights: finite numbers >= 0, not all 0
    :returns: a new tensor of `accumulator_dtype`
    """
    pairs = [(value, weight) for value, weight in zip(values, weights, strict=True) if weight > 0]
    first, weight = pairs[0]
    total = first.to(accumulator_dtype(first.dtype), copy=True)
    if weight != 1:
        total.mul_(weight)
    for value, weight in pairs[1:]:
        total.add_(value, alpha=weight)
    return total.div_(sum(weight for _, weight in pairs))


def write_answer(target: torch.Tensor, answer: torch.Tensor, base: torch.Tensor | None) -> None:
    """Write ``base + answer`` (None: just ``answer``) to ``target``; integers are rounded to the nearest."""
    answer = answer.to(target.device)
    if target.is_floating_point():
        if base is None:
            target.copy_(answer)
        else:
            torch.add(base, answer, out=target)
        return
    exact = answer if base is None else base.double().add_(answer)
    target.copy_(exact.round() if exact.is_floating_point() else exact)
