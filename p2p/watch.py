"""A watch over the handlers of a client: how many run and how long, with a word in the log about those that harm."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final, Generic, TypeVar, cast

from hivemind.clock import monotonic
from hivemind.identity import PeerID
from hivemind.log import RateLimit, get_logger
from hivemind.p2p.metrics import LATENCY_BOUNDS
from hivemind.p2p.transport import Buffer, Mode, Stream, StreamHandler, UnaryHandler

__all__ = ["BLOCK_SECONDS", "SLOW_SECONDS", "HandlerStats", "HandlerWatch"]

logger = get_logger(__name__)

T = TypeVar("T")

#: Seconds after which a unary handler is called slow: callers of hivemind give up after some more.
SLOW_SECONDS: Final = 5.0
#: Seconds between two of its waits for which a handler may hold the event loop, and with it all other calls.
BLOCK_SECONDS: Final = 0.5
#: Seconds between two looks at what runs.
_LOOK_SECONDS = 1.0


@dataclass
class HandlerStats:
    """The runs of one handler since its client's start."""

    calls: int = 0
    #: that raised; cancelled ones do not count
    errors: int = 0
    running: int = 0
    #: times that it held the event loop for longer than `BLOCK_SECONDS`
    blocked: int = 0
    #: seconds of all finished runs together
    seconds: float = 0.0
    #: finished runs by duration, see `hivemind.p2p.metrics.LATENCY_BOUNDS`; the longer ones last
    buckets: list[int] = field(default_factory=lambda: [0] * (len(LATENCY_BOUNDS) + 1))

    @contextmanager
    def run(self) -> Iterator[None]:
        """Count one run, which the block is."""
        self.calls += 1
        self.running += 1
        begun = monotonic()
        try:
            yield
        except Exception:
            self.errors += 1
            raise
        finally:
            self.running -= 1
            self._finish(monotonic() - begun)

    def _finish(self, took: float) -> None:
        self.seconds += took
        place = next((i for i, bound in enumerate(LATENCY_BOUNDS) if took <= bound), len(LATENCY_BOUNDS))
        self.buckets[place] += 1


class _Run:
    """One run of a unary handler."""

    __slots__ = ("name", "remote", "started", "warned")

    def __init__(self, name: str, remote: PeerID) -> None:
        self.name = name
        self.remote = remote
        self.started = monotonic()
        self.warned = False


class HandlerWatch:
    """Times the handlers of one client. Owned by its loop.

    Streams run as long as their peers like; only unary handlers are called slow.

    :param slow_seconds: after which a unary handler that runs is named in the log
    """

    def __init__(self, slow_seconds: float = SLOW_SECONDS) -> None:
        self._slow_seconds = slow_seconds
        #: by handler name
        self.stats: dict[str, HandlerStats] = {}
        # in the order of their start
        self._running: dict[_Run, None] = {}
        self._looking: asyncio.TimerHandle | None = None
        self._slow_limit = RateLimit()
        self._block_limit = RateLimit()

    def watch(self, name: str, mode: Mode, handler: Any) -> UnaryHandler | StreamHandler:
        """``handler``, watched."""
        stats = self.stats.setdefault(name, HandlerStats())
        return self._unary(name, handler, stats) if mode is Mode.UNARY else self._stream(name, handler, stats)

    def _unary(self, name: str, handler: UnaryHandler, stats: HandlerStats) -> UnaryHandler:
        async def watched(request: Buffer, remote: PeerID) -> Buffer:
            run = _Run(name, remote)
            self._running[run] = None
            self._look_later()
            try:
                with stats.run():
                    return await _Timed(handler(request, remote), self._blocked(name, remote, stats))
            finally:
                del self._running[run]

        return watched

    def _stream(self, name: str, handler: StreamHandler, stats: HandlerStats) -> StreamHandler:
        async def watched(stream: Stream) -> None:
            with stats.run():
                await _Timed(handler(stream), self._blocked(name, stream.remote_id, stats))

        return watched

    # -- slow ----------------------------------------------------------------------------------------------------------

    def _look_later(self) -> None:
        loop = asyncio.get_running_loop()
        # simulated time passes while nothing runs, and a timer would keep it going
        if self._looking is None and not getattr(loop, "virtual_time", False):
            self._looking = loop.call_later(_LOOK_SECONDS, self._look)

    def _look(self) -> None:
        self._looking = None
        now = monotonic()
        for run in self._running:
            took = now - run.started
            if took < self._slow_seconds:
                break  # the others have begun later
            if not run.warned and self._slow_limit.allow():
                run.warned = True
                logger.warning(
                    "handler %s, called by %s, has been running for %.0f s: callers may give up. Let it answer at once "
                    "and be asked again, or make it a stream; slow_handler_seconds sets what is slow",
                    run.name,
                    run.remote,
                    took,
                )
        if self._running:
            self._look_later()

    def close(self) -> None:
        """Look no more until the next run. Idempotent."""
        looking, self._looking = self._looking, None
        if looking is not None:
            looking.cancel()

    # -- blocking ------------------------------------------------------------------------------------------------------

    def _blocked(self, name: str, remote: PeerID, stats: HandlerStats) -> Callable[[float], None]:
        def report(took: float) -> None:
            stats.blocked += 1
            if self._block_limit.allow():
                logger.warning(
                    "handler %s, called by %s, held the event loop for %.1f s: all other calls of this process waited. "
                    "Move such work to a thread, as by asyncio.to_thread",
                    name,
                    remote,
                    took,
                )

        return report


class _Timed(Generic[T]):
    """Awaits a handler's run; each of its steps, from one wait to the next, is timed."""

    __slots__ = ("_blocked", "_steps")

    def __init__(self, awaitable: Awaitable[T], blocked: Callable[[float], None]) -> None:
        self._steps: Any = awaitable.__await__()
        self._blocked = blocked

    def __await__(self) -> Generator[Any, None, T]:
        # an iterator with `throw` is all that the interpreter asks for
        return cast("Generator[Any, None, T]", self)

    def __iter__(self) -> _Timed[T]:
        return self

    def __next__(self) -> Any:
        started = monotonic()
        try:
            return next(self._steps)
        finally:
            self._check(started)

    def throw(self, error: BaseException) -> Any:
        started = monotonic()
        try:
            return self._steps.throw(error)
        finally:
            self._check(started)

    def close(self) -> None:
        self._steps.close()

    def _check(self, started: float) -> None:
        took = monotonic() - started
        if took > BLOCK_SECONDS:
            self._blocked(took)
