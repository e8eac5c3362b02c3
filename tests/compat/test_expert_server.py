"""Clients of hivemind 1.1.12 on our server: what experts take and give, forward, backward, streams, errors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import nn

from hivemind.compression import BatchTensorDescriptor
from hivemind.dht import DHT
from hivemind.moe import ModuleBackend, Server
from hivemind.proto import runtime_pb2
from tests.compat.expert_modules import Mixer, Several
from tests.compat.packing import pack_tensor, unpack_tensor
from tests.compat.pairs import LOCAL
from tests.support.legacy import LegacyPeer
from tests.support.legacy_repeat import LegacyPeers, repeat_on_legacy_fault

HIDDEN = 64
LR = 0.5


def make_backend(uid: str, module: nn.Module, compression: Any = runtime_pb2.NONE) -> ModuleBackend:
    vector = BatchTensorDescriptor(HIDDEN, dtype=torch.float32, requires_grad=True, compression=compression)
    several = isinstance(module, Several)
    return ModuleBackend(
        uid,
        module,
        optimizer=torch.optim.SGD(module.parameters(), lr=LR),
        args_schema=(vector, vector) if several else (vector,),
        kwargs_schema={"row": BatchTensorDescriptor(dtype=torch.int64)} if several else {},
        max_batch_size=2**16,
    )


@contextmanager
def serving(legacy: LegacyPeers, backends: Mapping[str, ModuleBackend]) -> Iterator[LegacyPeer]:
    with DHT(start=True, **LOCAL) as dht, Server(dht, backends, update_period=2, start=True):
        peer = legacy.spawn()
        peer.call("experts_join", initial_peers=[str(maddr) for maddr in dht.get_visible_maddrs()])
        yield peer


def call(
    peer: LegacyPeer, uid: str, *args: torch.Tensor, backward: bool = False, **kwargs: torch.Tensor
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    answer = peer.call(
        "experts_call",
        uid=uid,
        args=[pack_tensor(each) for each in args],
        kwargs={name: pack_tensor(each) for name, each in kwargs.items()},
        backward=backward,
    )
    return tuple([unpack_tensor(each) for each in answer[name]] for name in ("outputs", "gradients"))  # type: ignore[return-value]


def expected(
    module: nn.Module, *args: torch.Tensor, **kwargs: torch.Tensor
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """What the same module gives here; it makes the step that an expert makes."""
    leaves = [each.clone().requires_grad_() for each in args]
    outputs = module(*leaves, **kwargs)
    flat = list(outputs) if isinstance(outputs, tuple) else [outputs]
    torch.stack([each.square().sum() for each in flat]).sum().backward()
    optimizer = torch.optim.SGD(module.parameters(), lr=LR)
    optimizer.step()
    optimizer.zero_grad()
    return [each.detach() for each in flat], [each.grad for each in leaves if each.grad is not None]


def twins(kind: type[nn.Module]) -> tuple[nn.Module, nn.Module]:
    served, local = kind(HIDDEN), kind(HIDDEN)
    local.load_state_dict(served.state_dict())
    return served, local


@repeat_on_legacy_fault
def test_forward_and_backward_are_those_of_the_module(legacy: LegacyPeers) -> None:
    torch.manual_seed(1)
    served, local = twins(Mixer)
    with serving(legacy, {"ffn.3.5": make_backend("ffn.3.5", served)}) as peer:
        info = peer.call("experts_info", uid="ffn.3.5")
        assert info["args"] == info["outputs"] == [[[None, HIDDEN], "torch.float32"]]
        for _ in range(3):
            x = torch.randn(7, HIDDEN)
            torch.testing.assert_close(call(peer, "ffn.3.5", x, backward=True), expected(local, x))
        torch.testing.assert_close(served.state_dict(), local.state_dict())


@repeat_on_legacy_fault
def test_nested_arguments(legacy: LegacyPeers) -> None:
    torch.manual_seed(2)
    served, local = twins(Several)
    with serving(legacy, {"s.0": make_backend("s.0", served)}) as peer:
        info = peer.call("experts_info", uid="s.0")
        assert info["keyword_names"] == ["row"]
        assert info["kwargs"] == {"row": [[None], "torch.int64"]}
        x, y, row = torch.randn(3, HIDDEN), torch.randn(3, HIDDEN), torch.tensor([0, 3, 1])
        torch.testing.assert_close(call(peer, "s.0", x, y, row=row, backward=True), expected(local, x, y, row=row))


@repeat_on_legacy_fault
def test_large_requests_are_streams(legacy: LegacyPeers) -> None:
    """1.1.12 sends 2 MiB as one message, more as a stream."""
    torch.manual_seed(3)
    served, local = twins(Mixer)
    with serving(legacy, {"ffn.1": make_backend("ffn.1", served)}) as peer:
        for batch in (8192, 8193, 3 * 8192):
            x = torch.randn(batch, HIDDEN) / batch
            torch.testing.assert_close(call(peer, "ffn.1", x, backward=True), expected(local, x))


@repeat_on_legacy_fault
def test_compressed_tensors(legacy: LegacyPeers) -> None:
    torch.manual_seed(4)
    served, local = twins(Mixer)
    with serving(legacy, {"ffn.1": make_backend("ffn.1", served, runtime_pb2.FLOAT16)}) as peer:
        x = torch.randn(7, HIDDEN)
        outputs, _ = call(peer, "ffn.1", x)
        torch.testing.assert_close(outputs, [local(x).detach()], atol=1e-2, rtol=1e-2)


@repeat_on_legacy_fault
def test_errors_reach_the_client(legacy: LegacyPeers) -> None:
    with serving(legacy, {"ffn.1": make_backend("ffn.1", Mixer(HIDDEN))}) as peer:
        for batch, words in ((torch.full((2, HIDDEN), torch.nan), "NaN"), (torch.ones(2, 3), "expected shapes")):
            with pytest.raises(Exception, match=words):
                call(peer, "ffn.1", batch)
        assert call(peer, "ffn.1", torch.ones(2, HIDDEN))
