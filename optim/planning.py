"""Rounds that are planned ahead of time, so that finding a group costs no time when the epoch ends."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any, Protocol

from hivemind.averaging import AveragingStage, StepControl
from hivemind.clock import DHTExpiration, get_dht_time
from hivemind.errors import RuntimeClosedError
from hivemind.identity import PeerID
from hivemind.runtime import get_runtime

__all__ = ["PlannedRound", "give_up"]


class _Schedules(Protocol):
    def schedule_step(
        self,
        scheduled_time: DHTExpiration | None = None,
        *,
        timeout: float | None = None,
        known_peers: int | Iterable[PeerID] | None = None,
        **kwargs: Any,
    ) -> StepControl: ...


class PlannedRound:
    """At most one round of one averager that has been planned, and the rounds this peer only follows to their end.

    Used by the training loop's thread.

    :param averager: whose rounds these are
    :param timeout: seconds for a round from the time for which it is planned
    """

    def __init__(self, averager: _Schedules, timeout: float) -> None:
        self._averager = averager
        self._timeout = timeout
        self._planned: StepControl | None = None
        self._followed: StepControl | None = None

    @property
    def control(self) -> StepControl | None:
        """The planned round, if there is one that has not failed."""
        if self._planned is not None and self._planned.done():
            self._planned = None
        return self._planned

    @property
    def has_group(self) -> bool:
        """Whether others already count on this peer."""
        control = self.control
        return control is not None and control.stage is AveragingStage.AWAITING_TRIGGER

    def plan(self, when: DHTExpiration, known_peers: Iterable[PeerID], **kwargs: Any) -> None:
        """Begin to look for a group for a round at ``when``, unless one is planned already.

        :param kwargs: further arguments of `schedule_step`
        """
        if self.control is None and self._settled():
            self._planned = self._schedule(when, known_peers, **kwargs)

    def take(self, known_peers: Iterable[PeerID], **kwargs: Any) -> StepControl:
        """The planned round, or one that begins to look for a group now; the caller runs it."""
        control = self.control
        self._planned = None
        if control is not None:
            return control
        self._settle()
        return self._schedule(get_dht_time(), known_peers, **kwargs)

    def leave(self) -> StepControl | None:
        """This peer will not take part in the planned round.

        If a group counts on it, it follows with weight 0, as the others would wait for it otherwise; returns that
        round then. If there is no group yet, the search ends.
        """
        control, grouped = self.control, self.has_group
        self._planned = None
        if control is None:
            return None
        if not grouped:
            give_up(control)
            return None
        if not control.began_allreduce:
            control.weight = 0.0
        control.allow_allreduce()
        self.follow(control)
        return control

    def follow(self, control: StepControl) -> None:
        """Let a round that has begun end, for the sake of the others; its result is not used here."""
        self._settle()
        self._followed = control

    def _schedule(self, when: DHTExpiration, known_peers: Iterable[PeerID], **kwargs: Any) -> StepControl:
        timeout = max(0.0, when - get_dht_time()) + self._timeout
        return self._averager.schedule_step(when, timeout=timeout, known_peers=known_peers, **kwargs)

    def _settled(self) -> bool:
        if self._followed is not None and self._followed.done():
            self._followed = None
        return self._followed is None

    def _settle(self) -> None:
        """A round that is followed still writes to the averaged tensors at its end: end it before they are used."""
        if not self._settled() and self._followed is not None:
            give_up(self._followed)
            self._followed = None


def give_up(control: StepControl) -> None:
    """Cancel a round and return when it can no longer begin to change the averaged tensors. (A change that has begun
    holds their lock.)"""
    control.cancel()
    try:
        get_runtime().call(_next_turn)
    except RuntimeClosedError:  # then nothing runs that could
        return


async def _next_turn() -> None:
    """Let the loop deliver what was handed to it before."""
    await asyncio.sleep(0)
