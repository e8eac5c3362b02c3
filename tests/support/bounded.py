"""A bound for async tests that holds on every loop.

pytest-timeout ends a test by an exception in a signal handler, which uvloop swallows. This plugin bounds the coroutine
itself, a little earlier, so that the traceback shows where the test waits.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Awaitable, Callable, Generator
from typing import Any

import pytest

#: The part of a test's timeout after which its coroutine is cancelled.
_SHARE = 0.9


def _seconds(item: pytest.Item) -> float:
    marker = item.get_closest_marker("timeout")
    if marker is not None and marker.args:
        return float(marker.args[0])
    return float(item.config.getini("timeout") or 0)


def _bounded(test: Callable[..., Awaitable[object]], seconds: float) -> Callable[..., Awaitable[object]]:
    @functools.wraps(test)
    async def run(*args: Any, **kwargs: Any) -> object:
        async with asyncio.timeout(seconds):
            return await test(*args, **kwargs)

    return run


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, None, None]:
    seconds = _seconds(item) * _SHARE
    asynchronous = isinstance(item, pytest.Function) and asyncio.iscoroutinefunction(item.obj)
    if asynchronous and seconds > 0 and not hasattr(item.obj, "hypothesis"):
        item.obj = _bounded(item.obj, seconds)
    return (yield)
