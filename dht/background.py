"""A node of the DHT on the network thread, as the threads of the user hold it: start, wait, end."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable, Coroutine
from types import TracebackType
from typing import Any, Self, TypeVar

from hivemind.clock import Deadline
from hivemind.config import check_seconds
from hivemind.dht.node import DHTNode
from hivemind.errors import HivemindError, RuntimeClosedError
from hivemind.log import get_logger
from hivemind.runtime import HivemindFuture, get_runtime, wait_for

__all__ = ["BackgroundNode"]

logger = get_logger(__name__)

T = TypeVar("T")


class BackgroundNode:
    """Starts and ends one node; subclasses say how it is made. Thread-safe.

    :param shutdown_timeout: seconds within which `shutdown` returns
    """

    def __init__(self, shutdown_timeout: float) -> None:
        check_seconds("shutdown_timeout", shutdown_timeout)
        self.shutdown_timeout = shutdown_timeout
        #: as processes have one; of no meaning here
        self.name = type(self).__name__
        # guards the two below; the node itself is owned by the network thread
        self._lock = threading.Lock()
        self._starting: HivemindFuture[DHTNode] | None = None
        self._ended = False
        self._shut_down = threading.Event()
        self._runtime = get_runtime()
        # owned by the network thread
        self._start_task: asyncio.Task[Any] | None = None

    async def _make_node(self) -> DHTNode:
        raise NotImplementedError

    async def _end_node(self, node: DHTNode) -> None:
        """End the node and what was made for it."""
        raise NotImplementedError

    # -- life ----------------------------------------------------------------------------------------------------------

    def run_in_background(self, await_ready: bool = True, timeout: float | None = None) -> None:
        """Start the node.

        :param await_ready: wait until it has joined
        :param timeout: seconds to wait at most
        :raises RuntimeClosedError: if it was started before
        """
        with self._lock:
            if self._starting is not None or self._ended:
                raise RuntimeClosedError("this DHT was started before: make a new one")
            self._runtime.acquire()
            self._starting = self._runtime.submit(self._start)
        if await_ready:
            try:
                self.wait_until_ready(timeout)
            except BaseException:
                self.shutdown()
                raise

    def start(self) -> None:
        """`run_in_background` without waiting, by the name that processes have for it.

        :raises RuntimeClosedError: if it was started before
        """
        self.run_in_background(await_ready=False)

    def wait_until_ready(self, timeout: float | None = None) -> None:
        """Wait until the node has joined.

        :param timeout: seconds
        :raises DeadlineExceeded: (a `concurrent.futures.TimeoutError`) if that takes longer
        :raises P2PDaemonError: if the start has failed
        """
        wait_for(self._started(), Deadline.after(timeout), "start of the DHT")

    async def _start(self) -> DHTNode:
        self._start_task = asyncio.current_task()
        node = await self._make_node()
        self._runtime.add_closer(self._close)
        return node

    async def _close(self) -> None:
        starting = self._starting
        self._runtime.remove_closer(self._close)
        if self._start_task is not None:
            # one that was cancelled still ends its daemon
            await asyncio.wait({self._start_task})
        if starting is None or not starting.done() or starting.cancelled() or starting.exception() is not None:
            return
        await self._end_node(starting.result())

    def shutdown(self) -> None:
        """Leave the swarm and end the own daemon; returns within ``shutdown_timeout``. Idempotent."""
        with self._lock:
            starting, ended, self._ended = self._starting, self._ended, True
        if starting is None or ended:
            return
        try:
            if not starting.done():
                starting.cancel()
            if self._runtime.running:
                wait_for(self._runtime.submit(self._close), Deadline.after(self.shutdown_timeout), "end of the DHT")
        except HivemindError as error:
            logger.warning("shutdown of the DHT: %s", error)
        finally:
            self._runtime.release()
            self._shut_down.set()

    def is_alive(self) -> bool:
        """Whether it was started and neither failed nor was shut down."""
        starting = self._starting
        if starting is None or self._ended or not self._runtime.running:
            return False
        return not starting.done() or (not starting.cancelled() and starting.exception() is None)

    @property
    def pid(self) -> int:
        """The process in which the node runs: this one."""
        return os.getpid()

    def join(self, timeout: float | None = None) -> None:
        """Wait until another thread has shut it down.

        :param timeout: seconds; then it returns all the same
        :raises RuntimeClosedError: if it was not started
        """
        if not self._ended:
            self._started()
        self._shut_down.wait(timeout)

    def terminate(self) -> None:
        """`shutdown`, by the name that processes have for it."""
        self.shutdown()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.shutdown()

    # -- the node ------------------------------------------------------------------------------------------------------

    @property
    def node(self) -> DHTNode:
        """The node; use its methods on the network thread only (`run_coroutine`, or `hivemind.runtime`).

        Waits until it has joined; on the network thread, which must not wait, that is an error.

        :raises RuntimeClosedError: unless it was started and not shut down
        """
        starting = self._started()
        if not starting.done() and self._runtime.in_network_thread():
            raise RuntimeClosedError("the DHT has not joined yet: wait_until_ready() first")
        return starting.result()

    def _started(self) -> HivemindFuture[DHTNode]:
        if self._ended:
            raise RuntimeClosedError("this DHT was shut down")
        if self._starting is None:
            raise RuntimeClosedError("this DHT was not started: run_in_background() first, or start=True")
        return self._starting

    async def _joined(self) -> DHTNode:
        """The node, on the network thread; waits for the start."""
        starting = self._started()
        if starting.done():
            return starting.result()
        return await asyncio.shield(asyncio.wrap_future(starting))

    def _submit(
        self, function: Callable[..., Coroutine[Any, Any, T]], return_future: bool, *args: Any
    ) -> T | HivemindFuture[T]:
        self._started()
        if return_future:
            return self._runtime.submit(function, *args)
        return self._runtime.call(function, *args)
