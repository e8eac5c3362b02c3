"""Pools: tasks of many clients that wait for one function, and become one batch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from bisect import bisect_left
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from hivemind.clock import monotonic
from hivemind.config import check_count, check_seconds
from hivemind.errors import ExpertError, ExpertFailed, InputMismatch, ServerBusy, UnknownExpert
from hivemind.log import RateLimit, get_logger
from hivemind.moe.server.fair_queue import FairQueue, Request
from hivemind.moe.server.schedule import Schedule
from hivemind.p2p import LATENCY_BOUNDS
from hivemind.runtime import HivemindFuture

__all__ = ["PoolStats", "Task", "TaskPool", "TaskPoolBase"]

logger = get_logger(__name__)

#: Seconds for a sample that a pool expects before it has measured any.
_FIRST_GUESS = 1e-4
#: Weight of the last batch in the speed that a pool expects.
_ALPHA = 0.2

Tensors = tuple[torch.Tensor, ...]


@dataclass(frozen=True)
class PoolStats:
    """What a pool has done so far.

    :param seconds: that its function ran
    :param waited: seconds that requests waited for their turn, all together
    :param answered: seconds from the arrival of requests to their outcome, all together
    :param refused: requests for which there was no room
    :param cancelled: requests whose clients gave up while they waited
    :param failed: requests that ended in an error of the function
    """

    batches: int = 0
    requests: int = 0
    samples: int = 0
    seconds: float = 0.0
    waited: float = 0.0
    answered: float = 0.0
    refused: int = 0
    cancelled: int = 0
    failed: int = 0


@dataclass(eq=False, slots=True, kw_only=True)
class Task(Request):
    """A request with its tensors and the future of its outputs."""

    args: Tensors
    future: HivemindFuture[Tensors]


class TaskPoolBase(ABC):
    """Tasks that wait for ``process_func``; a `Runtime` calls it with a batch of them at a time.

    :param process_func: takes and gives tensors; runs on the device's thread only
    :param name: for statistics and errors
    """

    def __init__(self, process_func: Callable[..., Any], name: str) -> None:
        self.process_func = process_func
        self.name = name

    @abstractmethod
    def submit_task(self, *args: torch.Tensor) -> HivemindFuture[Tensors]:
        """Let a task wait for its turn. Thread-safe."""

    @abstractmethod
    def process_batch(self) -> None:
        """Take the next batch, run it and finish its tasks; on the device's thread."""

    @property
    @abstractmethod
    def empty(self) -> bool:
        """Whether no task waits."""


