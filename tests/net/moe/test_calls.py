"""A server with real daemons, called as a peer calls it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from typing import Any, TypeVar

import pytest
import torch

from hivemind.compression import BatchTensorDescriptor
from hivemind.dht import DHT, DHTNode
from hivemind.errors import (
    ExpertError,
    ExpertFailed,
    HivemindError,
    InputMismatch,
    MessageTooLarge,
    P2PHandlerError,
    ProtocolViolation,
    SerializationError,
    UnknownExpert,
)
from hivemind.moe import ModuleBackend, Server, messages
from hivemind.moe.server.connection_handler import ConnectionHandler
from hivemind.proto import runtime_pb2

T = TypeVar("T")

WIDE = BatchTensorDescriptor(8, dtype=torch.float32)


class Moody(torch.nn.Linear):
    """Raises, or gives no numbers, for what its clients send."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if (x == 13).any():
            raise RuntimeError("thirteen")
        return torch.where(x == 17, torch.nan, super().forward(x))


def make_expert(name: str) -> ModuleBackend:
    torch.manual_seed(0)
    module = Moody(8, 8)
    return ModuleBackend(
        name,
        module,
        optimizer=torch.optim.SGD(module.parameters(), lr=0.1),
        args_schema=[WIDE],
        outputs_schema=WIDE,
        max_batch_size=2**19,
    )


class Client:
    """Calls a server by its raw messages."""

    def __init__(self, dht: DHT, server: Server) -> None:
        self.dht, self.server = dht, server

    def run(self, function: Callable[[Any], Coroutine[Any, Any, T]]) -> T:
        async def with_stub(dht: DHT, node: DHTNode) -> T:
            return await function(ConnectionHandler.get_stub(node.p2p, self.server.dht.peer_id))

        return self.dht.run_coroutine(with_stub)

    def call(self, method: str, uid: str, tensors: Sequence[torch.Tensor], stream: bool = False) -> list[torch.Tensor]:
        async def ask(stub: Any) -> list[torch.Tensor]:
            encoded = await messages.encode(tensors, [WIDE] * len(tensors))
            try:
                if not stream:
                    request = runtime_pb2.ExpertRequest(uid=uid, tensors=encoded)
                    return await messages.decode((await getattr(stub, method)(request, timeout=30)).tensors)
                responses = await getattr(stub, f"{method}_stream")(_each(messages.split_requests(uid, encoded)))
                return await messages.read_responses(responses, max_bytes=2**30)
            except P2PHandlerError as error:
                raise messages.named_error(error) from error

        return self.run(ask)


async def _each(items: Iterator[T]) -> AsyncIterator[T]:
    for item in items:
        yield item


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    with (
        DHT(start=True) as dht,
        Server(dht, {name: make_expert(name) for name in ("e.0", "e.1")}, start=True) as server,
        DHT(initial_peers=dht.get_visible_maddrs(), start=True) as own,
    ):
        yield Client(own, server)


def test_info(client: Client) -> None:
    message = client.run(lambda stub: stub.rpc_info(runtime_pb2.ExpertUID(uid="e.0")))
    assert messages.read_schema(message) == client.server.experts["e.0"].get_info()


@pytest.mark.parametrize("stream", [False, True])
def test_forward_and_backward(client: Client, stream: bool) -> None:
    twin = make_expert("e.1")
    twin.module.load_state_dict(client.server.experts["e.1"].module.state_dict())
    inputs, gradient = torch.randn(5, 8), torch.randn(5, 8)
    (output,) = client.call("rpc_forward", "e.1", [inputs], stream)
    assert torch.allclose(output, twin.forward(inputs)[0], atol=1e-6)
    (answer,) = client.call("rpc_backward", "e.1", [inputs, gradient], stream)
    assert torch.allclose(answer, twin.backward(inputs, gradient)[0], atol=1e-6)
    trained = client.server.experts["e.1"].module.state_dict()
    for name, value in twin.module.state_dict().items():
        assert torch.allclose(value, trained[name], atol=1e-6)


