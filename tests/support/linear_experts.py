"""Experts that are linear layers, of which a test can have twins."""

from __future__ import annotations

import torch

from hivemind.compression import BatchTensorDescriptor
from hivemind.moe import ModuleBackend

__all__ = ["LR", "VECTOR", "WIDTH", "make_backend", "make_layer"]

WIDTH = 8
LR = 0.1
VECTOR = BatchTensorDescriptor(WIDTH, dtype=torch.float32, requires_grad=True)


def make_layer(uid: str) -> torch.nn.Linear:
    """The same layer for the same name, in any process."""
    generator = torch.Generator().manual_seed(sum(map(ord, uid)) + 7 * int(uid.rpartition(".")[2]))
    layer = torch.nn.Linear(WIDTH, WIDTH)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / WIDTH**0.5)
    return layer


def make_backend(uid: str) -> ModuleBackend:
    """The layer as an expert that is trained by plain gradient descent."""
    layer = make_layer(uid)
    optimizer = torch.optim.SGD(layer.parameters(), lr=LR)
    return ModuleBackend(uid, layer, optimizer=optimizer, args_schema=[VECTOR], outputs_schema=VECTOR)
