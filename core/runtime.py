"""The network thread: one per process, shared by every DHT, averager, server and tracker.

The thread ``hivemind-net`` runs one asyncio loop (uvloop where installed). It starts with the first `Runtime.acquire`
and ends with the last `Runtime.release`, or at exit. Sync faces own no loop: `Runtime.call` blocks, `Runtime.submit`
returns a `HivemindFuture`; cancelling either side cancels the other.

Work that burns CPU on many bytes goes to one bounded pool through `in_pool`: torch and zlib release the GIL there.
"""

from __future__ import annotations

import asyncio
import atexit
import concurrent.futures
import os
import threading
from collections.abc import Awaitable, Callable, Coroutine, Generator
from typing import Any, Generic, ParamSpec, TypeVar, cast

from hivemind.aio import cancel_and_wait
from hivemind.clock import Deadline
from hivemind.errors import DeadlineExceeded, RuntimeClosedError
from hivemind.log import get_logger

__all__ = ["HivemindFuture", "Runtime", "get_runtime", "in_pool", "pool_backlog", "share_with_pool", "wait_for"]

logger = get_logger(__name__)

T = TypeVar("T")
P = ParamSpec("P")

#: Seconds in which the loop must have ended its tasks when the thread stops.
_STOP_SECONDS = 5.0
#: Seconds after which a blocked caller looks for Ctrl-C again.
_SIGNAL_SECONDS = 0.5


class HivemindFuture(concurrent.futures.Future[T], Generic[T]):
    """A thread-safe future that can be awaited as well, from any loop. What every ``return_future=True`` returns."""

    def __await__(self) -> Generator[Any, None, T]:
        return asyncio.wrap_future(self).__await__()


