"""Mixtures over three servers: gradients as those of the same layers run here, also while servers die and lie."""

from __future__ import annotations

import dataclasses
import itertools
import os
import signal
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest
import torch
from torch import nn

from hivemind.dht import DHT
from hivemind.errors import ConfigError, InputMismatch, NotEnoughExperts
from hivemind.moe import (
    ModuleBackend,
    RemoteExpert,
    RemoteMixtureOfExperts,
    RemoteSwitchMixtureOfExperts,
    Server,
    get_experts,
)
from hivemind.moe.client import MoEBeamSearcher
from tests.support.linear_experts import LR, VECTOR, WIDTH, make_backend, make_layer
from tests.support.waiting import eventually_sync

GRID = (3, 4)
UIDS = [f"e.{i}.{j}" for i, j in itertools.product(*map(range, GRID))]


class LocalMixture(nn.Module):
    """What a mixture must give when everybody answers, with all layers here."""

    def __init__(self, remote: RemoteMixtureOfExperts) -> None:
        super().__init__()
        self.proj = nn.Linear(WIDTH, sum(GRID))
        self.proj.load_state_dict(remote.proj.state_dict())
        self.layers = nn.ModuleList(make_layer(uid) for uid in UIDS)
        self.k_best = remote.options.k_best

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows, columns = self.proj(x).split(GRID, dim=-1)
        best = (rows[:, :, None] + columns[:, None, :]).flatten(1).topk(self.k_best, dim=1)
        outputs = torch.stack([layer(x) for layer in self.layers], dim=1)
        chosen = outputs.gather(1, best.indices[:, :, None].expand(-1, -1, WIDTH))
        return (best.values.softmax(dim=1)[:, :, None] * chosen).sum(dim=1)


@contextmanager
def swarm(backends: list[dict[str, ModuleBackend]]) -> Iterator[DHT]:
    """A server for each of ``backends``, and a client."""
    with ExitStack() as stack:
        peers: list[Any] = []
        for experts in backends:
            dht = stack.enter_context(DHT(initial_peers=peers, start=True))
            peers = dht.get_visible_maddrs()
            stack.enter_context(Server(dht, experts, update_period=2, start=True))
        yield stack.enter_context(DHT(initial_peers=peers, start=True))


def mixture(dht: DHT, **options: Any) -> RemoteMixtureOfExperts:
    torch.manual_seed(1)
    return RemoteMixtureOfExperts(
        in_features=WIDTH, grid_size=GRID, dht=dht, uid_prefix="e.", **{"k_best": 3, **options}
    )


@pytest.fixture(scope="module")
def dht() -> Iterator[DHT]:
    """Twelve experts on three servers."""
    with swarm([{uid: make_backend(uid) for uid in UIDS[share::3]} for share in range(3)]) as dht:
        yield dht


def test_training_is_that_of_the_same_layers_here(dht: DHT) -> None:
    """Outputs, gradients of inputs and gate, and the steps that the experts make."""
    remote = mixture(dht)
    local = LocalMixture(remote)
    optimizer = torch.optim.SGD(local.layers.parameters(), lr=LR)
    for _ in range(3):
        x = torch.randn(9, WIDTH, requires_grad=True)
        outputs, expected = remote(x), local(x)
        torch.testing.assert_close(outputs, expected)
        grads = torch.autograd.grad(outputs.square().sum(), [x, *remote.proj.parameters()])
        expected.square().sum().backward()
        torch.testing.assert_close(grads, (x.grad, local.proj.weight.grad, local.proj.bias.grad))
        optimizer.step()
        optimizer.zero_grad()
        local.proj.zero_grad()


def test_a_peer_calls_its_own_experts() -> None:
    with DHT(start=True) as dht, Server(dht, {uid: make_backend(uid) for uid in UIDS}, start=True):
        remote = mixture(dht)
        x = torch.randn(3, WIDTH, requires_grad=True)
        output = remote(x)
        torch.testing.assert_close(output, LocalMixture(remote)(x))
        output.sum().backward()
        assert x.grad is not None
        (expert,) = get_experts(dht, [UIDS[0]])
        assert expert is not None
        assert expert.peer_id == dht.peer_id


def test_inputs_of_more_dimensions_and_integers(dht: DHT) -> None:
    remote = mixture(dht)
    with pytest.raises(InputMismatch, match="input"):
        remote(torch.zeros(2, WIDTH + 1))
    with pytest.raises(TypeError, match="input"):
        remote([1.0])
    with pytest.raises(InputMismatch, match=r"\(batch, 8\)"):
        remote(
            torch.zeros(2, 3, WIDTH)
        )  # chosen by the mean over what is between, but these experts take no such input


def test_a_graph_may_be_used_twice(dht: DHT) -> None:
    remote, x = mixture(dht, k_best=2), torch.randn(4, WIDTH, requires_grad=True)
    outputs = remote(x)
    (first,) = torch.autograd.grad(outputs.sum(), x, retain_graph=True)
    (second,) = torch.autograd.grad(outputs.sum(), x)
    assert first.shape == second.shape
    assert not torch.equal(first, second)  # the experts have made a step in between


