"""Beam search for the best experts of a grid of which only some places are taken. Pure: no network, no tensor.

The score of an expert is the sum of one score for each of its coordinates, so that the best ones are found axis by
axis without looking at all (Ryabinin and Gusev, "Towards Crowdsourced Training of Large Neural Networks using
Decentralized Mixture-of-Experts", 2020, section 3.2). On each axis the ``beam_size`` best branches that are alive are
kept.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from hivemind.errors import ConfigError
from hivemind.moe.uid import UID_DELIMITER, Coordinate, ExpertInfo, ExpertPrefix, Score, check_prefix

__all__ = ["BeamSearch", "Branch", "Successors", "check_grid", "live_below"]

#: What lives right below a prefix: by coordinate, some expert there. Of a full name: itself, as coordinate 0.
Successors = Mapping[Coordinate, ExpertInfo]


@dataclass(frozen=True)
class Branch:
    """A branch of the grid that is alive."""

    score: Score
    prefix: ExpertPrefix
    successors: Successors


def check_grid(uid_prefix: ExpertPrefix, grid_size: Sequence[int]) -> tuple[ExpertPrefix, tuple[int, ...]]:
    """The name of a grid, with its dot, and its sizes.

    :raises ConfigError: if one of them is wrong
    """
    if isinstance(uid_prefix, str) and not uid_prefix.endswith(UID_DELIMITER):
        uid_prefix += UID_DELIMITER
    check_prefix("uid_prefix", uid_prefix)
    sizes = tuple(grid_size) if isinstance(grid_size, Sequence) else ()
    if not sizes or not all(type(size) is int and size > 0 for size in sizes):
        raise ConfigError("grid_size", grid_size, "a tuple of one integer > 0 or more, one for each axis")
    return uid_prefix, sizes


def live_below(
    key: str,
    successors: Successors,
    uid_prefix: ExpertPrefix,
    grid_size: Sequence[int],
    usable: Callable[[ExpertInfo], bool],
) -> Successors:
    """What of a record counts: of others, it is only as good as their word.

    :param key: prefix, or name in a grid with one axis, under which it was found
    :param usable: whether an expert may be asked now
    """
    axis = key.count(UID_DELIMITER) - uid_prefix.count(UID_DELIMITER)
    if len(grid_size) == 1:
        return {place: expert for place, expert in successors.items() if expert.uid == key and usable(expert)}

    def counts(place: Coordinate, expert: ExpertInfo) -> bool:
        if not 0 <= place < grid_size[axis]:
            return False
        below = f"{key}{place}"
        is_last = axis + 1 == len(grid_size)
        is_below = expert.uid == below if is_last else expert.uid.startswith(below + UID_DELIMITER)
        return is_below and (not is_last or usable(expert))

    return {place: expert for place, expert in successors.items() if counts(place, expert)}


def _by_score(found: tuple[Score, ExpertInfo]) -> Score:
    return found[0]


@dataclass
class _Level:
    """The branches that might be kept on one axis, best first, as far as they were looked at."""

    candidates: list[tuple[Score, str]]
    looked_at: int = 0
    #: how many to ask for next: more each time, so that an empty grid takes few rounds
    chunk: int = 0
    kept: list[Branch] = field(default_factory=list)

    def next_chunk(self, beam_size: int) -> list[tuple[Score, str]]:
        if len(self.kept) >= beam_size:
            return []
        self.chunk = max(2 * self.chunk, beam_size - len(self.kept))
        return self.candidates[self.looked_at : self.looked_at + self.chunk]


class BeamSearch:
    """One search, step by step: `wanted` says what has to be looked up, `feed` takes what was found.

    :param uid_prefix: name of the grid, with its dot
    :param grid_scores: for each axis a score for each coordinate; more is better
    :param beam_size: how many branches are kept on each axis, and how many experts are given at most
    :param first_axis_only: end there, see `kept`
    """

    def __init__(
        self,
        uid_prefix: ExpertPrefix,
        grid_scores: Sequence[Sequence[Score]],
        beam_size: int,
        *,
        first_axis_only: bool = False,
    ) -> None:
        self._scores = grid_scores
        self._beam_size = beam_size
        self._first_axis_only = first_axis_only
        self._axis = 0
        # with one axis the experts themselves are looked up, with more the branches that begin with a coordinate
        self.of_full_names = len(grid_scores) == 1
        end = "" if self.of_full_names else UID_DELIMITER
        self._level = _Level(
            sorted(
                ((score, f"{uid_prefix}{place}{end}") for place, score in enumerate(grid_scores[0])),
                key=lambda candidate: -candidate[0],
            )
        )
        self._best: list[tuple[Score, ExpertInfo]] | None = None
        self._wanted = self._level.next_chunk(beam_size)
        self._advance()

    @property
    def wanted(self) -> list[str]:
        """The prefixes (of a grid with one axis: names) whose records are needed next; empty when all is done."""
        return [key for _, key in self._wanted]

    def feed(self, found: Mapping[str, Successors]) -> None:
        """Go on with what lives below each of `wanted`, see `live_below`; nothing for one that is not there."""
        self._level.looked_at += len(self._wanted)
        for score, key in self._wanted:
            successors = found.get(key, {})
            if successors and len(self._level.kept) < self._beam_size:
                self._level.kept.append(Branch(score, key, successors))
        self._wanted = self._level.next_chunk(self._beam_size)
        self._advance()

    def _advance(self) -> None:
        """While nothing more is wanted on this axis, go on to the next one."""
        while not self._wanted and self._best is None:
            kept = self._level.kept
            if self.of_full_names:
                self._best = [(branch.score, branch.successors[0]) for branch in kept]
                return
            if self._first_axis_only:
                self._best = []
                return
            self._axis += 1
            scores = self._scores[self._axis]
            if self._axis + 1 == len(self._scores) or not kept:
                experts = (
                    (branch.score + scores[place], expert)
                    for branch in kept
                    for place, expert in branch.successors.items()
                )
                self._best = heapq.nlargest(self._beam_size, experts, key=_by_score)
                return
            candidates = [
                (branch.score + scores[place], f"{branch.prefix}{place}{UID_DELIMITER}")
                for branch in kept
                for place in branch.successors
            ]
            self._level = _Level(sorted(candidates, key=lambda candidate: -candidate[0]))
            self._wanted = self._level.next_chunk(self._beam_size)

    @property
    def kept(self) -> list[Branch]:
        """The branches that are kept on the axis that was looked at last, best first."""
        return list(self._level.kept)

    @property
    def best(self) -> list[ExpertInfo]:
        """The experts that were found, best first, once nothing is `wanted` any more."""
        return [expert for _, expert in self._best or ()]
