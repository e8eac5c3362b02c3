"""Stock experts. Their parameters are named as in hivemind 1.1, whose checkpoints they can load."""

from __future__ import annotations

import time

import torch
from torch import nn
from torch.nn import functional

from hivemind.moe.server.layers.registry import register_expert_class

__all__ = ["DelayedNopExpert", "FeedforwardBlock", "NopExpert", "TunedTransformer"]

#: Tokens in a batch that stands for those of the transformer; others may have more or less.
_SAMPLE_LENGTH = 128


@register_expert_class("ffn", lambda batch, hidden: torch.empty(batch, hidden))
class FeedforwardBlock(nn.Module):
    """A hidden layer of four times the width, a residual path, layer norm."""

    def __init__(self, hid_dim: int) -> None:
        super().__init__()
        self.ffn = nn.Linear(hid_dim, 4 * hid_dim)
        self.ffn_output = nn.Linear(4 * hid_dim, hid_dim)
        self.layer_norm = nn.LayerNorm(hid_dim, eps=1e-12)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(batch, hidden) to (batch, hidden)."""
        hidden = functional.gelu(self.ffn(x), approximate="tanh")
        normed: torch.Tensor = self.layer_norm(x + self.ffn_output(hidden))
        return normed


@register_expert_class(
    "transformer",
    lambda batch, hidden: (
        torch.empty(batch, _SAMPLE_LENGTH, hidden),
        torch.zeros(batch, _SAMPLE_LENGTH, dtype=torch.bool),
    ),
)
class TunedTransformer(nn.Module):
    """A layer of a transformer's encoder with 16 heads, norm after each block."""

    def __init__(self, hid_dim: int) -> None:
        super().__init__()
        self.self_attn = nn.MultiheadAttention(hid_dim, num_heads=16, dropout=0.1, batch_first=True)
        self.linear1 = nn.Linear(hid_dim, 4 * hid_dim)
        self.dropout = nn.Dropout(0.1)
        self.linear2 = nn.Linear(4 * hid_dim, hid_dim)
        self.norm1 = nn.LayerNorm(hid_dim)
        self.norm2 = nn.LayerNorm(hid_dim)
        self.dropout1 = nn.Dropout(0.1)
        self.dropout2 = nn.Dropout(0.1)

    def forward(self, src: torch.Tensor, src_key_padding_mask: torch.Tensor | None = None) -> torch.Tensor:
        """(batch, tokens, hidden) to the same; the mask (batch, tokens) is true where a token is only padding."""
        attended, _ = self.self_attn(src, src, src, key_padding_mask=src_key_padding_mask, need_weights=False)
        src = self.norm1(src + self.dropout1(attended))
        hidden = self.dropout(functional.gelu(self.linear1(src), approximate="tanh"))
        normed: torch.Tensor = self.norm2(src + self.dropout2(self.linear2(hidden)))
        return normed


@register_expert_class("nop", lambda batch, hidden: torch.empty(batch, hidden))
class NopExpert(nn.Module):
    """Gives what it takes."""

    def __init__(self, hid_dim: int) -> None:
        super().__init__()
        # without an element, for optimizers that want a parameter
        self.w = nn.Parameter(torch.zeros(0))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Any batch, unchanged."""
        return x.clone()


@register_expert_class("nop_delay", lambda batch, hidden: torch.empty(batch, hidden))
class DelayedNopExpert(NopExpert):
    """Gives what it takes, ``delay`` seconds later: a slow server, for tests."""

    def __init__(self, hid_dim: int, delay: float = 0.5) -> None:
        super().__init__(hid_dim)
        self.delay = delay

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Any batch, unchanged."""
        time.sleep(self.delay)
        return super().forward(x)
