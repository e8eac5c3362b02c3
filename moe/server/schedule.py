"""The work of one device: which queue is served next, and how much may wait."""

from __future__ import annotations

import math
import threading
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Final, Protocol

from hivemind.clock import monotonic
from hivemind.config import check_count, check_seconds
from hivemind.errors import ServerBusy
from hivemind.moe.server.fair_queue import FairClock, FairQueue, Request, Share

__all__ = ["QueueLimits", "Schedule", "Scheduled"]

#: The shortest time after which a refused client is asked to come back, in seconds.
_MIN_RETRY: Final = 0.05


@dataclass(frozen=True)
class QueueLimits:
    """How much may wait for one device. A client is refused when it holds as much as is still free.

    :param max_waiting: requests
    :param max_wait: seconds of expected work: what would wait longer is refused at once, so that its client can ask
        another server instead of waiting in vain
    """

    max_waiting: int = 4096
    max_wait: float = 30.0

    def __post_init__(self) -> None:
        check_count("max_waiting", self.max_waiting)
        check_seconds("max_wait", self.max_wait)


class Scheduled(Protocol):
    """A pool of tasks, as far as the schedule needs to know it."""

    name: str
    queue: FairQueue


class Schedule:
    """The queues of one device. All of it is guarded by `condition`, which is notified when there is work.

    :param limits: of what may wait
    """

    def __init__(self, limits: QueueLimits | None = None) -> None:
        limits = limits if limits is not None else QueueLimits()
        self.condition = threading.Condition()
        self.clock = FairClock()
        #: whether no more requests are taken, as the device's thread ends
        self.closed = False
        self._requests = Share(limits.max_waiting)
        self._seconds = Share(limits.max_wait)
        #: those with waiting requests; a dictionary as an ordered set
        self._busy: dict[Scheduled, None] = {}

    @property
    def waiting_seconds(self) -> float:
        """Expected seconds of all work that waits."""
        return self._seconds.held

    @property
    def idle(self) -> bool:
        """Whether nothing waits."""
        return not self._busy

    def admit(self, pool: Scheduled, client: Hashable) -> None:
        """
        :raises ServerBusy: if no further request of ``client`` may wait
        """
        if self._requests.admits(client) and self._seconds.admits(client):
            return
        # the queue is short enough for everybody when half of it is served
        raise ServerBusy(f"the queue of {pool.name} is full", max(_MIN_RETRY, self._seconds.held / 2))

    def push(self, pool: Scheduled, request: Request) -> None:
        """Let an admitted request wait."""
        self._requests.take(request.client, 1)
        self._seconds.take(request.client, request.cost)
        pool.queue.push(request, self.clock)
        self._busy[pool] = None
        self.condition.notify()

    def discard(self, pool: Scheduled, request: Request) -> bool:
        """Forget a request; whether it was waiting."""
        if not pool.queue.discard(request, self.clock):
            return False
        self._leave(pool, request)
        return True

    def choose(self) -> tuple[Scheduled | None, float | None]:
        """The pool to be served now, or None and the seconds after which to look again (None: when notified)."""
        now, soonest = monotonic(), math.inf
        best, best_rank = None, None
        for pool in self._busy:
            if (ready := pool.queue.ready_at()) > now:
                soonest = min(soonest, ready)
                continue
            rank = pool.queue.head()
            if rank is not None and (best_rank is None or rank < best_rank):
                best, best_rank = pool, rank
        return best, None if soonest == math.inf else max(0.0, soonest - now)

    def take(self, pool: Scheduled) -> list[Request]:
        """The next batch of ``pool``."""
        batch = pool.queue.take(self.clock)
        for request in batch:
            self._leave(pool, request)
        return batch

    def _leave(self, pool: Scheduled, request: Request) -> None:
        self._requests.give_back(request.client, 1)
        self._seconds.give_back(request.client, request.cost)
        if not len(pool.queue):
            self._busy.pop(pool, None)
