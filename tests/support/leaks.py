"""Nothing may outlive a test: threads, tasks, child processes, sockets, pipes and temporary files.

A pytest plugin, loaded by ``tests/conftest.py`` for all tests, sync and async. What a test or its fixtures leave behind
makes the test fail, after a wait for things that are about to end. What a fixture of wider scope makes belongs to that
fixture; what such a fixture makes later, it hands over by `adopt`.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio

from tests.support.processes import offspring

#: Seconds in which a thing that is about to end must have ended; far more than it takes, for loaded machines.
PATIENCE = 15.0
#: Threads that belong to the process: bounded pools.
_POOLS = ("hivemind-pool", "ThreadPoolExecutor-torch")
#: Children that serve the whole process.
_SERVICES = (b"multiprocessing.resource_tracker", b"multiprocessing.forkserver")
#: Kinds of descriptors that are counted.
_COUNTED = ("socket:", "pipe:", "anon_inode:[eventpoll]", "anon_inode:[pidfd]", "anon_inode:[eventfd]")

_allowed: set[str] = set()
_passed = pytest.StashKey[bool]()
_before = pytest.StashKey[set[str]]()


def adopt() -> None:
    """From now on, all that lives at this moment may go on living."""
    _allowed.update(_living())


def _living() -> set[str]:
    return {*_threads(), *_children(), *_descriptors(), *_files()}


def _threads() -> Iterator[str]:
    for thread in threading.enumerate():
        if not thread.name.startswith(_POOLS):
            yield f"thread {thread.name} ({thread.ident})"


def _children() -> Iterator[str]:
    for child, _ in offspring(os.getpid()):
        with contextlib.suppress(OSError):  # it has gone
            command = Path(f"/proc/{child}/cmdline").read_bytes()
            if not any(service in command for service in _SERVICES):
                yield f"child {child} {command.replace(bytes(1), b' ').decode(errors='replace').strip()[:200]}"


def _descriptors() -> Iterator[str]:
    folder = Path("/proc/self/fd")
    if not folder.is_dir():
        return
    for name in os.listdir(folder):
        with contextlib.suppress(OSError):
            target = os.readlink(folder / name)
            if target.startswith(_COUNTED):
                # sockets and pipes have a number of their own, which a descriptor that is used anew has not
                yield f"descriptor {name} {target}" if target.startswith("anon") else f"descriptor {target}"


def _files() -> Iterator[str]:
    for path in Path(tempfile.gettempdir()).glob("hivemind-*"):
        yield f"file {path}"


def _left(before: set[str]) -> set[str]:
    """What lives beyond ``before``, once there has been time to end."""
    deadline = time.monotonic() + PATIENCE
    pause = 0.002
    collected = False
    while left := _living() - before - _allowed:
        if time.monotonic() >= deadline:
            break
        if not collected and time.monotonic() >= deadline - PATIENCE * 0.9:
            collected = True
            gc.collect()
        time.sleep(pause)
        pause = min(2 * pause, 0.1)
    return left


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> Generator[None, None, None]:
    item.stash[_before] = _living()
    item.stash[_passed] = False
    return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.when == "call":
        item.stash[_passed] = report.passed
    return report


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_teardown(item: pytest.Item) -> Generator[None, None, None]:
    result = yield
    if item.stash.get(_passed, False) and (left := _left(item.stash[_before])):
        pytest.fail("the test left behind:\n  " + "\n  ".join(sorted(left)), pytrace=False)
    return result


@pytest.hookimpl(wrapper=True)
def pytest_fixture_setup(fixturedef: pytest.FixtureDef[object]) -> Generator[None, object, object]:
    if fixturedef.scope == "function":
        return (yield)
    before = _living()
    try:
        return (yield)
    finally:
        _allowed.update(_living() - before)


@pytest_asyncio.fixture
async def _no_task_left() -> object:
    """Set up before and torn down after all other fixtures of its test, in the test's loop."""
    yield
    loop = asyncio.get_running_loop()
    deadline = loop.time() + PATIENCE
    while tasks := asyncio.all_tasks() - {asyncio.current_task()}:
        if loop.time() >= deadline:
            pytest.fail("the test left tasks behind:\n  " + "\n  ".join(map(repr, tasks)), pytrace=False)
        await asyncio.wait(tasks, timeout=max(0.0, deadline - loop.time()))


@pytest.fixture(autouse=True)
def leak_check(request: pytest.FixtureRequest) -> None:
    """Applies to every test; the hooks of this module do the rest."""
    marker = request.node.get_closest_marker("asyncio")
    if marker is not None and marker.kwargs.get("loop_scope", "function") == "function":
        request.getfixturevalue("_no_task_left")


def pytest_configure(config: pytest.Config) -> None:
    with contextlib.suppress(ImportError):
        import uvloop

        # libuv makes one pipe for the process with its first loop
        uvloop.new_event_loop().close()
    # a folder of the run's own: other runs on the machine have theirs; short, as it holds socket paths
    folder = tempfile.mkdtemp(prefix="hmt-")
    previous = os.environ.get("TMPDIR")
    os.environ["TMPDIR"] = tempfile.tempdir = folder

    def restore() -> None:
        tempfile.tempdir = None
        if previous is None:
            del os.environ["TMPDIR"]
        else:
            os.environ["TMPDIR"] = previous
        shutil.rmtree(folder, ignore_errors=True)

    config.add_cleanup(restore)
