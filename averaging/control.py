"""The user's handle on one averaging step: when it may run, with what weight, how far it is, and its result."""

from __future__ import annotations

import asyncio
import enum
import math
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from hivemind.clock import Deadline, DHTExpiration, get_dht_time
from hivemind.config import check_count
from hivemind.errors import ConfigError
from hivemind.identity import PeerID
from hivemind.runtime import HivemindFuture

__all__ = ["AveragingStage", "Latch", "RoundReport", "StepControl"]


class AveragingStage(enum.Enum):
    """How far a step is."""

    IDLE = enum.auto()
    LOOKING_FOR_GROUP = enum.auto()
    AWAITING_TRIGGER = enum.auto()
    RUNNING_ALLREDUCE = enum.auto()
    FINISHED = enum.auto()


class Latch:
    """An event that happens once: set from any thread, awaited on any loop."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        # both guarded by _lock
        self._is_set = False
        self._callbacks: list[Callable[[], None]] = []

    def is_set(self) -> bool:
        """Whether it has happened."""
        return self._is_set

    def set(self) -> None:
        """Let it happen; idempotent. Callbacks run in the caller's thread."""
        with self._lock:
            if self._is_set:
                return
            self._is_set = True
            callbacks, self._callbacks = self._callbacks, []
        for callback in callbacks:
            callback()

    async def wait(self) -> None:
        """Return once it has happened; cancelling one waiter leaves the others alone."""
        loop = asyncio.get_running_loop()
        happened: asyncio.Future[None] = loop.create_future()

        def wake() -> None:
            loop.call_soon_threadsafe(lambda: None if happened.done() else happened.set_result(None))

        with self._lock:
            if self._is_set:
                return
            self._callbacks.append(wake)
        try:
            await happened
        finally:
            with self._lock:
                if wake in self._callbacks:
                    self._callbacks.remove(wake)


@dataclass(frozen=True)
class RoundReport:
    """Who was in a round that ended well.

    :param group_id: the id of the group
    :param members: the whole group, in the order that all of them share
    :param contributors: those whose tensors went into the average that this peer got
    :param failed: members that sent nothing or broke off; the average is over the rest
    :param attempts: groups that were tried in this step, this one included
    :param matchmaking_seconds: from the start of the attempt to the group
    :param allreduce_seconds: from the start of the exchange to the average
    """

    group_id: bytes
    members: tuple[PeerID, ...]
    contributors: tuple[PeerID, ...]
    failed: tuple[PeerID, ...] = ()
    attempts: int = 1
    matchmaking_seconds: float = 0.0
    allreduce_seconds: float = 0.0


@dataclass
class _Settings:
    """What a user may still change while the step waits; guarded by `StepControl`'s lock."""

    scheduled_time: DHTExpiration
    weight: float
    stage: AveragingStage = AveragingStage.IDLE
    report: RoundReport | None = None


