"""How an epoch ends on one peer, with averagers and tracker that do as they are told."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, cast

import pytest

from hivemind.averaging import AveragingStage, StepControl
from hivemind.clock import get_dht_time
from hivemind.errors import AllreduceException
from hivemind.identity import PeerID
from hivemind.optim.config import OptimizerOptions
from hivemind.optim.epoch import Readiness
from hivemind.optim.global_step import GlobalStep
from hivemind.optim.planning import PlannedRound, give_up

OWN, A, B = (PeerID(name) for name in (b"own", b"a", b"b"))
STAGES = AveragingStage


@dataclass
class Averager:
    """Its rounds end as ``outcome`` says: with members, with an error, or not at all."""

    outcome: Mapping[PeerID, Any] | Exception | None = None
    stage: AveragingStage = STAGES.LOOKING_FOR_GROUP
    controls: list[StepControl] = field(default_factory=list)
    wanted: list[tuple[frozenset[PeerID], Any]] = field(default_factory=list)

    def schedule_step(
        self,
        scheduled_time: float | None = None,
        *,
        timeout: float | None = None,
        known_peers: int | Iterable[PeerID] | None = None,
        gather: Any = None,
    ) -> StepControl:
        when = scheduled_time or get_dht_time()
        control = StepControl(scheduled_time=when, deadline=get_dht_time() + (timeout or 0))
        control.enter(self.stage)
        self.controls.append(control)
        assert known_peers is not None
        assert not isinstance(known_peers, int)
        self.wanted.append((frozenset(known_peers), gather))
        return control

    def end(self, control: StepControl) -> None:
        control.allow_allreduce()
        if isinstance(self.outcome, Exception):
            control.set_exception(self.outcome)
        elif self.outcome is not None:
            control.set_result(self.outcome)


@dataclass
class Gradients(Averager):
    log: list[str] = field(default_factory=list)
    weight: float | None = None

    def step(self, *, weight: float | None, control: StepControl, reset_accumulators: bool, wait: bool) -> None:
        assert not reset_accumulators
        assert not wait
        self.weight = weight
        self.log.append("average")
        self.end(control)

    def load_accumulators_into_averager_(self) -> None:
        self.log.append("local")

    def reset_accumulated_grads_(self) -> None:
        self.log.append("reset")

    @contextmanager
    def use_averaged_gradients(self) -> Iterator[None]:
        self.log.append("use")
        yield


@dataclass
class State(Averager):
    local_epoch: int = 5
    peer_id: PeerID = OWN
    log: list[str] = field(default_factory=list)

    def advance(self, epoch: int, *, optimizer_step: bool) -> None:
        self.local_epoch = epoch
        self.log.append("step" if optimizer_step else "enter")

    def begin_round(self, control: StepControl) -> None:
        self.log.append("begin")
        self.end(control)

    def end_round(self) -> None:
        self.log.append("take over")


@dataclass
class Tracker:
    global_epoch: int = 5
    expected_peers: frozenset[PeerID] = frozenset({A, B})
    status_loglevel: int = 10
    seconds_to_end: float = 1.0
    missed: set[PeerID] = field(default_factory=set)
    met: dict[PeerID, int] = field(default_factory=dict)
    entered: list[int] = field(default_factory=list)
    fetched: frozenset[PeerID] | None = None

    @property
    def estimated_next_update_time(self) -> float:
        return get_dht_time() + self.seconds_to_end

    def mark_missed(self, peers: Iterable[PeerID]) -> None:
        self.missed |= set(peers)
        self.expected_peers -= frozenset(peers)

    def mark_met(self, peers: Iterable[PeerID], epoch: int) -> None:
        self.met.update(dict.fromkeys(peers, epoch))

    def update_epoch(self, epoch: int) -> None:
        self.entered.append(epoch)

    def fetch(self, timeout: float) -> None:
        if self.fetched is not None:
            self.expected_peers = self.fetched


class Peer:
    def __init__(self, **options: Any) -> None:
        self.tracker = Tracker()
        self.grads = Gradients({OWN: None, A: None, B: None})
        self.state = State({OWN: 6, A: 6, B: 6})
        settings = OptimizerOptions(
            **{"matchmaking_time": 0.2, "averaging_timeout": 1.0, "next_chunk_timeout": 1.0, **options}
        )
        self.step = GlobalStep(cast("Any", self.tracker), cast("Any", self.grads), cast("Any", self.state), settings)

    def run(self, reason: Readiness = Readiness.ENOUGH_SAMPLES) -> Any:
        return self.step.run(reason)


def test_all_goes_well():
    peer = Peer()
    report = peer.run()
    assert (report.epoch, report.gradient_peers, report.state_peers) == (6, 3, 3)
    assert peer.grads.log == ["average", "use", "reset"]
    assert peer.state.log == ["step", "begin", "take over", "enter"]
    assert (peer.state.local_epoch, peer.tracker.entered) == (6, [6])
    assert peer.tracker.met == {OWN: 6, A: 6, B: 6}
    # the state round is for those that have just averaged gradients, and tells the epoch
    assert peer.state.wanted == [(frozenset({A, B}), 6)]
    assert peer.state.controls[0].weight == 1.0
    assert peer.grads.weight is None


def test_who_is_missing_is_remembered_and_not_waited_for():
    peer = Peer()
    peer.grads.outcome = {OWN: None, A: None}
    assert peer.run().gradient_peers == 2
    assert peer.tracker.missed == {B}
    assert peer.state.wanted == [(frozenset({A}), 6)]


def test_failed_gradients_are_replaced_by_local_ones():
    peer = Peer()
    peer.grads.outcome = AllreduceException("broken")
    report = peer.run()
    assert (report.epoch, report.gradient_peers, report.state_peers) == (6, 1, 0)
    assert peer.grads.log == ["average", "use", "reset"]  # what was loaded for the round stands unchanged
    assert peer.tracker.missed == {A, B}


def test_peer_out_of_step_hardly_counts_in_the_state():
    peer = Peer()
    peer.grads.outcome = AllreduceException("broken")
    peer.tracker.mark_missed = lambda peers: None  # type: ignore[method-assign]
    assert peer.run().state_peers == 3
    assert peer.state.controls[0].weight == 1e-3


def test_failed_state_round_leaves_the_state():
    peer = Peer()
    peer.state.outcome = AllreduceException("broken")
    assert peer.run().state_peers == 0
    assert peer.state.log == ["step", "begin"]
    assert peer.tracker.entered == [6]


def test_alone():
    peer = Peer()
    peer.tracker.expected_peers = frozenset()
    report = peer.run()
    assert (report.gradient_peers, report.state_peers) == (1, 0)
    assert peer.grads.log == ["local", "use", "reset"]
    assert peer.grads.controls == peer.state.controls == []


def test_nobody_is_alone_without_a_last_look():
    peer = Peer()
    peer.tracker.expected_peers, peer.tracker.fetched = frozenset(), frozenset({A, B})
    assert peer.run().gradient_peers == 3


def test_search_ends_when_the_others_have_moved_on():
    peer = Peer(averaging_timeout=60.0)
    peer.grads.outcome = None
    original = peer.grads.step

    def step(**kwargs: Any) -> None:
        original(**kwargs)
        peer.tracker.global_epoch = 6

    peer.grads.step = step  # type: ignore[method-assign]
    assert peer.run() is None
    assert peer.grads.controls[0].cancelled()
    assert (peer.tracker.missed, peer.state.log) == (set(), [])


def test_search_ends_when_nobody_is_left():
    peer = Peer(averaging_timeout=60.0)
    peer.grads.outcome = None
    original = peer.grads.step

    def step(**kwargs: Any) -> None:
        original(**kwargs)
        peer.tracker.expected_peers = frozenset()

    peer.grads.step = step  # type: ignore[method-assign]
    assert peer.run().gradient_peers == 1


def test_round_that_does_not_end_is_given_up():
    peer = Peer(averaging_timeout=0.3)
    peer.grads.outcome, peer.grads.stage = None, STAGES.RUNNING_ALLREDUCE
    assert peer.run().gradient_peers == 1
    assert peer.grads.controls[0].cancelled()


def test_peer_that_is_behind_adopts_the_epoch_of_those_it_meets():
    peer = Peer()
    peer.tracker.global_epoch = 6
    peer.state.outcome = {OWN: 6, A: 7, B: 7}
    assert peer.run(Readiness.PEERS_AHEAD).epoch == 7
    assert peer.state.local_epoch == 7
    assert peer.state.controls[0].weight == 1e-3


@pytest.mark.parametrize("lie", [10**9, 7.0, True, None, "7", [7]])
def test_implausible_epochs_are_not_adopted(lie: Any):
    peer = Peer()
    peer.state.outcome = {OWN: 6, A: lie}
    assert peer.run().epoch == 6


def test_peer_that_is_behind_and_meets_nobody_makes_no_step_of_its_own():
    peer = Peer()
    peer.tracker.global_epoch = 6
    peer.grads.outcome = AllreduceException("nobody")
    assert peer.run(Readiness.PEERS_AHEAD) is None
    assert peer.state.log == []


def test_auxiliary_helps_without_weight_and_step():
    peer = Peer(auxiliary=True)
    assert peer.run().epoch == 6
    assert (peer.grads.weight, peer.state.controls[0].weight) == (0.0, 0.0)
    assert "use" not in peer.grads.log
    assert "step" not in peer.state.log


def test_state_is_averaged_every_few_epochs():
    peer = Peer(average_state_every=3)
    assert [peer.run().state_peers for _ in range(4)] == [3, 0, 0, 3]


def test_state_round_in_the_background():
    peer = Peer(delay_state_averaging=True)
    peer.state.outcome = None
    peer.run()
    peer.step.finish_delayed(wait=False)
    assert peer.state.log == ["step", "begin"]
    peer.state.controls[0].set_result({OWN: 6, A: 6, B: 6})
    peer.step.finish_delayed(wait=False)
    assert peer.state.log == ["step", "begin", "take over"]
    # the next epoch does not end before the last one's round has
    peer.state.outcome = {OWN: 7, A: 7, B: 7}
    peer.run()
    peer.run()
    assert peer.state.log[3:] == ["step", "begin", "take over", "step", "begin"]


def test_download_drops_a_round_in_the_background():
    peer = Peer(delay_state_averaging=True)
    peer.state.outcome = None
    peer.run()
    peer.step.leave_rounds()
    peer.state.controls[0].set_result({OWN: 6, A: 6, B: 6})
    peer.step.finish_delayed(wait=True)
    assert "take over" not in peer.state.log


def test_planning_ahead():
    peer = Peer()
    peer.step.plan()
    assert peer.grads.controls == []  # the end is not near
    peer.tracker.seconds_to_end = 0.1
    peer.step.plan()
    peer.step.plan()
    assert len(peer.grads.controls) == 1
    assert peer.grads.controls[0].scheduled_time == pytest.approx(get_dht_time() + 0.1, abs=5)
    assert not peer.grads.controls[0].triggered
    peer.run()
    assert len(peer.grads.controls) == 1


def test_planned_round_that_failed_is_replaced():
    rounds = Averager({A: None})
    planned = PlannedRound(rounds, 10.0)
    planned.plan(get_dht_time(), {A})
    rounds.controls[0].set_exception(AllreduceException("too late"))
    assert planned.control is None
    assert planned.take({A}) is rounds.controls[1]


def test_leaving_a_round():
    rounds = Averager()
    planned = PlannedRound(rounds, 10.0)
    assert planned.leave() is None
    planned.plan(get_dht_time(), {A})
    assert planned.leave() is None
    assert rounds.controls[0].cancelled()
    # a group counts on this peer: it goes along, without weight
    rounds.stage = STAGES.AWAITING_TRIGGER
    planned.plan(get_dht_time(), {A})
    assert planned.has_group
    left = planned.leave()
    assert left is rounds.controls[1]
    assert (left.weight, left.triggered, left.cancelled()) == (0.0, True, False)
    # no other round is planned while it still writes to the tensors; one that is needed ends it
    planned.plan(get_dht_time(), {A})
    assert len(rounds.controls) == 2
    assert planned.take({A}) is rounds.controls[2]
    assert left.cancelled()


def test_giving_up_needs_no_network():
    control = Averager().schedule_step(timeout=1, known_peers=())
    give_up(control)
    assert control.cancelled()
