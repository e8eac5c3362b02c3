"""What peers ask of a server of experts, by real daemons: each request is answered or costs its sender the call; the
server goes on, and nothing is kept.
"""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hivemind.compression import serialize_torch_tensor
from hivemind.dht import DHT, DHTNode
from hivemind.errors import P2PHandlerError, StreamReset
from hivemind.moe import Server
from hivemind.p2p import Mode
from hivemind.proto import runtime_pb2
from tests.support.conformance import soon
from tests.support.experts import Caller, make_expert
from tests.support.fuzzing import for_seconds
from tests.support.waiting import eventually_sync

pytestmark = pytest.mark.timeout(0)  # `make fuzz` says how long

ONE = torch.ones(1, 8)
#: An expert that is there.
UID = "e.0"


@pytest.fixture(scope="module")
def served() -> Iterator[tuple[Server, Caller]]:
    with (
        DHT(start=True) as dht,
        Server(dht, {uid: make_expert(uid, max_batch_size=64) for uid in (UID, "e.1")}, start=True) as server,
        DHT(initial_peers=dht.get_visible_maddrs(), start=True) as own,
    ):
        yield server, Caller(own, dht.peer_id)


tensors = st.builds(
    runtime_pb2.Tensor,
    buffer=st.one_of(st.binary(max_size=64), st.just(bytes(32)), st.just(bytes(64)), st.just(b"\xff" * 32)),
    size=st.lists(st.one_of(st.integers(0, 9), st.sampled_from([2**16, 2**31, 2**32 - 1])), max_size=4),
    requires_grad=st.booleans(),
    dtype=st.sampled_from(
        ["torch.float32", "float32", "bfloat16", "int64", "bool", "complex64", "qint8", "", "x" * 99]
    ),
    compression=st.sampled_from(list(runtime_pb2.CompressionType.values())),
    chunks=st.sampled_from([0, 1, 2, 2**31 - 1, -1]),
)
good = st.builds(
    lambda batch, codec: serialize_torch_tensor(torch.randn(batch, 8), codec),
    st.integers(1, 3),
    st.sampled_from([runtime_pb2.NONE, runtime_pb2.FLOAT16, runtime_pb2.UNIFORM_8BIT]),
)
requests = st.builds(
    runtime_pb2.ExpertRequest,
    uid=st.sampled_from([UID, UID, UID, "e.1", "e.2", "", "e.", "\0", "é" * 1000]),
    tensors=st.lists(st.one_of(good, tensors), max_size=4),
    metadata=st.binary(max_size=16),
).map(lambda request: request.SerializeToString())


@st.composite
def mangled(draw: Any) -> bytes:
    """The bytes of a request: as they are, cut off, changed in a place, or with more behind them."""
    data = draw(requests)
    match draw(st.integers(0, 3)):
        case 0:
            return data[: draw(st.integers(0, len(data)))]
        case 1 if data:
            place = draw(st.integers(0, len(data) - 1))
            return data[:place] + bytes([draw(st.integers(0, 255))]) + data[place + 1 :]
        case 2:
            return data + draw(st.binary(max_size=9))
    return data


def check_serves(served: tuple[Server, Caller]) -> None:
    """It answers as before, and nothing of the requests so far is left."""
    server, client = served
    (output,) = client.forward(UID, [ONE])
    assert output.shape == (1, 8)
    eventually_sync(lambda: server.stats().calls == 0, "all calls have ended")
    assert server._handler._held.held == 0
    assert all(pool.empty for expert in server.experts.values() for pool in expert.get_pools())


@for_seconds(0.4)
@given(st.sampled_from(["rpc_info", "rpc_forward", "rpc_backward"]), mangled())
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_unary_requests(served: tuple[Server, Caller], method: str, data: bytes) -> None:
    _, client = served

    async def ask(dht: DHT, node: DHTNode) -> None:
        with suppress(P2PHandlerError):
            await node.p2p.transport.call(client.server, f"ConnectionHandler.{method}", data, soon())

    client.dht.run_coroutine(ask)
    check_serves(served)


@for_seconds(0.6)
@given(
    st.sampled_from(["rpc_forward_stream", "rpc_backward_stream"]),
    st.lists(mangled(), max_size=4),
    st.sampled_from(["finish", "reset", "read"]),
)
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_streams_of_requests(served: tuple[Server, Caller], method: str, sent: list[bytes], end: str) -> None:
    """They end, are broken off, or stay open while the caller waits for what can only be an error."""
    _, client = served

    async def ask(dht: DHT, node: DHTNode) -> None:
        stream = await node.p2p.transport.open(client.server, f"ConnectionHandler.{method}", Mode.MESSAGES, soon())
        with suppress(P2PHandlerError, StreamReset):
            for each in sent:
                await stream.send(each)
            if end == "finish":
                await stream.finish()
                while await stream.receive() is not None:
                    pass
        stream.reset()

    client.dht.run_coroutine(ask)
    check_serves(served)


@pytest.mark.parametrize(
    "message",
    [
        runtime_pb2.ExpertRequest(uid=UID),
        runtime_pb2.ExpertRequest(uid=UID, metadata=bytes(1000)),
        runtime_pb2.ExpertRequest(uid=UID, tensors=[runtime_pb2.Tensor(dtype="float32", size=[1, 8])]),
        runtime_pb2.ExpertRequest(uid=UID, tensors=[runtime_pb2.Tensor(buffer=bytes(2**20), dtype="float32")]),
    ],
    ids=["nothing", "metadata", "empty tensors", "full tensors"],
)
def test_streams_without_end(served: tuple[Server, Caller], message: runtime_pb2.ExpertRequest) -> None:
    _, client = served

    async def ask(stub: Any) -> int:
        sent = itertools.count()

        async def endless() -> AsyncIterator[runtime_pb2.ExpertRequest]:
            while True:
                next(sent)
                yield message

        responses = await stub.rpc_forward_stream(endless())
        with pytest.raises(P2PHandlerError, match="over the bounds"):
            await anext(responses)
        return next(sent)

    assert client.run(ask).result(60) < 100_000
    check_serves(served)
