"""Our client on a server of hivemind 1.1.12: what experts take and give, forward, backward, streams, faults."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import nn

from hivemind.dht import DHT
from hivemind.errors import P2PHandlerError, UnknownExpert
from hivemind.moe import ExpertInfo, RemoteExpert, get_experts
from tests.compat.expert_modules import Mixer, Several
from tests.compat.nodes import eventually
from tests.compat.packing import unpack_tensor
from tests.compat.pairs import LOCAL
from tests.support.legacy_repeat import LegacyPeers, repeat_on_legacy_fault

HIDDEN = 64
LR = 0.5


class LegacyServer:
    """A server of 1.1.12, its experts as modules here, and a client of ours that has found them."""

    def __init__(self, dht: DHT, started: dict[str, Any], uids: dict[str, str]) -> None:
        self.dht = dht
        self.peer_id: str = started["peer_id"]
        self.modules: dict[str, nn.Module] = {}
        for uid, weights in started["weights"].items():
            module = Mixer(HIDDEN) if uids[uid] == "mixer" else Several(HIDDEN)
            module.load_state_dict({key: unpack_tensor(tensor) for key, tensor in weights.items()})
            self.modules[uid] = module

    def expert(self, uid: str) -> RemoteExpert:
        found = get_experts(self.dht, [uid])[0]
        assert found is not None
        assert found.peer_id == self.peer_id
        return found


@contextmanager
def serving(legacy: LegacyPeers, **uids: str) -> Iterator[LegacyServer]:
    names = {name.replace("_", "."): kind for name, kind in uids.items()}
    peer = legacy.spawn()
    started = peer.call("experts_serve", name="s", initial_peers=[], uids=names, hidden_dim=HIDDEN, lr=LR)
    with DHT(initial_peers=started["maddrs"], start=True, **LOCAL) as dht:
        assert eventually(lambda: None not in get_experts(dht, list(names), expiration_time=float("inf")))
        yield LegacyServer(dht, started, names)


@repeat_on_legacy_fault
def test_forward_and_backward_are_those_of_the_module(legacy: LegacyPeers) -> None:
    """Outputs and gradients of the inputs are equal; the expert then makes the step that the module would make."""
    torch.manual_seed(1)
    with serving(legacy, ffn_3_5="mixer") as server:
        remote, local = server.expert("ffn.3.5"), server.modules["ffn.3.5"]
        optimizer = torch.optim.SGD(local.parameters(), lr=LR)
        for _ in range(3):
            x = torch.randn(7, HIDDEN, requires_grad=True)
            y = x.detach().clone().requires_grad_()
            outputs, expected = remote(x), local(y)
            torch.testing.assert_close(outputs, expected)
            outputs.square().mean().backward()  # of the sum, steps of this size diverge and every rounding grows
            expected.square().mean().backward()
            torch.testing.assert_close(x.grad, y.grad)
            optimizer.step()
            optimizer.zero_grad()


@repeat_on_legacy_fault
def test_nested_arguments(legacy: LegacyPeers) -> None:
    """Several tensors, keywords, integers, several outputs."""
    torch.manual_seed(2)
    with serving(legacy, s_0="several") as server:
        remote, local = server.expert("s.0"), server.modules["s.0"]
        assert remote.info["keyword_names"] == ("row",)
        x, y = torch.randn(3, HIDDEN, requires_grad=True), torch.randn(3, HIDDEN, requires_grad=True)
        row = torch.tensor([0, 3, 1])
        given, expected = remote(x, y, row=row), local(x, y, row)
        assert isinstance(given, tuple)
        torch.testing.assert_close(given, expected)
        ours, theirs = (
            torch.autograd.grad(outputs[0].sum() + outputs[1].square().sum(), [x, y]) for outputs in (given, expected)
        )
        torch.testing.assert_close(ours, theirs)


@repeat_on_legacy_fault
def test_large_requests_are_streams(legacy: LegacyPeers) -> None:
    """2 MiB go as one message, more as a stream."""
    with serving(legacy, ffn_1="mixer") as server:
        module = server.modules["ffn.1"]
        for batch in (8192, 8190, 2 * 8192):
            x = torch.randn(batch, HIDDEN, requires_grad=True)
            outputs, expected = server.expert("ffn.1")(x), module(x)
            torch.testing.assert_close(outputs, expected)
        (grad,) = torch.autograd.grad(outputs.sum(), x)
        torch.testing.assert_close(grad, torch.autograd.grad(expected.sum(), x)[0])
        with pytest.raises(P2PHandlerError):
            server.expert("ffn.1")(torch.randn(2 * 8192 + 1, HIDDEN))  # over the server's limit: told through a stream


@repeat_on_legacy_fault
def test_unknown_expert(legacy: LegacyPeers) -> None:
    with serving(legacy, ffn_1="mixer") as server:
        assert get_experts(server.dht, ["ffn.2", "ffn.1"])[0] is None
        known = server.expert("ffn.1")
        with pytest.raises(UnknownExpert, match=r"ffn\.2"):
            _ = RemoteExpert(ExpertInfo("ffn.2", known.peer_id), server.dht.p2p).info
