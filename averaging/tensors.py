"""The tensors that are averaged: the lock around them, the copy that goes into a round, the average that comes back.

A round works on a copy, so that the tensors stay usable meanwhile and are as they were if it fails. Its result is
added under the lock as a difference: what the user has changed in the meantime is kept.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from types import TracebackType
from typing import ParamSpec, TypeVar

import torch

from hivemind.compression import CompressionBase, CompressionInfo
from hivemind.errors import ConfigError, SerializationError
from hivemind.runtime import in_pool

__all__ = ["TensorLock", "check_compression", "check_tensors", "commit_average", "copy_tensors"]

T = TypeVar("T")
P = ParamSpec("P")


class TensorLock:
    """Mutual exclusion between user threads and the network thread, in order of arrival.

    Threads take it with ``with``, coroutines with ``async with lock.held()``: a coroutine never blocks its loop. Not
    reentrant, with one exception: within `lent`, code in the same thread may take it again, and gets it at once.
    """

    def __init__(self) -> None:
        self._mutex = threading.Lock()
        # both guarded by _mutex
        self._held = False
        self._waiters: deque[concurrent.futures.Future[None]] = deque()
        self._thread = threading.local()

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        """Take the lock from a thread, as `threading.Lock.acquire`."""
        if getattr(self._thread, "lent", 0):
            self._thread.lent += 1
            return True
        turn = self._queue()
        try:
            turn.result(None if blocking and timeout < 0 else timeout if blocking else 0)
        except concurrent.futures.TimeoutError:
            if turn.cancel():
                return False
        except BaseException:
            self._give_up(turn)
            raise
        return True

    def release(self) -> None:
        """Give the lock to the next in line; any thread may."""
        if getattr(self._thread, "lent", 0) > 1:
            self._thread.lent -= 1
            return
        with self._mutex:
            if not self._held:
                raise RuntimeError("release of a lock that is not held")
            while self._waiters:
                turn = self._waiters.popleft()
                if turn.set_running_or_notify_cancel():
                    turn.set_result(None)
                    return
            self._held = False

    def locked(self) -> bool:
        """Whether somebody holds it."""
        return self._held

    def __enter__(self) -> TensorLock:
        self.acquire()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    async def acquire_async(self) -> None:
        """Take the lock from a coroutine. Cancelling the wait leaves the lock alone."""
        turn = self._queue()
        try:
            await asyncio.wrap_future(turn)
        except asyncio.CancelledError:
            self._give_up(turn)
            raise

    @asynccontextmanager
    async def held(self) -> AsyncIterator[None]:
        """Hold the lock in a coroutine."""
        await self.acquire_async()
        try:
            yield
        finally:
            self.release()

    async def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run ``function`` in the pool of threads while it holds the lock, which it may take again (`lent`).

        If the caller is cancelled, a function that has begun still ends before the lock is released.
        """
        await self.acquire_async()
        begun = threading.Lock()  # taken by whoever is to release: the function, or the caller if it never runs

        def locked() -> T:
            if not begun.acquire(blocking=False):
                raise RuntimeError("the caller has gone")
            try:
                with self.lent():
                    return function(*args, **kwargs)
            finally:
                self.release()

        try:
            return await in_pool(locked)
        finally:
            if begun.acquire(blocking=False):
                self.release()

    @contextmanager
    def lent(self) -> Iterator[None]:
        """The caller holds the lock: within this block, code in this thread that takes it again gets it at once."""
        self._thread.lent = 1
        try:
            yield
        finally:
            self._thread.lent = 0

    def _queue(self) -> concurrent.futures.Future[None]:
        turn: concurrent.futures.Future[None] = concurrent.futures.Future()
        with self._mutex:
            if self._held:
                self._waiters.append(turn)
            else:
                self._held = True
                turn.set_running_or_notify_cancel()
                turn.set_result(None)
        return turn

    def _give_up(self, turn: concurrent.futures.Future[None]) -> None:
        """Leave the line; if the turn has come meanwhile, pass it on."""
        if not turn.cancel() and not turn.cancelled():
            self.release()


def check_tensors(tensors: Iterable[torch.Tensor]) -> tuple[torch.Tensor, ...]:
    """
    :raises ConfigError: unless ``tensors`` are dense tensors that may be changed in place
    """
    checked = tuple(tensors)
    for index, tensor in enumerate(checked):
        name = f"averaged_tensors[{index}]"
        if not isinstance(tensor, torch.Tensor):
            raise ConfigError(name, type(tensor).__name__, "a torch.Tensor")
        if tensor.grad_fn is not None:
            raise ConfigError(name, "a result of autograd", "a leaf tensor: averaging changes it in place")
        if tensor.layout != torch.strided or tensor.is_complex():
            raise ConfigError(name, f"{tensor.layout}, {tensor.dtype}", "a dense tensor of real numbers")
    if not checked:
        raise ConfigError("averaged_tensors", "nothing", "at least one tensor")
    return checked


def check_compression(
    name: str,
    compression: CompressionBase,
    tensors: Sequence[torch.Tensor],
    infos: Sequence[CompressionInfo] | None,
) -> None:
    """
    :param name: of the option, for the error
    :raises ConfigError: if ``compression`` cannot carry one of ``tensors``, or ``infos`` do not belong to them
    """
    if infos is not None and len(infos) != len(tensors):
        raise ConfigError("tensor_infos", f"{len(infos)} descriptions", f"one for each of {len(tensors)} tensors")
    for index, tensor in enumerate(tensors):
        if tensor.numel():
            info = infos[index] if infos is not None else CompressionInfo.from_tensor(tensor, key=index)
            try:
                compression.compress(tensor.detach().flatten()[:1], info)
            except SerializationError as error:
                allowed = f"one that can carry averaged_tensors[{index}], {tensor.dtype} ({error})"
                raise ConfigError(name, type(compression).__name__, allowed) from error


def copy_tensors(tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Copies on the same devices, contiguous, without gradients."""
    with torch.no_grad():
        return [tensor.detach().clone(memory_format=torch.contiguous_format) for tensor in tensors]


def commit_average(
    tensors: Sequence[torch.Tensor],
    before: Sequence[torch.Tensor],
    averaged: Sequence[torch.Tensor],
    *,
    alpha: float,
) -> None:
    """Move ``tensors`` by ``alpha`` of the way from ``before`` to ``averaged``; the caller holds their lock.

    A tensor that is still as it was before takes the average bit by bit, so that all peers end with the same bits. One
    that the user has changed meanwhile gets the difference added. Overwrites ``averaged``.
    """
    with torch.no_grad():
        for tensor, old, new in zip(tensors, before, averaged, strict=True):
            target = tensor.detach()
            if alpha == 1.0 and torch.equal(target, old):
                target.copy_(new)
            elif target.is_floating_point():
                target.add_(new.sub_(old), alpha=alpha)
            else:
                target.copy_((target.double() + alpha * (new.double() - old.double())).round())
