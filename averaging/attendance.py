"""Whom a round waits for: what a peer remembers of who took part and who stayed away. Pure bookkeeping.

A round starts at once when everybody is there. "Everybody" are those that shared their state under the prefix
(``.all_averagers``), those that look for a group now, and those that were in the last rounds or have asked to join
(client-mode and auxiliary peers never declare themselves). One that stays away from a round is not waited for again
until it shows up, or declares itself anew; for one that stays away again and again, the number of declarations that
it takes doubles each time, so that a peer that declares but never comes costs a few windows in all.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

from hivemind.clock import DHTExpiration
from hivemind.identity import PeerID

__all__ = ["Attendance", "SwarmView"]

#: Peers remembered at most; beyond that the oldest are forgotten.
MAX_REMEMBERED = 4096
#: Seconds after which one that was seen, but never declared itself, is forgotten.
MEMORY_SECONDS = 300.0


@dataclass(frozen=True)
class SwarmView:
    """What the DHT says now; maps hold the expiration of each declaration.

    :param looking: those that look for a group under the same key
    :param declared: those alive under the prefix; None where they may belong to other groups (a grid of keys)
    """

    looking: Mapping[PeerID, DHTExpiration]
    declared: Mapping[PeerID, DHTExpiration] | None


@dataclass(frozen=True)
class _Absence:
    """How often in a row a peer stayed away, and what it had declared when it last did."""

    times: int
    looking: DHTExpiration
    declared: DHTExpiration
    when: DHTExpiration


class Attendance:
    """Remembers who comes. Owned by one loop.

    :param own: this peer; it is never waited for
    :param period: seconds between two declarations of a living peer
    """

    def __init__(self, own: PeerID, *, period: float = 30.0) -> None:
        self._own = own
        self._period = period
        self._seen: dict[PeerID, DHTExpiration] = {}
        self._absent: dict[PeerID, _Absence] = {}

    def expected(
        self, view: SwarmView, hint: AbstractSet[PeerID] | None, elsewhere: AbstractSet[PeerID], now: DHTExpiration
    ) -> frozenset[PeerID] | None:
        """The peers to wait for.

        :param hint: the peers that the user knows to take part, instead of those that have declared themselves
        :param elsewhere: those that have just refused this peer, so that their looking says nothing
        :returns: None if it is not known who may come
        """
        if view.declared is None and hint is None:
            return None
        declared = view.declared or {}
        if hint is None:
            hint = declared.keys() | {peer for peer, when in self._seen.items() if now - when <= MEMORY_SECONDS}
        looking = {peer: expiration for peer, expiration in view.looking.items() if peer not in elsewhere}
        candidates = (hint | looking.keys()) - {self._own}
        return frozenset(peer for peer in candidates if self._comes(peer, looking, declared))

    def _comes(
        self, peer: PeerID, looking: Mapping[PeerID, DHTExpiration], declared: Mapping[PeerID, DHTExpiration]
    ) -> bool:
        absence = self._absent.get(peer)
        if absence is None:
            return True
        if looking.get(peer, 0.0) > absence.looking:
            return True
        skipped = ((1 << min(absence.times - 1, 16)) - 1) * self._period
        return declared.get(peer, 0.0) > absence.declared + skipped

    def doubtful(self, looking: Mapping[PeerID, DHTExpiration]) -> frozenset[PeerID]:
        """Those that have failed or stayed away, and have declared nothing new since."""
        return frozenset(peer for peer, absence in self._absent.items() if looking.get(peer, 0.0) <= absence.looking)

    def absentees(self, now: DHTExpiration) -> int:
        """How many stayed away lately: a count of peers from elsewhere may include them."""
        return sum(1 for absence in self._absent.values() if now - absence.when <= 2 * self._period)

    def showed_up(self, peers: Iterable[PeerID], now: DHTExpiration) -> None:
        """``peers`` were in a group with this one, or asked to be: they are alive and come."""
        for peer in peers:
            if peer != self._own:
                self._absent.pop(peer, None)
                self._seen.pop(peer, None)
                self._seen[peer] = now
        _forget_oldest(self._seen)

    def stayed_away(self, peers: Iterable[PeerID], view: SwarmView, now: DHTExpiration) -> None:
        """``peers`` were expected, but did not come."""
        for peer in peers:
            self._miss(peer, view, view.looking.get(peer, 0.0), now)
        _forget_oldest(self._absent)

    def failed(self, peers: Iterable[PeerID], view: SwarmView, now: DHTExpiration, *, window: float) -> None:
        """``peers`` came, but broke off.

        :param window: seconds for which such a peer may have declared that it looks for a group
        """
        for peer in peers:
            self._miss(peer, view, view.looking.get(peer, now + window), now)
        _forget_oldest(self._absent)

    def departed(self, peer: PeerID, expiration: DHTExpiration) -> None:
        """``peer`` shares no state (any more), it said so until ``expiration``: if it was not seen since, it left."""
        if self._seen.get(peer, expiration) < expiration - self._period:
            del self._seen[peer]

    def _miss(self, peer: PeerID, view: SwarmView, looking: DHTExpiration, now: DHTExpiration) -> None:
        before = self._absent.pop(peer, None)
        self._seen.pop(peer, None)
        declared = (view.declared or {}).get(peer, now + self._period)
        self._absent[peer] = _Absence(before.times + 1 if before else 1, looking, declared, now)


def _forget_oldest(memory: dict[PeerID, DHTExpiration] | dict[PeerID, _Absence]) -> None:
    while len(memory) > MAX_REMEMBERED:
        del memory[next(iter(memory))]
