"""Whole processes train scikit-learn's digits together over real daemons, and some of them die."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.training_swarm import LEARNED, TrainingSwarm, finish_alike, preload

#: Seconds for a run of some seconds; the bound is what is tested, so it is no more than a loaded machine needs.
BOUND = 90.0


@pytest.fixture(scope="module", autouse=True)
def _preloaded() -> None:
    preload()


@pytest.fixture
def swarm(tmp_path: Path) -> Iterator[TrainingSwarm]:
    options = {"matchmaking_time": 3.0, "averaging_timeout": 9.0, "next_chunk_timeout": 3.0}
    with TrainingSwarm(tmp_path, epochs=20, options=options) as swarm:
        yield swarm


def pause(seconds: float) -> None:
    """Not to wait for something, but to hit another moment of the run."""
    threading.Event().wait(seconds)


@pytest.mark.timeout(300)
def test_three_peers_and_a_client_learn_together(swarm: TrainingSwarm):
    trainers = [swarm.join() for _ in range(3)]
    client = swarm.join(client_mode=True)
    swarm.train(*trainers, client)
    for peer in (*trainers, client):
        peer.wait_for("done", BOUND)
        # they average, rather than train side by side
        assert sum(e["gradients"] == e["state"] == 4 for e in peer.epochs) >= 10, peer.report()
    finish_alike(*trainers, client, seconds=BOUND)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("moment", [0.0, 0.03, 0.1])
def test_one_of_four_is_killed_and_a_fifth_joins(swarm: TrainingSwarm, moment: float):
    peers = swarm.start(4)
    fifth = swarm.join()
    peers[2].wait_for("epoch", BOUND, epoch=5)
    pause(moment)
    peers[2].kill()
    swarm.train(fifth)
    survivors = [peers[0], peers[1], peers[3], fifth]
    finish_alike(*survivors, seconds=BOUND)
    # the latecomer began where the others were
    assert min(e["epoch"] for e in fifth.epochs) >= 5, fifth.report()


@pytest.mark.timeout(300)
def test_all_others_are_killed(swarm: TrainingSwarm):
    peers = swarm.start(3)
    survivor = peers[0]
    survivor.wait_for("epoch", BOUND, epoch=5)
    for peer in peers[1:]:
        peer.kill()
    assert survivor.wait_for("done", BOUND)["accuracy"] > LEARNED, survivor.report()
    assert survivor.epochs[-1]["gradients"] == 1
    survivor.finish()


@pytest.mark.timeout(300)
def test_a_frozen_peer_is_left_behind_and_catches_up(swarm: TrainingSwarm):
    peers = swarm.start(3, epochs=40)
    peers[2].wait_for("epoch", BOUND, epoch=5)
    peers[2].signal(signal.SIGSTOP)
    frozen_at = max(e["epoch"] for e in peers[2].epochs)
    peers[0].wait_for("epoch", BOUND, epoch=frozen_at + 8)
    peers[2].signal(signal.SIGCONT)
    finish_alike(*peers, seconds=BOUND)


@pytest.mark.timeout(300)
def test_daemons_die_and_are_restarted(swarm: TrainingSwarm):
    """Also that of the peer through which the others have joined; rounds may fail meanwhile."""
    peers = swarm.start(3, epochs=40, step_seconds=0.01)
    for victim, epoch in ((peers[1], 5), (peers[0], 15)):
        victim.wait_for("epoch", BOUND, epoch=epoch)
        victim.kill_daemon()
    finish_alike(*peers)
    for peer in peers:
        assert peer.epochs[-1]["gradients"] == 3, peer.report()


@pytest.mark.timeout(300)
def test_an_auxiliary_peer_helps(swarm: TrainingSwarm):
    # nobody knows of the helper before it looks for a group: the run must outlast its first looks at the swarm
    trainers = [swarm.join(epochs=40, step_seconds=0.02) for _ in range(2)]
    looks_often = {"default_refresh_period": 0.5}
    helper = swarm.join(
        epochs=10**6,
        step_seconds=0.02,
        options={"auxiliary": True, "matchmaking_time": 3.0, "averaging_timeout": 9.0, "tracker_opts": looks_often},
    )
    swarm.train(helper, *trainers)
    for peer in trainers:
        peer.wait_for("done", BOUND)
        assert any(e["gradients"] == 3 for e in peer.epochs), peer.report()
    finish_alike(*trainers, seconds=BOUND)
    helper.kill()
