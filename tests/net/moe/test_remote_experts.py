"""Experts of another peer as modules: gradients, graphs used twice, threads, compiled models, running loops, faults."""

from __future__ import annotations

import asyncio
import copy
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn

from hivemind.clock import get_dht_time
from hivemind.compression import BatchTensorDescriptor, serialize_torch_tensor
from hivemind.dht import DHT
from hivemind.errors import (
    DeadlineExceeded,
    HivemindError,
    InputMismatch,
    ProtocolViolation,
    ServerBusy,
    UnknownExpert,
    WrongTypeError,
)
from hivemind.moe import (
    ExpertInfo,
    ModuleBackend,
    RemoteExpert,
    RemoteMixtureOfExperts,
    Server,
    declare_experts,
    get_experts,
    messages,
)
from hivemind.moe.client.expert import expert_forward
from hivemind.moe.client.remote_expert_worker import RemoteExpertWorker
from hivemind.moe.service import ConnectionHandler
from hivemind.moe.wire import ExpertRequest, ExpertResponse
from hivemind.p2p import P2PContext
from hivemind.proto import runtime_pb2
from tests.support.waiting import PATIENCE

WIDTH = 8
VECTOR = BatchTensorDescriptor(WIDTH, dtype=torch.float32, requires_grad=True)
HALF = BatchTensorDescriptor(WIDTH, dtype=torch.bfloat16, requires_grad=True)
SCHEMA: messages.ExpertSchema = {"forward_schema": ((VECTOR,), {}), "outputs_schema": VECTOR, "keyword_names": ()}


class Curved(nn.Module):
    """Any number of steps between batch and features; float32."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(WIDTH, WIDTH) / WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        assert x.dtype == torch.float32
        return torch.tanh(x @ self.weight) + x


class Longer(nn.Module):
    """As many steps as the square of those that it is given: more than its schema lets expect."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.repeat(1, x.shape[1], 1)


class Hostile(ConnectionHandler):
    """Answers as a test says, under the name of a server of experts."""

    def __init__(self) -> None:
        self.answers: list[Any] = []
        self.calls = 0

    async def rpc_info(self, request: runtime_pb2.ExpertUID, context: P2PContext) -> runtime_pb2.ExpertInfo:
        return messages.pack_schema(SCHEMA)

    async def rpc_forward(self, request: ExpertRequest, context: P2PContext) -> ExpertResponse:
        self.calls += 1
        answer = self.answers.pop(0)
        if answer is None:
            await asyncio.Event().wait()
        if isinstance(answer, Exception):
            raise answer
        return ExpertResponse(tensors=await messages.encode(answer, [VECTOR] * len(answer)))


Hostile.__name__ = "ConnectionHandler"  # the name is part of the protocol


@pytest.fixture(scope="module")
def modules() -> dict[str, nn.Module]:
    torch.manual_seed(0)
    return {"e.0": Curved(), "e.1": Curved(), "m.0.0": Curved()}


@pytest.fixture(scope="module")
def dht(modules: dict[str, nn.Module]) -> Iterator[DHT]:
    """A client beside a server of both modules; they are not trained."""
    with DHT(start=True) as theirs, DHT(initial_peers=theirs.get_visible_maddrs(), start=True) as own:
        sequence = BatchTensorDescriptor(4, WIDTH, dtype=torch.float32)
        experts = {
            "e.0": ModuleBackend("e.0", modules["e.0"], args_schema=[VECTOR], outputs_schema=VECTOR),
            "e.1": ModuleBackend("e.1", modules["e.1"], args_schema=[sequence], outputs_schema=sequence),
            "m.0.0": ModuleBackend("m.0.0", modules["m.0.0"], args_schema=[VECTOR], outputs_schema=VECTOR),
            "e.2": ModuleBackend("e.2", nn.Identity(), args_schema=[HALF], outputs_schema=HALF, max_batch_size=2**20),
            "e.3": ModuleBackend("e.3", Longer(), args_schema=[sequence], outputs_schema=sequence),
        }
        with Server(theirs, experts, start=True):
            yield own


@pytest.fixture
def remote(dht: DHT) -> RemoteExpert:
    return expert(dht, "e.0")


def expert(dht: DHT, uid: str) -> RemoteExpert:
    found = get_experts(dht, [uid])[0]
    assert found is not None
    return found


def batch(*shape: int) -> torch.Tensor:
    return torch.randn(*(shape or (5, WIDTH)), requires_grad=True)


def test_a_graph_may_be_used_twice_and_several_times(remote: RemoteExpert, modules: dict[str, nn.Module]) -> None:
    local, x = modules["e.0"], batch()
    grads = []
    for module in (remote, local):
        once = module(x)
        twice = module(once) * once
        first = torch.autograd.grad(twice.sum(), x, retain_graph=True)[0]
        second = torch.autograd.grad(twice.square().sum(), x)[0]
        grads.append((twice.detach(), first, second))
    torch.testing.assert_close(grads[0], grads[1])