class Runtime:
    """The network thread of this process. Take it with `get_runtime`. Thread-safe."""

    def __init__(self) -> None:
        self._pid = os.getpid()
        self._lock = threading.Lock()
        # the three below are guarded by _lock; what runs on the loop is owned by the thread
        self._users = 0
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        # owned by the network thread; run in reverse order if the process exits without `shutdown`
        self._closers: list[Callable[[], Awaitable[None]]] = []

    def acquire(self) -> None:
        """Start the thread if it does not run, and count one more user."""
        with self._lock:
            self._check_process()
            if self._thread is None:
                self._start()
            self._users += 1

    def release(self) -> None:
        """Count one user less; the last one stops the thread and waits for its end (bounded). Never raises."""
        if self._pid != os.getpid():
            return
        with self._lock:
            self._users = max(0, self._users - 1)
            last = self._users == 0
        if last:
            self._stop()

    @property
    def running(self) -> bool:
        """Whether the thread runs."""
        return self._thread is not None and self._pid == os.getpid()

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """The loop of the network thread.

        :raises RuntimeClosedError: if the thread does not run, or in a forked child
        """
        self._check_process()
        loop = self._loop
        if loop is None:
            raise RuntimeClosedError("the network thread is not running: nothing was started, or all is shut down")
        return loop

    def in_network_thread(self) -> bool:
        """Whether the caller is on the network thread itself, where a blocking call would wait for itself."""
        thread = self._thread
        return thread is not None and threading.get_ident() == thread.ident

    def submit(
        self, function: Callable[P, Coroutine[Any, Any, T]], *args: P.args, **kwargs: P.kwargs
    ) -> HivemindFuture[T]:
        """Run ``await function(*args, **kwargs)`` on the network thread and return at once.

        Cancelling the future cancels the coroutine; a coroutine that is cancelled cancels the future.

        :raises RuntimeClosedError: if the thread does not run
        """
        future: HivemindFuture[T] = HivemindFuture()
        loop = self.loop

        def start() -> None:
            if future.cancelled():
                return
            name = getattr(function, "__qualname__", "submitted")
            task = loop.create_task(function(*args, **kwargs), name=name)
            task.add_done_callback(lambda ended: _pass_on(ended, future))
            future.add_done_callback(lambda ended: _cancel_from_afar(loop, task) if ended.cancelled() else None)

        try:
            loop.call_soon_threadsafe(start)
        except RuntimeError as error:
            raise RuntimeClosedError("the network thread has just stopped") from error
        return future

    def call(
        self,
        function: Callable[P, Coroutine[Any, Any, T]],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T:
        """Run ``await function(*args, **kwargs)`` on the network thread and wait for its result.

        The wait is as long as the function's: bound it there. Ctrl-C during the wait cancels the function.

        :raises RuntimeClosedError: if the thread does not run, or the caller is on it
        """
        if self.in_network_thread():
            raise RuntimeClosedError("a blocking call on the network thread would wait for itself: await it instead")
        future = self.submit(function, *args, **kwargs)
        try:
            return _result(future)
        except BaseException:
            future.cancel()
            raise

    def add_closer(self, closer: Callable[[], Awaitable[None]]) -> None:
        """Have ``closer`` awaited if the process exits while the thread runs. On the network thread only."""
        self._closers.append(closer)

    def remove_closer(self, closer: Callable[[], Awaitable[None]]) -> None:
        """Forget ``closer``; unknown ones are ignored. On the network thread only."""
        if closer in self._closers:
            self._closers.remove(closer)

    def _check_process(self) -> None:
        if self._pid != os.getpid():
            raise RuntimeClosedError(
                "the network thread of the parent process does not exist in a forked child: start a new "
                "process with the 'spawn' or 'forkserver' method, or create the DHT in the child"
            )

    def _start(self) -> None:
        started = threading.Event()

        def run() -> None:
            with asyncio.Runner(loop_factory=_new_loop) as runner:
                self._loop = loop = runner.get_loop()
                loop.call_soon(started.set)
                loop.run_forever()

        # a daemon thread, so that an exit without shutdown() reaches the atexit hook, which stops it in order
        self._thread = threading.Thread(target=run, name="hivemind-net", daemon=True)
        self._thread.start()
        started.wait()

    def _stop(self) -> None:
        # the wait stands outside the lock: what is drained may release its own share
        with self._lock:
            thread, loop = self._thread, self._loop
            self._thread = self._loop = None
            self._users = 0
        if thread is None or loop is None:
            return
        try:
            asyncio.run_coroutine_threadsafe(self._drain(), loop).result(_STOP_SECONDS)
        except TimeoutError:
            logger.error("tasks on the network thread have not ended in %s s", _STOP_SECONDS)
        loop.call_soon_threadsafe(loop.stop)
        if threading.current_thread() is not thread:
            thread.join(_STOP_SECONDS)

    async def _drain(self) -> None:
        closers, self._closers = self._closers, []
        for closer in reversed(closers):
            try:
                async with asyncio.timeout(_STOP_SECONDS / 2):
                    await closer()
            except Exception:
                logger.exception("while closing at exit")
        current = asyncio.current_task()
        await cancel_and_wait(*(task for task in asyncio.all_tasks() if task is not current))

    def _at_exit(self) -> None:
        if self.running:
            self._stop()


def _new_loop() -> asyncio.AbstractEventLoop:
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop()
    return cast("asyncio.AbstractEventLoop", uvloop.new_event_loop())


def _pass_on(task: asyncio.Task[T], future: HivemindFuture[T]) -> None:
    """Bring the end of ``task`` to the future; a future that its user has cancelled keeps that."""
    if task.cancelled():
        future.cancel()
        future.set_running_or_notify_cancel()
        return
    error = task.exception()
    if not future.set_running_or_notify_cancel():
        return
    if error is not None:
        future.set_exception(error)
    else:
        future.set_result(task.result())


def _cancel_from_afar(loop: asyncio.AbstractEventLoop, task: asyncio.Task[Any]) -> None:
    try:
        loop.call_soon_threadsafe(task.cancel)
    except RuntimeError:  # the loop has ended, and its tasks with it
        logger.debug("cancelled after the network thread had stopped")


def _result(future: concurrent.futures.Future[T]) -> T:
    """The result, waited for in slices: Python misses a signal that comes just as a lock begins to wait."""
    while True:
        try:
            return future.result(_SIGNAL_SECONDS)
        except TimeoutError:
            if future.done():
                return future.result()


_runtime_lock = threading.Lock()
_runtime: Runtime | None = None


def get_runtime() -> Runtime:
    """The runtime of this process; in a forked child a new one, since the parent's thread is not there."""
    global _runtime
    with _runtime_lock:
        if _runtime is None or _runtime._pid != os.getpid():
            _runtime = Runtime()
            atexit.register(_runtime._at_exit)
        return _runtime


_pool_lock = threading.Lock()
_pool: concurrent.futures.ThreadPoolExecutor | None = None


def _get_pool() -> concurrent.futures.ThreadPoolExecutor:
    global _pool
    with _pool_lock:
        if _pool is None:
            _pool = concurrent.futures.ThreadPoolExecutor(
                max_workers=max(2, min(8, os.cpu_count() or 2)), thread_name_prefix="hivemind-pool"
            )
        return _pool


def pool_backlog() -> int:
    """Pieces of work that wait for a thread of the pool. Thread-safe."""
    pool = _pool
    return 0 if pool is None else pool._work_queue.qsize()


async def in_pool(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Run ``function`` in the process's bounded pool of threads and await its result.

    For work on many bytes (compress, reduce, hash). On a virtual-clock loop (an attribute ``virtual_time`` that is
    true) it runs in place: simulated time must not pass while real work is done.

    :raises RuntimeClosedError: if the program is ending
    """
    loop = asyncio.get_running_loop()
    if getattr(loop, "virtual_time", False):
        return function(*args, **kwargs)
    try:
        done = loop.run_in_executor(_get_pool(), lambda: function(*args, **kwargs))
    except RuntimeError as error:
        # Python ends all pools before whatever is registered to run at exit, the network thread's end among it
        raise RuntimeClosedError("the program is ending: no more work is begun") from error
    return await done


def share_with_pool(work: Callable[[], None]) -> None:
    """Run ``work`` here and, as far as they are idle, on the pool's threads as well; return when all of them are done.

    ``work`` takes piece after piece from where all of its runs take them, until none is left. The caller needs nobody:
    it does everything alone where the pool is busy, the program is ending, or the process has been forked. Thread-safe,
    also from within the pool.
    """
    pool = _get_pool()
    helpers: list[concurrent.futures.Future[None]] = []
    try:
        helpers += [pool.submit(work) for _ in range(pool._max_workers - 1)]
    except RuntimeError:
        logger.debug("the program is ending: the caller works alone")
    try:
        work()
    finally:
        begun = [helper for helper in helpers if not helper.cancel()]
        concurrent.futures.wait(begun)
    for helper in begun:
        helper.result()


def wait_for(future: concurrent.futures.Future[T], deadline: Deadline, what: str) -> T:
    """The result of ``future``, waited for from a user's thread.

    :raises DeadlineExceeded: when the deadline passes; the future goes on
    """
    try:
        return future.result(deadline.timeout())
    except concurrent.futures.TimeoutError as error:
        if future.done():
            raise
        raise DeadlineExceeded(f"{what}: not done in time") from error