class StepControl(HivemindFuture[Mapping[PeerID, Any]]):
    """One averaging step: a future of ``{peer: what it gave to gather}`` and the levers of the step.

    Thread-safe; can be awaited from any loop. Cancelling it ends the step and leaves the tensors as they were.

    :param scheduled_time: when the exchange is expected to begin, in DHT time; peers gather until then at the latest
    :param deadline: when the step fails if it has not ended, in DHT time
    :param allow_retries: after a failed round, look for another group until the deadline
    :param weight: this peer's share in the average, relative to the others', >= 0
    :param data_for_gather: what the others get from this peer, as it goes over the wire
    :param known_peers: the peers, or the number of peers with this one, that are expected to take part; the round
        starts as soon as they are there. None: those that declared themselves in the DHT
    :raises ConfigError: on a negative or infinite weight, or a deadline that is not after ``scheduled_time``
    """

    def __init__(
        self,
        *,
        scheduled_time: DHTExpiration,
        deadline: DHTExpiration,
        allow_retries: bool = True,
        weight: float = 1.0,
        data_for_gather: bytes = b"",
        known_peers: int | Iterable[PeerID] | None = None,
    ) -> None:
        super().__init__()
        if not deadline > scheduled_time:
            raise ConfigError("scheduled_time", scheduled_time, f"DHT time before the step's deadline, {deadline}")
        self._lock = threading.Lock()
        self._settings = _Settings(scheduled_time, _checked_weight(weight))
        self._trigger = Latch()
        self._deadline = deadline
        self._allow_retries = allow_retries
        self._gather = data_for_gather
        if isinstance(known_peers, int):
            check_count("known_peers", known_peers)
        self._known_peers = known_peers if isinstance(known_peers, int | None) else frozenset(known_peers)

    @property
    def scheduled_time(self) -> DHTExpiration:
        """When the exchange is expected to begin, in DHT time.

        A change reaches the others with the next declaration, that is when the time declared before has passed.
        """
        return self._settings.scheduled_time

    @scheduled_time.setter
    def scheduled_time(self, value: DHTExpiration) -> None:
        if not value < self._deadline:
            raise ConfigError("scheduled_time", value, f"DHT time before the step's deadline, {self._deadline}")
        with self._lock:
            self._settings.scheduled_time = value

    @property
    def weight(self) -> float:
        """This peer's share in the average; may be set until the exchange begins.

        :raises RuntimeError: on setting it later
        """
        return self._settings.weight

    @weight.setter
    def weight(self, value: float) -> None:
        checked = _checked_weight(value)
        with self._lock:
            if self._began():
                raise RuntimeError("the weight can no longer be changed: the exchange has begun")
            self._settings.weight = checked

    @property
    def deadline(self) -> DHTExpiration:
        """When the step fails if it has not ended, in DHT time."""
        return self._deadline

    def get_timeout(self) -> float:
        """Seconds until the deadline, never negative."""
        return max(0.0, self._deadline - get_dht_time())

    def as_deadline(self) -> Deadline:
        """`deadline` on this machine's own clock."""
        return Deadline.at_dht_time(self._deadline)

    @property
    def allow_retries(self) -> bool:
        """Whether a failed round is followed by another."""
        return self._allow_retries

    @property
    def data_for_gather(self) -> bytes:
        """What the others get from this peer."""
        return self._gather

    @property
    def known_peers(self) -> int | frozenset[PeerID] | None:
        """The peers, or the number of peers with this one, expected to take part; None if the caller did not say."""
        return self._known_peers

    @property
    def stage(self) -> AveragingStage:
        """How far the step is."""
        return self._settings.stage

    def enter(self, stage: AveragingStage) -> None:
        """For the averager: the step is now in ``stage``."""
        with self._lock:
            self._settings.stage = stage

    @property
    def report(self) -> RoundReport | None:
        """Who was in the round; None before it ended well."""
        return self._settings.report

    def set_report(self, report: RoundReport) -> None:
        """For the averager: how the round went."""
        with self._lock:
            self._settings.report = report

    @property
    def began_allreduce(self) -> bool:
        """Whether the exchange has begun, so that weight and tensors are fixed."""
        with self._lock:
            return self._began()

    def _began(self) -> bool:
        return self._settings.stage in (AveragingStage.RUNNING_ALLREDUCE, AveragingStage.FINISHED)

    @property
    def triggered(self) -> bool:
        """Whether `allow_allreduce` has been called."""
        return self._trigger.is_set()

    def allow_allreduce(self) -> None:
        """Let the exchange begin once the group is there; idempotent. For steps with ``require_trigger``."""
        self._trigger.set()

    async def wait_for_trigger(self) -> None:
        """Return once `allow_allreduce` has been called."""
        await self._trigger.wait()

    def finish(self, outcome: Mapping[PeerID, Any] | BaseException) -> None:
        """For the averager: the step has ended, with a result or an error. A step that its user has cancelled keeps
        that."""
        self.enter(AveragingStage.FINISHED)
        if not self.set_running_or_notify_cancel():
            return
        if isinstance(outcome, BaseException):
            self.set_exception(outcome)
        else:
            self.set_result(outcome)

    def cancel(self) -> bool:
        """End the step; False if it has ended already."""
        cancelled = super().cancel()
        if cancelled:
            self.enter(AveragingStage.FINISHED)
        return cancelled


def _checked_weight(weight: float) -> float:
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 <= weight < math.inf:
        raise ConfigError("weight", weight, "a finite number >= 0")
    return float(weight)
