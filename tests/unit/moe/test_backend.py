"""Experts: schemas, gradients, what a fault leaves behind; stock layers, schedules, options, names."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from hivemind.compression import BatchTensorDescriptor
from hivemind.errors import ConfigError, ExpertFailed, InputMismatch, WrongTypeError
from hivemind.moe.server.config import ExpertOptions, ServerOptions
from hivemind.moe.server.creation import draw_uids, make_backends
from hivemind.moe.server.layers import (
    ClippingWrapper,
    add_custom_models_from_file,
    get_linear_schedule_with_warmup,
    name_to_block,
    name_to_input,
    register_expert_class,
)
from hivemind.moe.server.module_backend import ModuleBackend, check_inputs, has_nan
from hivemind.proto import runtime_pb2

X = BatchTensorDescriptor(4, dtype=torch.float32)


class Pair(nn.Module):
    """Two inputs, one of them by keyword and of integers; nested outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 3)

    def forward(self, x: torch.Tensor, *, index: torch.Tensor) -> dict[str, Any]:
        y = self.linear(x)
        return {"y": y, "also": [y.sum(1), index + 1]}


def make_pair(**options: Any) -> ModuleBackend:
    schema = {"index": BatchTensorDescriptor(dtype=torch.int64)}
    return ModuleBackend("e.1", Pair(), args_schema=[X], kwargs_schema=schema, **options)


def test_outputs_are_found_out() -> None:
    info = make_pair().get_info()
    assert info["keyword_names"] == ("index",)
    first, second = info["outputs_schema"]["also"]
    assert (info["outputs_schema"]["y"].size, first.size, second.size) == ((None, 3), (None,), (None,))
    assert second.dtype == torch.int64


def test_gradients_are_those_of_autograd() -> None:
    backend = make_pair()
    x, index = torch.randn(2, 4), torch.arange(2)
    also, ints, y = backend.forward(x, index)
    assert torch.equal(ints, index + 1)
    grads = torch.randn(2), torch.zeros(2, dtype=torch.int64), torch.randn(2, 3)
    grad_x, grad_index = backend.backward(x, index, *grads)
    leaf = x.clone().requires_grad_()
    expected = backend.module.linear(leaf)
    torch.autograd.backward([expected.sum(1), expected], [grads[0], grads[2]])
    assert torch.allclose(grad_x, leaf.grad)  # type: ignore[arg-type]
    assert torch.equal(grad_index, torch.zeros(2, dtype=torch.int64))
    assert torch.equal(also, y.sum(1))


def test_a_gradient_of_another_shape_is_refused() -> None:
    """Also where torch would add it up."""
    thin = BatchTensorDescriptor(1, dtype=torch.float32)
    backend = ModuleBackend("e.0", nn.Linear(4, 1), args_schema=[X], outputs_schema=thin)
    with pytest.raises(InputMismatch, match="differ in shape"):
        backend.backward(torch.ones(2, 4), torch.ones(2, 3))
    assert all(parameter.grad is None for parameter in backend.module.parameters())


def test_a_step_for_each_batch_of_gradients() -> None:
    linear = nn.Linear(4, 4)
    optimizer = torch.optim.SGD(linear.parameters(), lr=1.0)
    schedule = get_linear_schedule_with_warmup(optimizer, 0, 2)
    backend = ModuleBackend("e.1", linear, optimizer=optimizer, scheduler=schedule, args_schema=[X])
    before = linear.bias.detach().clone()
    x = torch.randn(3, 4)
    backend.backward(x, torch.ones(3, 4))
    assert torch.allclose(linear.bias, before - 3)
    backend.backward(x, torch.ones(3, 4))
    assert torch.allclose(linear.bias, before - 3 - 1.5)
    assert backend.updates == 2
    assert linear.bias.grad is None


@pytest.mark.parametrize(("poison", "sent"), [(torch.inf, 1.0), (torch.nan, 1.0), (1e30, 1e30)])
def test_a_gradient_that_is_not_finite_makes_no_step(poison: float, sent: float) -> None:
    """Of an input, or only of the parameters, where finite numbers have an infinite product."""
    linear = nn.Linear(4, 4)
    optimizer = torch.optim.Adam(linear.parameters())
    backend = ModuleBackend("e.1", linear, optimizer=optimizer, args_schema=[X])
    before = linear.weight.detach().clone()
    with pytest.raises(ExpertFailed, match=r"e\.1"):
        backend.backward(torch.full((3, 4), sent), torch.full((3, 4), poison))
    assert torch.equal(linear.weight, before)
    assert (backend.updates, linear.weight.grad, len(optimizer.state)) == (0, None, 0)
    backend.backward(torch.ones(3, 4), torch.ones(3, 4))
    assert backend.updates == 1


def test_shapes_that_the_module_does_not_take() -> None:
    backend = ModuleBackend("e.1", nn.Linear(4, 4), args_schema=[X])
    with pytest.raises(InputMismatch, match=r"expected shapes .*4.* got .*5"):
        backend.forward(torch.ones(2, 5))


