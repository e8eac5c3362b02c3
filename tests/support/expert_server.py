"""A server of experts in a process that a test can kill: ``expert_server.py <initial peer> <uid>...``.

Each expert is a linear layer of its own, see `make_layer`. A line is printed once they are declared; the end of the
standard input ends the process at once.
"""

from __future__ import annotations

import os
import sys

import torch

from hivemind.compression import BatchTensorDescriptor
from hivemind.dht import DHT
from hivemind.moe import ModuleBackend, Server

__all__ = ["LR", "WIDTH", "make_backend", "make_layer"]

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


def main(initial_peer: str, uids: list[str]) -> None:
    torch.set_num_threads(1)
    dht = DHT(initial_peers=[initial_peer], start=True, auto_nat=False, nat_port_map=False)
    Server(dht, {uid: make_backend(uid) for uid in uids}, update_period=2, start=True)
    print("ready", flush=True)
    sys.stdin.read()
    os._exit(0)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
