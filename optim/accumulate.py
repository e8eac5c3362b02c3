"""Gradients of several microbatches become the gradient of one batch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch

from hivemind.config import check_count
from hivemind.errors import ConfigError

__all__ = ["GradientAccumulator"]


class GradientAccumulator:
    """Sums the gradients of microbatches so that their mean is that of one large batch.

    Each microbatch's gradient is a mean over its samples. It is added times ``its size / the size of the first one``
    (scaled so that sums stay in the range of one gradient, also in half precision); the mean over all samples is the
    sum over the sum of those factors. For microbatches of one size this is the sum over their number.

    Used by one thread at a time.

    :param parameters: in the order of the optimizer's groups
    :param reuse_grad_buffers: accumulate in ``parameter.grad``, where backward passes add up by themselves: no copy,
        but every microbatch counts alike
    :param device: where to accumulate; None: beside each parameter
    """

    def __init__(
        self,
        parameters: Iterable[torch.nn.Parameter],
        *,
        reuse_grad_buffers: bool = False,
        device: torch.device | str | None = None,
    ) -> None:
        self.parameters: Sequence[torch.nn.Parameter] = tuple(parameters)
        if reuse_grad_buffers and device is not None:
            raise ConfigError("accumulate_grads_on", device, "None with reuse_grad_buffers: they are where they are")
        self.reuse_grad_buffers = reuse_grad_buffers
        #: samples since the last reset
        self.samples = 0
        #: microbatches since the last reset
        self.microbatches = 0
        self._device = device
        self._first_batch_size: int | None = None
        self._factor_sum = 0.0
        # made on first use, so that a model may still move to its device after the optimizer is made
        self._sums: list[torch.Tensor] | None = None

    def add(self, batch_size: int) -> None:
        """Take over the gradients that stand in ``parameter.grad``; parameters without one count as zero.

        :param batch_size: samples that they are the mean of
        """
        check_count("batch_size", batch_size)
        if self._first_batch_size is None:
            self._first_batch_size = batch_size
        factor = 1.0 if self.reuse_grad_buffers else batch_size / self._first_batch_size
        if not self.reuse_grad_buffers:
            self._add(factor)
        self._factor_sum += factor
        self.microbatches += 1
        self.samples += batch_size

    def write_mean(self, targets: Sequence[torch.Tensor]) -> None:
        """Write the mean gradient over all samples since the last reset to ``targets``, one per parameter, in place.
        Zeros if there were none."""
        with torch.no_grad():
            for target, total in zip(targets, self._totals(), strict=True):
                if total is None or self._factor_sum == 0:
                    target.zero_()
                else:
                    target.copy_(total).div_(self._factor_sum)

    def reset(self) -> None:
        """Forget all samples."""
        self.samples = self.microbatches = 0
        self._first_batch_size, self._factor_sum = None, 0.0
        with torch.no_grad():
            for total in self._totals():
                if total is not None:
                    total.zero_()

    def _totals(self) -> Iterable[torch.Tensor | None]:
        if self.reuse_grad_buffers:
            return [parameter.grad for parameter in self.parameters]
        return self._sums if self._sums is not None else [None] * len(self.parameters)

    @torch.no_grad()
    def _add(self, factor: float) -> None:
        if self._sums is None:
            self._sums = [
                torch.zeros_like(p.grad if p.grad is not None else p, device=self._device, requires_grad=False)
                for p in self.parameters
            ]
        for total, parameter in zip(self._sums, self.parameters, strict=True):
            if parameter.grad is not None:
                total.add_(parameter.grad.to(total.device, non_blocking=True), alpha=factor)
