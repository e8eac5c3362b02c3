"""Whether more nodes sit around a key than chance puts there, which is how somebody with made-up identities takes a key
for himself; and how to look beyond them. Pure.

Node ids are random: within some distance of a key there are as many nodes as the swarm has in a range of that size,
give or take luck. Each node knows how dense the swarm is from its own neighbourhood. Where far more nodes crowd around
a key, only as many of them count as chance allows, and others are looked for behind them. (Sridhar et al., "Content
Censorship in the InterPlanetary File System", NDSS 2024, tell such an attack by the same sign and search the region.)
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Final

from hivemind.dht.routing import DHTID

__all__ = ["allowed_within", "count_in", "density_around", "detours", "is_crowded"]

#: Nodes at the least from whose distances the density of a swarm is estimated.
_LEAST_KNOWN: Final = 8
#: Nodes nearest to a key among which a crowd is looked for.
_LOOKED_AT: Final = 20
#: Of the nodes around a key, ``_ALWAYS + _FACTOR * expected`` count: once in 500 times there are more by chance.
_ALWAYS: Final = 4.0
_FACTOR: Final = 3.0
#: Places to look at behind a crowd: at the distances within which so many nodes are expected.
_DETOURS: Final = (8.0, 4.0, 2.0, 1.0, 0.5)


def density_around(own_id: DHTID, nearest: Sequence[DHTID]) -> float | None:
    """How many nodes the swarm has for each unit of distance, rather too few than too many.

    :param nearest: the nodes known nearest to ``own_id``, nearest first
    :returns: None if that are too few to tell
    """
    if len(nearest) < _LEAST_KNOWN:
        return None
    ranks = range(len(nearest) // 2, len(nearest))
    return min((rank + 1) / (nearest[rank] ^ own_id) for rank in ranks)


def allowed_within(distance: int, density: float) -> float:
    """Of the nodes within ``distance`` of a key, how many count."""
    return _ALWAYS + _FACTOR * distance * density


def is_crowded(distances: Iterable[int], density: float) -> bool:
    """Whether too many nodes are too near.

    :param distances: of nodes to the key, ascending
    """
    nearest = enumerate(islice(distances, _LOOKED_AT), start=1)
    return any(rank > allowed_within(distance, density) for rank, distance in nearest)


def count_in(distances: Iterable[int], density: float, wanted: int) -> int:
    """How many of the nearest nodes to take until ``wanted`` of them count; all if they are too few.

    :param distances: of nodes to the key, ascending
    """
    counted = taken = 0
    for distance in distances:
        if counted == wanted:
            break
        taken += 1
        counted += counted + 1 <= allowed_within(distance, density)
    return taken


def detours(key: DHTID, density: float) -> list[DHTID]:
    """Places around a key whose nearest nodes are beyond a crowd at the key itself."""
    distances = (min(int(expected / density), DHTID.MAX >> 1) for expected in _DETOURS)
    return [DHTID(key ^ distance) for distance in dict.fromkeys(distances) if distance > 0]
