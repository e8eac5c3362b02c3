"""`Optimizer` as users call it, on one real DHT: arguments, checkpoints, and that it computes what torch does."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
import torch

from hivemind.compression import Float16Compression
from hivemind.dht import DHT
from hivemind.errors import ConfigError
from hivemind.optim import GradientAverager, Optimizer, ProgressTracker, TrainingStateAverager
from tests.support.waiting import eventually_sync


@pytest.fixture(scope="module")
def dht() -> Iterator[DHT]:
    with DHT(start=True) as dht:
        yield dht


@pytest.fixture(scope="module")
def client_dht(dht: DHT) -> Iterator[DHT]:
    with DHT(dht.get_visible_maddrs(), start=True, client_mode=True, wait_timeout=10) as client:
        yield client


def make_model() -> torch.nn.Sequential:
    torch.manual_seed(3)
    return torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3))


def batches(count: int, size: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(4)
    for _ in range(count):
        yield torch.randn(size, 6, generator=generator), torch.randint(0, 3, (size,), generator=generator)


def backward(model: torch.nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    loss = torch.nn.functional.cross_entropy(model(x), y)
    loss.backward()
    return loss.detach()


def make_optimizer(dht: DHT, model: torch.nn.Module, run_id: str, **options: Any) -> Optimizer:
    arguments = {
        "target_batch_size": 12,
        "batch_size_per_step": 4,
        "optimizer": torch.optim.Adam(model.parameters(), lr=0.05),
        "matchmaking_time": 1.0,
        "averaging_timeout": 5.0,
        **options,
    }
    return Optimizer(dht=dht, run_id=run_id, **arguments)


def plain_training(optimizer: Any, model: torch.nn.Module, schedule: Any = None) -> None:
    """What torch does with the large batches."""
    for x, y in batches(5, 12):
        optimizer.zero_grad()
        backward(model, x, y)
        optimizer.step()
        if schedule is not None:
            schedule.step()


@pytest.mark.parametrize("reuse", [False, True])
def test_alone_it_computes_what_torch_does_with_large_batches(dht: DHT, reuse: bool):
    model, plain = make_model(), make_model()
    make_schedule = partial(torch.optim.lr_scheduler.ExponentialLR, gamma=0.7)
    with make_optimizer(
        dht,
        model,
        f"alone_{reuse}",
        optimizer=partial(torch.optim.Adam, lr=0.05),
        params=model.parameters(),
        scheduler=make_schedule,
        reuse_grad_buffers=reuse,
    ) as optimizer:
        for x, y in batches(5, 12):
            for part_x, part_y in zip(x.split(4), y.split(4), strict=True):
                if not reuse:
                    optimizer.zero_grad()
                backward(model, part_x, part_y)
                optimizer.step()
        assert optimizer.local_epoch == 5
        assert optimizer.last_step is not None
        assert optimizer.last_step.gradient_peers == 1
        assert optimizer.param_groups[0]["lr"] == pytest.approx(0.05 * 0.7**5)
        assert isinstance(optimizer, torch.optim.Optimizer)
        assert "run_id='alone" in repr(optimizer)
    adam = torch.optim.Adam(plain.parameters(), lr=0.05)
    plain_training(adam, plain, make_schedule(adam))
    for ours, theirs in zip(model.parameters(), plain.parameters(), strict=True):
        assert torch.allclose(ours, theirs, atol=1e-5)


def test_closure_and_batch_size_per_call(dht: DHT):
    model = make_model()
    with make_optimizer(dht, model, "closure", batch_size_per_step=None) as optimizer:
        with pytest.raises(ConfigError, match="batch_size"):
            optimizer.step()
        x, y = next(batches(1, 5))

        def closure() -> torch.Tensor:
            optimizer.zero_grad()
            return backward(model, x, y)

        with torch.no_grad():
            loss = optimizer.step(closure, batch_size=5)
        assert loss is not None
        assert loss.item() > 0
        assert optimizer.local_progress.samples_accumulated == 5
        optimizer.step(closure, batch_size=7)
        assert optimizer.local_epoch == 1
        assert optimizer.local_progress.samples_accumulated == 0


def test_checkpoint(dht: DHT):
    model = make_model()
    with make_optimizer(dht, model, "checkpoint_1") as optimizer:
        for x, y in batches(7, 4):
            optimizer.zero_grad()
            backward(model, x, y)
            optimizer.step()
        checkpoint, weights = optimizer.state_dict(), model.state_dict()
        assert checkpoint["state"]["local_epoch"] == 2
    other = make_model()
    other.load_state_dict(weights)
    with make_optimizer(dht, other, "checkpoint_2") as resumed:
        resumed.load_state_dict(checkpoint)
        assert resumed.local_epoch == 2
        assert resumed.local_progress.epoch == 2
        assert torch.equal(
            resumed.state[next(other.parameters())]["exp_avg"], optimizer.state[next(model.parameters())]["exp_avg"]
        )


def test_wrong_arguments_are_named_before_anything_starts(dht: DHT, client_dht: DHT):
    model = make_model()
    sgd = torch.optim.SGD(model.parameters(), lr=0.1)
    good = {"dht": dht, "run_id": "wrong", "target_batch_size": 8, "batch_size_per_step": 4, "optimizer": sgd}
    wrong: list[tuple[str, dict[str, Any]]] = [
        ("dht", {"dht": None}),
        ("run_id", {"run_id": "a.b"}),
        ("run_id", {"run_id": ""}),
        ("target_batch_size", {"target_batch_size": 0}),
        ("batch_size_per_step", {"batch_size_per_step": 1.5}),
        ("optimizer", {"optimizer": torch.optim.SGD}),
        ("matchmaking_time", {"matchmaking_tim": 1}),
        ("use_local_updates", {"use_local_updates": True}),
        ("batch_size_per_step", {"auxiliary": True}),
        ("auxiliary", {"auxiliary": True, "dht": client_dht, "batch_size_per_step": None}),
        ("client_mode", {"client_mode": False, "dht": client_dht}),
        ("averager_opts", {"averager_opts": [1]}),
        ("bandwidth", {"averager_opts": {"bandwith": 3}}),
        ("metadata_expiration", {"tracker_opts": {"metadata_expiratio": 3}}),
        ("grad_averager_factory", {"grad_averager_factory": lambda **kwargs: None}),
    ]
    for name, change in wrong:
        with pytest.raises(ConfigError, match=name):
            Optimizer(**{**good, **change})


def test_wrong_calls(dht: DHT):
    model = make_model()
    with make_optimizer(dht, model, "calls", reuse_grad_buffers=True) as optimizer:
        with pytest.raises(ConfigError, match="grad_scaler"):
            optimizer.step(grad_scaler=torch.amp.GradScaler("cpu"))
        with pytest.raises(ConfigError, match="zero_grad"):
            optimizer.zero_grad()
        with pytest.raises(ConfigError, match="param_group"):
            optimizer.add_param_group({"params": []})
    with pytest.raises(RuntimeError, match="shut down"):
        optimizer.step()
    with make_optimizer(dht, model, "calls", auxiliary=True, batch_size_per_step=None) as helper:
        assert helper.step() is None
        with pytest.raises(ConfigError, match="closure"):
            helper.step(lambda: torch.zeros(()))
        with pytest.raises(ConfigError, match="batch_size"):
            helper.step(batch_size=3)


def test_options_reach_both_averagers(dht: DHT):
    model = make_model()
    options = {"bandwidth": 3.0, "target_group_size": 7}
    with make_optimizer(
        dht,
        model,
        "options",
        averager_opts=options,
        tracker_opts={"max_refresh_period": 7.0},
        grad_compression=Float16Compression(),
        average_opt_statistics=("exp_avg_sq",),
        extra_tensors=[torch.zeros(2)],
        verbose=True,
    ) as optimizer:
        for averager in (optimizer.grad_averager, optimizer.state_averager):
            assert averager.bandwidth == 3.0
            assert averager._core.options.target_group_size == 7
            assert averager._core.options.min_matchmaking_time == 1.0
        assert isinstance(optimizer.grad_averager._core.options.compression, Float16Compression)
        assert optimizer.status_loglevel == optimizer.tracker.status_loglevel == logging.INFO
        assert optimizer.tracker._view.options.max_refresh_period == 7.0
        # parameters, one statistic of each, and the extra tensor
        assert optimizer.state_averager.total_size == 2 * sum(p.numel() for p in model.parameters()) + 2


def test_client_mode_is_honoured(dht: DHT, client_dht: DHT):
    with make_optimizer(client_dht, make_model(), "client") as optimizer:
        assert optimizer.client_mode
        assert optimizer.grad_averager.client_mode
        assert optimizer.tracker.local_progress.client_mode
    with make_optimizer(dht, make_model(), "client", client_mode=True) as optimizer:
        assert optimizer.state_averager.client_mode


def test_nothing_to_download_is_no_error(dht: DHT):
    with make_optimizer(dht, make_model(), "lonely") as optimizer:
        optimizer.load_state_from_peers()
        assert optimizer.local_epoch == 0
        assert optimizer.is_synchronized_with_peers()


def test_shutdown_is_quick_and_idempotent(dht: DHT):
    optimizer = make_optimizer(dht, make_model(), "shutdown")
    assert optimizer.is_alive()
    began = time.monotonic()
    optimizer.shutdown()
    optimizer.shutdown()
    assert not optimizer.is_alive()
    assert time.monotonic() - began < 15  # some 0.1 s on an idle machine
    with make_optimizer(dht, make_model(), "shutdown") as again:
        assert again.is_alive()


def test_parts_alone(dht: DHT):
    model = make_model()
    with GradientAverager(model.parameters(), dht=dht, prefix="parts_grads", start=True) as gradients:
        backward(model, *next(batches(1, 4)))
        gradients.accumulate_grads_(4)
        assert (gradients.local_samples_accumulated, gradients.local_times_accumulated) == (4, 1)
        with pytest.raises(ConfigError, match="weight"):
            gradients.schedule_step(weight=1.0)
        own = [p.grad for p in model.parameters()]
        gradients.load_accumulators_into_averager_()
        with gradients.use_averaged_gradients():
            for parameter, grad in zip(model.parameters(), own, strict=True):
                assert torch.equal(parameter.grad, grad)
        gradients.reset_accumulated_grads_()
        assert gradients.local_samples_accumulated == 0
    sgd = torch.optim.SGD(model.parameters(), lr=0.1)
    with TrainingStateAverager(dht=dht, prefix="parts_state", optimizer=sgd, start=True) as state:
        assert state.step(increment_epoch=True, optimizer_step=True, zero_grad=True) is None
        assert state.local_epoch == 1
        assert all(p.grad is None for p in model.parameters())
    with ProgressTracker(dht, "parts", 100, start=True) as tracker:
        tracker.report_local_progress(0, 40)
        assert tracker.fetch(30)
        assert tracker.global_progress.samples_accumulated == 40
        assert not tracker.ready_to_update_epoch
        tracker.report_local_progress(0, 100)
        assert tracker.ready_to_update_epoch
        assert tracker.update_epoch() == tracker.global_epoch == 1
        for wrong in (-1, 1.0, None):
            with pytest.raises(ConfigError, match="samples_accumulated"):
                tracker.report_local_progress(0, wrong)
    with pytest.raises(RuntimeError):
        tracker.start()


def test_two_peers_in_one_process_are_two(dht: DHT, client_dht: DHT):
    with (
        ProgressTracker(dht, "pair", 100, start=True) as one,
        ProgressTracker(client_dht, "pair", 100, start=True) as two,
    ):
        one.report_local_progress(0, 30)
        two.report_local_progress(0, 40)
        for tracker in (one, two):
            eventually_sync(
                lambda tracker=tracker: tracker.fetch(30) and tracker.global_progress.samples_accumulated == 70,
                "both peers count",
            )
