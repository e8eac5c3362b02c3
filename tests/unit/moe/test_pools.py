"""Pools and the thread of a device: batches across clients, refusals, cancelled tasks, faults, the end."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import wait
from contextlib import contextmanager

import pytest
import torch

from hivemind.clock import Deadline
from hivemind.errors import ExpertFailed, InputMismatch, RuntimeClosedError, ServerBusy, UnknownExpert
from hivemind.moe.server.runtime import Runtime
from hivemind.moe.server.schedule import QueueLimits
from hivemind.moe.server.task_pool import TaskPool
from tests.support.waiting import PATIENCE


class Gate:
    """A function of a pool that notes the sizes of its batches, and runs only while it is open."""

    def __init__(self, function: Callable[[torch.Tensor], torch.Tensor] = lambda x: 2 * x) -> None:
        self.function = function
        self.open = threading.Event()
        self.entered = threading.Event()
        self.batches: list[int] = []

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        self.batches.append(len(x))
        self.entered.set()
        assert self.open.wait(PATIENCE)
        return self.function(x)


@contextmanager
def running(*pools: TaskPool, limits: QueueLimits | None = None) -> Iterator[Runtime]:
    runtime = Runtime(pools, limits=limits)
    runtime.start()
    try:
        yield runtime
    finally:
        assert runtime.shutdown(Deadline.after(PATIENCE))


def test_tasks_that_wait_become_one_batch() -> None:
    gate = Gate()
    pool = TaskPool(gate, max_batch_size=8, name="p")
    with running(pool):
        first = pool.submit_task(torch.ones(1, 2))
        assert gate.entered.wait(PATIENCE)
        others = [pool.submit_task(torch.full((size, 2), float(size)), client=size) for size in (3, 4, 5)]
        gate.open.set()
        assert torch.equal(first.result(PATIENCE)[0], torch.full((1, 2), 2.0))
        for size, future in zip((3, 4, 5), others, strict=True):
            assert torch.equal(future.result(PATIENCE)[0], torch.full((size, 2), 2.0 * size))
    assert gate.batches == [1, 7, 5]
    assert (pool.stats.batches, pool.stats.requests, pool.stats.samples) == (3, 4, 13)


def test_a_batch_waits_for_samples() -> None:
    gate = Gate()
    gate.open.set()
    pool = TaskPool(gate, max_batch_size=8, name="p", min_batch_size=3, timeout=PATIENCE)
    with running(pool):
        futures = [pool.submit_task(torch.ones(1, 2)) for _ in range(3)]
        wait(futures, PATIENCE)
    assert gate.batches == [3]


def test_a_batch_does_not_wait_longer_than_its_time() -> None:
    gate = Gate()
    gate.open.set()
    pool = TaskPool(gate, max_batch_size=8, name="p", min_batch_size=3, timeout=0.01)
    with running(pool):
        assert pool.submit_task(torch.ones(1, 2)).result(PATIENCE)
    assert gate.batches == [1]


def test_the_least_recent_pool_is_next() -> None:
    order: list[str] = []
    gate = Gate()

    def note(name: str) -> Callable[[torch.Tensor], torch.Tensor]:
        def function(x: torch.Tensor) -> torch.Tensor:
            order.append(name)
            return x

        return function

    first, second, third = TaskPool(gate, 8, "gate"), TaskPool(note("b"), 8, "b"), TaskPool(note("c"), 8, "c")
    with running(first, second, third):
        blocked = first.submit_task(torch.ones(1))
        assert gate.entered.wait(PATIENCE)
        futures = [third.submit_task(torch.ones(1)), second.submit_task(torch.ones(1))]
        urgent = second.submit_task(torch.ones(8), priority=-1)
        gate.open.set()
        wait([blocked, *futures, urgent], PATIENCE)
    assert order == ["b", "c", "b"]


def test_a_cancelled_task_leaves_the_queue() -> None:
    gate = Gate()
    pool = TaskPool(gate, max_batch_size=8, name="p")
    with running(pool) as runtime:
        first = pool.submit_task(torch.ones(1, 2))
        assert gate.entered.wait(PATIENCE)
        gone, kept = pool.submit_task(torch.ones(5, 2)), pool.submit_task(torch.ones(2, 2))
        assert gone.cancel()
        assert pool.queue.samples == 2
        gate.open.set()
        kept.result(PATIENCE)
        first.result(PATIENCE)
        assert runtime.schedule.waiting_seconds == 0
    assert gate.batches == [1, 2]
    assert pool.stats.cancelled == 1


def test_a_full_queue_refuses_and_says_when_to_come_back() -> None:
    gate = Gate()
    pool = TaskPool(gate, max_batch_size=1, name="p")
    with running(pool, limits=QueueLimits(max_waiting=8)):
        futures = [pool.submit_task(torch.ones(1, 2), client="flood")]
        assert gate.entered.wait(PATIENCE)
        futures += [pool.submit_task(torch.ones(1, 2), client="flood") for _ in range(4)]
        with pytest.raises(ServerBusy, match=r"try again in [0-9.]+ s") as refused:
            pool.submit_task(torch.ones(1, 2), client="flood")
        assert 0 < refused.value.retry_after < 30
        futures.append(pool.submit_task(torch.ones(1, 2), client="guest"))
        gate.open.set()
        wait(futures, PATIENCE)
        pool.submit_task(torch.ones(1, 2), client="flood").result(PATIENCE)
    assert pool.stats.refused == 1


def test_work_that_would_wait_too_long_is_refused() -> None:
    gate = Gate()
    pool = TaskPool(gate, max_batch_size=10**6, name="p")
    with running(pool, limits=QueueLimits(max_wait=0.5)):
        running_now = pool.submit_task(torch.ones(1, 1))
        assert gate.entered.wait(PATIENCE)
        waiting = pool.submit_task(torch.ones(10**5, 1), client="flood")  # ten seconds, by the first guess
        with pytest.raises(ServerBusy) as refused:
            pool.submit_task(torch.ones(1, 1), client="guest")
        assert refused.value.retry_after == pytest.approx(5.0)
        gate.open.set()
        wait([running_now, waiting], PATIENCE)


def test_one_task_that_fails_does_not_fail_the_others() -> None:
    def picky(x: torch.Tensor) -> torch.Tensor:
        if (x == 13).any():
            raise RuntimeError("thirteen")
        return x

    gate = Gate(picky)
    pool = TaskPool(gate, max_batch_size=8, name="p")
    with running(pool):
        pool.submit_task(torch.ones(1))
        assert gate.entered.wait(PATIENCE)
        good, bad = pool.submit_task(torch.ones(2)), pool.submit_task(torch.full((2,), 13.0))
        gate.open.set()
        assert torch.equal(good.result(PATIENCE)[0], torch.ones(2))
        with pytest.raises(ExpertFailed, match=r"p: RuntimeError: thirteen"):
            bad.result(PATIENCE)
    assert pool.stats.failed == 1


def test_an_output_of_another_batch() -> None:
    pool = TaskPool(lambda x: x[:1], max_batch_size=8, name="p")
    with running(pool), pytest.raises(ExpertFailed, match=r"3 samples gave an output of shape \(1,\)"):
        pool.submit_task(torch.ones(3)).result(PATIENCE)


def test_shapes_that_do_not_go_together_are_batches_of_their_own() -> None:
    gate = Gate()
    pool = TaskPool(gate, max_batch_size=8, name="p")
    with running(pool):
        pool.submit_task(torch.ones(1, 2))
        assert gate.entered.wait(PATIENCE)
        futures = [pool.submit_task(torch.ones(1, length)) for length in (3, 4, 3)]
        gate.open.set()
        wait(futures, PATIENCE)
    assert gate.batches == [1, 2, 1]


@pytest.mark.parametrize("shapes", [[(0, 2)], [(9, 2)], [()], [(2, 2), (3, 2)], []])
def test_what_is_no_batch(shapes: list[tuple[int, ...]]) -> None:
    pool = TaskPool(Gate(), max_batch_size=8, name="p")
    with pytest.raises(InputMismatch):
        pool.submit_task(*map(torch.ones, shapes))


def test_a_closed_pool_serves_what_waits() -> None:
    gate = Gate()
    pool = TaskPool(gate, max_batch_size=1, name="p")
    with running(pool):
        futures = [pool.submit_task(torch.ones(1)) for _ in range(3)]
        assert gate.entered.wait(PATIENCE)
        closed = pool.close()
        with pytest.raises(UnknownExpert):
            pool.submit_task(torch.ones(1))
        assert not closed.done()
        gate.open.set()
        closed.result(PATIENCE)
        assert all(future.done() for future in futures)


def test_the_end_serves_what_waits() -> None:
    gate = Gate()
    pool = TaskPool(gate, max_batch_size=1, name="p")
    with running(pool):
        futures = [pool.submit_task(torch.ones(1)) for _ in range(3)]
        gate.open.set()
    assert all(future.done() for future in futures)
    with pytest.raises(UnknownExpert):
        pool.submit_task(torch.ones(1))


def test_the_end_drops_what_waits_after_its_time() -> None:
    gate = Gate()
    pool = TaskPool(gate, max_batch_size=1, name="p")
    runtime = Runtime([pool])
    runtime.start()
    runs, waits = pool.submit_task(torch.ones(1)), pool.submit_task(torch.ones(1))
    assert gate.entered.wait(PATIENCE)
    threading.Timer(0.05, gate.open.set).start()
    assert not runtime.shutdown(Deadline.after(0))
    runs.result(PATIENCE)
    with pytest.raises(UnknownExpert):
        waits.result(PATIENCE)
    assert not runtime.is_alive()


def test_work_between_two_batches() -> None:
    with running() as runtime:
        assert runtime.submit(lambda: threading.current_thread().name).result(PATIENCE) == "hivemind-device"
        with pytest.raises(ZeroDivisionError):
            runtime.submit(lambda: 1 / 0).result(PATIENCE)
    with pytest.raises(RuntimeClosedError):
        runtime.submit(lambda: None)
