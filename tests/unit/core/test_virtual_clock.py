"""Simulated time: no waiting, in order, and deadlocks are errors."""

from __future__ import annotations

import asyncio
import time

import pytest

from hivemind.clock import Deadline, get_dht_time, monotonic
from hivemind.runtime import in_pool
from hivemind.virtual_clock import VirtualDeadlock, run_virtual


def test_an_hour_takes_no_time_and_all_clocks_agree() -> None:
    async def main() -> list[int]:
        order: list[int] = []
        begin, wall = monotonic(), get_dht_time()

        async def wake(number: int) -> None:
            await asyncio.sleep(number * 60)
            order.append(number)
            assert monotonic() - begin == pytest.approx(number * 60)
            assert get_dht_time() - wall == pytest.approx(number * 60)

        async with asyncio.TaskGroup() as group:
            for number in (60, 1, 30, 7):
                group.create_task(wake(number))
        return order

    started = time.monotonic()
    assert run_virtual(main) == [1, 7, 30, 60]
    assert time.monotonic() - started < 30


def test_work_in_the_pool_takes_no_simulated_time() -> None:
    async def main() -> float:
        start = asyncio.get_running_loop().time()
        assert await in_pool(sum, [1, 2]) == 3
        return asyncio.get_running_loop().time() - start

    assert run_virtual(main) == 0.0


def test_deadlines_run_on_it() -> None:
    async def main() -> bool:
        deadline = Deadline.after(10)
        await asyncio.sleep(10)
        return deadline.expired

    assert run_virtual(main)


def test_a_deadlock_is_an_error() -> None:
    async def main() -> None:
        await asyncio.Event().wait()

    with pytest.raises(VirtualDeadlock):
        run_virtual(main)
    # and real time is back
    assert abs(get_dht_time() - time.time()) < 1.0
