"""Whom a mixture passes over, and for how long."""

from __future__ import annotations

from typing import Any

import pytest

from hivemind.clock import simulated_time
from hivemind.errors import (
    DeadlineExceeded,
    ExpertFailed,
    HivemindError,
    PeerUnreachable,
    ServerBusy,
    StreamReset,
    UnknownExpert,
)
from hivemind.moe.client.suspects import Suspects
from hivemind.moe.uid import ExpertInfo
from hivemind.p2p import PeerID

PEER = PeerID(b"\x00\x24\x08\x01\x12\x20" + bytes(32))
ONE, OTHER = ExpertInfo("e.1", PEER), ExpertInfo("e.2", PEER)


@pytest.fixture
def clock() -> Any:
    now = [0.0]
    with simulated_time(lambda: now[0]):
        yield now


@pytest.mark.parametrize("error", [PeerUnreachable("x"), DeadlineExceeded("x")])
def test_a_silent_server_is_passed_over_longer_each_time(clock: list[float], error: HivemindError) -> None:
    suspects = Suspects()
    assert suspects.usable(ONE)
    for seconds in (1, 2, 4, 8, 16, 32, 60, 60):
        suspects.note((), {ONE: error})
        suspects.note((), {OTHER: error})  # asked at the same time: counts once
        clock[0] += seconds - 0.01
        assert not suspects.usable(ONE)
        assert not suspects.usable(OTHER)
        clock[0] += 0.02
        assert suspects.usable(ONE)


def test_an_answer_forgives_all(clock: list[float]) -> None:
    suspects = Suspects()
    suspects.note((), {ONE: PeerUnreachable("x")})
    suspects.note([OTHER], {})
    assert suspects.usable(ONE)
    suspects.note([OTHER], {ONE: DeadlineExceeded("x")})
    assert suspects.usable(ONE)


def test_an_expert_that_is_unknown_is_passed_over_alone(clock: list[float]) -> None:
    suspects = Suspects()
    suspects.note((), {ONE: UnknownExpert("x")})
    assert not suspects.usable(ONE)
    assert suspects.usable(OTHER)


@pytest.mark.parametrize("error", [ExpertFailed("x"), StreamReset("x")])
def test_one_that_only_failed_is_alive(clock: list[float], error: HivemindError) -> None:
    suspects = Suspects()
    suspects.note((), {ONE: error})
    assert suspects.usable(ONE)


def test_one_that_is_busy_is_passed_over_as_long_as_it_says(clock: list[float]) -> None:
    suspects = Suspects()
    for said, seconds in ((2.0, 2.0), (0.5, 0.5), (3000.0, 10.0)):
        suspects.note([OTHER], {ONE: ServerBusy("x", said)})
        clock[0] += seconds - 0.01
        assert not suspects.usable(ONE)
        assert suspects.usable(OTHER)
        clock[0] += 0.02
        assert suspects.usable(ONE)
