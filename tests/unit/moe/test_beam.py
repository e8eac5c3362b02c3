"""Beam search against looking at all experts, and against what records of strangers may say."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hivemind.errors import ConfigError
from hivemind.moe.client.beam import BeamSearch, check_grid, live_below
from hivemind.moe.uid import ExpertInfo
from hivemind.p2p import PeerID

PEER = PeerID(b"\x00\x24\x08\x01\x12\x20" + bytes(32))
OTHER = PeerID(b"\x00\x24\x08\x01\x12\x20" + bytes([1] * 32))


def records_of(uids: list[str]) -> dict[str, dict[int, ExpertInfo]]:
    """What the DHT has when ``uids`` were declared: by name, and by prefix and coordinate."""
    found: dict[str, dict[int, ExpertInfo]] = {}
    for uid in uids:
        found[uid] = {0: ExpertInfo(uid, PEER)}
        parts = uid.split(".")
        for depth in range(2, len(parts)):
            found.setdefault(".".join(parts[:depth]) + ".", {})[int(parts[depth])] = ExpertInfo(uid, PEER)
    return found


def run(search: BeamSearch, records: dict[str, Any]) -> tuple[list[str], int]:
    """The names that are found, and how many records were looked up."""
    looked_up = 0
    while search.wanted:
        looked_up += len(search.wanted)
        assert looked_up < 10_000
        search.feed({key: found for key in search.wanted if (found := records.get(key))})
    return [expert.uid for expert in search.best], looked_up


@st.composite
def grids(draw: st.DrawFn) -> tuple[list[list[float]], list[str]]:
    """Scores, all sums of which differ, and the experts that are there."""
    sizes = draw(st.lists(st.integers(1, 4), min_size=1, max_size=3))
    scores = []
    for axis, size in enumerate(sizes):
        places = draw(st.permutations(range(size)))
        scores.append([float(place * 10**axis) for place in places])
    everyone = [".".join(["e", *map(str, places)]) for places in itertools.product(*map(range, sizes))]
    return scores, draw(st.lists(st.sampled_from(everyone), unique=True))


def by_score(uids: list[str], scores: list[list[float]]) -> list[str]:
    def score(uid: str) -> float:
        return sum(axis[int(place)] for axis, place in zip(scores, uid.split(".")[1:], strict=True))

    return sorted(uids, key=score, reverse=True)


@given(grids(), st.integers(1, 70))
def test_a_beam_that_is_wide_enough_finds_the_best_of_all(grid: tuple[Any, list[str]], count: int) -> None:
    scores, alive = grid
    found, _ = run(BeamSearch("e.", scores, 64), records_of(alive))
    assert found == by_score(alive, scores)


@given(grids(), st.integers(1, 5))
def test_a_narrow_beam_finds_live_ones_in_order(grid: tuple[Any, list[str]], beam_size: int) -> None:
    scores, alive = grid
    found, looked_up = run(BeamSearch("e.", scores, beam_size), records_of(alive))
    assert found == by_score(found, scores)
    assert set(found) <= set(alive)
    assert len(found) == len(set(found)) <= beam_size
    assert bool(found) == bool(alive)
    assert looked_up <= sum(math.prod(map(len, scores[: depth + 1])) for depth in range(len(scores)))


@given(st.lists(st.permutations(range(4)), min_size=1, max_size=3), st.integers(1, 8))
def test_a_full_grid_gives_the_best_with_any_beam(axes: list[list[int]], beam_size: int) -> None:
    """Where nothing is missing, each of the best k lies below one of the best k branches."""
    scores = [[float(place * 10**axis) for place in places] for axis, places in enumerate(axes)]
    everyone = [".".join(["e", *map(str, places)]) for places in itertools.product(range(4), repeat=len(axes))]
    found, _ = run(BeamSearch("e.", scores, beam_size), records_of(everyone))
    assert found == by_score(everyone, scores)[:beam_size]


def below(key: str, entries: dict[int, ExpertInfo], size: tuple[int, ...] = (2, 3), but: Any = None) -> list[str]:
    """The experts in a record that count."""
    return [
        expert.uid for expert in live_below(key, entries, "e.", size, lambda expert: expert.peer_id != but).values()
    ]


@pytest.mark.parametrize("uid", ["other.0.1", "e.0.2", "e.0.1.5", "e.1.1"])
def test_a_record_that_tells_of_another_expert_is_no_record(uid: str) -> None:
    assert below("e.0.", {1: ExpertInfo(uid, PEER)}) == []
    assert below("e.0", {0: ExpertInfo(uid, PEER)}, (3,)) == []
    assert below("e.0.", {1: ExpertInfo(uid, PEER)}, (2, 3, 6)) == ([uid] if uid == "e.0.1.5" else [])


@pytest.mark.parametrize("place", [-1, 3, 10**30])
def test_coordinates_outside_of_the_grid_do_not_count(place: int) -> None:
    entries = {place: ExpertInfo(f"e.0.{max(0, place)}", PEER), 1: ExpertInfo("e.0.1", PEER)}
    assert below("e.0.", entries) == ["e.0.1"]


def test_experts_that_may_not_be_asked_do_not_count() -> None:
    """Above them they do: others live there, too."""
    entries = {0: ExpertInfo("e.0.0", OTHER), 1: ExpertInfo("e.0.1", PEER)}
    assert below("e.0.", entries, but=OTHER) == ["e.0.1"]
    assert below("e.", {0: ExpertInfo("e.0.0", OTHER)}, but=OTHER) == ["e.0.0"]


def test_an_empty_grid_takes_few_rounds() -> None:
    search, rounds = BeamSearch("e.", [[0.0] * 256, [0.0]], 4), 0
    while search.wanted:
        search.feed({})
        rounds += 1
    assert rounds <= 8
    assert search.best == []


@pytest.mark.parametrize(
    ("prefix", "size", "name"),
    [("", (1,), "uid_prefix"), ("e..", (1,), "uid_prefix"), ("e.x.", (1,), "uid_prefix"), (None, (1,), "uid_prefix")]
    + [("e", size, "grid_size") for size in [(), (0,), (2, -1), (1.5,), 3, None, (True,)]],
)
def test_malformed_grids(prefix: Any, size: Any, name: str) -> None:
    with pytest.raises(ConfigError, match=name):
        check_grid(prefix, size)


def test_the_dot_of_a_grid_may_be_left_out() -> None:
    assert check_grid("e", [2, 3]) == check_grid("e.", (2, 3)) == ("e.", (2, 3))
