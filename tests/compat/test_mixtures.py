"""Mixtures and switch layers of either library over servers of both: the same outputs and gradients."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from hivemind.dht import DHT
from hivemind.moe import ModuleBackend, RemoteMixtureOfExperts, RemoteSwitchMixtureOfExperts, Server, get_experts
from tests.compat.expert_modules import Mixer
from tests.compat.nodes import eventually
from tests.compat.packing import pack_tensor, unpack_tensor
from tests.compat.pairs import LOCAL
from tests.compat.test_expert_server import HIDDEN, make_backend
from tests.support.legacy_repeat import LegacyPeers, repeat_on_legacy_fault

GRID = (2, 3)
K_BEST = 3


def reference(layer: Any, modules: dict[str, nn.Module], x: torch.Tensor, *, switch: bool) -> torch.Tensor:
    """What the layer must give, with all experts run here."""
    rows, columns = layer.proj(x).split(GRID, dim=-1)
    if switch:
        rows, columns = rows.softmax(dim=-1), columns.softmax(dim=-1)
        scores = (rows[:, :, None] * columns[:, None, :]).flatten(1)
    else:
        scores = (rows[:, :, None] + columns[:, None, :]).flatten(1)
    best = scores.topk(1 if switch else K_BEST, dim=1)
    weights = best.values if switch else best.values.softmax(dim=1)
    outputs = torch.stack([modules[f"mix.{i}.{j}"](x) for i in range(GRID[0]) for j in range(GRID[1])], dim=1)
    chosen = outputs.gather(1, best.indices[:, :, None].expand(-1, -1, HIDDEN))
    mixed = (weights[:, :, None] * chosen).sum(dim=1)
    return x + mixed if switch else mixed


@pytest.mark.parametrize("switch", [False, True], ids=["mixture", "switch"])
@repeat_on_legacy_fault
def test_layers_over_a_mixed_set_of_servers(legacy: LegacyPeers, switch: bool) -> None:
    torch.manual_seed(5)
    modules: dict[str, nn.Module] = {f"mix.1.{column}": Mixer(HIDDEN) for column in range(GRID[1])}
    backends: dict[str, ModuleBackend] = {uid: make_backend(uid, module) for uid, module in modules.items()}
    for backend in backends.values():
        backend.optimizer = None  # the same experts for both callers
    theirs = {f"mix.0.{column}": "mixer" for column in range(GRID[1])}
    with (
        DHT(start=True, **LOCAL) as ours,
        Server(ours, backends, update_period=2, start=True),
        DHT(initial_peers=ours.get_visible_maddrs(), start=True, **LOCAL) as dht,
    ):
        peers = [str(maddr) for maddr in ours.get_visible_maddrs()]
        peer, caller = legacy.spawn(), legacy.spawn()
        started = peer.call("experts_serve", name="s", initial_peers=peers, uids=theirs, hidden_dim=HIDDEN, lr=0.0)
        for uid, weights in started["weights"].items():
            modules[uid] = Mixer(HIDDEN)
            modules[uid].load_state_dict({key: unpack_tensor(each) for key, each in weights.items()})
        assert eventually(lambda: None not in get_experts(dht, list(modules), expiration_time=float("inf")))

        options: dict[str, Any] = {"in_features": HIDDEN, "grid_size": GRID, "uid_prefix": "mix."}
        if switch:
            options["jitter_eps"] = 0.0
            layer: Any = RemoteSwitchMixtureOfExperts(dht=dht, **options)
        else:
            options["k_best"] = K_BEST
            layer = RemoteMixtureOfExperts(dht=dht, **options)
        x = torch.randn(5, HIDDEN, requires_grad=True)
        expected = reference(layer, modules, x, switch=switch)
        expected_grads = torch.autograd.grad(expected.square().sum(), [x, layer.proj.weight])

        outputs = layer(x)[0] if switch else layer(x)
        torch.testing.assert_close(outputs, expected)
        grads = torch.autograd.grad(outputs.square().sum(), [x, layer.proj.weight])
        torch.testing.assert_close(grads, expected_grads, rtol=1e-4, atol=1e-4)

        caller.call("experts_join", initial_peers=peers)
        gate = {name: pack_tensor(each) for name, each in layer.proj.state_dict().items()}
        answer = caller.call("experts_mix", x=pack_tensor(x), switch=switch, **gate, **options)
        torch.testing.assert_close(unpack_tensor(answer["outputs"]), expected.detach())
        for given, own in zip(answer["gradients"], expected_grads, strict=True):
            torch.testing.assert_close(unpack_tensor(given), own, rtol=1e-4, atol=1e-4)
