"""The state of training: averaged, copied, restored as a whole."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch

from hivemind.errors import ConfigError, SerializationError
from hivemind.optim.flatten import flatten_optimizer_state
from hivemind.optim.training_state import CurrentState, TrainingState, make_training_state

KINDS: list[Any] = [
    torch.optim.SGD,
    partial(torch.optim.SGD, momentum=0.9, weight_decay=0.1),
    torch.optim.Adam,
    partial(torch.optim.AdamW, weight_decay=0.3),
    torch.optim.Rprop,
    torch.optim.Adagrad,
    torch.optim.RMSprop,
]


def make_parameters(seed: int = 0) -> list[torch.nn.Parameter]:
    torch.manual_seed(seed)
    return [torch.nn.Parameter(torch.randn(3, 2)), torch.nn.Parameter(torch.randn(4))]


def train(state: TrainingState, steps: int, seed: int = 1) -> None:
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        for parameter in state.parameters:
            parameter.grad = torch.randn(parameter.shape, generator=generator).to(parameter.dtype)
        state.advance(state.epoch + 1, optimizer_step=True)


def copied(state: TrainingState) -> CurrentState:
    now = state.current()
    return CurrentState(now.epoch, now.optimizer_metadata, [t.clone() for t in now.tensors])


def restore(state: TrainingState, donor: CurrentState) -> None:
    state.restore(donor.epoch, donor.optimizer_metadata, donor.tensors)


def everything(state: TrainingState) -> tuple[Any, ...]:
    """All that a failed download must leave alone, comparable."""
    metadata, tensors = flatten_optimizer_state(state.optimizer.state_dict())
    values = [t.tolist() for t in (*state.parameters, *state.extra_tensors, *tensors)]
    return state.epoch, metadata, values


@pytest.mark.parametrize("kind", KINDS)
def test_making_it_changes_nothing(kind: Any):
    ours, plain = make_parameters(), make_parameters()
    state = TrainingState(kind(ours, lr=0.1))
    assert all(torch.equal(a, b) and a.grad is None for a, b in zip(ours, plain, strict=True))
    untouched = TrainingState(kind(plain, lr=0.1), initialize_optimizer=False)
    assert everything(state) == everything(untouched)
    train(state, 3)
    train(untouched, 3)
    assert all(torch.equal(a, b) for a, b in zip(ours, plain, strict=True))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("steps", [0, 5])
def test_newcomer_goes_on_as_the_donor_does(kind: Any, steps: int):
    donor, newcomer = (TrainingState(kind(make_parameters(seed), lr=0.1)) for seed in (0, 7))
    train(donor, steps)
    restore(newcomer, copied(donor))
    assert newcomer.epoch == steps
    train(donor, 3, seed=2)
    train(newcomer, 3, seed=2)
    assert all(torch.equal(a, b) for a, b in zip(donor.parameters, newcomer.parameters, strict=True))


def test_order_of_tensors():
    extra = torch.tensor([5.0])
    state = TrainingState(
        torch.optim.Adam(make_parameters()), average_opt_statistics=("exp_avg_sq", "exp_avg"), extra_tensors=[extra]
    )
    train(state, 1)
    first, second = state.parameters
    moments = state.optimizer.state
    averaged = state.averaged_like()
    state.write_averaged(averaged)
    expected = [first, second, *(moments[p][n] for n in ("exp_avg_sq", "exp_avg") for p in (first, second)), extra]
    assert all(torch.equal(a, b) for a, b in zip(averaged, expected, strict=True))
    # a download carries the extra tensors before the optimizer's
    assert [t.shape for t in state.current().tensors[:4]] == [first.shape, second.shape, extra.shape, first.shape]


def test_averaged_tensors_are_taken_over():
    extra = torch.zeros(2, dtype=torch.float64)
    parameter = torch.nn.Parameter(torch.zeros(3, dtype=torch.bfloat16))
    state = TrainingState(torch.optim.Adam([parameter]), average_opt_statistics=("exp_avg",), extra_tensors=[extra])
    averaged = state.averaged_like()
    assert [(t.dtype, tuple(t.shape)) for t in averaged] == [
        (torch.float32, (3,)),
        (torch.float32, (3,)),
        (torch.float32, (2,)),
    ]
    state.read_averaged([torch.full_like(t, i + 1.0) for i, t in enumerate(averaged)])
    assert (parameter.tolist(), extra.tolist()) == ([1.0] * 3, [3.0] * 2)
    train(state, 1)
    state.read_averaged([torch.full_like(t, i + 1.0) for i, t in enumerate(averaged)])
    assert state.optimizer.state[parameter]["exp_avg"].tolist() == [2.0] * 3


@pytest.mark.parametrize(
    "spoil",
    [
        lambda s: CurrentState(2, s.optimizer_metadata, s.tensors),
        lambda s: CurrentState(3.0, s.optimizer_metadata, s.tensors),  # type: ignore[arg-type]
        lambda s: CurrentState(None, s.optimizer_metadata, s.tensors),  # type: ignore[arg-type]
        lambda s: CurrentState(s.epoch, None, s.tensors),  # type: ignore[arg-type]
        lambda s: CurrentState(s.epoch, s.optimizer_metadata[:-1], s.tensors),
        lambda s: CurrentState(s.epoch, s.optimizer_metadata, s.tensors[:-1]),
        lambda s: CurrentState(s.epoch, s.optimizer_metadata, s.tensors[:1]),
        lambda s: CurrentState(s.epoch, s.optimizer_metadata, []),
        lambda s: CurrentState(s.epoch, s.optimizer_metadata, [*s.tensors, torch.zeros(1)]),
        lambda s: CurrentState(s.epoch, s.optimizer_metadata, [s.tensors[0].T, *s.tensors[1:]]),
        lambda s: CurrentState(s.epoch, s.optimizer_metadata, [*s.tensors[:-2], torch.zeros(5), s.tensors[-1]]),
        lambda s: CurrentState(s.epoch, s.optimizer_metadata, [s.tensors[0] * torch.nan, *s.tensors[1:]]),
        lambda s: CurrentState(s.epoch, s.optimizer_metadata, [*s.tensors[:-1], torch.tensor(torch.inf)]),
    ],
)
def test_state_that_does_not_fit_changes_nothing(spoil: Any):
    donor, newcomer = (TrainingState(torch.optim.Adam(make_parameters(seed))) for seed in (0, 7))
    train(donor, 5)
    train(newcomer, 3)
    before = everything(newcomer)
    with pytest.raises(SerializationError):
        restore(newcomer, spoil(copied(donor)))
    assert everything(newcomer) == before
    restore(newcomer, copied(donor))
    assert newcomer.epoch == 5


def test_donors_choice_of_kernels_is_not_taken_over():
    donor = TrainingState(torch.optim.Adam(make_parameters(), lr=0.5, foreach=True, capturable=False))
    newcomer = TrainingState(torch.optim.Adam(make_parameters(3), lr=0.1, foreach=False))
    restore(newcomer, copied(donor))
    group = newcomer.optimizer.param_groups[0]
    assert (group["lr"], group["foreach"]) == (0.5, False)


@pytest.mark.parametrize(
    "schedule",
    [
        lambda o: torch.optim.lr_scheduler.LambdaLR(o, lambda step: 1 / (1 + step)),
        lambda o: torch.optim.lr_scheduler.ExponentialLR(o, 0.5),
    ],
)
def test_schedule_follows_the_epoch(schedule: Any):
    def make(seed: int) -> TrainingState:
        optimizer = torch.optim.SGD(make_parameters(seed), lr=1.0)
        return TrainingState(optimizer, schedule(optimizer))

    donor, newcomer = make(0), make(1)
    train(donor, 4)
    rate = donor.optimizer.param_groups[0]["lr"]
    assert rate == pytest.approx(1 / 5) or rate == pytest.approx(1 / 16)
    restore(newcomer, copied(donor))
    assert newcomer.optimizer.param_groups[0]["lr"] == rate
    train(donor, 2)
    train(newcomer, 2)
    assert newcomer.optimizer.param_groups[0]["lr"] == donor.optimizer.param_groups[0]["lr"]


def test_checkpoint():
    optimizer = torch.optim.Adam(make_parameters())
    state = TrainingState(optimizer, torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5))
    train(state, 3)
    checkpoint = state.state_dict()
    assert checkpoint["state"]["local_epoch"] == 3
    assert set(optimizer.state_dict()["state"]) == {0, 1}
    fresh_optimizer = torch.optim.Adam(make_parameters(4))
    fresh = TrainingState(fresh_optimizer, torch.optim.lr_scheduler.ExponentialLR(fresh_optimizer, 0.5))
    assert fresh.load_state_dict(checkpoint) == fresh.epoch == 3
    assert fresh.state_dict()["param_groups"] == checkpoint["param_groups"]
    with pytest.raises(ConfigError, match="local_epoch"):
        fresh.load_state_dict({**checkpoint, "state": {**checkpoint["state"], "local_epoch": -1}})


def test_plain_checkpoint_of_torch():
    state = TrainingState(torch.optim.Adam(make_parameters()))
    train(state, 2)
    assert state.load_state_dict(torch.optim.Adam(make_parameters()).state_dict()) == 2


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ({"optimizer": torch.optim.Adam}, "optimizer"),
        ({"optimizer": "adam", "params": make_parameters()}, "optimizer"),
        ({"optimizer": torch.optim.Adam(make_parameters()), "params": make_parameters()}, "params"),
        ({"optimizer": lambda p: p, "params": make_parameters()}, "optimizer"),
        ({"optimizer": torch.optim.Adam, "params": make_parameters(), "scheduler": 7}, "scheduler"),
        ({"optimizer": torch.optim.Adam(make_parameters()), "average_opt_statistics": ("momentum",)}, "exp_avg"),
        ({"optimizer": torch.optim.Adam(make_parameters()), "extra_tensors": [3]}, "extra_tensors"),
    ],
)
def test_wrong_arguments_are_named(arguments: dict[str, Any], name: str):
    with pytest.raises(ConfigError, match=name):
        make_training_state(**{"params": None, "scheduler": None, **arguments})


def test_factories():
    made = make_training_state(
        partial(torch.optim.SGD, lr=0.1),
        [{"params": [p]} for p in make_parameters()],
        partial(torch.optim.lr_scheduler.StepLR, step_size=1),
    )
    assert len(made.optimizer.param_groups) == 2
    assert isinstance(made.scheduler, torch.optim.lr_scheduler.StepLR)
    assert made.scheduler.optimizer is made.optimizer


def test_optimizer_that_needs_a_closure_is_taken_as_it_is():
    parameters = make_parameters()
    state = TrainingState(torch.optim.LBFGS(parameters))
    assert all(torch.equal(a, b) for a, b in zip(parameters, make_parameters(), strict=True))
    assert len(state.current().tensors) == 2
