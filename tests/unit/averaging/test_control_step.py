"""The handle on a step, from several threads and loops."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import CancelledError

import pytest

from hivemind.averaging.control import AveragingStage, Latch, StepControl
from hivemind.clock import get_dht_time
from hivemind.errors import AllreduceException, ConfigError
from hivemind.identity import PeerID

PEER = PeerID(bytes([0x12, 0x20, *([1] * 32)]))


def control(**fields: object) -> StepControl:
    now = get_dht_time()
    return StepControl(**{"scheduled_time": now + 10, "deadline": now + 100, **fields})  # type: ignore[arg-type]


@pytest.mark.parametrize("weight", [-1.0, float("nan"), float("inf"), True, "1"])
def test_wrong_weights(weight: object) -> None:
    with pytest.raises(ConfigError, match="weight"):
        control(weight=weight)
    step = control()
    with pytest.raises(ConfigError, match="weight"):
        step.weight = weight  # type: ignore[assignment]


def test_wrong_times() -> None:
    now = get_dht_time()
    with pytest.raises(ConfigError, match="scheduled_time"):
        control(scheduled_time=now + 10, deadline=now + 10)
    step = control()
    with pytest.raises(ConfigError, match="scheduled_time"):
        step.scheduled_time = step.deadline
    with pytest.raises(ConfigError, match="known_peers"):
        control(known_peers=0)


def test_weight_and_time_are_free_until_the_exchange_begins() -> None:
    step = control(weight=2)
    step.weight = 3
    step.scheduled_time += 1
    assert step.weight == 3.0
    step.enter(AveragingStage.AWAITING_TRIGGER)
    step.weight = 0
    assert not step.began_allreduce
    step.enter(AveragingStage.RUNNING_ALLREDUCE)
    assert step.began_allreduce
    with pytest.raises(RuntimeError, match="has begun"):
        step.weight = 1
    assert step.weight == 0.0


def test_known_peers_may_be_ids_or_a_number() -> None:
    assert control().known_peers is None
    assert control(known_peers=4).known_peers == 4
    assert control(known_peers=[PEER, PEER]).known_peers == frozenset({PEER})


def test_results_errors_and_cancellation() -> None:
    step = control()
    step.finish({PEER: 1})
    assert step.result(0) == {PEER: 1}
    assert step.stage is AveragingStage.FINISHED
    step = control()
    step.finish(AllreduceException("no"))
    with pytest.raises(AllreduceException, match="no"):
        step.result(0)
    step = control()
    assert step.cancel()
    assert step.stage is AveragingStage.FINISHED
    step.finish({PEER: 1})
    with pytest.raises(CancelledError):
        step.result(0)
    step = control()
    step.finish({})
    assert not step.cancel()


@pytest.mark.asyncio
async def test_it_can_be_awaited_and_triggered_from_another_thread() -> None:
    step = control()

    def from_afar() -> None:
        step.allow_allreduce()
        step.finish({PEER: "x"})

    thread = threading.Thread(target=from_afar)
    waiter = asyncio.ensure_future(step.wait_for_trigger())
    await asyncio.sleep(0)
    assert not step.triggered
    thread.start()
    await asyncio.wait_for(waiter, 30)
    assert await asyncio.wait_for(asyncio.wrap_future(step), 30) == {PEER: "x"}
    assert step.triggered
    thread.join()


@pytest.mark.asyncio
async def test_a_waiter_that_is_cancelled_leaves_the_others_alone() -> None:
    latch = Latch()
    first, second = asyncio.ensure_future(latch.wait()), asyncio.ensure_future(latch.wait())
    await asyncio.sleep(0)
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    latch.set()
    latch.set()
    await asyncio.wait_for(second, 30)
    await asyncio.wait_for(latch.wait(), 30)
