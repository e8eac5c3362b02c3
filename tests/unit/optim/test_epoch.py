"""When an epoch ends: decisions over reports, with time as an argument."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hivemind.optim import epoch
from hivemind.optim.config import TrackerOptions
from hivemind.optim.epoch import GlobalTrainingProgress, LocalTrainingProgress, Readiness

NOW = 1_700_000_000.0
OPTIONS = TrackerOptions()


def peer(name: int = 0, **changes: object) -> LocalTrainingProgress:
    start = LocalTrainingProgress(name.to_bytes(4, "big"), 5, 0, 10.0, NOW, False)
    return replace(start, **changes)  # type: ignore[arg-type]


def swarm(
    own: LocalTrainingProgress,
    *others: LocalTrainingProgress,
    target: int = 100,
    started: float = NOW,
    now: float = NOW,
) -> GlobalTrainingProgress:
    return epoch.swarm_progress(
        own,
        others,
        epoch=epoch.global_epoch(own, others),
        target_batch_size=target,
        epoch_started=started,
        trains=True,
        now=now,
        options=OPTIONS,
    )


def ready(
    own: LocalTrainingProgress,
    *others: LocalTrainingProgress,
    target: int = 100,
    started: float = NOW,
    now: float = NOW,
) -> Readiness:
    return epoch.readiness(
        own,
        others,
        epoch=epoch.global_epoch(own, others),
        target_batch_size=target,
        epoch_started=started,
        now=now,
    )


def test_epoch_ends_when_reports_reach_the_target():
    assert ready(peer(samples_accumulated=49), peer(1, samples_accumulated=50)) is Readiness.TOO_FEW_SAMPLES
    assert ready(peer(samples_accumulated=50), peer(1, samples_accumulated=50)) is Readiness.ENOUGH_SAMPLES


def test_own_samples_count_without_a_fetch():
    others = peer(1, samples_accumulated=60)
    assert not ready(peer(samples_accumulated=39), others)
    assert ready(peer(samples_accumulated=40), others)


def test_epoch_ends_at_the_expected_time():
    # 80 of 100 done at 20 samples/s: a second to go, in which the other does half of what is missing
    view = swarm(peer(samples_accumulated=40), peer(1, samples_accumulated=40))
    assert view.eta_next_epoch == pytest.approx(NOW + 1)
    pair = peer(samples_accumulated=50, time=NOW + 1), peer(1, samples_accumulated=40)
    assert not ready(*pair, now=NOW + 0.99)
    assert ready(*pair, now=NOW + 1.01) is Readiness.EXPECTED


def test_peer_does_not_guess_what_it_has_done_itself():
    assert not ready(peer(samples_accumulated=99, samples_per_second=1e9), now=NOW + 60)


def test_samples_of_other_epochs_do_not_count():
    view = swarm(peer(samples_accumulated=10), peer(1, epoch=3, samples_accumulated=1000), now=NOW)
    assert view.samples_accumulated == 10
    assert view.epoch == 5


def test_peer_ahead_ends_the_epoch_unless_it_is_a_client():
    # nobody can download from a client, so it does not set the pace
    assert ready(peer(), peer(1, epoch=6)) is Readiness.PEERS_AHEAD
    assert not ready(peer(), peer(1, epoch=6, client_mode=True))
    assert swarm(peer(), peer(1, epoch=6, client_mode=True)).epoch == 5


def test_peers_seen_one_epoch_behind_have_moved_along():
    own, other = peer(samples_accumulated=10), peer(1, epoch=4, samples_accumulated=90, time=NOW - 3)
    view = swarm(own, other, started=NOW)
    assert view.samples_accumulated == 10  # what they did for the last epoch is not counted for this one
    assert view.eta_next_epoch == pytest.approx(NOW + 90 / 20)
    assert not ready(own, other, started=NOW, now=NOW + 8.99)
    assert ready(own, other, started=NOW, now=NOW + 9.01) is Readiness.EXPECTED


def test_counts_of_peers_and_clients():
    view = swarm(peer(), peer(1), peer(2, client_mode=True))
    assert (view.num_peers, view.num_clients, view.target_batch_size) == (3, 1, 100)
    auxiliary = epoch.swarm_progress(
        peer(), [peer(1)], epoch=5, target_batch_size=100, epoch_started=NOW, trains=False, now=NOW, options=OPTIONS
    )
    assert auxiliary.num_peers == 1


def test_unmeasured_speed_gives_a_finite_far_estimate():
    view = swarm(peer(samples_per_second=epoch.LEAST_SPEED))
    assert view.eta_next_epoch > NOW + 1e15
    assert view.next_fetch_time == NOW + OPTIONS.default_refresh_period
    pair = swarm(peer(samples_per_second=epoch.LEAST_SPEED), peer(1, samples_per_second=epoch.LEAST_SPEED))
    assert pair.next_fetch_time == NOW + OPTIONS.max_refresh_period


@pytest.mark.parametrize(
    ("peers", "eta", "expected"),
    [
        (100, 60.0, 10.0),  # 60 * 100 / 120 = 50, at most max_refresh_period
        (100, 9.0, 7.5),  # drift of 20 %
        (3, 9.0, 4.5),  # drift of 3 peers
        (100, 0.1, 0.5),  # at least min_refresh_period
        (4, 0.0, 0.4),  # few peers ask more often
    ],
)
def test_refresh_period(peers: int, eta: float, expected: float):
    crowd = [peer(i, samples_per_second=1.0) for i in range(peers)]
    view = swarm(crowd[0], *crowd[1:], target=max(1, round(eta * peers)) if eta else 1, now=NOW + (0 if eta else 5))
    assert view.next_fetch_time - view.eta_next_epoch == pytest.approx(expected - eta, abs=0.01)


def test_lonely_peer_that_does_not_train_asks_every_default_period():
    view = epoch.swarm_progress(
        peer(), [], epoch=5, target_batch_size=1, epoch_started=NOW, trains=False, now=NOW, options=OPTIONS
    )
    assert view.next_fetch_time == NOW + OPTIONS.default_refresh_period


def due(current: LocalTrainingProgress, reported: LocalTrainingProgress | None, active: int | None = 5, world: int = 5):
    return epoch.report_due(current, reported, last_active_epoch=active, global_epoch=world, metadata_expiration=60.0)


def test_reports():
    then = peer(samples_accumulated=10, time=NOW - 0.05)
    assert due(peer(samples_accumulated=10), None) == NOW
    assert due(peer(epoch=6), then) == NOW
    assert due(peer(samples_accumulated=20), replace(then, samples_accumulated=0)) == NOW
    assert due(peer(samples_accumulated=20), then) == pytest.approx(NOW + 0.35)
    assert due(peer(samples_accumulated=10), then) == pytest.approx(NOW - 0.05 + 30)


def test_peers_without_samples_are_silent():
    assert due(peer(), None, active=None) is None
    assert due(peer(), None, active=5, world=6) == NOW
    assert due(peer(), None, active=5, world=7) is None


def test_peers_that_missed_a_round_count_again_once_they_report():
    silent, speaking = peer(1, time=NOW - 5), peer(2, time=NOW - 1)
    missed = {silent.peer_id: NOW - 3, speaking.peer_id: NOW - 3}
    assert epoch.heard_from([silent, speaking, peer(3)], missed) == [speaking, peer(3)]


@pytest.mark.parametrize(
    ("local", "world", "strict", "stale"),
    [(5, 5, True, False), (5, 6, False, False), (5, 6, True, True), (5, 7, False, True), (6, 5, True, False)],
)
def test_when_the_state_must_be_downloaded(local: int, world: int, strict: bool, stale: bool):
    assert epoch.state_is_stale(local, world, strict=strict) is stale


records = st.builds(
    LocalTrainingProgress,
    peer_id=st.binary(min_size=1, max_size=4),
    epoch=st.integers(0, 8),
    samples_accumulated=st.integers(0, 2**48),
    samples_per_second=st.floats(0, 1e9),
    time=st.floats(NOW - 100, NOW + 3),
    client_mode=st.booleans(),
)


@settings(deadline=None, max_examples=100)
@given(records, st.lists(records, max_size=8), st.integers(1, 10**9), st.floats(0, 200))
def test_view_is_sound_whatever_peers_report(
    own: LocalTrainingProgress, others: list[LocalTrainingProgress], target: int, later: float
):
    now = NOW + later
    view = swarm(own, *others, target=target, now=now)
    decision = ready(own, *others, target=target, now=now)
    assert view.epoch >= own.epoch
    assert now <= view.eta_next_epoch < float("inf")
    least = min(OPTIONS.min_refresh_period, 0.1)
    assert now + least * 0.99 <= view.next_fetch_time <= now + OPTIONS.max_refresh_period * 1.01
    if decision is Readiness.PEERS_AHEAD:
        assert view.epoch > own.epoch
    if decision is Readiness.ENOUGH_SAMPLES:
        assert view.samples_accumulated >= target
    if decision is Readiness.EXPECTED:
        assert view.eta_next_epoch == pytest.approx(now)


@settings(deadline=None, max_examples=100)
@given(records, st.lists(records, max_size=8), st.integers(1, 10**6), st.floats(0, 50), st.floats(0, 50))
def test_readiness_stays_until_something_is_reported(
    own: LocalTrainingProgress, others: list[LocalTrainingProgress], target: int, first: float, then: float
):
    if ready(own, *others, target=target, now=NOW + first):
        assert ready(own, *others, target=target, now=NOW + first + then)


@settings(deadline=None, max_examples=100)
@given(st.permutations(range(5)), st.integers(1, 500))
def test_all_peers_see_the_same_swarm(order: list[int], target: int):
    crowd = [peer(i, samples_accumulated=17 * i, samples_per_second=float(i + 1)) for i in range(5)]
    views = set()
    for index in order:
        view = swarm(crowd[index], *(p for p in crowd if p is not crowd[index]), target=target)
        views.add((view.epoch, view.samples_accumulated, view.num_peers, round(view.eta_next_epoch, 3)))
    assert len(views) == 1
