"""When does an epoch end? Pure decisions over progress reports: no clock, no network, no tensor.

An epoch is one global step: it ends when the swarm has gathered ``target_batch_size`` samples. No peer decides that
for the others; each computes it from the reports of all (hivemind 1.1 formulas), so all must come to nearly the same
answer at nearly the same time from records that are a little old.

Where this differs from 1.1 nothing on the wire changes:

* a peer's own progress counts at once, not after its next fetch;
* a peer last seen one epoch behind is taken to have moved along when this peer did, since rounds end together. So the
  end of a short epoch is foreseen before the first report of it arrives;
* swarms of few peers may ask each other more often than ``min_refresh_period``.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from hivemind.clock import DHTExpiration
from hivemind.optim.config import TrackerOptions

__all__ = [
    "LEAST_SPEED",
    "GlobalTrainingProgress",
    "LocalTrainingProgress",
    "Readiness",
    "global_epoch",
    "heard_from",
    "readiness",
    "report_due",
    "state_is_stale",
    "swarm_progress",
]

#: Samples per second of a peer that has not measured itself yet; keeps divisions finite.
LEAST_SPEED = 1e-20
#: Seconds between two fetches for each known peer, where that is less than `min_refresh_period`: what a fetch costs
#: grows with the number of peers.
_REFRESH_PER_PEER = 0.1
#: Seconds between two reports of mere progress within an epoch.
_REPORT_INTERVAL = 0.4


@dataclass(frozen=True, slots=True)
class LocalTrainingProgress:
    """How far one peer is: what it reports (hivemind 1.1 progress record, fields in the order of the wire)."""

    #: libp2p id, binary
    peer_id: bytes
    #: global steps that are behind this peer
    epoch: int
    #: samples gathered towards the end of the epoch
    samples_accumulated: int
    #: moving average; without pauses for averaging
    samples_per_second: float
    #: network time of the report, seconds
    time: DHTExpiration
    #: whether it accepts no connections
    client_mode: bool


@dataclass(frozen=True, slots=True)
class GlobalTrainingProgress:
    """How far the swarm is, seen from one peer."""

    #: the newest epoch of any peer that others can download from, or of this peer
    epoch: int
    #: samples reported in that epoch
    samples_accumulated: int
    #: samples that end an epoch
    target_batch_size: int
    #: peers with a valid report, this one included if it trains
    num_peers: int
    #: those of them in client mode
    num_clients: int
    #: network time at which the epoch is expected to end
    eta_next_epoch: DHTExpiration
    #: network time of the next fetch
    next_fetch_time: DHTExpiration


class Readiness(enum.Enum):
    """Why an epoch is over, or not."""

    TOO_FEW_SAMPLES = "the swarm has not gathered the target batch yet"
    PEERS_AHEAD = "other peers are in a later epoch"
    ENOUGH_SAMPLES = "the swarm has reported the target batch"
    EXPECTED = "at the measured speed the swarm has gathered the target batch by now"

    def __bool__(self) -> bool:
        return self is not Readiness.TOO_FEW_SAMPLES


@dataclass(frozen=True, slots=True)
class _Count:
    """Samples of the current epoch, and speeds of all."""

    reported: int
    expected: float
    speed: float


def swarm_progress(
    own: LocalTrainingProgress,
    others: Sequence[LocalTrainingProgress],
    *,
    epoch: int,
    target_batch_size: int,
    epoch_started: DHTExpiration,
    trains: bool,
    now: DHTExpiration,
    options: TrackerOptions,
) -> GlobalTrainingProgress:
    """What the reports say about the swarm.

    :param own: this peer, up to date
    :param others: the newest valid report of every other peer that counts, see `heard_from`
    :param epoch: the swarm's, see `global_epoch`
    :param epoch_started: network time at which this peer entered its epoch
    :param trains: whether this peer itself gathers samples: not so an auxiliary, nor before the first batch
    """
    count = _count(epoch, own, others, epoch_started, now)
    # at LEAST_SPEED the quotient is astronomic, but finite
    eta = max(0.0, target_batch_size - count.expected) / count.speed
    peers = len(others) + trains
    return GlobalTrainingProgress(
        epoch=epoch,
        samples_accumulated=count.reported,
        target_batch_size=target_batch_size,
        num_peers=peers,
        num_clients=sum(peer.client_mode for peer in others) + (trains and own.client_mode),
        eta_next_epoch=now + eta,
        next_fetch_time=now + _refresh_period(eta, peers, len(others), options),
    )


def readiness(
    own: LocalTrainingProgress,
    others: Sequence[LocalTrainingProgress],
    *,
    epoch: int,
    target_batch_size: int,
    epoch_started: DHTExpiration,
    now: DHTExpiration,
) -> Readiness:
    """Whether this peer should end its epoch now, and why. Arguments as `swarm_progress`."""
    if epoch > own.epoch:
        return Readiness.PEERS_AHEAD
    count = _count(epoch, own, others, epoch_started, now)
    if count.reported >= target_batch_size:
        return Readiness.ENOUGH_SAMPLES
    if count.expected >= target_batch_size:
        return Readiness.EXPECTED
    return Readiness.TOO_FEW_SAMPLES


def report_due(
    current: LocalTrainingProgress,
    reported: LocalTrainingProgress | None,
    *,
    last_active_epoch: int | None,
    global_epoch: int,
    metadata_expiration: float,
) -> DHTExpiration | None:
    """Network time at which ``current`` should be reported; None: not at all.

    A new epoch and the first samples in it are told at once, further samples a few times a second, and anything after
    half its lifetime, so that it does not expire.

    :param last_active_epoch: the last epoch in which this peer had samples; None if it never had any
    """
    if last_active_epoch is None or last_active_epoch < global_epoch - 1:
        return None
    if reported is None or reported.epoch != current.epoch:
        return current.time
    if current.samples_accumulated != reported.samples_accumulated:
        return current.time if reported.samples_accumulated == 0 else reported.time + _REPORT_INTERVAL
    return reported.time + metadata_expiration / 2


def heard_from(
    others: Iterable[LocalTrainingProgress], missed: Mapping[bytes, DHTExpiration]
) -> list[LocalTrainingProgress]:
    """Those of ``others`` that have reported since they last missed a round.

    A peer that has died leaves a report that is valid for up to a minute. It is waited for once; after that neither
    its presence nor its samples nor its speed count until it is heard again. The epoch it has reported stays true.

    :param missed: when each peer that did not come to a round was missed, by binary id
    """
    return [peer for peer in others if peer.time > missed.get(peer.peer_id, float("-inf"))]


def state_is_stale(local_epoch: int, global_epoch: int, *, strict: bool) -> bool:
    """Whether a peer must download the state of the others before it goes on.

    One epoch behind is normal while the others end theirs a little earlier.

    :param strict: demand the same epoch; once an epoch, right after a fetch
    """
    return local_epoch < global_epoch - 1 or (strict and local_epoch < global_epoch)


def global_epoch(own: LocalTrainingProgress, others: Iterable[LocalTrainingProgress]) -> int:
    """The newest epoch of any peer that others can download from, or of ``own``."""
    return max([own.epoch, *(peer.epoch for peer in others if not peer.client_mode)])


def _count(
    epoch: int,
    own: LocalTrainingProgress,
    others: Iterable[LocalTrainingProgress],
    epoch_started: DHTExpiration,
    now: DHTExpiration,
) -> _Count:
    own_samples = own.samples_accumulated if own.epoch == epoch else 0
    # its own samples a peer knows; those of the others are some time ahead of their reports
    reported, expected, speed = own_samples, float(own_samples), LEAST_SPEED + own.samples_per_second
    for peer in others:
        moved_along = own.epoch == epoch == peer.epoch + 1
        speed += peer.samples_per_second
        if peer.epoch == epoch:
            reported += peer.samples_accumulated
            expected += peer.samples_accumulated + max(0.0, now - peer.time) * peer.samples_per_second
        elif moved_along:
            expected += max(0.0, now - max(epoch_started, peer.time)) * peer.samples_per_second
    return _Count(reported, expected, speed)


def _refresh_period(eta: float, peers: int, others: int, options: TrackerOptions) -> float:
    most = options.max_refresh_period
    if others == 0:
        # whoever is alone looks around more often: it is likely to have come first
        most = min(most, max(options.min_refresh_period, options.default_refresh_period))
        if peers == 0:
            return most
    drifted = max(peers + options.expected_drift_peers, peers * (1 + options.expected_drift_rate))
    least = min(options.min_refresh_period, _REFRESH_PER_PEER * peers)
    return min(max(eta * peers / drifted, least), most)
