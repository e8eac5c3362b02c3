"""Whom a mixture waits for: the decision, and the wait in virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hivemind.clock import Deadline
from hivemind.errors import DeadlineExceeded, HivemindError, PeerUnreachable, ServerBusy
from hivemind.moe.client.calls import BusyHook
from hivemind.moe.client.quorum import Call, Quorum, ask_all
from hivemind.virtual_clock import run_virtual


def test_the_quorum_is_that_of_each_sample() -> None:
    quorum = Quorum([[0, 1], [0], [1]], samples=2, least=1)
    assert not quorum.reached
    quorum.note(1, answered=True)
    assert not quorum.reached  # sample 1 has nobody yet
    quorum.note(2, answered=True)
    assert quorum.reached
    assert quorum.short == []


def test_a_sample_that_cannot_have_enough_is_not_waited_for() -> None:
    quorum = Quorum([[0], [1], [1]], samples=3, least=2)
    quorum.note(0, answered=False)
    assert not quorum.reached
    quorum.note(1, answered=True)
    quorum.note(2, answered=True)
    assert quorum.reached
    assert quorum.short == [0, 2]


@given(st.lists(st.sets(st.integers(0, 4)), max_size=6), st.integers(0, 3), st.randoms())
def test_when_all_have_ended_nothing_is_waited_for(asked: list[set[int]], least: int, random: Any) -> None:
    answers = [random.random() < 0.5 for _ in asked]
    quorum = Quorum(asked, samples=5, least=least)
    for expert in random.sample(range(len(asked)), len(asked)):
        quorum.note(expert, answered=answers[expert])
    got = [sum(answers[expert] for expert, group in enumerate(asked) if sample in group) for sample in range(5)]
    assert quorum.reached
    assert quorum.answers == got
    assert quorum.short == [sample for sample in range(5) if got[sample] < least]


def after(seconds: float, result: Any, *, busy: Sequence[tuple[float, float]] = ()) -> Call[Any]:
    """
    :param busy: from when until when it waits for a server that is busy
    """

    async def call(on_busy: BusyHook) -> Any:
        begin = asyncio.get_running_loop().time()
        for since, until in busy:
            await asyncio.sleep(begin + since - asyncio.get_running_loop().time())
            on_busy(ServerBusy("full", until - since))
            await asyncio.sleep(until - since)
            on_busy(None)
        await asyncio.sleep(begin + seconds - asyncio.get_running_loop().time())
        if isinstance(result, Exception):
            raise result
        return result

    return call


def ask(
    calls: list[Call[Any]], least: int, seconds: float | None, grace: float | None, *, spare_busy: bool = False
) -> tuple[list[Any], float]:
    """What a single sample gets from all calls, and how long that took."""

    async def main() -> tuple[list[Any], float]:
        begin = asyncio.get_running_loop().time()
        quorum = Quorum([[0]] * len(calls), samples=1, least=least)
        found = await ask_all(calls, quorum, Deadline.after(seconds), grace, spare_busy=spare_busy)
        return found, asyncio.get_running_loop().time() - begin

    return run_virtual(main)


def test_all_are_waited_for_without_a_grace() -> None:
    assert ask([after(1, "a"), after(5, "b")], 1, None, None) == (["a", "b"], 5)


def test_others_have_their_grace_once_there_are_enough() -> None:
    calls = [after(1, "a"), after(2, "b"), after(2.4, "c"), after(9, "d")]
    assert ask(calls, 2, 60, 0.5) == (["a", "b", "c", None], 2.5)


def test_without_enough_answers_the_deadline_counts() -> None:
    found, seconds = ask([after(1, "a"), after(99, "b")], 2, 10, 0.5)
    assert found[0] == "a"
    assert isinstance(found[1], DeadlineExceeded)
    assert seconds == 10


def test_busy_servers_alone_are_not_waited_for() -> None:
    busy = after(9, "c", busy=[(1, 8)])
    found, seconds = ask([after(2, "a"), after(3, "b"), busy], 1, 60, None, spare_busy=True)
    assert found[:2] == ["a", "b"]
    assert isinstance(found[2], ServerBusy)
    assert seconds == 3
    # nor when they say so after all others have answered
    found, seconds = ask([after(2, "a"), after(9, "b", busy=[(5, 8)])], 1, 60, None, spare_busy=True)
    assert (isinstance(found[1], ServerBusy), seconds) == (True, 5)
    assert ask([after(2, "a"), busy], 1, 60, None) == (["a", "c"], 9)


def test_busy_servers_are_waited_for_while_they_are_needed_or_asked_again() -> None:
    busy = after(9, "b", busy=[(1, 8)])
    assert ask([after(2, "a"), busy], 2, 60, None, spare_busy=True) == (["a", "b"], 9)
    assert ask([busy], 0, 60, None, spare_busy=True) == (["b"], 9)  # zeros are for failures
    again = after(9, "b", busy=[(1, 2)])
    assert ask([after(3, "a"), again], 1, 60, None, spare_busy=True) == (["a", "b"], 9)


def test_one_that_fails_is_a_result() -> None:
    lost = PeerUnreachable("gone")
    found, seconds = ask([after(1, "a"), after(2, lost)], 1, 60, None)
    assert found == ["a", lost]
    assert seconds == 2


def test_a_fault_of_this_side_is_raised_as_it_is() -> None:
    with pytest.raises(ZeroDivisionError):
        ask([after(1, ZeroDivisionError()), after(2, "b")], 1, 60, None)


def test_nobody_asked() -> None:
    found: list[HivemindError | None] = ask([], 1, 60, 1)[0]
    assert found == []