class TaskPool(TaskPoolBase):
    """Gathers tasks into batches along dimension 0. Thread-safe.

    :param process_func: takes tensors of a batch, gives a tensor or a sequence of tensors of the same batch
    :param max_batch_size: samples in a batch at most; a larger task is refused
    :param min_batch_size: samples that a batch waits for
    :param timeout: seconds after which a batch does not wait any longer for those
    :param pool_size: tasks that may wait; None: as many as the schedule of the device allows
    :param prefetch_batches: accepted, as ``daemon`` and ``start``, for hivemind 1.1, whose pools were processes
    :param device: where the tensors of a batch are brought; None: they stay where they are
    """

    def __init__(
        self,
        process_func: Callable[..., Any],
        max_batch_size: int,
        name: str,
        min_batch_size: int = 1,
        timeout: float | None = None,
        pool_size: int | None = None,
        prefetch_batches: int = 1,
        daemon: bool = True,
        start: bool = False,
        *,
        device: torch.device | None = None,
    ) -> None:
        del prefetch_batches, daemon, start
        super().__init__(process_func, name)
        check_count("max_batch_size", max_batch_size)
        check_count("min_batch_size", min_batch_size)
        check_seconds("timeout", timeout, optional=True, zero=True)
        check_count("pool_size", pool_size, optional=True)
        patience = 1.0 if timeout is None else timeout
        self.queue = FairQueue(max_batch_size, min(min_batch_size, max_batch_size), patience)
        self.max_batch_size = max_batch_size
        self.pool_size = pool_size
        self.device = device
        #: replaced by `attach`; its condition guards the queue and the statistics
        self.schedule = Schedule()
        # guarded by the schedule's condition
        self._log = RateLimit()
        self._running = False
        self._closing: HivemindFuture[None] | None = None
        self._stats = PoolStats()
        #: requests by the seconds from arrival to outcome, see `LATENCY_BOUNDS`
        self.latencies = [0] * (len(LATENCY_BOUNDS) + 1)
        self._seconds_per_sample = _FIRST_GUESS

    def attach(self, schedule: Schedule) -> None:
        """From now on its tasks wait in ``schedule``. On the thread that made it, before the first task."""
        self.schedule = schedule

    @property
    def empty(self) -> bool:
        return not len(self.queue)

    @property
    def stats(self) -> PoolStats:
        """What it has done so far."""
        return self._stats

    def submit_task(
        self, *args: torch.Tensor, client: Hashable = None, priority: float = 0.0
    ) -> HivemindFuture[Tensors]:
        """Let a task wait for its turn. Cancelling the future takes it out of the queue.

        :param args: tensors with the same first dimension, the samples
        :param client: who asks; clients have fair shares of the device
        :param priority: smaller is sooner, whatever the shares
        :raises InputMismatch: if there are no samples, too many, or not the same number in all tensors
        :raises ServerBusy: if there is no room for more tasks of this client
        :raises UnknownExpert: after `close`, or when the server ends
        """
        size = self._size_of(args)
        task = Task(
            client=client,
            size=size,
            cost=size * self._seconds_per_sample,
            kind=tuple((arg.shape[1:], arg.dtype) for arg in args),
            since=monotonic(),
            priority=priority,
            args=args,
            future=HivemindFuture(),
        )
        schedule = self.schedule
        with schedule.condition:
            if self._closing is not None or schedule.closed:
                raise UnknownExpert(f"{self.name} is not served any more")
            try:
                schedule.admit(self, client)
                if self.pool_size is not None and len(self.queue) >= self.pool_size:
                    raise ServerBusy(f"the queue of {self.name} is full", max(0.05, schedule.waiting_seconds / 2))
            except ServerBusy:
                self._count(refused=1)
                raise
            schedule.push(self, task)
        task.future.add_done_callback(lambda future: self._forget(task) if future.cancelled() else None)
        return task.future

    def _size_of(self, args: Sequence[torch.Tensor]) -> int:
        sizes = {arg.shape[0] if arg.ndim else 0 for arg in args}
        if len(sizes) != 1:
            raise InputMismatch(f"{self.name}: all inputs must have the same number of samples, got {sorted(sizes)}")
        size = sizes.pop()
        if not 1 <= size <= self.max_batch_size:
            raise InputMismatch(f"{self.name}: got a batch of {size} samples, allowed: 1 to {self.max_batch_size}")
        return size

    def _forget(self, task: Task) -> None:
        with self.schedule.condition:
            if self.schedule.discard(self, task):
                self._count(cancelled=1)
                self._check_closed()

    def close(self) -> HivemindFuture[None]:
        """Take no more tasks; done when those that wait have been served."""
        with self.schedule.condition:
            if self._closing is None:
                self._closing = HivemindFuture()
            self._check_closed()
            return self._closing

    def _check_closed(self) -> None:
        closing = self._closing
        if closing is not None and self.empty and not self._running and not closing.done():
            closing.set_result(None)

    def drop_all(self) -> None:
        """Fail all that waits: the server ends."""
        with self.schedule.condition:
            dropped = [task for task in self.queue if isinstance(task, Task) and self.schedule.discard(self, task)]
        for task in dropped:
            if task.future.set_running_or_notify_cancel():
                task.future.set_exception(UnknownExpert(f"{self.name}: the server ends"))

    def _count(self, **changes: float) -> None:
        """Add to the statistics; under the condition's lock, or on the device's thread."""
        stats = self._stats
        self._stats = replace(stats, **{name: getattr(stats, name) + more for name, more in changes.items()})

    # -- on the device's thread ----------------------------------------------------------------------------------------

    def process_batch(self) -> None:
        with self.schedule.condition:
            taken = [task for task in self.schedule.take(self) if isinstance(task, Task)]
            self._running = True
        try:
            self._process(taken)
        finally:
            with self.schedule.condition:
                self._running = False
                self._check_closed()

    def _process(self, taken: list[Task]) -> None:
        tasks = [task for task in taken if task.future.set_running_or_notify_cancel()]
        if not tasks:
            return
        begin = monotonic()
        outcomes = self._run_each(tasks)
        end = monotonic()
        seconds = end - begin
        size = sum(task.size for task in tasks)
        with self.schedule.condition:
            if self._stats.batches:  # the first one also pays for what torch sets up
                self._seconds_per_sample += _ALPHA * (seconds / size - self._seconds_per_sample)
            self._count(
                batches=1,
                requests=len(tasks),
                samples=size,
                seconds=seconds,
                waited=sum(begin - task.since for task in tasks),
                answered=sum(end - task.since for task in tasks),
                failed=sum(isinstance(outcome, Exception) for outcome in outcomes),
            )
            for task in tasks:
                self.latencies[bisect_left(LATENCY_BOUNDS, end - task.since)] += 1
        for task, outcome in zip(tasks, outcomes, strict=True):
            if isinstance(outcome, Exception):
                task.future.set_exception(outcome)
            else:
                task.future.set_result(outcome)

    def _run_each(self, tasks: list[Task]) -> list[Tensors | ExpertError]:
        """The outputs of each task. If the batch fails, each task runs alone: none fails for what another has sent."""
        try:
            return list(self._run(tasks))
        except Exception as error:
            if len(tasks) == 1:
                return [self._failure(error)]
            logger.debug("a batch of %d tasks of %s failed", len(tasks), self.name, exc_info=True)
        return [self._run_each([task])[0] for task in tasks]

    def _failure(self, error: Exception) -> ExpertError:
        if isinstance(error, ExpertError):
            return error
        if self._log.allow():
            logger.warning("%s failed", self.name, exc_info=True)
        return ExpertFailed(f"{self.name}: {type(error).__name__}: {str(error)[:2000]}")

    def _run(self, tasks: list[Task]) -> list[Tensors]:
        columns = zip(*(task.args for task in tasks), strict=True)
        inputs = [torch.cat(column) if len(column) > 1 else column[0] for column in columns]
        if self.device is not None:
            inputs = [tensor.to(self.device, non_blocking=True) for tensor in inputs]
        outputs = self.process_func(*inputs)
        flat = [outputs] if isinstance(outputs, torch.Tensor) else list(outputs)
        sizes = [task.size for task in tasks]
        for output in flat:
            if output.ndim < 1 or output.shape[0] != sum(sizes):
                raise ExpertFailed(f"{self.name}: {sum(sizes)} samples gave an output of shape {tuple(output.shape)}")
        flat = [output.detach().cpu() for output in flat]
        if len(tasks) == 1:
            return [tuple(flat)]
        parts = [output.split(sizes) for output in flat]
        return [tuple(column[index] for column in parts) for index in range(len(tasks))]
