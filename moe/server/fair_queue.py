"""Which requests are served next, in what batch, and which are refused. Pure: no clock, thread or tensor.

Requests wait in one `FairQueue` per function of an expert. All queues of a device share one `FairClock`, which gives
each client its turn by start-time fair queueing (Goyal, Vin, Cheng 1996): a client that asks for much waits behind its
own requests, not in front of those of others. What may wait at all is bounded by a `Share`, of which each client has as
much as is still free (the dynamic thresholds of Choudhury and Hahne 1998): there is always room for a newcomer.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Hashable, Iterator
from dataclasses import dataclass, field
from typing import Final

__all__ = ["FairClock", "FairQueue", "Request", "Share"]

#: Clients without a waiting request that a clock remembers.
_MAX_IDLE_CLIENTS: Final = 1024
#: Requests that a batch may pass over because they do not fit into it.
_MAX_PASSED_OVER: Final = 64

_order = itertools.count()

#: Smaller is sooner: priority, turn of the client, order of arrival.
Rank = tuple[float, float, int]


@dataclass(eq=False, slots=True)
class Request:
    """What waits for its turn.

    :param client: who asks
    :param size: samples
    :param cost: seconds that it is expected to take
    :param kind: only requests of one kind go in one batch
    :param since: when it came, in seconds of any clock
    :param priority: smaller is sooner, whatever the shares
    """

    client: Hashable
    size: int
    cost: float
    kind: Hashable = None
    since: float = 0.0
    priority: float = 0.0
    rank: Rank = field(default=(math.inf, math.inf, 0), init=False)
    waits: bool = field(default=False, init=False)


class Share:
    """Something bounded that clients hold parts of. A client gets more while it holds less than what is still free.

    :param limit: of all parts together; the last one that was let in may exceed it
    """

    def __init__(self, limit: float) -> None:
        self.limit = limit
        self.held = 0.0
        self._by_client: dict[Hashable, float] = {}

    def admits(self, client: Hashable) -> bool:
        """Whether ``client`` may hold more."""
        return self._by_client.get(client, 0.0) < self.limit - self.held

    def take(self, client: Hashable, amount: float) -> None:
        """``client`` holds so much more."""
        self.held += amount
        self._by_client[client] = self._by_client.get(client, 0.0) + amount

    def give_back(self, client: Hashable, amount: float) -> None:
        """``client`` holds so much less."""
        left = self._by_client.get(client, 0.0) - amount
        if left > 1e-9:
            self._by_client[client] = left
        else:
            self._by_client.pop(client, None)
        self.held = max(0.0, self.held - amount) if self._by_client else 0.0


class FairClock:
    """The turns of clients: the time at which each would have been served so much if all were served at once."""

    def __init__(self) -> None:
        self._now = 0.0
        self._waiting: dict[Hashable, int] = {}
        self._finish: dict[Hashable, float] = {}

    def turn(self, client: Hashable, cost: float) -> float:
        """The turn of a further request of ``client``."""
        start = max(self._now, self._finish.get(client, 0.0))
        self._finish[client] = start + cost
        self._waiting[client] = self._waiting.get(client, 0) + 1
        return start

    def served(self, request: Request) -> None:
        """``request`` is being served."""
        self._now = max(self._now, request.rank[1])
        self._leave(request.client)

    def cancelled(self, request: Request) -> None:
        """``request`` will not be served: its client gets the time back."""
        self._finish[request.client] = max(self._now, self._finish[request.client] - request.cost)
        self._leave(request.client)

    def _leave(self, client: Hashable) -> None:
        self._waiting[client] -= 1
        if not self._waiting[client]:
            del self._waiting[client]
        if not self._waiting:
            self._finish.clear()
        elif len(self._finish) > len(self._waiting) + _MAX_IDLE_CLIENTS:
            self._finish = {known: self._finish[known] for known in self._waiting}


class FairQueue:
    """Requests that wait for one function, and the batches that they make.

    :param max_batch_size: samples in a batch at most; no request has more
    :param min_batch_size: samples that a batch waits for
    :param patience: seconds after which a batch does not wait any longer for those
    """

    def __init__(self, max_batch_size: int, min_batch_size: int = 1, patience: float = 0.0) -> None:
        self.max_batch_size, self.min_batch_size, self.patience = max_batch_size, min_batch_size, patience
        #: samples that wait
        self.samples = 0
        self._heap: list[tuple[Rank, Request]] = []
        #: in order of arrival; a dictionary as an ordered set
        self._waiting: dict[Request, None] = {}

    def __len__(self) -> int:
        return len(self._waiting)

    def __iter__(self) -> Iterator[Request]:
        return iter(tuple(self._waiting))

    def push(self, request: Request, clock: FairClock) -> None:
        """Let ``request`` wait."""
        request.rank = (request.priority, clock.turn(request.client, request.cost), next(_order))
        request.waits = True
        self._waiting[request] = None
        self.samples += request.size
        heapq.heappush(self._heap, (request.rank, request))

    def discard(self, request: Request, clock: FairClock) -> bool:
        """Forget ``request``; whether it was waiting."""
        if not request.waits:
            return False
        self._remove(request)
        clock.cancelled(request)
        if len(self._heap) > 2 * len(self._waiting) + 64:
            self._heap = [entry for entry in self._heap if entry[1].waits]
            heapq.heapify(self._heap)
        return True

    def head(self) -> Rank | None:
        """The rank of the request that is served next; None if nothing waits."""
        while self._heap and not self._heap[0][1].waits:
            heapq.heappop(self._heap)
        return self._heap[0][0] if self._heap else None

    def ready_at(self) -> float:
        """When a batch can be made, by the clock of `Request.since`; ``inf`` if nothing waits."""
        if not self._waiting:
            return math.inf
        if self.samples >= self.min_batch_size:
            return -math.inf
        return next(iter(self._waiting)).since + self.patience

    def take(self, clock: FairClock) -> list[Request]:
        """The next batch: the first request, and those behind it that fit."""
        batch: list[Request] = []
        passed_over: list[tuple[Rank, Request]] = []
        size = 0
        while self.head() is not None and size < self.max_batch_size and len(passed_over) < _MAX_PASSED_OVER:
            rank, request = heapq.heappop(self._heap)
            if batch and (request.kind != batch[0].kind or size + request.size > self.max_batch_size):
                passed_over.append((rank, request))
                continue
            self._remove(request)
            clock.served(request)
            batch.append(request)
            size += request.size
        for entry in passed_over:
            heapq.heappush(self._heap, entry)
        return batch

    def _remove(self, request: Request) -> None:
        request.waits = False
        del self._waiting[request]
        self.samples -= request.size