def test_large_batches_are_streamed(client: Client) -> None:
    inputs = torch.randn(2**18, 8)  # 8 MiB: several messages each way
    (output,) = client.call("rpc_forward", "e.0", [inputs], stream=True)
    assert torch.allclose(output, client.server.experts["e.0"].module(inputs), atol=1e-5)


ONES = torch.ones(2, 8)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("uid", "tensors", "error"),
    [
        ("e.2", [ONES], UnknownExpert),
        ("", [ONES], UnknownExpert),
        ("e.0", [], InputMismatch),
        ("e.0", [ONES, ONES], InputMismatch),
        ("e.0", [ONES.double()], InputMismatch),
        ("e.0", [ONES[0]], InputMismatch),
        ("e.0", [ONES[:, :7]], InputMismatch),
        ("e.0", [ONES[:0]], InputMismatch),
        ("e.0", [torch.ones(2**19 + 1, 8)], InputMismatch),
        ("e.0", [ONES * torch.nan], InputMismatch),
        ("e.0", [ONES * 13], ExpertFailed),
        ("e.0", [ONES * 17 * torch.tensor([[0.0], [1.0]])], ExpertFailed),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else None,
)
def test_errors_have_names(
    client: Client, uid: str, tensors: list[torch.Tensor], error: type[ExpertError], stream: bool
) -> None:
    if not stream and not messages.fits_unary(tensors):
        pytest.skip("a batch of this size is not sent as one message")
    expected: tuple[type[HivemindError], ...] = (error,)
    if stream and not tensors:
        expected = (ProtocolViolation,)  # no message at all
    with pytest.raises(expected):
        client.call("rpc_forward", uid, tensors, stream)
    client.call("rpc_forward", "e.0", [ONES])


def test_a_failed_step_leaves_the_expert_as_it_was(client: Client) -> None:
    before = {name: value.clone() for name, value in client.server.experts["e.0"].module.state_dict().items()}
    for inputs, gradient in ((ONES * 13, ONES), (ONES, ONES * torch.inf)):
        with pytest.raises(ExpertFailed):
            client.call("rpc_backward", "e.0", [inputs, gradient])
    after = client.server.experts["e.0"].module.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())


def test_bytes_that_are_no_tensors(client: Client) -> None:
    bad = runtime_pb2.Tensor(buffer=b"123", size=[1, 8], dtype="float32")

    async def ask(stub: Any) -> None:
        with pytest.raises(P2PHandlerError) as raised:
            await stub.rpc_forward(runtime_pb2.ExpertRequest(uid="e.0", tensors=[bad]))
        assert "bytes" in str(raised.value)
        stream = await stub.rpc_forward_stream(_each(iter([runtime_pb2.ExpertRequest(uid="e.0", tensors=[bad])])))
        with pytest.raises(P2PHandlerError) as raised:
            await anext(stream)
        assert isinstance(messages.named_error(raised.value), SerializationError)

    client.run(ask)


def test_an_answer_that_is_too_long_for_one_message() -> None:
    """Hivemind 1.1 never answers such a call."""
    module = torch.nn.Linear(1, 1024)
    thin = ModuleBackend("wide.0", module, args_schema=[BatchTensorDescriptor(1, dtype=torch.float32)])
    with (
        DHT(start=True) as dht,
        Server(dht, {"wide.0": thin}, start=True) as server,
        DHT(initial_peers=dht.get_visible_maddrs(), start=True) as own,
    ):
        client = Client(own, server)
        with pytest.raises(MessageTooLarge, match="stream"):
            client.call("rpc_forward", "wide.0", [torch.ones(2048, 1)])
        assert client.call("rpc_forward", "wide.0", [torch.ones(2048, 1)], stream=True)[0].shape == (2048, 1024)
