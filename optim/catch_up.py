"""When a peer is behind its swarm, and how it gets the swarm's state."""

from __future__ import annotations

import threading

from hivemind.clock import Deadline
from hivemind.errors import DeadlineExceeded
from hivemind.log import get_logger
from hivemind.optim.epoch import state_is_stale
from hivemind.optim.state_averager import TrainingStateAverager
from hivemind.optim.tracker import ProgressTracker

__all__ = ["CatchUp"]

logger = get_logger(__name__)

#: Seconds between attempts to download the state, at first and at the most.
_PAUSE, _LONGEST_PAUSE = 0.2, 5.0
#: So many downloads in a row that came too late; then the peer takes part in the next round with what it has.
_MAX_LATE_DOWNLOADS = 3


class CatchUp:
    """Decides when to download the state, and does it. Used by the training loop's thread.

    :param run_id: for the log
    """

    def __init__(self, run_id: str, tracker: ProgressTracker, state_averager: TrainingStateAverager) -> None:
        self._run_id = run_id
        self._tracker = tracker
        self._state = state_averager
        self._strict_check_due = True
        self._late_downloads = 0

    def epoch_entered(self) -> None:
        """This peer has begun an epoch: check once whether the others are in it too."""
        self._strict_check_due = True
        self._late_downloads = 0

    def is_due(self) -> bool:
        """Whether this peer is behind: by more than an epoch, or, once an epoch after a fetch, at all.

        A swarm whose epochs are shorter than a download cannot be caught up with: after a few attempts the peer joins
        the next round as it is, and gets the others' parameters there.
        """
        strict = self._strict_check_due and self._tracker.fetched_global_progress_this_epoch
        if strict:
            self._strict_check_due = False
        stale = state_is_stale(self._state.local_epoch, self._tracker.global_epoch, strict=strict)
        return stale and self._late_downloads < _MAX_LATE_DOWNLOADS

    def download(self, deadline: Deadline) -> None:
        """Take over the state of the most advanced peer; nothing if no other peer has one to give.

        :raises DeadlineExceeded: if there are peers, but none gave its state in time
        """
        with self._tracker.pause_updates():
            self._download(deadline)
        swarm = self._tracker.global_epoch
        if swarm - 1 <= self._state.local_epoch < swarm:
            # the donor has not finished the epoch whose end others report: it is the swarm's state all the same
            self._state.local_epoch = swarm
        self._late_downloads = self._late_downloads + 1 if self._state.local_epoch < swarm else 0
        self._strict_check_due = False
        self._tracker.update_epoch(self._state.local_epoch)

    def _download(self, deadline: Deadline) -> None:
        pause = _PAUSE
        while not self._state.load_state_from_peers(timeout=deadline.remaining()):
            if not self._tracker.others_share_state:
                logger.log(self._tracker.status_loglevel, "%s: no other peer has a state to give", self._run_id)
                return
            if deadline.remaining() <= pause:
                raise DeadlineExceeded(f"{self._run_id}: no peer gave its state in time, see the log for the reasons")
            threading.Event().wait(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)