def test_lengths_may_differ_from_the_schema() -> None:
    block = name_to_block["transformer"](16).eval()
    src, mask = name_to_input["transformer"](3, 16)
    backend = ModuleBackend("e.1", block, args_schema=[BatchTensorDescriptor.from_tensor(each) for each in (src, mask)])
    assert backend.outputs_schema.size == (None, 128, 16)
    short = torch.randn(2, 7, 16), torch.zeros(2, 7, dtype=torch.bool)
    check_inputs("e.1", short, backend.forward_schema)
    assert backend.forward(*short)[0].shape == (2, 7, 16)


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"args_schema": [BatchTensorDescriptor(5, dtype=torch.float32)]}, ConfigError),
        ({"args_schema": ["x"]}, WrongTypeError),
        ({"args_schema": [X], "max_batch_size": 0}, ConfigError),
        ({"args_schema": [X], "module": "x"}, WrongTypeError),
        ({"args_schema": [X], "module": nn.Flatten(0)}, ConfigError),
    ],
)
def test_what_is_no_expert(arguments: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error):
        ModuleBackend("e.1", **{"module": nn.Linear(4, 4), **arguments})


def test_clipping() -> None:
    parameter = nn.Parameter(torch.zeros(2))
    optimizer = ClippingWrapper(torch.optim.SGD([parameter], lr=1.0), clip_grad_norm=1.0)
    parameter.grad = torch.tensor([3.0, 4.0])
    optimizer.step()
    assert torch.allclose(parameter, torch.tensor([-0.6, -0.8]))
    assert optimizer.param_groups[0]["lr"] == 1.0
    assert optimizer.state_dict().keys() == {"state", "param_groups"}


def test_the_linear_schedule() -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=1.0)
    schedule = get_linear_schedule_with_warmup(optimizer, 4, 10)
    rates = []
    for _ in range(12):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert rates == pytest.approx([0, 0.25, 0.5, 0.75, 1, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6, 0, 0])


@pytest.mark.parametrize("name", ["ffn", "nop", "det_dropout", "transformer"])
def test_stock_experts(name: str) -> None:
    options = ExpertOptions(expert_uids=["e.0"], expert_cls=name, hidden_dim=16, compression=runtime_pb2.FLOAT16)
    (backend,) = make_backends(options, ["e.0"]).values()
    sample = name_to_input[name](2, 16)
    inputs = [torch.zeros_like(each) for each in (sample if isinstance(sample, tuple) else (sample,))]
    (output,) = backend.forward(*inputs)
    grads = backend.backward(*inputs, torch.ones_like(output))
    assert [grad.shape for grad in grads] == [each.shape for each in inputs]
    compressed = [leaf.compression for leaf in (*backend.args_schema, backend.outputs_schema)]
    floating = [each.is_floating_point() for each in (*inputs, output)]
    assert compressed == [runtime_pb2.FLOAT16 if each else runtime_pb2.NONE for each in floating]


def test_classes_have_names(tmp_path: Path) -> None:
    assert {"ffn", "transformer", "nop", "nop_delay", "det_dropout"} <= name_to_block.keys()
    register = register_expert_class("ffn", lambda batch, hidden: torch.empty(batch, hidden))
    with pytest.raises(RuntimeError, match="ffn"):
        register(nn.Linear)  # type: ignore[arg-type]
    custom = tmp_path / "custom.py"
    custom.write_text(
        "import torch\n"
        "from hivemind.moe import register_expert_class\n"
        "@register_expert_class('of-a-file', lambda batch, hidden: torch.empty(batch, hidden))\n"
        "class Own(torch.nn.Linear):\n"
        "    def __init__(self, hidden):\n"
        "        super().__init__(hidden, hidden)\n"
    )
    add_custom_models_from_file(custom)
    add_custom_models_from_file(str(custom))
    assert name_to_block.pop("of-a-file")(8).in_features == 8
    broken = tmp_path / "broken.py"
    broken.write_text("1 / 0")
    for path in (broken, tmp_path / "missing.py"):
        with pytest.raises(ConfigError, match="custom_module_path"):
            add_custom_models_from_file(path)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"num_experts": 1, "expert_uids": ["e.1"]},
        {"num_experts": 0},
        {"expert_uids": ["e.1", "e.1"]},
        {"expert_uids": ["e"]},
        {"expert_uids": "e.1"},
        {"num_experts": 1, "expert_pattern": "e"},
        {"num_experts": 1, "expert_pattern": "e.[3:2]"},
        {"num_experts": 1, "expert_pattern": "e.[0:x]"},
        {"num_experts": 1, "expert_pattern": "e.[0:4]]"},
        {"num_experts": 1, "compression": 77},
        {"num_experts": 1, "scheduler": "cubic"},
        {"num_experts": 1, "scheduler": "linear"},
        {"num_experts": 1, "max_batch_size": -1},
    ],
    ids=repr,
)
def test_options_that_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        ExpertOptions(**options)


