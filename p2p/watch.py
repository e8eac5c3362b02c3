"""A watch over the handlers of a client: how many run and how long, with a word in the log about those that harm."""

from __future__ import annotations

import asyncio
from bisect import bisect_left
from collections.abc import Awaitable, Callable, Generator
from dataclasses import dataclass, field
from time import monotonic
from typing import Any, Final, cast

from hivemind.errors import HandlerBusy
from hivemind.identity import PeerID
from hivemind.log import RateLimit, get_logger
from hivemind.p2p.metrics import LATENCY_BOUNDS
from hivemind.p2p.transport import Buffer, Mode, Stream, StreamHandler, UnaryHandler

__all__ = ["BLOCK_SECONDS", "SLOW_SECONDS", "HandlerStats", "HandlerWatch"]

logger = get_logger(__name__)

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
    #: that raised; neither cancelled ones count nor those that were busy
    errors: int = 0
    #: that raised `HandlerBusy`
    busy: int = 0
    running: int = 0
    #: times that it held the event loop for longer than `BLOCK_SECONDS`
    blocked: int = 0
    #: seconds of all finished runs together
    seconds: float = 0.0
    #: finished runs by duration, see `hivemind.p2p.metrics.LATENCY_BOUNDS`; the longer ones last
    buckets: list[int] = field(default_factory=lambda: [0] * (len(LATENCY_BOUNDS) + 1))


class HandlerWatch:
    """Times the handlers of one client. Owned by its loop.

    Streams run as long as their peers like; only unary handlers are called slow.

    :param slow_seconds: after which a unary handler that runs is named in the log
    """

    def __init__(self, slow_seconds: float = SLOW_SECONDS) -> None:
        self._slow_seconds = slow_seconds
        #: by handler name
        self.stats: dict[str, HandlerStats] = {}
        # unary runs in the order of their start
        self._running: dict[_Run, None] = {}
        self._looking: asyncio.TimerHandle | None = None
        self._slow_limit = RateLimit()
        self._block_limit = RateLimit()

    def watch(self, name: str, mode: Mode, handler: Any) -> UnaryHandler | StreamHandler:
        """``handler``, watched."""
        stats = self.stats.setdefault(name, HandlerStats())
        return self._unary(name, handler, stats) if mode is Mode.UNARY else self._stream(name, handler, stats)

    def _unary(self, name: str, handler: UnaryHandler, stats: HandlerStats) -> UnaryHandler:
        running = self._running

        def watched(request: Buffer, remote: PeerID) -> Awaitable[Buffer]:
            run = _Run(handler(request, remote), stats, name, remote, self._blocked, running)
            running[run] = None
            if self._looking is None:
                self._look_later()
            return run

        return watched

    def _stream(self, name: str, handler: StreamHandler, stats: HandlerStats) -> StreamHandler:
        def watched(stream: Stream) -> Awaitable[None]:
            return _Run(handler(stream), stats, name, stream.remote_id, self._blocked, None)

        return watched

    def _look_later(self) -> None:
        loop = asyncio.get_running_loop()
        # simulated time passes while nothing runs, and a timer would keep it going
        if not getattr(loop, "virtual_time", False):
            self._looking = loop.call_later(_LOOK_SECONDS, self._look)

    def _look(self) -> None:
        self._looking = None
        now = monotonic()
        for run in self._running:
            took = now - run.begun
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

    def _blocked(self, run: _Run, took: float) -> None:
        if self._block_limit.allow():
            logger.warning(
                "handler %s, called by %s, held the event loop for %.1f s: all other calls of this process waited. "
                "Move such work to a thread, as by asyncio.to_thread",
                run.name,
                run.remote,
                took,
            )

    def close(self) -> None:
        """Look no more until the next run. Idempotent."""
        looking, self._looking = self._looking, None
        if looking is not None:
            looking.cancel()


class _Run:
    """One run of a handler, to be awaited once: counts it, and times each of its steps from one wait to the next.

    It is on the way of every call, so it is one object without further ones.
    """

    __slots__ = ("_blocked", "_running", "_stats", "_steps", "begun", "name", "remote", "warned")

    def __init__(
        self,
        awaitable: Awaitable[Any],
        stats: HandlerStats,
        name: str,
        remote: PeerID,
        blocked: Callable[[_Run, float], None],
        running: dict[_Run, None] | None,
    ) -> None:
        self._steps: Any = awaitable.__await__()
        self._stats = stats
        self._blocked = blocked
        self._running = running
        self.name = name
        self.remote = remote
        self.begun = monotonic()
        self.warned = False
        stats.calls += 1
        stats.running += 1

    def __await__(self) -> Generator[Any, None, Any]:
        # an iterator with `throw` is all that the interpreter asks for
        return cast("Generator[Any, None, Any]", self)

    def __iter__(self) -> _Run:
        return self

    def __next__(self) -> Any:
        return self._step(self._steps.__next__)

    def throw(self, *error: Any) -> Any:
        return self._step(self._steps.throw, *error)

    def close(self) -> None:
        self._steps.close()
        self._end()

    def _step(self, resume: Callable[..., Any], *error: Any) -> Any:
        started = monotonic()
        try:
            return resume(*error)
        except StopIteration:
            self._end()
            raise
        except Exception as error:
            if isinstance(error, HandlerBusy):
                self._stats.busy += 1
            else:
                self._stats.errors += 1
            self._end()
            raise
        except BaseException:
            self._end()
            raise
        finally:
            took = monotonic() - started
            if took > BLOCK_SECONDS:
                self._stats.blocked += 1
                self._blocked(self, took)

    def _end(self) -> None:
        stats, took = self._stats, monotonic() - self.begun
        stats.running -= 1
        stats.seconds += took
        stats.buckets[bisect_left(LATENCY_BOUNDS, took)] += 1
        if self._running is not None:
            self._running.pop(self, None)
