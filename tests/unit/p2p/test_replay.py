"""The guard against replays, against a model that forgets nothing."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from hivemind.p2p.replay import MAX_NONCE_BYTES, ReplayGuard

steps = st.lists(st.tuples(st.floats(0, 30), st.integers(0, 12)), max_size=60)


@given(steps)
def test_no_replay_passes_within_the_window(waits: list[tuple[float, int]]) -> None:
    guard, now = ReplayGuard(20), 100.0
    used: dict[bytes, float] = {}
    for wait, number in waits:
        now += wait
        nonce = bytes([1, number])
        problem = guard.problem_with(b"caller", nonce, now)
        last = used.get(nonce)
        if last is None:
            assert not problem, "it is new"
        elif now - last < 20:
            assert "replay" in problem
        elif now - last >= 60:
            assert not problem, "it is forgotten in the end"
        if not problem:
            used[nonce] = now


def test_a_caller_that_floods_shuts_out_only_itself() -> None:
    guard = ReplayGuard(20, most_per_caller=100)
    refused = [bool(guard.problem_with(b"flood", number.to_bytes(4, "big"), 0.0)) for number in range(300)]
    assert refused == [False] * 100 + [True] * 200
    assert not guard.problem_with(b"other", b"nonce", 1.0)
    assert guard.problem_with(b"other", b"nonce", 1.0)
    assert not guard.problem_with(b"flood", b"later", 21.0)


def test_memory_is_bounded_and_nothing_is_forgotten_early() -> None:
    guard = ReplayGuard(20, most=50)
    for number in range(500):
        guard.problem_with(number.to_bytes(4, "big"), number.to_bytes(4, "big"), 0.0)
    assert len(guard) == 50
    assert all("replay" in guard.problem_with(b"x", n.to_bytes(4, "big"), 19.0) for n in range(50))
    for number in range(500):
        guard.problem_with(number.to_bytes(4, "big"), b"new" + number.to_bytes(4, "big"), 20.0)
    assert len(guard) == 100
    assert not guard.problem_with(b"x", b"y", 60.0)
    assert len(guard) == 1, "both generations are old"


def test_nonces_have_a_length() -> None:
    guard = ReplayGuard(20)
    assert "nonce" in guard.problem_with(b"caller", b"", 0.0)
    assert "nonce" in guard.problem_with(b"caller", bytes(MAX_NONCE_BYTES + 1), 0.0)
    assert not guard.problem_with(b"caller", bytes(MAX_NONCE_BYTES), 0.0)