def test_searches_find_the_best(dht: DHT) -> None:
    searcher = MoEBeamSearcher(dht, "e", GRID)
    rows, columns = [0.0, 2.0, 1.0], [0.0, 30.0, 10.0, 20.0]
    found = searcher.find_best_experts([rows, columns], beam_size=3)
    assert all(isinstance(expert, RemoteExpert) for expert in found)
    assert [expert.uid for expert in found] == ["e.1.1", "e.2.1", "e.0.1"]
    by_sample = searcher.batch_find_best_experts([[rows, rows], [columns, columns]], 2, return_future=True).result(30)
    assert [[expert.uid for expert in experts] for experts in by_sample] == [["e.1.1", "e.2.1"]] * 2
    beam = searcher.get_initial_beam(rows, 2)
    assert [(score, prefix, sorted(successors)) for score, prefix, successors in beam] == [
        (2.0, "e.1.", [0, 1, 2, 3]),
        (1.0, "e.2.", [0, 1, 2, 3]),
    ]
    successors = searcher.get_active_successors(["e.0.", "e.9."], grid_size=2)
    assert {prefix: sorted(each) for prefix, each in successors.items()} == {"e.0.": [0, 1], "e.9.": []}
    for scores in ([rows], [rows, rows], [rows, [float("nan")] * 4]):
        with pytest.raises(ConfigError, match="grid_scores"):
            searcher.find_best_experts(scores, 2)


def test_a_grid_that_nobody_serves(dht: DHT) -> None:
    remote = RemoteMixtureOfExperts(in_features=WIDTH, grid_size=(2, 2), dht=dht, uid_prefix="nobody.", k_best=2)
    with pytest.raises(NotEnoughExperts, match=r"nobody\., 2 x 2"):
        remote(torch.zeros(2, WIDTH))


def test_training_goes_on_when_a_server_is_killed(dht: DHT) -> None:
    """Its experts are left out, first by those who call them, then by the search."""
    peers = dht.get_visible_maddrs()
    with (
        DHT(initial_peers=peers, start=True) as living,
        Server(living, {uid: make_backend(uid) for uid in ("f.0", "f.1")}, start=True),
        DHT(initial_peers=peers, start=True, restart=False) as dying,
        Server(dying, {uid: make_backend(uid) for uid in ("f.2", "f.3")}, start=True),
    ):
        remote = RemoteMixtureOfExperts(
            in_features=WIDTH, grid_size=(4,), dht=dht, uid_prefix="f.", k_best=4, forward_timeout=10
        )
        eventually_sync(lambda: None not in get_experts(dht, ["f.0", "f.1", "f.2", "f.3"]), "four experts")
        x = torch.randn(6, WIDTH, requires_grad=True)
        assert len(answering(remote, x)) == 4
        outputs = remote(x)
        assert dying.p2p._child is not None
        os.kill(
            dying.p2p._child.pid, signal.SIGKILL
        )  # with its daemon the peer is gone, in the middle of whatever it did
        outputs.sum().backward()  # it has died between forward and backward
        assert x.grad is not None
        for _ in range(3):
            remote(x).sum().backward()
        assert answering(remote, x) == {"f.0", "f.1"}


def answering(remote: RemoteMixtureOfExperts, x: torch.Tensor) -> set[str]:
    """The experts that the mixture has called, and that have answered."""
    scores = remote._grid_scores(x)
    experts = remote._find(scores)
    answered, _ = remote._call(experts, (x,), {})
    flags = answered.tolist()
    return {expert.uid for row, chosen in enumerate(experts) for slot, expert in enumerate(chosen) if flags[row][slot]}


