"""Experts on a GPU, called by a trainer whose tensors are on one too."""

from __future__ import annotations

import copy
from functools import partial

import pytest
import torch

from hivemind.dht import DHT
from hivemind.moe import Server, get_experts
from hivemind.proto import runtime_pb2

GPU = torch.device("cuda", 0)
WIDTH = 16


@pytest.mark.parametrize(
    ("compression", "off"),
    [(runtime_pb2.NONE, 1e-5), (runtime_pb2.FLOAT16, 1e-2), (runtime_pb2.BLOCKWISE_8BIT, 0.1)],
)
def test_an_expert_answers_and_is_trained(compression: runtime_pb2.CompressionType.ValueType, off: float) -> None:
    made = Server.create(
        expert_uids=["e.0"],
        hidden_dim=WIDTH,
        device=GPU,
        optim_cls=partial(torch.optim.SGD, lr=0.1),
        compression=compression,
        start=True,
    )
    with made as server, DHT(initial_peers=server.dht.get_visible_maddrs(), start=True) as dht:
        module = server.experts["e.0"].module
        assert {each.device for each in module.parameters()} == {GPU}
        local = copy.deepcopy(module)
        (expert,) = get_experts(dht, ["e.0"])
        assert expert is not None
        x = torch.randn(5, WIDTH, generator=torch.Generator().manual_seed(0))
        results = []
        for each in (expert, local):
            leaf = x.to(GPU).requires_grad_()
            output = each(leaf)
            output.square().mean().backward()
            assert leaf.grad is not None
            assert output.device == leaf.grad.device == GPU
            results.append((output.detach().cpu(), leaf.grad.cpu()))
        torch.testing.assert_close(*results, atol=off, rtol=off)
        torch.optim.SGD(local.parameters(), lr=0.1).step()
        for new, expected in zip(module.parameters(), local.parameters(), strict=True):
            torch.testing.assert_close(new.detach().cpu(), expected.detach().cpu(), atol=off, rtol=off)
