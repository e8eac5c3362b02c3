"""`RemoteSwitchMixtureOfExperts`: a mixture that keeps the load on its experts even."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Unpack

import torch

from hivemind.dht import DHT
from hivemind.moe.client.config import MixtureKeywords, SwitchOptions
from hivemind.moe.client.eager import outside_of_graphs
from hivemind.moe.client.moe import RemoteMixtureOfExperts
from hivemind.moe.uid import ExpertInfo

__all__ = ["RemoteSwitchMixtureOfExperts"]


class RemoteSwitchMixtureOfExperts(RemoteMixtureOfExperts):
    """A mixture of experts of other peers after Fedus, Zoph and Shazeer, 2021 ("Switch Transformers"), on a grid: each
    sample goes to the expert whose coordinates are most probable, its output, weighted by that probability, is added to
    the input, and a second result is a loss that is lowest when all coordinates of each axis are used alike.
    Thread-safe.

    :param options: those of `RemoteMixtureOfExperts`, with `SwitchOptions`
    :raises ConfigError: if an argument is wrong
    """

    options_type = SwitchOptions
    options: SwitchOptions

    def __init__(
        self,
        *,
        in_features: int,
        grid_size: tuple[int, ...],
        dht: DHT,
        uid_prefix: str,
        **options: Unpack[MixtureKeywords],
    ) -> None:
        super().__init__(in_features=in_features, grid_size=grid_size, dht=dht, uid_prefix=uid_prefix, **options)
        for axis, size in enumerate(self.grid_size):
            self.register_buffer(f"grid_utilization_{axis}", torch.full((size,), 1 / size), persistent=False)

    @property
    def grid_utilization(self) -> list[torch.Tensor]:
        """For each axis, how much of the samples each coordinate has had of late; the sum over an axis is 1."""
        return [self.get_buffer(f"grid_utilization_{axis}") for axis in range(len(self.grid_size))]

    @outside_of_graphs
    def forward(self, input: torch.Tensor, *args: Any, **kwargs: Any) -> tuple[Any, torch.Tensor]:
        """``input + probability * output``, structured as `RemoteMixtureOfExperts.forward`, and the balancing loss.

        :returns: outputs, to which ``input`` is added if they are one tensor of its shape (for samples of which no
            expert answers they are ``input``, or zeros), and a scalar: the number of axes when all coordinates are used
            alike, more otherwise
        """
        grid_scores = [scores.float() for scores in self._grid_scores(self._jittered(input))]
        log_probs = [self._with_dropout(scores).log_softmax(dim=-1) for scores in grid_scores]
        experts = self._find(log_probs)
        answered, outputs = self._call(experts, (input, *args), kwargs)
        weights = self.compute_expert_scores(log_probs, experts).exp() * answered
        if self.training:
            self._note_use(experts, answered)
        mixed = self._average(weights, outputs)
        if isinstance(mixed, torch.Tensor) and mixed.shape == input.shape:
            mixed = mixed + input.to(mixed.dtype)
        return mixed, self._balancing_loss([scores.log_softmax(dim=-1) for scores in grid_scores])

    def _jittered(self, input: torch.Tensor) -> torch.Tensor:
        if not self.training or not self.options.jitter_eps or not isinstance(input, torch.Tensor):
            return input
        return input * torch.empty_like(input).uniform_(1 - self.options.jitter_eps, 1 + self.options.jitter_eps)

    def _with_dropout(self, scores: torch.Tensor) -> torch.Tensor:
        """Scores without those of dropped coordinates, whose probability is zero."""
        if not self.training or self.options.grid_dropout == 1:
            return scores
        size = scores.shape[-1]
        kept = max(1, math.ceil(self.options.grid_dropout * size))
        dropped = torch.randperm(size, device=scores.device)[kept:]
        return scores.index_fill(-1, dropped, float("-inf"))

    @torch.no_grad()
    def _note_use(self, experts: Sequence[Sequence[ExpertInfo]], answered: torch.Tensor) -> None:
        places = [
            self.places_of(expert.uid)
            for chosen, flags in zip(experts, answered.tolist(), strict=True)
            for expert, flag in zip(chosen, flags, strict=False)
            if flag
        ]
        if not places:
            return
        for axis, use in enumerate(self.grid_utilization):
            counts = torch.bincount(torch.tensor([each[axis] for each in places]), minlength=len(use))
            use.mul_(self.options.utilization_alpha)
            use.add_(counts.to(use) / len(places), alpha=1 - self.options.utilization_alpha)

    def _balancing_loss(self, log_probs: Sequence[torch.Tensor]) -> torch.Tensor:
        """Their equation 4 for each axis: size * sum(share of the samples * mean probability)."""
        losses = [
            len(use) * (use.to(axis) * axis.exp().mean(dim=0)).sum()
            for use, axis in zip(self.grid_utilization, log_probs, strict=True)
        ]
        return torch.stack(losses).sum()
