"""Subscriptions: what changes under a key, as it changes."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Any, Final, Self

from hivemind.aio import TaskScope, cancel_and_wait
from hivemind.clock import Deadline, get_dht_time
from hivemind.config import check_seconds
from hivemind.dht.changes import Change, coalesce, entries_of, progress
from hivemind.dht.records import DHTKey, Subkey
from hivemind.dht.routing import DHTID
from hivemind.dht.storage import DHTLocalStorage
from hivemind.errors import DeadlineExceeded, HivemindError, RuntimeClosedError
from hivemind.log import get_logger
from hivemind.runtime import HivemindFuture, Runtime, wait_for
from hivemind.timed_storage import ValueWithExpiration

__all__ = ["DEFAULT_WATCH_INTERVAL", "DHTWatch", "Watch"]

logger = get_logger(__name__)

#: Seconds between two looks at a key whose nodes are others.
DEFAULT_WATCH_INTERVAL: Final = 5.0
#: Seconds between two looks at the least, however often this node is given something.
_SHORTEST_PAUSE: Final = 0.05
#: Bound on `DHTWatch.close`.
_CLOSE_SECONDS: Final = 5.0


class Watch:
    """``async for change in node.watch(key)``, on the loop of the node: every entry that comes, is replaced or expires,
    beginning with those that are there.

    The nodes that hold the key are asked every ``interval`` seconds; what this node itself is given is seen at once. A
    reader that is slow gets the last state of each entry, not each one between: no more is kept than one change an
    entry. End it with `close`, or ``async with``; it also ends with the node.

    :param latest: ``await latest(key)`` gives the latest value that the nodes have, or None
    :param storage: what this node is given
    """

    def __init__(
        self,
        latest: Callable[[DHTID], Awaitable[ValueWithExpiration[Any] | None]],
        storage: DHTLocalStorage,
        key: DHTKey,
        interval: float,
        scope: TaskScope,
    ) -> None:
        check_seconds("interval", interval)
        self._latest = latest
        self._key = DHTID.generate(source=key)
        self._interval = interval
        self._known: dict[Subkey, ValueWithExpiration[Any]] = {}
        # changes that nobody has read yet, by entry
        self._waiting: dict[Subkey, Change] = {}
        self._news = asyncio.Event()
        self._poke = asyncio.Event()
        self._closed = False
        self._unlisten: Callable[[], None] = storage.listen(self._key, self._poke.set)
        self._task = scope.start(self._run(), name="watch of a DHT key")
        self._task.add_done_callback(lambda _: self._finish())

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Change:
        while not self._waiting:
            if self._closed:
                raise StopAsyncIteration
            self._news.clear()
            await self._news.wait()
        return self._waiting.pop(next(iter(self._waiting)))

    async def close(self) -> None:
        """End it; who waits for the next change gets the end of the iteration. Idempotent."""
        self._waiting.clear()
        await cancel_and_wait(self._task)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def _finish(self) -> None:
        self._closed = True
        self._unlisten()
        self._news.set()

    async def _run(self) -> None:
        while True:
            self._poke.clear()
            try:
                found = await self._latest(self._key)
            except RuntimeClosedError:
                return
            except HivemindError as error:
                logger.debug("watching %s: %s", self._key, error)
                found = None
            self._take(entries_of(found))
            await asyncio.sleep(_SHORTEST_PAUSE)
            await self._pause()

    def _take(self, found: dict[Subkey, ValueWithExpiration[Any]]) -> None:
        self._known, changes = progress(self._known, found, get_dht_time())
        for change in changes:
            news = coalesce(self._waiting.pop(change.subkey, None), change)
            if news is not None:
                self._waiting[change.subkey] = news
        if self._waiting:
            self._news.set()

    async def _pause(self) -> None:
        """Wait for the next look: after the interval, when an entry expires, or when this node was given something."""
        soonest = min((entry.expiration_time for entry in self._known.values()), default=float("inf"))
        seconds = min(self._interval, max(soonest - get_dht_time(), 0.0))
        try:
            async with asyncio.timeout(seconds):
                await self._poke.wait()
        except TimeoutError:
            pass


class DHTWatch:
    """`Watch` for the threads and loops of the user: ``for change in dht.watch(key)`` blocks, ``async for`` does not.
    Thread-safe. End it with `close`, or ``with``; it also ends with the DHT."""

    def __init__(self, watch: Watch, runtime: Runtime) -> None:
        self._watch = watch
        self._runtime = runtime

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Change:
        try:
            return self.next_change()
        except StopAsyncIteration:
            raise StopIteration from None

    def next_change(self, timeout: float | None = None) -> Change:
        """The next change; waits for one.

        :param timeout: seconds; None: without end
        :raises DeadlineExceeded: if there is none in that time
        :raises StopAsyncIteration: if the watch has ended
        """
        try:
            change = self._next(timeout).result()
        except RuntimeClosedError:
            change = None
        if isinstance(change, Change):
            return change
        if change is None:
            raise StopAsyncIteration
        raise DeadlineExceeded(f"no change under the key in {timeout} s")

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Change:
        try:
            change = await self._next(None)
        except RuntimeClosedError:
            change = None
        if not isinstance(change, Change):
            raise StopAsyncIteration
        return change

    def _next(self, timeout: float | None) -> HivemindFuture[Change | float | None]:
        """The next change; None at the end, the timeout if that has passed first: neither kind of stop survives a
        future."""
        check_seconds("timeout", timeout, optional=True)
        return self._runtime.submit(self._take, timeout)

    async def _take(self, timeout: float | None) -> Change | float | None:
        try:
            async with asyncio.timeout(timeout):
                return await anext(self._watch)
        except StopAsyncIteration:
            return None
        except TimeoutError:
            return timeout

    def close(self) -> None:
        """End it; who waits for the next change gets the end of the iteration. Idempotent."""
        if self._runtime.running:
            wait_for(self._runtime.submit(self._watch.close), Deadline.after(_CLOSE_SECONDS), "end of the watch")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
