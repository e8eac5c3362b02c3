"""What a peer knows of its swarm, from reports and from its own training."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest

from hivemind.clock import simulated_time
from hivemind.optim.config import TrackerOptions
from hivemind.optim.epoch import LocalTrainingProgress, Readiness
from hivemind.optim.progress import Report
from hivemind.optim.swarm_view import SwarmView

EPOCH = 1_700_000_000.0


class Clock:
    seconds = 0.0

    @property
    def now(self) -> float:
        return EPOCH + self.seconds


@pytest.fixture
def clock() -> Iterator[Clock]:
    clock = Clock()
    with simulated_time(lambda: clock.seconds, epoch=EPOCH):
        yield clock


@pytest.fixture
def changes() -> list[bool]:
    return []


@pytest.fixture
def view(clock: Clock, changes: list[bool]) -> SwarmView:
    return SwarmView(b"own", 100, TrackerOptions(), client_mode=False, on_change=changes.append)


def other(clock: Clock, name: bytes = b"a", **changes: object) -> LocalTrainingProgress:
    return replace(LocalTrainingProgress(name, 0, 0, 10.0, clock.now, False), **changes)  # type: ignore[arg-type]


def tell(view: SwarmView, clock: Clock, *peers: LocalTrainingProgress, seconds: float = 60) -> None:
    view.update_others({b"key of " + peer.peer_id: Report(peer, clock.now + seconds) for peer in peers})


def test_fresh_peer_is_alone_and_silent(view: SwarmView):
    assert (view.swarm.num_peers, view.swarm.epoch, view.others) == (0, 0, [])
    assert view.readiness is Readiness.TOO_FEW_SAMPLES
    assert view.next_report()[1] is None
    assert not view.fetched.is_set()


def test_own_progress(view: SwarmView, clock: Clock, changes: list[bool]):
    clock.seconds = 2
    view.set_progress(0, 30)
    assert view.own == LocalTrainingProgress(b"own", 0, 30, pytest.approx(15.0), clock.now, False)
    assert view.swarm.num_peers == 1
    assert view.next_report() == (view.own, clock.now)
    clock.seconds = 4
    view.set_progress(0, 100)
    assert view.readiness is Readiness.ENOUGH_SAMPLES
    view.enter_epoch(1)
    assert (view.own.epoch, view.own.samples_accumulated) == (1, 0)
    assert not view.readiness
    assert changes == [False, False, True]


def test_pauses_leave_the_speed_alone(view: SwarmView, clock: Clock):
    clock.seconds = 1
    view.set_progress(0, 10)
    with view.pause():
        clock.seconds = 100
        view.enter_epoch(1)
    clock.seconds = 101
    view.set_progress(1, 10)
    assert view.own.samples_per_second == pytest.approx(10.0)


def test_reports_count_until_they_expire(view: SwarmView, clock: Clock):
    tell(view, clock, other(clock, samples_accumulated=100))
    assert view.fetched.is_set()
    assert view.readiness is Readiness.ENOUGH_SAMPLES
    clock.seconds = 61
    assert view.swarm.num_peers == 0
    assert not view.readiness


def test_report_that_a_fetch_misses_stays_and_a_goodbye_goes(view: SwarmView, clock: Clock):
    tell(view, clock, other(clock, b"a"), other(clock, b"b"))
    tell(view, clock, other(clock, b"b"))
    assert view.swarm.num_peers == 2
    view.update_others({b"key of a": None})
    assert [peer.peer_id for peer in view.others] == [b"b"]


def test_nobody_is_remembered_for_longer_than_reports_last(view: SwarmView, clock: Clock):
    tell(view, clock, other(clock), seconds=1e9)
    clock.seconds = 61
    assert view.others == []


def test_own_id_under_another_key_is_ignored(view: SwarmView, clock: Clock):
    tell(view, clock, other(clock, b"own", samples_accumulated=100))
    assert not view.readiness


def test_newest_report_of_a_peer_with_two_keys_counts(view: SwarmView, clock: Clock):
    old, new = other(clock, time=clock.now - 5, epoch=3), other(clock, epoch=2)
    view.update_others({b"1": Report(old, clock.now + 60), b"2": Report(new, clock.now + 60)})
    assert view.others == [new]


def test_missing_peers_do_not_count_until_they_report(view: SwarmView, clock: Clock):
    tell(view, clock, other(clock, epoch=2, samples_accumulated=100))
    clock.seconds = 1
    view.mark_missed([b"a"])
    assert view.others == []
    assert view.global_epoch == 2  # that was true, and stays so
    clock.seconds = 2
    tell(view, clock, other(clock, epoch=2))
    assert [peer.peer_id for peer in view.others] == [b"a"]


def test_peers_met_in_a_round_are_in_its_epoch(view: SwarmView, clock: Clock):
    tell(view, clock, other(clock, epoch=3, samples_accumulated=90))
    view.enter_epoch(3)
    clock.seconds = 1
    view.mark_missed([b"a"])
    view.mark_met([b"a", b"stranger"], 4)
    view.enter_epoch(4)
    assert view.others == [other(clock, epoch=4)]
    # what it reports itself is better known
    clock.seconds = 2
    tell(view, clock, other(clock, epoch=4, samples_accumulated=20))
    assert view.others[0].samples_accumulated == 20


def test_strict_check_waits_for_a_fetch(view: SwarmView, clock: Clock):
    tell(view, clock)
    assert view.fetched_this_epoch
    view.enter_epoch(1)
    assert not view.fetched_this_epoch
    tell(view, clock)
    assert view.fetched_this_epoch


def test_reports_are_bounded(view: SwarmView, clock: Clock):
    for start in range(0, 20_000, 1000):
        tell(view, clock, *(other(clock, number.to_bytes(4, "big")) for number in range(start, start + 1000)))
    assert view.swarm.num_peers == 8192
    view.mark_missed(number.to_bytes(4, "big") for number in range(20_000))
    view.mark_met((number.to_bytes(4, "big") for number in range(20_000)), 1)
    assert len(view._missed) <= 8192
    assert len(view._met) == 8192
