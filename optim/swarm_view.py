"""What one peer knows of its swarm: its own progress and the reports of the others, as one consistent view."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace

from hivemind.clock import DHTExpiration, get_dht_time
from hivemind.optim import epoch as decisions
from hivemind.optim.config import TrackerOptions
from hivemind.optim.epoch import LEAST_SPEED, GlobalTrainingProgress, LocalTrainingProgress, Readiness
from hivemind.optim.performance import PerformanceEMA
from hivemind.optim.progress import Report

__all__ = ["SwarmView"]

#: Reports remembered at most, and marks of peers that missed a round.
_MAX_REMEMBERED = 8192


class SwarmView:
    """Feeds the decisions of `hivemind.optim.epoch` from reports and from the training loop.

    Thread-safe: the training loop changes the own progress, the network thread the others'. No waiting inside.

    :param own_id: binary id of this peer
    :param client_mode: whether this peer accepts no connections
    :param on_change: called, in the thread of the change and without the lock, when the own progress has changed;
        its argument says whether the epoch has
    """

    def __init__(
        self,
        own_id: bytes,
        target_batch_size: int,
        options: TrackerOptions,
        *,
        client_mode: bool,
        on_change: Callable[[bool], None],
    ) -> None:
        self.options = options
        self.target_batch_size = target_batch_size
        self.performance = PerformanceEMA(options.performance_ema_alpha, eps=LEAST_SPEED)
        #: set once the others' reports have been fetched for the first time
        self.fetched = threading.Event()
        self._on_change = on_change
        self._lock = threading.Lock()
        # all below are guarded by _lock
        now = get_dht_time()
        self._own = LocalTrainingProgress(own_id, 0, 0, LEAST_SPEED, now, client_mode)
        self._epoch_started = now
        self._last_active_epoch: int | None = None
        self._reports: dict[bytes, Report] = {}
        self._missed: dict[bytes, DHTExpiration] = {}
        # peers that ended an epoch with this one: the epoch they entered, and when
        self._met: dict[bytes, tuple[int, DHTExpiration]] = {}
        self._fetched_this_epoch = False
        self._reported: LocalTrainingProgress | None = None

    # --- read by the training loop ---

    @property
    def own(self) -> LocalTrainingProgress:
        """This peer's progress as of its last change."""
        return self._own

    @property
    def others(self) -> list[LocalTrainingProgress]:
        """Valid reports of the other peers, without those that missed a round and have been silent since: they are
        likely to come to the next round."""
        with self._lock:
            return self._heard(get_dht_time())

    @property
    def global_epoch(self) -> int:
        """The newest epoch of the swarm."""
        with self._lock:
            return decisions.global_epoch(self._own, self._others(get_dht_time()))

    @property
    def swarm(self) -> GlobalTrainingProgress:
        """The progress of all, as of now."""
        now = get_dht_time()
        with self._lock:
            return decisions.swarm_progress(
                self._own,
                self._heard(now),
                epoch=decisions.global_epoch(self._own, self._others(now)),
                target_batch_size=self.target_batch_size,
                epoch_started=self._epoch_started,
                trains=self._last_active_epoch is not None,
                now=now,
                options=self.options,
            )

    @property
    def readiness(self) -> Readiness:
        """Whether the epoch should end now, and why."""
        now = get_dht_time()
        with self._lock:
            return decisions.readiness(
                self._own,
                self._heard(now),
                epoch=decisions.global_epoch(self._own, self._others(now)),
                target_batch_size=self.target_batch_size,
                epoch_started=self._epoch_started,
                now=now,
            )

    @property
    def fetched_this_epoch(self) -> bool:
        """Whether the others' reports were fetched since this peer entered its epoch."""
        return self._fetched_this_epoch

    # --- changed by the training loop ---

    def set_progress(self, epoch: int, samples: int) -> None:
        """This peer is in ``epoch`` and has gathered ``samples`` in it so far."""
        with self._lock:
            changed_epoch = epoch != self._own.epoch
            extra = samples if changed_epoch else samples - self._own.samples_accumulated
            if extra > 0:
                self.performance.update(extra)
            else:
                self.performance.reset_timer()
            self._enter(epoch, samples)
        self._on_change(changed_epoch)

    def enter_epoch(self, epoch: int) -> None:
        """This peer begins ``epoch``."""
        with self._lock:
            self._enter(epoch, 0)
        self._on_change(True)

    @contextmanager
    def pause(self) -> Iterator[None]:
        """The time within does not count against this peer's speed."""
        with self.performance.pause():
            yield

    def mark_met(self, peers: Iterable[bytes], epoch: int) -> None:
        """``peers`` were in the round with which this one entered ``epoch``: so did they, though no report says so
        yet. Fast epochs would else outrun the reports."""
        now = get_dht_time()
        with self._lock:
            for peer in peers:
                self._missed.pop(peer, None)
                self._met.pop(peer, None)
                self._met[peer] = epoch, now
            while len(self._met) > _MAX_REMEMBERED:
                del self._met[next(iter(self._met))]

    def mark_missed(self, peers: Iterable[bytes]) -> None:
        """``peers`` were expected in a round and did not come, or broke off."""
        now = get_dht_time()
        with self._lock:
            for peer in peers:
                self._missed.pop(peer, None)
                self._missed[peer] = now
            while len(self._missed) > _MAX_REMEMBERED:
                del self._missed[next(iter(self._missed))]

    # --- used by the network thread ---

    def update_others(self, reports: Mapping[bytes, Report | None]) -> None:
        """What a fetch brought: subkey to report, None for a goodbye.

        A report that a fetch did not bring stays until it expires: a fetch that met silent nodes is no sign that
        peers have left.
        """
        now = get_dht_time()
        longest = now + self.options.metadata_expiration
        with self._lock:
            for subkey, report in reports.items():
                self._reports.pop(subkey, None)
                if report is not None:
                    self._reports[subkey] = report._replace(expiration_time=min(report.expiration_time, longest))
            for subkey in [key for key, report in self._reports.items() if report.expiration_time <= now]:
                del self._reports[subkey]
            while len(self._reports) > _MAX_REMEMBERED:
                del self._reports[next(iter(self._reports))]
            self._fetched_this_epoch = True
        self.fetched.set()

    def next_report(self) -> tuple[LocalTrainingProgress, DHTExpiration | None]:
        """What to report, stamped with the time, and when it is due; None: not before the next change."""
        now = get_dht_time()
        with self._lock:
            current = replace(self._own, time=now)
            due = decisions.report_due(
                current,
                self._reported,
                last_active_epoch=self._last_active_epoch,
                global_epoch=decisions.global_epoch(self._own, self._others(now)),
                metadata_expiration=self.options.metadata_expiration,
            )
        return current, due

    def mark_reported(self, progress: LocalTrainingProgress) -> None:
        """``progress`` has been stored in the DHT."""
        with self._lock:
            self._reported = progress

    @property
    def has_reported(self) -> bool:
        """Whether others may still see a report of this peer."""
        return self._reported is not None

    def _others(self, now: DHTExpiration) -> list[LocalTrainingProgress]:
        newest: dict[bytes, LocalTrainingProgress] = {}
        for progress, expiration_time in self._reports.values():
            if expiration_time <= now or progress.peer_id == self._own.peer_id:
                continue
            known = newest.get(progress.peer_id)
            if known is None or known.time < progress.time:
                newest[progress.peer_id] = progress
        for peer, (epoch, when) in self._met.items():
            if peer in newest and newest[peer].epoch < epoch:
                newest[peer] = replace(newest[peer], epoch=epoch, samples_accumulated=0, time=when)
        return list(newest.values())

    def _heard(self, now: DHTExpiration) -> list[LocalTrainingProgress]:
        return decisions.heard_from(self._others(now), self._missed)

    def _enter(self, epoch: int, samples: int) -> None:
        now = get_dht_time()
        if epoch != self._own.epoch:
            self._epoch_started = now
            self._fetched_this_epoch = False
        if samples > 0:
            self._last_active_epoch = epoch
        self._own = replace(
            self._own,
            epoch=epoch,
            samples_accumulated=samples,
            samples_per_second=self.performance.samples_per_second,
            time=now,
        )
