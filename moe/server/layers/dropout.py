"""An expert with dropout that backward repeats as it was in forward: the client sends the mask with both calls."""

from __future__ import annotations

import torch
from torch import nn

from hivemind.moe.server.layers.registry import register_expert_class

__all__ = ["DeterministicDropout", "DeterministicDropoutNetwork"]


class DeterministicDropout(nn.Module):
    """Dropout by a given mask.

    :param drop_prob: share of zeros in the mask
    """

    def __init__(self, drop_prob: float) -> None:
        super().__init__()
        self.keep_prob = 1 - drop_prob

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """``x`` where ``mask``, of the same shape, is 1; nothing is dropped in evaluation."""
        return x * mask / self.keep_prob if self.training else x


@register_expert_class(
    "det_dropout", lambda batch, hidden: (torch.empty(batch, hidden), torch.zeros(batch, hidden, dtype=torch.int64))
)
class DeterministicDropoutNetwork(nn.Module):
    """Dropout by a given mask, then a hidden layer of twice the width."""

    def __init__(self, hid_dim: int, dropout_prob: float = 0.2) -> None:
        super().__init__()
        self.linear_in = nn.Linear(hid_dim, 2 * hid_dim)
        self.activation = nn.ReLU()
        self.dropout = DeterministicDropout(dropout_prob)
        self.linear_out = nn.Linear(2 * hid_dim, hid_dim)

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """(batch, hidden) and a mask of that shape, of zeros and ones, to (batch, hidden)."""
        output: torch.Tensor = self.linear_out(self.activation(self.linear_in(self.dropout(x, mask))))
        return output
