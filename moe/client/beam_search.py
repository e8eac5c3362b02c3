"""`MoEBeamSearcher`: finds the best experts of a grid through the DHT."""

from __future__ import annotations

import functools
import math
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any, Literal, TypeVar, overload

from hivemind.clock import get_dht_time
from hivemind.config import check_count
from hivemind.dht import DHT, DHTNode
from hivemind.errors import ConfigError, HivemindError
from hivemind.log import get_logger
from hivemind.moe.client.beam import BeamSearch, Successors, check_grid, live_below
from hivemind.moe.client.config import SearchOptions
from hivemind.moe.client.expert import RemoteExpert
from hivemind.moe.declare import read_entry, read_owner
from hivemind.moe.uid import FLAT_EXPERT, Coordinate, ExpertInfo, ExpertPrefix, Score
from hivemind.p2p import P2P
from hivemind.runtime import HivemindFuture, in_pool
from hivemind.timed_storage import TimedStorage, ValueWithExpiration

__all__ = ["MoEBeamSearcher"]

logger = get_logger(__name__)

#: Searches of more samples than this are not stepped on the network thread.
_INLINE_SEARCHES = 64

T = TypeVar("T")
GridScores = Sequence[Sequence[Score]]


class MoEBeamSearcher:
    """Finds the experts of a grid with the best scores, by beam search over the records of their prefixes. Thread-safe.

    :param uid_prefix: name of the grid, as ``"ffn"`` or ``"ffn."``
    :param grid_size: number of coordinates on each axis
    :param num_workers: and the others: see `SearchOptions`
    :raises ConfigError: if an argument is wrong
    """

    def __init__(
        self,
        dht: DHT,
        uid_prefix: ExpertPrefix,
        grid_size: Sequence[int],
        num_workers: int | None = None,
        negative_caching: bool = True,
        cache_expiration: float = 300,
    ) -> None:
        self.uid_prefix, self.grid_size = check_grid(uid_prefix, grid_size)
        self.options = SearchOptions(
            num_workers=num_workers, negative_caching=negative_caching, cache_expiration=cache_expiration
        )
        self.dht = dht
        # owned by the network thread: prefixes of which was stored not long ago that nobody has declared them
        self._stored_absent: TimedStorage[ExpertPrefix, bool] = TimedStorage(maxsize=10_000)

    # -- searches ------------------------------------------------------------------------------------------------------

    @overload
    def find_best_experts(
        self, grid_scores: GridScores, beam_size: int, return_future: Literal[False] = False
    ) -> list[RemoteExpert]: ...

    @overload
    def find_best_experts(
        self, grid_scores: GridScores, beam_size: int, return_future: Literal[True]
    ) -> HivemindFuture[list[RemoteExpert]]: ...

    def find_best_experts(
        self, grid_scores: GridScores, beam_size: int, return_future: bool = False
    ) -> list[RemoteExpert] | HivemindFuture[list[RemoteExpert]]:
        """The experts with the highest sums of scores, best first.

        :param grid_scores: for each axis one score for each coordinate
        :param beam_size: how many, and how many branches are kept on each axis; fewer are given where there are fewer
        :param return_future: return at once
        :raises ConfigError: if the scores do not fit the grid
        """
        samples = self._by_sample([[axis] for axis in grid_scores])

        async def find(dht: DHT, node: DHTNode) -> list[RemoteExpert]:
            return [_remote(info, node.p2p) for info in (await self.search(node, samples, beam_size))[0]]

        return self._run(find, beam_size, return_future)

    @overload
    def batch_find_best_experts(
        self, batch_grid_scores: Sequence[GridScores], beam_size: int, return_future: Literal[False] = False
    ) -> list[list[RemoteExpert]]: ...

    @overload
    def batch_find_best_experts(
        self, batch_grid_scores: Sequence[GridScores], beam_size: int, return_future: Literal[True]
    ) -> HivemindFuture[list[list[RemoteExpert]]]: ...

    def batch_find_best_experts(
        self, batch_grid_scores: Sequence[GridScores], beam_size: int, return_future: bool = False
    ) -> list[list[RemoteExpert]] | HivemindFuture[list[list[RemoteExpert]]]:
        """`find_best_experts` for a batch of samples, which share their look-ups.

        :param batch_grid_scores: for each axis scores of shape ``[batch, coordinates]``
        """
        samples = self._by_sample(batch_grid_scores)

        async def find(dht: DHT, node: DHTNode) -> list[list[RemoteExpert]]:
            found = await self.search(node, samples, beam_size)
            return [[_remote(info, node.p2p) for info in experts] for experts in found]

        return self._run(find, beam_size, return_future)

    def _by_sample(self, batch_grid_scores: Sequence[GridScores]) -> list[GridScores]:
        """Scores by sample, then by axis.

        :raises ConfigError: if they do not fit the grid
        """
        axes = [[list(map(float, row)) for row in axis] for axis in batch_grid_scores]
        sizes = [sorted({len(row) for row in axis}) for axis in axes]
        if sizes != [[size] for size in self.grid_size] and axes != [[] for _ in self.grid_size]:
            raise ConfigError("grid_scores", f"scores for {sizes}", f"scores for {self.grid_size} coordinates")
        if len({len(axis) for axis in axes}) > 1:
            raise ConfigError("batch_grid_scores", [len(axis) for axis in axes], "as many samples on each axis")
        if any(math.isnan(score) for axis in axes for row in axis for score in row):
            raise ConfigError("grid_scores", "not a number among them", "numbers")
        return list(zip(*axes, strict=True))

    def _run(
        self, find: Callable[[DHT, DHTNode], Awaitable[T]], beam_size: int, return_future: bool
    ) -> T | HivemindFuture[T]:
        check_count("beam_size", beam_size)
        if return_future:
            return self.dht.run_coroutine(find, return_future=True)
        return self.dht.run_coroutine(find)

    async def search(
        self,
        node: DHTNode,
        samples: Sequence[GridScores],
        beam_size: int,
        usable: Callable[[ExpertInfo], bool] = lambda _: True,
    ) -> list[list[ExpertInfo]]:
        """Search for each sample, on the network thread. All samples advance together and share what was looked up.

        :param usable: experts that are passed over are those for which this is false
        """

        def begin() -> list[BeamSearch]:
            return [BeamSearch(self.uid_prefix, scores, beam_size) for scores in samples]

        def step(known: dict[str, Successors]) -> None:
            for search in searches:
                while search.wanted and known.keys() >= set(search.wanted):
                    search.feed(known)

        aside = in_pool if len(samples) > _INLINE_SEARCHES else _in_place
        searches: list[BeamSearch] = await aside(begin)
        known: dict[str, Successors] = {}
        while wanted := {key for search in searches for key in search.wanted} - known.keys():
            known.update(await self._look_up(node, sorted(wanted), usable))
            await aside(step, known)
        return [search.best for search in searches]

    # -- records -------------------------------------------------------------------------------------------------------

    async def _look_up(
        self, node: DHTNode, keys: Sequence[str], usable: Callable[[ExpertInfo], bool] = lambda _: True
    ) -> dict[str, Successors]:
        found = await node.get_many(keys, num_workers=self.options.num_workers)
        if len(self.grid_size) == 1:
            owners = {key: read_owner(record) for key, record in found.items()}
            below = {key: {} if peer is None else {0: ExpertInfo(key, peer)} for key, peer in owners.items()}
        else:
            self._note_absent(key for key in keys if found[key] is None)
            below = {key: _successors(record) for key, record in found.items()}
        return {key: live_below(key, each, self.uid_prefix, self.grid_size, usable) for key, each in below.items()}

    def _note_absent(self, prefixes: Iterable[ExpertPrefix]) -> None:
        """Have the DHT remember, in the background, that nothing was declared there."""
        if not self.options.negative_caching or len(self.grid_size) == 1:
            return
        until = get_dht_time() + self.options.cache_expiration
        absent = [prefix for prefix in prefixes if prefix not in self._stored_absent]
        if not absent:
            return
        for prefix in absent:
            self._stored_absent.store(prefix, True, until - self.options.cache_expiration / 2)
        self.dht.run_coroutine(functools.partial(_store_absent, absent, until), return_future=True)

    def get_initial_beam(self, scores: Sequence[Score], beam_size: int, return_future: bool = False) -> Any:
        """The best branches of the first axis that are alive: ``[(score, prefix, {coordinate: expert})]``."""
        check_count("beam_size", beam_size)
        if len(self.grid_size) == 1 or len(scores) != self.grid_size[0]:
            raise ConfigError("scores", len(scores), f"{self.grid_size[0]} scores, of a grid with two axes or more")
        grid_scores = [list(map(float, scores)), *([0.0] * size for size in self.grid_size[1:])]

        async def find(dht: DHT, node: DHTNode) -> list[tuple[Score, ExpertPrefix, dict[Coordinate, ExpertInfo]]]:
            search = BeamSearch(self.uid_prefix, grid_scores, beam_size, first_axis_only=True)
            while search.wanted:
                search.feed(await self._look_up(node, search.wanted))
            return [(branch.score, branch.prefix, dict(branch.successors)) for branch in search.kept]

        return self._run(find, beam_size, return_future)

    def get_active_successors(
        self, prefixes: Sequence[ExpertPrefix], grid_size: int | None = None, return_future: bool = False
    ) -> Any:
        """What lives right below each prefix: ``{prefix: {coordinate: expert}}``.

        :param grid_size: coordinates from this one on are left out
        """

        async def find(dht: DHT, node: DHTNode) -> dict[ExpertPrefix, dict[Coordinate, ExpertInfo]]:
            found = await node.get_many(prefixes, num_workers=self.options.num_workers)
            self._note_absent(prefix for prefix in prefixes if found[prefix] is None)
            return {
                prefix: {
                    place: expert
                    for place, expert in _successors(found[prefix]).items()
                    if grid_size is None or place < grid_size
                }
                for prefix in prefixes
            }

        return self._run(find, 1, return_future)


def _remote(info: ExpertInfo, p2p: P2P) -> RemoteExpert:
    return RemoteExpert(info, p2p)


def _successors(record: ValueWithExpiration[Any] | None) -> dict[Coordinate, ExpertInfo]:
    """The well-formed entries of a record under a prefix."""
    if record is None or not isinstance(record.value, dict):
        return {}
    entries = {
        place: read_entry(entry.value)
        for place, entry in record.value.items()
        if type(place) is int and place != FLAT_EXPERT and place >= 0
    }
    return {place: expert for place, expert in entries.items() if expert is not None}


async def _in_place(function: Callable[..., Any], *args: Any) -> Any:
    return function(*args)


async def _store_absent(prefixes: Sequence[ExpertPrefix], until: float, dht: DHT, node: DHTNode) -> None:
    try:
        await node.store_many(prefixes, [None] * len(prefixes), until, [FLAT_EXPERT] * len(prefixes))
    except HivemindError as error:
        logger.debug("what is absent could not be stored: %s", error)
