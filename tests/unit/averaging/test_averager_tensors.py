"""The lock around the tensors, and how an average goes into them."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable

import pytest
import torch

from hivemind.averaging.tensors import TensorLock, check_tensors, commit_average, copy_tensors
from hivemind.errors import ConfigError


def test_threads_take_turns() -> None:
    lock, counter = TensorLock(), [0]

    def add() -> None:
        for _ in range(500):
            with lock:
                value = counter[0]
                counter[0] = value + 1

    threads = [threading.Thread(target=add) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert counter == [2000]
    assert not lock.locked()


def test_without_blocking_and_with_a_timeout() -> None:
    lock = TensorLock()
    assert lock.acquire(blocking=False)
    assert not lock.acquire(blocking=False)
    assert not lock.acquire(timeout=0.01)
    lock.release()
    with lock:
        assert lock.locked()
    with pytest.raises(RuntimeError, match="not held"):
        lock.release()


@pytest.mark.asyncio
async def test_a_coroutine_waits_for_a_thread_without_blocking_its_loop() -> None:
    lock = TensorLock()
    lock.acquire()
    waiter = asyncio.ensure_future(lock.run(lambda: 7))
    await asyncio.sleep(0)
    assert not waiter.done()
    threading.Thread(target=lock.release).start()
    assert await asyncio.wait_for(waiter, 30) == 7
    assert not lock.locked()


@pytest.mark.asyncio
async def test_a_waiter_that_is_cancelled_does_not_keep_the_lock() -> None:
    lock = TensorLock()
    lock.acquire()
    first, second = asyncio.ensure_future(lock.acquire_async()), asyncio.ensure_future(lock.acquire_async())
    await asyncio.sleep(0)
    first.cancel()
    await asyncio.wait([first])
    lock.release()
    await asyncio.wait_for(second, 30)
    lock.release()
    # granted, but cancelled before it could run on
    third = asyncio.ensure_future(lock.acquire_async())
    lock.acquire()
    await asyncio.sleep(0)
    lock.release()
    third.cancel()
    await asyncio.wait([third])
    assert not lock.locked()


@pytest.mark.asyncio
async def test_a_function_that_runs_under_the_lock_ends_before_it_is_released() -> None:
    lock, inside, go_on = TensorLock(), threading.Event(), threading.Event()
    seen: list[bool] = []

    def work() -> None:
        with lock:  # it may take the lock again
            inside.set()
        go_on.wait(30)
        seen.append(lock.locked())

    task = asyncio.ensure_future(lock.run(work))
    await asyncio.to_thread(inside.wait, 30)
    task.cancel()
    await asyncio.wait([task])
    assert lock.locked()
    go_on.set()
    await asyncio.wait_for(lock.acquire_async(), 30)
    assert seen == [True]
    lock.release()


@pytest.mark.asyncio
async def test_the_lock_is_lent_only_to_the_thread_that_runs_the_function() -> None:
    lock = TensorLock()

    def work() -> bool:
        other: list[bool] = []
        thread = threading.Thread(target=lambda: other.append(lock.acquire(blocking=False)))
        thread.start()
        thread.join()
        return other[0]

    assert await lock.run(work) is False
    assert not lock.locked()


@pytest.mark.parametrize(
    "make",
    [
        list,
        lambda: [1.0],
        lambda: [torch.ones(2, requires_grad=True) * 2],
        lambda: [torch.ones(2, dtype=torch.complex64)],
        lambda: [torch.eye(2).to_sparse()],
    ],
)
def test_wrong_tensors(make: Callable[[], list[torch.Tensor]]) -> None:
    with pytest.raises(ConfigError, match="averaged_tensors"):
        check_tensors(make())


def test_copies_are_contiguous_and_of_their_own() -> None:
    original = torch.arange(6.0).reshape(2, 3).t().requires_grad_()
    (copy,) = copy_tensors([original])
    assert copy.is_contiguous()
    assert not copy.requires_grad
    assert copy.data_ptr() != original.data_ptr()
    assert torch.equal(copy, original)


def test_an_average_goes_in_bit_by_bit() -> None:
    tensor = torch.tensor([0.1, 1e8, -3.0])
    average = torch.tensor([0.2, 1.0, 7.0])
    commit_average([tensor], [tensor.clone()], [average.clone()], alpha=1.0)
    assert torch.equal(tensor, average)


def test_changes_made_meanwhile_are_kept() -> None:
    changed, untouched = torch.tensor([1.0, 2.0]), torch.tensor([4.0])
    before = copy_tensors([changed, untouched])
    changed.add_(10.0)
    commit_average([changed, untouched], before, [torch.tensor([3.0, 3.0]), torch.tensor([5.0])], alpha=1.0)
    assert changed.tolist() == [13.0, 13.0]
    assert untouched.tolist() == [5.0]


def test_part_of_the_way() -> None:
    leaf = torch.tensor([0.0, 8.0], requires_grad=True)
    commit_average([leaf], copy_tensors([leaf]), [torch.tensor([4.0, 4.0])], alpha=0.25)
    assert leaf.tolist() == [1.0, 7.0]
    whole = torch.tensor([10, 20])
    commit_average([whole], [torch.tensor([10, 10])], [torch.tensor([20, 20])], alpha=1.0)
    assert whole.tolist() == [20, 30]
