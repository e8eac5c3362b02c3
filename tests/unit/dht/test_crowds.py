"""What counts as a crowd: rarely an honest swarm, always one whose members are much nearer than chance puts them."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from hivemind.dht.crowds import allowed_within, count_in, density_around, detours, is_crowded
from hivemind.dht.routing import DHTID

sizes = st.integers(8, 5000)


def swarm(size: int, seed: int) -> list[int]:
    chance = random.Random(seed)
    return [chance.randrange(DHTID.MAX) for _ in range(size)]


def around(nodes: list[int], place: int) -> list[int]:
    return sorted(node ^ place for node in nodes)


def test_honest_swarms_are_rarely_crowded() -> None:
    crowded = 0
    for seed in range(1000):
        nodes = swarm(100 + seed, seed)
        own, key = swarm(2, seed + 10_000)
        density = density_around(DHTID(own), [DHTID(own ^ distance) for distance in around(nodes, own)[:20]])
        assert density is not None
        assert 0.2 < density * DHTID.MAX / len(nodes) < 3
        crowded += is_crowded(around(nodes, key), density)
    assert crowded <= 10


@given(sizes, st.integers(0, 1000), st.integers(1, 60), st.integers(0, 130))
def test_made_up_identities_never_fill_the_beam(size: int, seed: int, liars: int, spread: int) -> None:
    """However many sit next to a key, of those that count a few only are theirs, and all honest ones count."""
    density = size / DHTID.MAX
    honest = around(swarm(size, seed), 0)
    lies = [number << spread for number in range(1, liars + 1)]
    together = lies + honest
    taken = count_in(together, density, 20)
    assert taken <= len(together)
    assert taken - liars >= min(size, 20 - int(allowed_within(lies[-1], density)) - 1)
    if liars > 5:
        assert is_crowded(together, density)


def test_without_a_crowd_all_count() -> None:
    distances = [(number + 1) << 140 for number in range(40)]
    assert count_in(distances, 1 / (1 << 140), 20) == 20
    assert count_in(distances[:7], 1 / (1 << 140), 20) == 7
    assert not is_crowded(distances, 1 / (1 << 140))


def test_a_node_that_knows_few_cannot_tell() -> None:
    assert density_around(DHTID(0), [DHTID(number) for number in range(1, 8)]) is None


@given(st.integers(0, DHTID.MAX - 1), sizes)
def test_detours_lead_around_the_key(key: int, size: int) -> None:
    places = detours(DHTID(key), size / DHTID.MAX)
    assert places
    assert all(0 < (place ^ key) <= DHTID.MAX >> 1 for place in places)
