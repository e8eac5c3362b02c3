"""Tells the swarm how far this peer is and asks how far the others are: the network side of the progress tracker."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Protocol

from hivemind.aio import with_deadline
from hivemind.clock import Deadline, DHTExpiration, get_dht_time
from hivemind.errors import HivemindError, RuntimeClosedError
from hivemind.log import RateLimit, get_logger
from hivemind.optim.progress import progress_key, read_reports, record_value
from hivemind.optim.swarm_view import SwarmView

__all__ = ["ProgressReporting", "RecordStore"]

logger = get_logger(__name__)

#: Seconds within which one fetch or report must be done: a search that meets several silent nodes takes some.
_OPERATION_SECONDS = 15.0
#: Seconds until a failed report is tried again.
_RETRY_SECONDS = 0.5


class RecordStore(Protocol):
    """The two methods of `hivemind.dht.DHTNode` that are used here."""

    def get(self, key: object, latest: bool = False) -> Awaitable[object | None]: ...

    def store(
        self, key: object, value: object, expiration_time: DHTExpiration, subkey: object = None
    ) -> Awaitable[bool]: ...


class ProgressReporting:
    """Two loops over one `SwarmView`: report and fetch. Owned by one event loop; `progressed` from any thread.

    :param node: where the records are
    :param run_id: names the record
    :param own_subkey: the owner marker of this peer's key
    """

    def __init__(self, node: RecordStore, view: SwarmView, run_id: str, own_subkey: bytes) -> None:
        self._node = node
        self._view = view
        self._key = progress_key(run_id)
        self._own_subkey = own_subkey
        self._loop = asyncio.get_running_loop()
        self._progressed = asyncio.Event()
        # set by own progress, which may bring the next fetch forward
        self._fetch_check = asyncio.Event()
        self._fetch_wanted = False
        self._stopped = asyncio.Event()
        self._warnings = RateLimit()

    def progressed(self, new_epoch: bool) -> None:
        """The own progress has changed; with a new epoch, the others' probably have too."""

        def wake() -> None:
            self._progressed.set()
            self._fetch_wanted = self._fetch_wanted or new_epoch
            self._fetch_check.set()

        try:
            self._loop.call_soon_threadsafe(wake)
        except RuntimeError:  # the loop has ended
            logger.debug("progress after the network thread has stopped")

    def stop(self) -> None:
        """Let `run` say goodbye and return. From any thread."""
        try:
            self._loop.call_soon_threadsafe(self._stopped.set)
        except RuntimeError:
            logger.debug("stopped after the network thread has stopped")

    async def run(self, goodbye_seconds: float) -> None:
        """Report and fetch until `stop`, or until the node is gone; then withdraw the own report, in
        ``goodbye_seconds`` at the most."""
        async with asyncio.TaskGroup() as tasks:
            loops = [
                tasks.create_task(self._guarded(self._report), name="progress-report"),
                tasks.create_task(self._guarded(self._fetch), name="progress-fetch"),
            ]
            stopped = tasks.create_task(self._stopped.wait(), name="progress-stop")
            await asyncio.wait((*loops, stopped), return_when=asyncio.FIRST_COMPLETED)
            for task in (*loops, stopped):
                task.cancel()
        if self._view.has_reported:
            await self._say_goodbye(Deadline.after(goodbye_seconds))

    async def _guarded(self, step: Callable[[], Awaitable[None]]) -> None:
        """Repeat ``step`` while the node lives; what fails in the network is told and tried again."""
        while True:
            try:
                await step()
            except RuntimeClosedError as error:
                logger.debug("progress of %s ends: %s", self._key, error)
                return
            except (HivemindError, OSError) as error:
                if self._warnings.allow():
                    logger.warning("progress of %s: %s: %s", self._key, type(error).__name__, error)
                await asyncio.sleep(_RETRY_SECONDS)

    async def _report(self) -> None:
        self._progressed.clear()
        progress, due = self._view.next_report()
        if due is None or due > progress.time:
            await _wait(self._progressed, None if due is None else due - progress.time)
            return
        stored = await self._store(record_value(progress), progress.time, Deadline.after(_OPERATION_SECONDS))
        if stored:
            self._view.mark_reported(progress)
        else:
            await asyncio.sleep(_RETRY_SECONDS)

    async def _fetch(self) -> None:
        self._fetch_wanted = False
        await self.fetch()
        fetched = get_dht_time()
        while not self._fetch_wanted:
            self._fetch_check.clear()
            now = get_dht_time()
            period = self._view.swarm.next_fetch_time - now
            if fetched + period <= now:
                return
            await _wait(self._fetch_check, fetched + period - now)

    async def fetch(self) -> None:
        """Ask the DHT for all reports now."""
        found = await with_deadline(
            self._node.get(self._key, latest=True),
            Deadline.after(_OPERATION_SECONDS),
            "fetching progress",
        )
        entries = getattr(found, "value", None)
        if not isinstance(entries, dict):
            entries = {}
        reports, refused = read_reports(entries, now=get_dht_time())
        reports.pop(self._own_subkey, None)
        if refused and self._warnings.allow():
            logger.warning("%s: %d of %d reports are malformed", self._key, refused, len(entries))
        self._view.update_others(reports)

    async def _store(self, value: object, now: DHTExpiration, deadline: Deadline) -> bool:
        expiration = now + self._view.options.metadata_expiration
        return await with_deadline(
            self._node.store(self._key, value, expiration, subkey=self._own_subkey),
            deadline,
            "reporting progress",
        )

    async def _say_goodbye(self, deadline: Deadline) -> None:
        try:
            await self._store(None, get_dht_time(), deadline)
        except (HivemindError, OSError) as error:
            logger.debug("no goodbye on %s: %s", self._key, error)


async def _wait(event: asyncio.Event, seconds: float | None) -> None:
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        return