def test_devices() -> None:
    options = ExpertOptions(num_experts=2, device=["cpu", "cpu"], hidden_dim=4, expert_cls="nop")
    assert [backend.device.type for backend in make_backends(options, ["e.0", "e.1"]).values()] == ["cpu", "cpu"]
    for wrong in ("warp", [], 3):
        with pytest.raises(ConfigError, match="device"):
            ExpertOptions(num_experts=1, device=wrong).devices  # type: ignore[arg-type] # noqa: B018


@pytest.mark.parametrize(
    ("make", "fused"),
    [
        (torch.optim.Adam, True),
        (functools.partial(torch.optim.SGD, lr=0.1), True),
        (functools.partial(torch.optim.Adam, foreach=True), None),
        (torch.optim.RMSprop, None),
    ],
)
def test_a_step_in_one_kernel_where_there_is_one(make: Any, fused: bool | None) -> None:
    options = ExpertOptions(num_experts=1, hidden_dim=4, optim_cls=make)
    (backend,) = make_backends(options, ["e.0"]).values()
    assert backend.optimizer.param_groups[0].get("fused") == fused


def test_options_of_processes_that_are_no_more_are_accepted() -> None:
    pools = {"prefetch_batches": 8, "daemon": False, "start": False}
    schema = [BatchTensorDescriptor(2, dtype=torch.float32)]
    backend = ModuleBackend("e.0", nn.Linear(2, 2), args_schema=schema, max_batch_size=7, **pools)
    assert backend.forward_pool.max_batch_size == 7
    assert ServerOptions(device="cpu", prefetch_batches=1, sender_threads=4) is not None


def test_how_long_declarations_hold() -> None:
    assert ServerOptions().declared_for == 60
    assert ServerOptions(update_period=1).declared_for == 3
    assert ServerOptions(update_period=1, expiration=7).declared_for == 7


def test_names_are_drawn_from_a_pattern() -> None:
    taken = {"e.0.3", "e.1.3"}
    drawn = draw_uids(4, "e.[0:2].[3:6]", lambda uids: taken & set(uids))
    assert set(drawn) == {"e.0.4", "e.0.5", "e.1.4", "e.1.5"}
    with pytest.raises(ConfigError, match="4 found"):
        draw_uids(5, "e.[0:2].[3:6]", lambda uids: taken & set(uids))
    assert set(draw_uids(2, "e.[0:3]", lambda uids: [], avoid=["e.1"])) == {"e.0", "e.2"}
    assert len(draw_uids(2, None, lambda uids: [])) == 2
    assert draw_uids(0, None, lambda uids: uids) == []


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_what_is_not_a_number_is_found_wherever_it_is(dtype: torch.dtype) -> None:
    values = torch.randn(3, 50).to(dtype)
    values[0, 0], values[1, 1] = -float("inf"), float("inf")
    assert not has_nan(values)
    for place in (1, 17, 149):
        spoilt = values.clone()
        spoilt.view(-1)[place] = float("nan")
        assert has_nan(spoilt)
    assert not has_nan(torch.empty(0, 4, dtype=dtype))
    assert not has_nan(torch.ones(3, dtype=torch.int64))


@pytest.mark.parametrize("batch", [1, 1024, 1025, 2500])
def test_large_batches_are_computed_in_parts(batch: int) -> None:
    """Of both inputs and both outputs, whatever remains for the last part; and all of it is looked at."""
    largest: list[int] = []

    class Sizes(nn.Module):
        def forward(self, x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            largest.append(len(x))
            return 2 * x, (x.sum(1, keepdim=True) + y).sqrt()

    wide, narrow = BatchTensorDescriptor(1000, dtype=torch.float32), BatchTensorDescriptor(24, dtype=torch.float32)
    backend = ModuleBackend("e.0", Sizes(), args_schema=(wide, narrow))
    x, y = torch.rand(batch, 1000), torch.rand(batch, 24)
    largest.clear()
    first, second = backend.forward(x, y)
    assert torch.equal(first, 2 * x)
    torch.testing.assert_close(second, (x.sum(1, keepdim=True) + y).sqrt())
    assert sum(largest) == batch
    assert max(largest) <= 1024
    y[-1, -1] = -1e6
    with pytest.raises(ExpertFailed):
        backend.forward(x, y)


def test_gradients_of_a_large_batch_are_those_of_autograd() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(1000, 8), nn.Tanh())
    local = nn.Sequential(nn.Linear(1000, 8), nn.Tanh())
    local.load_state_dict(module.state_dict())
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    schema = (BatchTensorDescriptor(1000, dtype=torch.float32),)
    backend = ModuleBackend("e.0", module, args_schema=schema, optimizer=optimizer)
    x, gradient = torch.randn(2500, 1000, requires_grad=True), torch.randn(2500, 8) / 2500
    (given,) = backend.backward(x.detach(), gradient)
    local(x).backward(gradient)
    torch.testing.assert_close(given, x.grad)
    torch.optim.SGD(local.parameters(), lr=0.1).step()
    torch.testing.assert_close(module[0].weight, local[0].weight)
    assert backend.updates == 1
    with pytest.raises(InputMismatch):
        backend.backward(x.detach(), torch.randn(2501, 8))
