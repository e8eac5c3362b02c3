"""The end of an epoch on one peer: average gradients, step, average the state.

Each part may fail, when peers die or cannot be reached, and has its deadline; training goes on with what there is.
"""

from __future__ import annotations

import concurrent.futures
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, TypeGuard

from hivemind.averaging import AveragingStage, StepControl
from hivemind.clock import Deadline, get_dht_time, monotonic
from hivemind.errors import HivemindError, MatchmakingException
from hivemind.identity import PeerID
from hivemind.log import get_logger
from hivemind.optim.config import OptimizerOptions
from hivemind.optim.epoch import Readiness
from hivemind.optim.grad_averager import GradientAverager
from hivemind.optim.planning import PlannedRound, give_up
from hivemind.optim.state_averager import TrainingStateAverager
from hivemind.optim.tracker import ProgressTracker
from hivemind.runtime import wait_for

__all__ = ["GlobalStep", "StepReport"]

logger = get_logger(__name__)

#: Weight in the state average of a peer that has not made the swarm's step: a thousandth of the others', but not zero,
#: so that a swarm of which nobody has still finds together.
_WEIGHT_OUT_OF_STEP = 1e-3
#: Seconds for a last look at who is there before an epoch ends without the others.
_MAKE_SURE_SECONDS = 1.0
#: Seconds between two looks at how the swarm goes while a round is under way.
_LOOK_UP_SECONDS = 0.25


@dataclass(frozen=True)
class StepReport:
    """How an epoch ended on this peer.

    :param epoch: the one that begins
    :param reason: why the last one ended
    :param gradient_peers: whose gradients were averaged, with this peer; 1: only its own
    :param state_peers: whose state was averaged, with this peer; 0: no round, or it goes on in the background
    :param seconds: it took
    """

    epoch: int
    reason: Readiness
    gradient_peers: int
    state_peers: int
    seconds: float


class _LeftBehind(MatchmakingException):
    """The others have ended the epoch while this peer was looking for them."""


