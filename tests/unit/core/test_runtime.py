"""The network thread: one for all its users, gone with the last."""

from __future__ import annotations

import asyncio
import concurrent.futures
import os
import subprocess
import sys
import threading

import pytest

from hivemind.clock import Deadline
from hivemind.errors import DeadlineExceeded, RuntimeClosedError
from hivemind.runtime import HivemindFuture, Runtime, get_runtime, in_pool, wait_for
from tests.support.waiting import PATIENCE, eventually_sync


async def where() -> str:
    return threading.current_thread().name


class Hanging:
    def __init__(self) -> None:
        self.entered = threading.Event()
        self.cancelled = threading.Event()

    async def run(self) -> None:
        self.entered.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.cancelled.set()
            raise


@pytest.fixture
def runtime():  # type: ignore[no-untyped-def]
    runtime = Runtime()
    runtime.acquire()
    yield runtime
    runtime.release()
    assert not runtime.running


def test_users_share_one_thread() -> None:
    runtime = Runtime()
    with pytest.raises(RuntimeClosedError):
        runtime.submit(where)
    runtime.acquire()
    runtime.acquire()
    assert runtime.call(where) == "hivemind-net"
    runtime.release()
    assert runtime.running
    assert runtime.call(where) == "hivemind-net"
    runtime.release()
    assert not runtime.running
    runtime.release()
    with pytest.raises(RuntimeClosedError):
        runtime.call(where)
    runtime.acquire()
    assert runtime.call(where) == "hivemind-net"
    runtime.release()


def test_results_and_errors_come_back(runtime: Runtime) -> None:
    async def add(a: int, *, b: int) -> int:
        return a + b

    async def fail() -> None:
        raise KeyError("mine")

    assert runtime.call(add, 1, b=2) == 3
    future = runtime.submit(add, 2, b=3)
    assert isinstance(future, HivemindFuture)
    assert future.result(PATIENCE) == 5
    with pytest.raises(KeyError, match="mine"):
        runtime.call(fail)
    with pytest.raises(KeyError):
        runtime.submit(fail).result(PATIENCE)


def test_cancelling_crosses_both_ways(runtime: Runtime) -> None:
    hanging = Hanging()
    future = runtime.submit(hanging.run)
    assert hanging.entered.wait(PATIENCE)
    assert future.cancel()
    assert hanging.cancelled.wait(PATIENCE)

    async def give_up() -> None:
        raise asyncio.CancelledError

    with pytest.raises(concurrent.futures.CancelledError):
        runtime.submit(give_up).result(PATIENCE)


def test_a_future_can_be_awaited_on_another_loop(runtime: Runtime) -> None:
    async def main() -> str:
        return await runtime.submit(where)

    assert asyncio.run(main()) == "hivemind-net"


def test_a_blocking_call_on_the_thread_itself_is_an_error(runtime: Runtime) -> None:
    async def call_back() -> None:
        assert runtime.in_network_thread()
        runtime.call(where)

    assert not runtime.in_network_thread()
    with pytest.raises(RuntimeClosedError, match="wait for itself"):
        runtime.call(call_back)


def test_the_last_release_ends_what_runs() -> None:
    runtime = Runtime()
    runtime.acquire()
    hanging = Hanging()
    future = runtime.submit(hanging.run)
    assert hanging.entered.wait(PATIENCE)
    closed = []

    async def closer() -> None:
        closed.append(hanging.cancelled.is_set())

    async def register() -> None:
        runtime.add_closer(closer)
        runtime.add_closer(forgotten)
        runtime.remove_closer(forgotten)
        runtime.remove_closer(forgotten)

    async def forgotten() -> None:
        raise AssertionError

    runtime.call(register)
    runtime.release()
    assert hanging.cancelled.is_set()
    assert future.cancelled()
    assert closed == [False], "closers run before tasks are cancelled"


def test_waiting_has_a_bound(runtime: Runtime) -> None:
    hanging = Hanging()
    future = runtime.submit(hanging.run)
    with pytest.raises(DeadlineExceeded, match="the moon"):
        wait_for(future, Deadline.after(0.05), "the moon")
    assert not future.done()
    assert wait_for(runtime.submit(where), Deadline.after(PATIENCE), "x") == "hivemind-net"


@pytest.mark.asyncio
async def test_the_pool_is_other_threads() -> None:
    name = await in_pool(lambda: threading.current_thread().name)
    assert name.startswith("hivemind-pool")


@pytest.mark.asyncio
async def test_no_work_is_begun_while_the_program_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """Python ends all pools before the network thread."""
    ended = concurrent.futures.ThreadPoolExecutor()
    ended.shutdown()
    monkeypatch.setattr("hivemind.runtime._pool", ended)
    with pytest.raises(RuntimeClosedError, match="the program is ending"):
        await in_pool(lambda: 1)


def test_the_runtime_is_one_per_process() -> None:
    assert get_runtime() is get_runtime()


def test_a_forked_child_says_what_is_wrong() -> None:
    program = """
import os, sys
from hivemind.errors import RuntimeClosedError
from hivemind.runtime import get_runtime

async def nothing(): ...

runtime = get_runtime()
runtime.acquire()
runtime.call(nothing)
pid = os.fork()
if pid == 0:
    try:
        runtime.call(nothing)
    except RuntimeClosedError as error:
        os._exit(0 if "forked child" in str(error) and get_runtime() is not runtime else 1)
    os._exit(2)
code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
runtime.call(nothing)
sys.exit(code)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], timeout=PATIENCE, check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_an_exit_without_release_closes_in_order() -> None:
    program = """
from hivemind.runtime import get_runtime

runtime = get_runtime()
runtime.acquire()

async def closer():
    print("closed", flush=True)

async def register():
    runtime.add_closer(closer)

runtime.call(register)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], timeout=PATIENCE, check=False, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (0, "closed\n"), done.stderr


def test_ctrl_c_during_a_call_cancels_it(runtime: Runtime) -> None:
    hanging = Hanging()

    def interrupt() -> None:
        hanging.entered.wait(PATIENCE)
        os.kill(os.getpid(), 2)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        runtime.call(hanging.run)
    thread.join()
    eventually_sync(hanging.cancelled.is_set, "the coroutine is cancelled")
