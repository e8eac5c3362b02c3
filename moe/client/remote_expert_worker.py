"""`RemoteExpertWorker`: coroutines on the network thread, by the name that hivemind 1.1 had for it."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Literal, TypeVar, overload

from hivemind.runtime import HivemindFuture, get_runtime

__all__ = ["RemoteExpertWorker"]

T = TypeVar("T")


async def _await(awaitable: Awaitable[T]) -> T:
    return await awaitable


class RemoteExpertWorker:
    """Runs coroutines on the network thread, which all parts of hivemind share. Thread-safe."""

    @overload
    @classmethod
    def run_coroutine(cls, coro: Awaitable[T], return_future: Literal[False] = False) -> T: ...

    @overload
    @classmethod
    def run_coroutine(cls, coro: Awaitable[T], return_future: Literal[True]) -> HivemindFuture[T]: ...

    @classmethod
    def run_coroutine(cls, coro: Awaitable[T], return_future: bool = False) -> T | HivemindFuture[T]:
        """Await ``coro`` on the network thread; it must not block. Where nothing else has started the thread, it is
        started, and then runs until the process ends.

        :param return_future: return at once; cancelling the future cancels the coroutine
        """
        runtime = get_runtime()
        if not runtime.running:
            runtime.acquire()
        return runtime.submit(_await, coro) if return_future else runtime.call(_await, coro)