class Broken(nn.Linear):
    """Gives what is no number where an input is above 10."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        outputs: torch.Tensor = super().forward(x)
        return torch.where(x > 10, torch.inf, outputs)


def test_anomalies_are_left_out(dht: DHT) -> None:
    broken = ModuleBackend("g.1", Broken(WIDTH, WIDTH), args_schema=[VECTOR], outputs_schema=VECTOR)
    with (
        DHT(initial_peers=dht.get_visible_maddrs(), start=True) as third,
        Server(third, {"g.0": make_backend("g.0"), "g.1": broken}, start=True),
    ):
        options: dict[str, Any] = {"in_features": WIDTH, "grid_size": (2,), "dht": dht, "uid_prefix": "g.", "k_best": 2}
        x = torch.full((2, WIDTH), 11.0)
        trusting, careful = (RemoteMixtureOfExperts(detect_anomalies=flag, **options) for flag in (False, True))
        assert not trusting(x).isfinite().all()
        torch.testing.assert_close(careful(x), make_layer("g.0")(x))
        assert answering(careful, x) == {"g.0"}
        with pytest.raises(ConfigError, match="inputs"):
            careful(x * float("inf"))
        with pytest.raises(NotEnoughExperts, match="2 of 2 samples have fewer than 2"):
            RemoteMixtureOfExperts(detect_anomalies=True, k_min=2, **options)(x)
        allowing = RemoteMixtureOfExperts(detect_anomalies=True, k_min=2, allow_zero_outputs=True, **options)
        torch.testing.assert_close(allowing(x), make_layer("g.0")(x))


def test_gradients_that_are_not_finite_reach_no_expert(dht: DHT) -> None:
    remote, x = mixture(dht, k_best=1, detect_anomalies=True), torch.randn(1, WIDTH, requires_grad=True)
    outputs = remote(x)
    (grad,) = torch.autograd.grad(outputs.sum() * float("inf"), x)
    assert grad.isnan().all()
    torch.testing.assert_close(remote(x), outputs)  # the expert has made no step


def test_switch_layers(dht: DHT) -> None:
    torch.manual_seed(3)
    layer = RemoteSwitchMixtureOfExperts(in_features=WIDTH, grid_size=GRID, dht=dht, uid_prefix="e.", jitter_eps=0)
    x = torch.randn(7, WIDTH, requires_grad=True)
    outputs, loss = layer(x)
    rows, columns = (scores.softmax(dim=-1) for scores in layer.proj(x).split(GRID, dim=-1))
    joint = rows[:, :, None] * columns[:, None, :]
    best = joint.flatten(1).argmax(dim=1)
    found = get_experts(dht, UIDS)
    expected = torch.stack([joint[i].flatten()[b] * found[b](x[i : i + 1])[0] for i, b in enumerate(best.tolist())])
    torch.testing.assert_close(outputs, x + expected)
    use = [torch.zeros(size) for size in GRID]
    for place in best.tolist():
        use[0][place // GRID[1]] += 1 / 7
        use[1][place % GRID[1]] += 1 / 7
    kept = [0.9 / size + 0.1 * each for size, each in zip(GRID, use, strict=True)]
    for measured, each in zip(layer.grid_utilization, kept, strict=True):
        torch.testing.assert_close(measured, each)
    by_hand = sum(len(each) * (each * p.mean(dim=0)).sum() for each, p in zip(kept, (rows, columns), strict=True))
    torch.testing.assert_close(loss, by_hand)
    (outputs.sum() + loss).backward()
    assert layer.proj.weight.grad is not None


def test_switch_layers_in_training_and_out_of_it(dht: DHT) -> None:
    torch.manual_seed(4)
    layer = RemoteSwitchMixtureOfExperts(
        in_features=WIDTH, grid_size=GRID, dht=dht, uid_prefix="e.", jitter_eps=0.5, grid_dropout=0.5
    )
    x = torch.randn(16, WIDTH)
    layer.eval()
    with torch.no_grad():
        before = [use.clone() for use in layer.grid_utilization]
        torch.testing.assert_close(layer(x), layer(x))
        assert all(map(torch.equal, before, layer.grid_utilization))
        layer.train()
        layer(x)
    rows = {
        int(layer.places_of(expert.uid)[0])
        for expert in itertools.chain(*layer._find([layer._with_dropout(scores) for scores in layer._grid_scores(x)]))
    }
    assert len(rows) <= 2  # half of three, rounded up
    layer.options = dataclasses.replace(layer.options, grid_dropout=0.0, jitter_eps=0.0)
    with torch.no_grad():
        # one coordinate of each axis is left, whose probability is one
        outputs, _ = layer(x)
    found = {expert.uid: expert for expert in get_experts(dht, UIDS) if expert is not None}
    assert any(torch.allclose(outputs, x + expert(x), atol=1e-5) for expert in found.values())


def test_a_switch_layer_whose_expert_is_gone_gives_its_input(dht: DHT) -> None:
    with DHT(initial_peers=dht.get_visible_maddrs(), start=True) as third:
        with Server(third, {"h.0.0": make_backend("h.0.0")}, start=True):
            layer = RemoteSwitchMixtureOfExperts(in_features=WIDTH, grid_size=(1, 1), dht=dht, uid_prefix="h.")
            x = torch.randn(3, WIDTH, requires_grad=True)
            eventually_sync(lambda: get_experts(dht, ["h.0.0"])[0], "the expert")
            assert layer(x)[0].ne(x).any()
        outputs, loss = layer(x)
        assert outputs.eq(x).all()
        (outputs.sum() + loss).backward()


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"k_best": 0}, "k_best"),
        ({"k_min": 4}, "k_min"),
        ({"k_min": -1}, "k_min"),
        ({"backward_k_min": 9}, "backward_k_min"),
        ({"forward_timeout": 0}, "forward_timeout"),
        ({"backward_timeout": -1.0}, "backward_timeout"),
        ({"timeout_after_k_min": float("nan")}, "timeout_after_k_min"),
        ({"detect_anomalies": "yes"}, "detect_anomalies"),
        ({"num_workers": 0}, "num_workers"),
        ({"cache_expiration": 0}, "cache_expiration"),
        ({"k_bset": 3}, "did you mean 'k_best'"),
        ({"jitter_eps": 0.1}, "jitter_eps"),
    ],
)
def test_options_are_checked(dht: DHT, options: dict[str, Any], name: str) -> None:
    with pytest.raises(ConfigError, match=name):
        mixture(dht, **options)
