"""Whom to ask next: the queue of those that may lead this peer. Pure bookkeeping, fed by matchmaking."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

from hivemind.averaging.group_state import Declaration, leads
from hivemind.clock import DHTExpiration
from hivemind.identity import PeerID

__all__ = ["Candidate", "PotentialLeaders"]

#: How often one that refuses for a passing reason is asked in all, and the seconds before the second time; then
#: twice as long each time.
_TRIES = 5
_RETRY_SECONDS = 0.1


@dataclass(frozen=True)
class Candidate:
    """One to ask.

    :param expiration: what it declared; None for one that another peer has suggested
    """

    peer_id: PeerID
    expiration: DHTExpiration | None


class PotentialLeaders:
    """Candidates of one search: each ``(peer, expiration)`` is asked once, suggested leaders before others.

    :param own: this peer
    """

    def __init__(self, own: PeerID) -> None:
        self._own = own
        self._asked: set[tuple[PeerID, DHTExpiration]] = set()
        self._suggested: deque[PeerID] = deque()
        self._followed: set[tuple[PeerID, DHTExpiration]] = set()
        self._retry: dict[PeerID, tuple[int, DHTExpiration]] = {}
        #: those that said no, or did not answer, to what they had declared last
        self.refused: dict[PeerID, DHTExpiration | None] = {}

    def next(
        self,
        looking: Mapping[PeerID, DHTExpiration],
        declared: DHTExpiration,
        now: DHTExpiration,
        doubtful: AbstractSet[PeerID] = frozenset(),
    ) -> Candidate | None:
        """The next to ask, or None if there is none now.

        :param looking: active declarations of others
        :param declared: this peer's own; ``inf`` in client mode, so that all others come before it
        :param doubtful: those that have failed lately: they are asked last, as one that is frozen costs a timeout
        """
        while self._suggested:
            peer = self._suggested.popleft()
            # a suggestion is followed once per declaration of ours: suggestions cannot go round in circles
            if peer != self._own and (peer, declared) not in self._followed:
                self._followed.add((peer, declared))
                return Candidate(peer, looking.get(peer))
        own = Declaration(self._own, declared)
        before = (Declaration(peer, expiration) for peer, expiration in looking.items() if expiration > now)
        for declaration in sorted(before, key=lambda other: (other.peer_id in doubtful, other.rank)):
            peer, expiration = declaration.peer_id, declaration.expiration
            waits = self._retry.get(peer, (0, 0.0))[1] > now
            fresh = not waits and (peer, expiration) not in self._asked
            if fresh and peer != self._own and leads(declaration, own):
                return Candidate(peer, expiration)
        return None

    def asked(self, candidate: Candidate) -> None:
        """``candidate`` has been asked; it is not asked again for the same declaration."""
        if candidate.expiration is not None:
            self._asked.add((candidate.peer_id, candidate.expiration))

    def suggest(self, peer: PeerID) -> None:
        """Ask ``peer`` before the others."""
        self._suggested.append(peer)

    def refuse(self, candidate: Candidate) -> None:
        """``candidate`` will not lead this peer."""
        self.refused[candidate.peer_id] = candidate.expiration

    def retry_later(self, candidate: Candidate, now: DHTExpiration) -> None:
        """``candidate`` refused for a reason that passes: ask it again, up to a few times."""
        tries = self._retry.get(candidate.peer_id, (0, 0.0))[0] + 1
        if tries >= _TRIES or candidate.expiration is None:
            self.refuse(candidate)
            return
        self._retry[candidate.peer_id] = (tries, now + _RETRY_SECONDS * 2 ** (tries - 1))
        self._asked.discard((candidate.peer_id, candidate.expiration))

    def seconds_to_retry(self, now: DHTExpiration) -> float | None:
        """When the next of those that refused for a passing reason may be asked again; None if there is none."""
        waits = [when - now for _, when in self._retry.values() if when > now]
        return min(waits, default=None)

    def elsewhere(self, looking: Mapping[PeerID, DHTExpiration]) -> frozenset[PeerID]:
        """Those that refused and have declared nothing new since: they do not look for a group just now."""
        return frozenset(
            peer
            for peer, expiration in self.refused.items()
            if expiration is None or looking.get(peer, 0.0) <= expiration
        )
