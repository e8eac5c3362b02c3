"""Owned tasks and bounded waits."""

from __future__ import annotations

import asyncio

import pytest

from hivemind.aio import TaskScope, as_aiter, cancel_and_wait, with_deadline
from hivemind.clock import Deadline
from hivemind.errors import DeadlineExceeded, StreamReset
from hivemind.virtual_clock import run_virtual


async def for_ever() -> None:
    await asyncio.Event().wait()


def test_with_deadline() -> None:
    async def quick() -> str:
        await asyncio.sleep(1)
        return "done"

    async def own_timeout() -> None:
        raise TimeoutError("mine")

    async def main() -> None:
        assert await with_deadline(quick(), Deadline.after(2), "quick") == "done"
        with pytest.raises(DeadlineExceeded, match="patience: no answer in time"):
            await with_deadline(for_ever(), Deadline.after(2), "patience")
        # a timeout of what is awaited is not this deadline
        with pytest.raises(TimeoutError, match="mine") as caught:
            await with_deadline(own_timeout(), Deadline.after(2), "x")
        assert not isinstance(caught.value, DeadlineExceeded)
        # an inner deadline keeps its words
        with pytest.raises(DeadlineExceeded, match="inner"):
            await with_deadline(with_deadline(for_ever(), Deadline.after(1), "inner"), Deadline.after(2), "outer")
        with pytest.raises(DeadlineExceeded, match="outer"):
            await with_deadline(with_deadline(for_ever(), Deadline.after(2), "inner"), Deadline.after(1), "outer")

    run_virtual(main)


@pytest.mark.asyncio
async def test_cancel_and_wait_ends_tasks_whatever_they_raise() -> None:
    async def stubborn() -> None:
        try:
            await for_ever()
        finally:
            raise ValueError("on the way out")

    tasks = [asyncio.ensure_future(for_ever()), asyncio.ensure_future(stubborn())]
    await asyncio.sleep(0)
    await cancel_and_wait(*tasks)
    assert all(task.done() for task in tasks)
    await cancel_and_wait()


@pytest.mark.asyncio
async def test_as_aiter() -> None:
    assert [item async for item in as_aiter(1, 2)] == [1, 2]


@pytest.mark.asyncio
async def test_a_scope_outlives_failures_and_tells_faults_from_peers() -> None:
    faults: list[BaseException] = []
    scope = TaskScope("scope", on_fault=faults.append)

    async def fail(error: Exception) -> None:
        raise error

    running = scope.start(for_ever())
    for error in (StreamReset("peer"), OSError("peer"), ValueError("ours")):
        task = scope.start(fail(error), name="failing")
        await asyncio.wait([task])
    await asyncio.sleep(0)
    assert [str(fault) for fault in faults] == ["ours"]
    assert scope.peer_failures == 2
    assert list(scope.tasks) == [running]
    await scope.close()
    await scope.close()
    assert running.cancelled()
    with pytest.raises(RuntimeError, match="scope is closed"):
        scope.start(for_ever())


@pytest.mark.asyncio
async def test_a_scope_may_be_closed_from_one_of_its_tasks() -> None:
    scope = TaskScope("scope")
    other = scope.start(for_ever())
    task = scope.start(scope.close())
    await asyncio.wait_for(task, 30)
    assert other.cancelled()
