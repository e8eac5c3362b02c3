"""Modules that both libraries serve as experts, so that either can be held against the same module run here."""

import torch
from torch import nn


class Mixer(nn.Module):
    """One tensor to one: two layers with something curved between them."""

    def __init__(self, hidden_dim: int) -> None:
        super().__init__()
        self.first = nn.Linear(hidden_dim, 2 * hidden_dim)
        self.second = nn.Linear(2 * hidden_dim, hidden_dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.second(torch.tanh(self.first(x)))


class Several(nn.Module):
    """Two tensors, one of them by keyword and of integers, to a tuple of two."""

    def __init__(self, hidden_dim: int) -> None:
        super().__init__()
        self.scale = nn.Linear(hidden_dim, hidden_dim)
        self.rows = nn.Embedding(4, hidden_dim)

    def forward(self, x: torch.Tensor, y: torch.Tensor, row: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.scale(x) * y, x + self.rows(row)
