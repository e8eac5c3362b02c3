"""Servers of experts and their callers in tests."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Sequence
from typing import Any, TypeVar

import torch

from hivemind.compression import BatchTensorDescriptor
from hivemind.dht import DHT, DHTNode
from hivemind.errors import P2PHandlerError
from hivemind.identity import PeerID
from hivemind.moe import ModuleBackend, messages
from hivemind.moe.server.connection_handler import ConnectionHandler
from hivemind.moe.wire import ExpertRequest
from hivemind.runtime import HivemindFuture
from tests.support.waiting import PATIENCE

__all__ = ["WIDE", "Caller", "Gated", "each", "make_expert"]

T = TypeVar("T")

#: What the experts of these tests take and give.
WIDE = BatchTensorDescriptor(8, dtype=torch.float32)


class Gated(torch.nn.Linear):
    """Waits until ``gate`` is open; raises, or gives no numbers, for what some clients send."""

    def __init__(self) -> None:
        super().__init__(8, 8)
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Event()
        #: samples of each batch
        self.batches: list[int] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.batches.append(len(x))
        self.entered.set()
        assert self.gate.wait(PATIENCE)
        if (x == 13).any():
            raise RuntimeError("thirteen")
        return torch.where(x == 17, torch.nan, super().forward(x))


def make_expert(name: str, **options: Any) -> ModuleBackend:
    """An expert that is the same each time."""
    torch.manual_seed(0)
    module = Gated()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    return ModuleBackend(name, module, optimizer=optimizer, args_schema=[WIDE], outputs_schema=WIDE, **options)


class Caller:
    """Calls the experts of one server by raw messages, through a DHT of its own."""

    def __init__(self, dht: DHT, server: PeerID) -> None:
        self.dht, self.server = dht, server

    def run(self, function: Callable[[Any], Coroutine[Any, Any, T]]) -> HivemindFuture[T]:
        """Call ``function(stub)`` on the network thread."""

        async def with_stub(dht: DHT, node: DHTNode) -> T:
            return await function(ConnectionHandler.get_stub(node.p2p, self.server))

        return self.dht.run_coroutine(with_stub, return_future=True)

    def call(
        self, method: str, uid: str, tensors: Sequence[torch.Tensor], *, stream: bool = False
    ) -> HivemindFuture[list[torch.Tensor]]:
        """Call ``rpc_forward`` or ``rpc_backward``; errors of the server have their names."""

        async def ask(stub: Any) -> list[torch.Tensor]:
            encoded = await messages.encode(tensors, [WIDE] * len(tensors))
            try:
                if not stream:
                    request = ExpertRequest(uid=uid, tensors=encoded)
                    return await messages.decode((await getattr(stub, method)(request, timeout=PATIENCE)).tensors)
                responses = await getattr(stub, f"{method}_stream")(each(messages.split_requests(uid, encoded)))
                return await messages.read_responses(responses, max_bytes=2**30)
            except P2PHandlerError as error:
                raise messages.named_error(error) from error

        return self.run(ask)

    def forward(self, uid: str, tensors: Sequence[torch.Tensor], *, stream: bool = False) -> list[torch.Tensor]:
        """The outputs, waited for."""
        return self.call("rpc_forward", uid, tensors, stream=stream).result(2 * PATIENCE)

    def backward(self, uid: str, tensors: Sequence[torch.Tensor], *, stream: bool = False) -> list[torch.Tensor]:
        """The gradients, waited for."""
        return self.call("rpc_backward", uid, tensors, stream=stream).result(2 * PATIENCE)


async def each(items: Iterable[T]) -> AsyncIterator[T]:
    """The items as an async iterator."""
    for item in items:
        yield item
