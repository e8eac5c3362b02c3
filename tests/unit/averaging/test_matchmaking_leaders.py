"""Whom a peer asks to lead it, and in what order."""

from __future__ import annotations

import math

from hivemind.averaging.leaders import Candidate, PotentialLeaders
from hivemind.identity import PeerID

OWN, A, B, C = (PeerID(bytes([0x12, 0x20, *([n] * 32)])) for n in range(4))


def ask_all(leaders: PotentialLeaders, looking: dict[PeerID, float], declared: float, now: float = 0.0) -> list[PeerID]:
    order = []
    while (candidate := leaders.next(looking, declared, now)) is not None:
        leaders.asked(candidate)
        order.append(candidate.peer_id)
    return order


def test_the_earliest_first_and_none_after_this_peer() -> None:
    looking = {A: 12.0, B: 11.0, C: 20.0, OWN: 1.0}
    assert ask_all(PotentialLeaders(OWN), looking, declared=15.0) == [B, A]
    assert ask_all(PotentialLeaders(OWN), looking, declared=math.inf) == [B, A, C]
    assert ask_all(PotentialLeaders(OWN), looking, declared=15.0, now=11.5) == [A]


def test_those_that_failed_lately_are_asked_last() -> None:
    looking = {A: 12.0, B: 11.0, C: 20.0}
    candidate = PotentialLeaders(OWN).next(looking, 15.0, 0.0, doubtful={B})
    assert candidate == Candidate(A, 12.0)
    assert PotentialLeaders(OWN).next(looking, 15.0, 0.0, doubtful={A, B}) == Candidate(B, 11.0)


def test_each_declaration_is_asked_once() -> None:
    leaders = PotentialLeaders(OWN)
    assert ask_all(leaders, {A: 10.0}, 15.0) == [A]
    assert ask_all(leaders, {A: 10.0}, 15.0) == []
    assert ask_all(leaders, {A: 10.5}, 15.0) == [A]


def test_suggested_leaders_first_but_not_in_circles() -> None:
    leaders = PotentialLeaders(OWN)
    leaders.suggest(C)
    leaders.suggest(OWN)
    assert ask_all(leaders, {A: 10.0}, 15.0) == [C, A]
    leaders.suggest(C)
    assert ask_all(leaders, {A: 10.0}, 15.0) == []
    assert leaders.next({}, 20.0, 0.0) is None  # it is no longer suggested
    leaders.suggest(C)
    assert leaders.next({}, 20.0, 0.0) == Candidate(C, None)


def test_a_passing_refusal_is_tried_again_a_few_times() -> None:
    leaders, now, asked = PotentialLeaders(OWN), 0.0, 0
    while asked < 100:
        candidate = leaders.next({A: 1000.0}, 2000.0, now)
        if candidate is None:
            wait = leaders.seconds_to_retry(now)
            if wait is None:
                break
            assert wait > 0
            now += wait
            continue
        asked += 1
        leaders.asked(candidate)
        leaders.retry_later(candidate, now)
    assert asked == 5
    assert leaders.elsewhere({A: 1000.0}) == {A}


def test_who_has_refused_is_elsewhere_until_it_declares_anew() -> None:
    leaders = PotentialLeaders(OWN)
    leaders.refuse(Candidate(A, 10.0))
    leaders.refuse(Candidate(B, None))
    assert leaders.elsewhere({A: 10.0}) == {A, B}
    assert leaders.elsewhere({A: 10.5, B: 11.0}) == {B}
