"""The thread of one device: it runs the batches of all pools of that device, one after the other."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any, TypeVar, cast

import torch

from hivemind.clock import Deadline
from hivemind.errors import RuntimeClosedError
from hivemind.log import get_logger
from hivemind.moe.server.schedule import QueueLimits, Schedule
from hivemind.moe.server.task_pool import TaskPool
from hivemind.runtime import HivemindFuture

__all__ = ["Runtime"]

logger = get_logger(__name__)

T = TypeVar("T")

#: Seconds within which a batch that runs must end when the rest has been dropped.
_END_SECONDS = 5.0


class Runtime:
    """Owns a thread that runs what the pools of one device gather. Thread-safe.

    The pool whose first task has the best rank is served next; see `hivemind.moe.server.fair_queue`.

    :param pools: served from the beginning; more by `add_pools`
    :param device: for the thread's name and, with CUDA, the current device of the thread
    :param limits: of what may wait
    """

    def __init__(
        self, pools: Iterable[TaskPool] = (), *, device: torch.device | None = None, limits: QueueLimits | None = None
    ) -> None:
        self.device = device
        self.schedule = Schedule(limits)
        self._thread: threading.Thread | None = None
        # guarded by the schedule's condition
        self._jobs: deque[Callable[[], None]] = deque()
        self._pools: list[TaskPool] = []
        self._ending = self._dropping = False
        self.add_pools(pools)

    @property
    def pools(self) -> tuple[TaskPool, ...]:
        """Those that it serves."""
        return tuple(self._pools)

    def add_pools(self, pools: Iterable[TaskPool]) -> None:
        """Serve ``pools``, too."""
        for pool in pools:
            pool.attach(self.schedule)
            with self.schedule.condition:
                self._pools.append(pool)

    def remove_pools(self, pools: Iterable[TaskPool]) -> None:
        """Forget ``pools``; what waits in them is still served."""
        with self.schedule.condition:
            self._pools = [pool for pool in self._pools if pool not in tuple(pools)]

    def start(self) -> None:
        """Start the thread."""
        if self._thread is not None:
            raise RuntimeClosedError("the thread of a device is started once")
        name = f"hivemind-{self.device}" if self.device is not None else "hivemind-device"
        # a daemon thread, so that an exit without shutdown() is no hang
        self._thread = threading.Thread(target=self._serve, name=name, daemon=True)
        self._thread.start()

    def is_alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread is not None and self._thread.is_alive()

    def submit(self, function: Callable[[], T]) -> HivemindFuture[T]:
        """Run ``function()`` on the thread, between two batches.

        :raises RuntimeClosedError: after `shutdown`
        """
        future: HivemindFuture[T] = HivemindFuture()

        def job() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                result = function()
            except Exception as error:  # noqa: BLE001 - it is the caller's
                future.set_exception(error)
            else:
                future.set_result(result)

        with self.schedule.condition:
            if self._ending:
                raise RuntimeClosedError("the thread of the device has ended")
            self._jobs.append(job)
            self.schedule.condition.notify()
        return future

    def shutdown(self, deadline: Deadline | None = None) -> bool:
        """Serve what waits, end the thread. Idempotent.

        :param deadline: after it the rest is dropped; by default at once
        :returns: whether all was served
        """
        deadline = deadline if deadline is not None else Deadline.after(0)
        with self.schedule.condition:
            self._ending = self.schedule.closed = True
            self.schedule.condition.notify()
        thread = self._thread
        if thread is None or not thread.is_alive():
            return True
        thread.join(deadline.timeout())
        if not thread.is_alive():
            return True
        with self.schedule.condition:
            self._dropping = True
            self.schedule.condition.notify()
        for pool in self._pools:
            pool.drop_all()
        thread.join(_END_SECONDS)
        if thread.is_alive():
            logger.error("%s: the batch that it runs does not end in %s s", thread.name, _END_SECONDS)
        return False

    def _serve(self) -> None:
        if self.device is not None and self.device.type == "cuda":
            torch.cuda.set_device(self.device)
        while (work := self._next()) is not None:
            try:
                work()
            except Exception:  # errors of tasks are theirs: this is one of the pool itself
                logger.exception("while serving a batch")
            del work  # what it holds must not wait for the next one

    def _next(self) -> Callable[[], Any] | None:
        """What to do next; waits for it. None when there is nothing more to be done."""
        with self.schedule.condition:
            while True:
                if self._dropping:
                    return None
                if self._jobs:
                    return self._jobs.popleft()
                pool, wait = self.schedule.choose()
                if pool is not None:
                    return cast("TaskPool", pool).process_batch
                if self._ending and self.schedule.idle:
                    return None
                self.schedule.condition.wait(wait)