def test_without_gradients_no_graph_is_made(remote: RemoteExpert) -> None:
    with torch.no_grad():
        assert not remote(batch()).requires_grad
    assert remote(batch().detach()).requires_grad  # the expert itself is trained all the same


def test_twice_differentiating_is_refused(remote: RemoteExpert) -> None:
    x = batch()
    (grad,) = torch.autograd.grad(remote(x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


def test_threads(remote: RemoteExpert, modules: dict[str, nn.Module]) -> None:
    outcomes: list[Any] = []

    def work() -> None:
        x = batch()
        outcomes.append((remote(x), modules["e.0"](x), x))

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(outcomes) == 8
    for given, expected, x in outcomes:
        torch.testing.assert_close(given, expected)
        torch.testing.assert_close(*(torch.autograd.grad(each.sum(), x)[0] for each in (given, expected)))


def test_a_thread_with_a_running_loop_needs_no_special_step(remote: RemoteExpert) -> None:
    """As the cells of a notebook."""

    async def cell() -> torch.Tensor:
        x = batch()
        remote(x).sum().backward()
        assert x.grad is not None
        return x.grad

    assert asyncio.run(cell()).shape == (5, WIDTH)


def test_mixed_precision(remote: RemoteExpert, modules: dict[str, nn.Module]) -> None:
    """Under autocast activations come in half precision; the expert takes what its schema says."""
    layer, x = nn.Linear(WIDTH, WIDTH), batch()
    grads = []

    def local(hidden: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", enabled=False):
            outputs: torch.Tensor = modules["e.0"](hidden.float())
        return outputs

    for module in (remote, local):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            hidden = layer(x)
            assert hidden.dtype == torch.bfloat16
            outputs = module(hidden)
        assert outputs.dtype == torch.float32
        grads.append(torch.autograd.grad(outputs.sum(), [x, layer.weight]))
    torch.testing.assert_close(grads[0], grads[1])


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # torch's compiler looks at it
def test_inside_a_compiled_model(dht: DHT, modules: dict[str, nn.Module]) -> None:
    graphs: list[int] = []

    def backend(graph: torch.fx.GraphModule, _: list[torch.Tensor]) -> Any:
        graphs.append(len(graph.graph.nodes))
        return graph.forward

    class Model(nn.Module):
        def __init__(self, middle: nn.Module) -> None:
            super().__init__()
            self.before, self.middle, self.after = nn.Linear(WIDTH, WIDTH), middle, nn.Linear(WIDTH, WIDTH)

        def forward(self, x: torch.Tensor) -> Any:
            return self.after(self.middle(self.before(x).relu()).relu())

    model = Model(expert(dht, "e.0"))
    twin = copy.deepcopy(model.before), modules["e.0"], copy.deepcopy(model.after)
    x = batch()
    model_output = torch.compile(model, backend=backend)(x)
    torch.testing.assert_close(model_output, twin[2](twin[1](twin[0](x).relu()).relu()))
    model_output.sum().backward()
    assert model.before.weight.grad is not None
    assert len(graphs) == 2  # before and after


def test_sequences_may_be_longer_than_the_schema_says(dht: DHT, modules: dict[str, nn.Module]) -> None:
    remote, x = expert(dht, "e.1"), batch(3, 9, WIDTH)
    outputs, expected = remote(x), modules["e.1"](x)
    torch.testing.assert_close(outputs, expected)
    torch.testing.assert_close(*(torch.autograd.grad(each.sum(), x)[0] for each in (outputs, expected)))


@pytest.mark.parametrize(
    ("args", "kwargs", "error", "text"),
    [
        ([], {}, WrongTypeError, "arguments of the expert"),
        ([torch.zeros(2, WIDTH), torch.zeros(2, WIDTH)], {}, WrongTypeError, "arguments of the expert"),
        ([[torch.zeros(2, WIDTH)]], {}, WrongTypeError, "arguments of the expert"),
        ([torch.zeros(2, WIDTH)], {"mask": 1}, WrongTypeError, "mask"),
        ([1.5], {}, WrongTypeError, "a tensor"),
        ([torch.zeros(2, WIDTH, dtype=torch.int64)], {}, WrongTypeError, "torch.float32"),
        ([torch.zeros(2, WIDTH, device="meta")], {}, WrongTypeError, "has values"),
        ([torch.zeros(2, WIDTH).to_sparse()], {}, WrongTypeError, "dense"),
        ([torch.zeros(2, WIDTH + 1)], {}, InputMismatch, r"\(batch, 8\)"),
        ([torch.zeros(WIDTH)], {}, InputMismatch, r"\(batch, 8\)"),
        ([torch.zeros(())], {}, InputMismatch, r"\(batch, 8\)"),
        ([torch.zeros(0, WIDTH)], {}, InputMismatch, "empty"),
    ],
)
def test_arguments_that_do_not_fit_are_refused_here(
    remote: RemoteExpert, args: list[Any], kwargs: dict[str, Any], error: type[Exception], text: str
) -> None:
    with pytest.raises(error, match=text):
        remote(*args, **kwargs)


def test_unknown_experts_and_malformed_names(dht: DHT, remote: RemoteExpert) -> None:
    assert get_experts(dht, ["e.7", "e.0"])[0] is None
    with pytest.raises(UnknownExpert, match=r"e\.7"):
        RemoteExpert(ExpertInfo("e.7", remote.peer_id), dht.p2p)(batch())
    with pytest.raises(ValueError, match="uids"):
        get_experts(dht, ["e"])
    with pytest.raises(TypeError, match="uids"):
        get_experts(dht, "e.0")


def test_a_server_that_goes_between_forward_and_backward(dht: DHT) -> None:
    with DHT(initial_peers=dht.get_visible_maddrs(), start=True) as theirs:
        backend = ModuleBackend("gone.0", Curved(), args_schema=[VECTOR], outputs_schema=VECTOR)
        with Server(theirs, {"gone.0": backend}, start=True) as server:
            x = batch()
            outputs = expert(dht, "gone.0")(x)
            server.shutdown()
            with pytest.raises(HivemindError):
                outputs.sum().backward()
    assert x.grad is None


@pytest.fixture(scope="module")
def hostile(dht: DHT) -> Iterator[tuple[Hostile, RemoteExpert]]:
    """A server that answers as it is told, and its expert."""
    service = Hostile()
    with DHT(initial_peers=dht.get_visible_maddrs(), start=True) as theirs:
        RemoteExpertWorker.run_coroutine(service.add_p2p_handlers(theirs.p2p))
        declare_experts(theirs, ["m.0.1"], get_dht_time() + 600)
        info = ExpertInfo("h.0", theirs.peer_id)
        yield service, RemoteExpert(info, dht.p2p, timeout=3)
        RemoteExpertWorker.run_coroutine(service.remove_p2p_handlers(theirs.p2p))


GOOD = torch.ones(2, WIDTH)


def test_what_does_not_fit_one_message_is_streamed(dht: DHT) -> None:
    """Also where that shows late: bfloat16 travels as float32, and only the module knew how long its output is."""
    x = torch.randn(2**20 // WIDTH, WIDTH).to(torch.bfloat16).requires_grad_()
    output = expert(dht, "e.2")(x)
    assert torch.equal(output, x)
    output.backward(torch.ones_like(output))
    assert x.grad is not None
    x = torch.randn(1, 400, WIDTH)
    long = expert(dht, "e.3")
    serialized = [serialize_torch_tensor(x)]
    (output,) = RemoteExpertWorker.run_coroutine(expert_forward("e.3", [x], serialized, long.stub, timeout=PATIENCE))
    assert torch.equal(output, x.repeat(1, 400, 1))


@pytest.mark.parametrize(
    "answer",
    [
        [],
        [GOOD, GOOD],
        [torch.ones(3, WIDTH)],
        [torch.ones(2, WIDTH + 1)],
        [torch.ones(2, WIDTH, 1)],
        [torch.ones(())],
        [torch.ones(2, WIDTH, dtype=torch.float64)],
        [torch.ones(2, WIDTH, dtype=torch.int32)],
    ],
)
def test_answers_that_are_none(hostile: tuple[Hostile, RemoteExpert], answer: list[torch.Tensor]) -> None:
    service, remote = hostile
    service.answers = [answer]
    with pytest.raises(ProtocolViolation, match=r"rpc_forward of expert h\.0"):
        remote(GOOD)


def test_a_busy_server_is_asked_again_when_it_says(hostile: tuple[Hostile, RemoteExpert]) -> None:
    service, remote = hostile
    service.calls, service.answers = 0, [ServerBusy("full", 0.01), ServerBusy("full", 0.01), [GOOD]]
    torch.testing.assert_close(remote(GOOD), GOOD)
    assert service.calls == 3


def test_a_server_that_stays_busy_is_told_of(hostile: tuple[Hostile, RemoteExpert]) -> None:
    service, remote = hostile
    service.calls, service.answers = 0, [ServerBusy("full", 5.0)]
    with pytest.raises(ServerBusy, match="full"):
        remote(GOOD)
    assert service.calls == 1


def test_a_mixture_goes_on_without_a_busy_expert(
    dht: DHT, hostile: tuple[Hostile, RemoteExpert], modules: dict[str, nn.Module]
) -> None:
    service, _ = hostile
    service.calls, service.answers = 0, [ServerBusy("full", 9.0)]
    layer = RemoteMixtureOfExperts(in_features=WIDTH, grid_size=(1, 2), dht=dht, uid_prefix="m.", k_best=2)
    for _ in range(2):  # the second time it is not asked
        torch.testing.assert_close(layer(GOOD), modules["m.0.0"](GOOD))
        assert service.calls == 1


def test_a_server_that_does_not_answer(hostile: tuple[Hostile, RemoteExpert]) -> None:
    service, remote = hostile
    service.answers = [None]
    with pytest.raises(DeadlineExceeded):
        RemoteExpert(remote.expert_info, remote._p2p, timeout=0.3)(GOOD)