class GlobalStep:
    """Plans the rounds of an epoch and runs them at its end. Used by the training loop's thread."""

    def __init__(
        self,
        tracker: ProgressTracker,
        grad_averager: GradientAverager,
        state_averager: TrainingStateAverager,
        options: OptimizerOptions,
    ) -> None:
        self._tracker = tracker
        self._grads = grad_averager
        self._state = state_averager
        self._options = options
        self.grad_round = PlannedRound(grad_averager, options.averaging_timeout)
        self.state_round = PlannedRound(state_averager, options.averaging_timeout)
        # a state round in the background: its handle, who was expected, the epoch that it began
        self._delayed: tuple[StepControl, frozenset[PeerID], int] | None = None
        self._level = tracker.status_loglevel

    @property
    def next_epoch(self) -> int:
        """The epoch after this peer's, or the swarm's if that is ahead."""
        return max(self._state.local_epoch + 1, self._tracker.global_epoch)

    def plan(self) -> None:
        """Look for the group of the gradient round if the epoch ends soon."""
        now, eta = get_dht_time(), self._tracker.estimated_next_update_time
        peers = self._tracker.expected_peers
        if peers and eta - now <= self._options.matchmaking_time:
            self.grad_round.plan(max(now, eta), peers)

    def leave_rounds(self) -> list[StepControl]:
        """Take no part in what is planned; returns the rounds that this peer follows with weight 0."""
        if self._delayed is not None:
            self.state_round.follow(self._delayed[0])
            self._delayed = None
        left = [self.grad_round.leave(), self.state_round.leave()]
        return [control for control in left if control is not None]

    def can_join(self) -> bool:
        """Whether a peer that is behind may meet the others in their next round soon."""
        eta = self._tracker.estimated_next_update_time
        return self.grad_round.has_group or eta - get_dht_time() <= self._options.matchmaking_time

    def run(self, reason: Readiness) -> StepReport | None:
        """End the epoch.

        :returns: None if this peer met nobody and is behind, or has fallen behind meanwhile: it should download the
            state instead of making a step of its own
        """
        started = monotonic()
        self.finish_delayed(wait=True)
        next_epoch = self.next_epoch
        averaged = self._average_gradients(next_epoch)
        if averaged is None and self._tracker.global_epoch > self._state.local_epoch:
            return None
        self._plan_state_round(next_epoch, averaged)

        auxiliary = self._options.auxiliary
        with nullcontext() if auxiliary else self._grads.use_averaged_gradients():
            self._state.advance(next_epoch, optimizer_step=not auxiliary)
        self._grads.reset_accumulated_grads_()

        in_step = averaged is not None and reason is not Readiness.PEERS_AHEAD
        met = self._average_state(next_epoch, averaged, 1.0 if in_step else _WEIGHT_OUT_OF_STEP)
        if met:
            # a peer that was behind joins the others in the middle of theirs: it has their parameters now
            next_epoch = max(next_epoch, *(e for e in met.values() if self._is_plausible(e)), 0)
            self._state.advance(next_epoch, optimizer_step=False)
        self._tracker.update_epoch(next_epoch)
        return StepReport(next_epoch, reason, len(averaged or ()) or 1, len(met), monotonic() - started)

    def finish_delayed(self, *, wait: bool) -> None:
        """Take over the result of a state round in the background.

        :param wait: if it has not ended, wait for that, up to its deadline
        """
        if self._delayed is None or not (wait or self._delayed[0].done()):
            return
        control, expected, epoch = self._delayed
        self._delayed = None
        # no step was made since it began: the result replaces what it began with
        if self._run(control, expected, epoch, "the state", "it stays this peer's own", last_epoch=epoch) is not None:
            self._state.end_round()

    def _is_plausible(self, epoch: Any) -> TypeGuard[int]:
        """Whether what another member gave as its epoch can be so; the end of an epoch may not be reported yet."""
        return type(epoch) is int and epoch <= self._tracker.global_epoch + 1

    def _average_gradients(self, next_epoch: int) -> frozenset[PeerID] | None:
        """The members of the round; None if there was none or it failed, and the gradients are this peer's own."""
        expected = self._tracker.expected_peers
        if not expected:
            # alone, as far as is known: make sure, as peers that know each other only by old reports drift apart
            self._tracker.fetch(_MAKE_SURE_SECONDS)
            expected = self._tracker.expected_peers
        if not expected and not self.grad_round.has_group:
            self.leave_rounds()
            self._grads.load_accumulators_into_averager_()
            return None
        swarm = self._tracker.global_epoch
        control = self.grad_round.take(expected)
        self._grads.step(
            weight=0.0 if self._options.auxiliary else None, control=control, reset_accumulators=False, wait=False
        )
        members = self._run(
            control, expected, next_epoch, "gradients", "proceeding with local gradients", last_epoch=swarm
        )
        return None if members is None else frozenset(members)

    def _plan_state_round(self, epoch: int, averaged: frozenset[PeerID] | None) -> None:
        """Look for the group of the state round while the optimizer makes its step: those that have just averaged
        their gradients."""
        peers = self._state_peers(averaged)
        if peers and epoch % self._options.average_state_every == 0:
            self.state_round.plan(get_dht_time(), peers, gather=epoch)

    def _state_peers(self, averaged: frozenset[PeerID] | None) -> frozenset[PeerID]:
        return (averaged or self._tracker.expected_peers) - {self._state.peer_id}

    def _average_state(self, epoch: int, averaged: frozenset[PeerID] | None, weight: float) -> Mapping[PeerID, Any]:
        """The members of the round and the epochs they gave; none if there was no round, it failed, or it goes on in
        the background."""
        expected = self._state_peers(averaged)
        if not expected or epoch % self._options.average_state_every != 0:
            self.state_round.leave()
            return {}
        control = self.state_round.take(expected, gather=epoch)
        if not control.began_allreduce:
            control.weight = 0.0 if self._options.auxiliary else weight
        self._state.begin_round(control)
        if self._options.delay_state_averaging:
            self._delayed = control, expected, epoch
            return {}
        members = self._run(control, expected, epoch, "the state", "it stays this peer's own", last_epoch=epoch)
        if members is None:
            return {}
        self._state.end_round()
        return members

    def _run(
        self,
        control: StepControl,
        expected: frozenset[PeerID],
        epoch: int,
        what: str,
        otherwise: str,
        *,
        last_epoch: int,
    ) -> Mapping[PeerID, Any] | None:
        """Wait for a round and remember who was in it and who was missing.

        :param epoch: the one that its members enter
        :param last_epoch: a later epoch of the swarm means that the others went on without this peer
        :returns: its members, with this peer, and what they gave to gather; None if it failed
        """
        try:
            members = self._wait(control, what, last_epoch)
        except HivemindError as error:
            give_up(control)
            if not isinstance(error, _LeftBehind):
                self._tracker.mark_missed(expected)
            logger.warning("could not average %s, %s: %s", what, otherwise, error)
            return None
        except BaseException:
            give_up(control)
            raise
        self._tracker.mark_missed(expected - members.keys())
        self._tracker.mark_met(members, epoch)
        report = control.report
        if report is not None:
            logger.log(
                self._level,
                "averaged %s with %d peers: %.3f s to find them, %.3f s to exchange, attempt %d",
                what,
                len(members),
                report.matchmaking_seconds,
                report.allreduce_seconds,
                report.attempts,
            )
        return members

    def _wait(self, control: StepControl, what: str, last_epoch: int) -> Mapping[PeerID, Any]:
        """The result of a round; looks up now and then whether it makes sense to go on looking for a group.

        :raises HivemindError: if it failed or makes no sense
        """
        deadline = Deadline.after(control.get_timeout())
        patience = Deadline.after(self._options.matchmaking_time)
        while True:
            concurrent.futures.wait([control], min(_LOOK_UP_SECONDS, deadline.remaining()))
            if control.done() or deadline.expired:
                return wait_for(control, Deadline.after(0), f"averaging {what}")
            if control.stage is not AveragingStage.LOOKING_FOR_GROUP:
                continue
            if self._tracker.global_epoch > last_epoch:
                raise _LeftBehind("the others have ended the epoch without this peer")
            if patience.expired and not self._tracker.expected_peers:
                raise MatchmakingException("no other peer is left")
