"""A server with real daemons, called as a peer calls it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from hivemind.compression import BatchTensorDescriptor
from hivemind.dht import DHT
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
from hivemind.proto import runtime_pb2
from tests.support.experts import Caller, each, make_expert


@pytest.fixture(scope="module")
def served() -> Iterator[tuple[Server, Caller]]:
    with (
        DHT(start=True) as dht,
        Server(dht, {name: make_expert(name, max_batch_size=2**19) for name in ("e.0", "e.1")}, start=True) as server,
        DHT(initial_peers=dht.get_visible_maddrs(), start=True) as own,
    ):
        yield server, Caller(own, dht.peer_id)


@pytest.fixture(scope="module")
def server(served: tuple[Server, Caller]) -> Server:
    return served[0]


@pytest.fixture(scope="module")
def client(served: tuple[Server, Caller]) -> Caller:
    return served[1]


def test_info(server: Server, client: Caller) -> None:
    message = client.run(lambda stub: stub.rpc_info(runtime_pb2.ExpertUID(uid="e.0"))).result()
    assert messages.read_schema(message) == server.experts["e.0"].get_info()


@pytest.mark.parametrize("stream", [False, True])
def test_forward_and_backward(server: Server, client: Caller, stream: bool) -> None:
    twin = make_expert("e.1")
    twin.module.load_state_dict(server.experts["e.1"].module.state_dict())
    inputs, gradient = torch.randn(5, 8), torch.randn(5, 8)
    (output,) = client.forward("e.1", [inputs], stream=stream)
    assert torch.allclose(output, twin.forward(inputs)[0], atol=1e-6)
    (answer,) = client.backward("e.1", [inputs, gradient], stream=stream)
    assert torch.allclose(answer, twin.backward(inputs, gradient)[0], atol=1e-6)
    trained = server.experts["e.1"].module.state_dict()
    for name, value in twin.module.state_dict().items():
        assert torch.allclose(value, trained[name], atol=1e-6)


def test_large_batches_are_streamed(server: Server, client: Caller) -> None:
    inputs = torch.randn(2**18, 8)  # 8 MiB: several messages each way
    (output,) = client.forward("e.0", [inputs], stream=True)
    assert torch.allclose(output, server.experts["e.0"].module(inputs), atol=1e-5)


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
    client: Caller, uid: str, tensors: list[torch.Tensor], error: type[ExpertError], stream: bool
) -> None:
    stream = stream or not messages.fits_unary(tensors)
    expected: tuple[type[HivemindError], ...] = (error,)
    if stream and not tensors:
        expected = (ProtocolViolation,)  # no message at all
    with pytest.raises(expected):
        client.forward(uid, tensors, stream=stream)
    client.forward("e.0", [ONES])


def test_a_failed_step_leaves_the_expert_as_it_was(server: Server, client: Caller) -> None:
    before = {name: value.clone() for name, value in server.experts["e.0"].module.state_dict().items()}
    for inputs, gradient in ((ONES * 13, ONES), (ONES, ONES * torch.inf)):
        with pytest.raises(ExpertFailed):
            client.backward("e.0", [inputs, gradient])
    after = server.experts["e.0"].module.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())


def test_bytes_that_are_no_tensors(client: Caller) -> None:
    bad = runtime_pb2.Tensor(buffer=b"123", size=[1, 8], dtype="float32")

    async def ask(stub: Any) -> None:
        with pytest.raises(P2PHandlerError) as raised:
            await stub.rpc_forward(runtime_pb2.ExpertRequest(uid="e.0", tensors=[bad]))
        assert "bytes" in str(raised.value)
        stream = await stub.rpc_forward_stream(each(iter([runtime_pb2.ExpertRequest(uid="e.0", tensors=[bad])])))
        with pytest.raises(P2PHandlerError) as raised:
            await anext(stream)
        assert isinstance(messages.named_error(raised.value), SerializationError)

    client.run(ask).result()


def test_an_answer_that_is_too_long_for_one_message() -> None:
    """Hivemind 1.1 never answers such a call."""
    module = torch.nn.Linear(1, 1024)
    thin = ModuleBackend("wide.0", module, args_schema=[BatchTensorDescriptor(1, dtype=torch.float32)])
    with (
        DHT(start=True) as dht,
        Server(dht, {"wide.0": thin}, start=True),
        DHT(initial_peers=dht.get_visible_maddrs(), start=True) as own,
    ):
        client = Caller(own, dht.peer_id)
        with pytest.raises(MessageTooLarge, match="stream"):
            client.forward("wide.0", [torch.ones(2048, 1)])
        assert client.forward("wide.0", [torch.ones(2048, 1)], stream=True)[0].shape == (2048, 1024)
