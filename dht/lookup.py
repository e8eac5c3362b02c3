"""The search for the nodes nearest to an id, as pure state: which node to ask next, and when to stop.

The search is a beam: of all nodes heard of so far, those that have not failed are ordered by distance, and the first
``beam_size`` of them are asked, nearest first. It ends when all in the beam have answered. Each answer names more
nodes. (Kademlia, section 2.3; the states of a node are those of go-libp2p's query peer set.)
"""

from __future__ import annotations

import enum
import heapq
from bisect import insort
from collections.abc import Iterable, Mapping
from typing import Final, NamedTuple

from hivemind.dht.crowds import allowed_within, count_in, is_crowded
from hivemind.dht.routing import DHTID
from hivemind.identity import PeerID

__all__ = ["Lookup", "LookupPlan", "NodeState", "Request"]

#: Nodes that one lookup asks at most, in multiples of its widest beam: more are only ever named by liars.
MAX_CONTACTS_PER_BEAM: Final = 10

Node = tuple[DHTID, PeerID]


class NodeState(enum.Enum):
    """What a lookup knows of a node."""

    HEARD = "heard"
    ASKED = "asked"
    ANSWERED = "answered"
    FAILED = "failed"


class Lookup:
    """The search for one id.

    :param target: the id
    :param beam_size: how many of the nearest live nodes must have answered
    :param own_id: never asked, never counted
    :param enough: instead of ``beam_size``, as long as no node has failed to answer
    :param quorum: for the latest value: if so many of the nearest nodes have the same one, it is taken for the latest;
        if they do not, twice as many are asked, and all of the beam while none has any
    :param contacts_per_beam: how many nodes are asked at most, in multiples of the widest beam
    """

    def __init__(
        self,
        target: DHTID,
        beam_size: int,
        own_id: DHTID | None = None,
        *,
        enough: int | None = None,
        quorum: int | None = None,
        contacts_per_beam: float = MAX_CONTACTS_PER_BEAM,
    ) -> None:
        self.target = target
        self.beam_size = beam_size
        self.own_id = own_id
        self.enough = enough
        self.quorum = quorum
        #: what `beam_size` may become
        self.widest = beam_size
        # what the nodes that have answered have, None for nothing
        self._versions: dict[DHTID, object] = {}
        self._any_version = False
        self.states: dict[DHTID, NodeState] = {}
        self.peers: dict[DHTID, PeerID] = {}
        self._by_distance: list[tuple[int, DHTID]] = []
        self._stopped = False
        self._contacts_per_beam = contacts_per_beam
        #: nodes that were asked, whatever became of it
        self.asked: set[DHTID] = set()
        #: nodes that have not answered
        self.failures = 0
        # answers that led to each node
        self._depth: dict[DHTID, int] = {}
        #: answers that built on each other, at the longest
        self.hops = 0
        # nodes that take long to answer: so many others may be asked in their stead
        self._slow: set[DHTID] = set()
        #: nodes for each unit of distance, where the target was found to be crowded
        self.density: float | None = None
        self._agree_on_beam()

    def hear(self, nodes: Iterable[Node], depth: int = 0) -> list[DHTID]:
        """Note that somebody has named ``nodes``, after ``depth`` answers. Of two peers under one id the first
        counts.

        :returns: those not heard of before
        """
        new: list[DHTID] = []
        for node_id, peer_id in nodes:
            if node_id in self.states or node_id == self.own_id:
                continue
            self.states[node_id] = NodeState.HEARD
            self.peers[node_id] = peer_id
            self._depth[node_id] = depth
            insort(self._by_distance, (node_id ^ self.target, node_id))
            new.append(node_id)
        return new

    def candidate(self) -> DHTID | None:
        """The nearest node in the beam that has not been asked."""
        if self._stopped or self._spent:
            return None
        for _, node_id in self._by_distance[: self._reach]:
            if self.states[node_id] is NodeState.HEARD:
                return node_id
        return None

    def wants(self, node_id: DHTID) -> bool:
        """Whether asking this node would serve this search: it is in the beam and has not been asked."""
        if self._stopped or self.states.get(node_id) is not NodeState.HEARD:
            return False
        reach = self._reach
        return len(self._by_distance) <= reach or (node_id ^ self.target) <= self._by_distance[reach - 1][0]

    @property
    def _spent(self) -> bool:
        """Whether no more nodes may be asked."""
        return len(self.asked) >= self._contacts_per_beam * self.widest

    @property
    def _reach(self) -> int:
        """Of how many of the nearest nodes one may be asked: while some are slow, others are asked in their stead."""
        return self._span(self.beam_size) + len(self._slow)

    def _span(self, count: int) -> int:
        """How many of the nearest nodes to take for ``count`` that count: all do, unless they are a crowd."""
        if self.density is None:
            return count
        return count_in((distance for distance, _ in self._by_distance), self.density, count)

    def ask(self, node_id: DHTID) -> None:
        """Note that the node is being asked."""
        self.states[node_id] = NodeState.ASKED
        self.asked.add(node_id)

    def answer(self, node_id: DHTID, named: Iterable[Node]) -> list[DHTID]:
        """Note that the node has answered, and whom it named.

        :returns: those not heard of before
        """
        self.states[node_id] = NodeState.ANSWERED
        self._slow.discard(node_id)
        depth = self._depth[node_id] + 1
        self.hops = max(self.hops, depth)
        new = self.hear(named, depth)
        self._agree_on_beam()
        return new

    def fail(self, node_id: DHTID) -> None:
        """Note that the node has not answered: the beam reaches one farther."""
        self.states[node_id] = NodeState.FAILED
        self.failures += 1
        self._slow.discard(node_id)
        self._by_distance.remove((node_id ^ self.target, node_id))
        self._agree_on_beam()

    def doubt(self, node_id: DHTID) -> None:
        """Note that the node takes long to answer; it may still do."""
        if self.states[node_id] is NodeState.ASKED:
            self._slow.add(node_id)

    def stop(self) -> None:
        """End the search: what it was for has been found."""
        self._stopped = True

    def note_version(self, node_id: DHTID, version: object) -> None:
        """Note what a node has, before its answer is noted: equal if the same, None for nothing."""
        self._versions[node_id] = version
        self._any_version |= version is not None

    def _agree_on_beam(self) -> None:
        """As ``enough`` and ``quorum`` ask for."""
        if self.quorum is None:
            enough = self.widest if self.enough is None or self.failures else self.enough
            self.beam_size = min(self.widest, enough)
            return
        nearest = [node_id for _, node_id in self._by_distance[: self.quorum]]
        if all(self.states[node_id] is NodeState.ANSWERED for node_id in nearest):
            versions = {self._versions.get(node_id) for node_id in nearest}
            if len(versions) > 1 or None in versions:
                self.beam_size = min(self.widest, 2 * self.quorum) if self._any_version else self.widest
                return
        self.beam_size = min(self.widest, self.quorum)

    @property
    def finished(self) -> bool:
        """Whether it is stopped, or all in the beam have answered."""
        if self._stopped:
            return True
        spent = self._spent
        for _, node_id in self._by_distance[: self._span(self.beam_size)]:
            state = self.states[node_id]
            if state is NodeState.ASKED or (state is NodeState.HEARD and not spent):
                return False
        return True

    @property
    def complete(self) -> bool:
        """Whether it has come to its end, neither stopped nor out of time, and all of its nodes have answered."""
        return not self._stopped and self.finished and not self.failures

    def nearest(self, k: int) -> list[Node]:
        """Up to ``k`` of the nodes that have answered, nearest first."""
        answered = (node for _, node in self._by_distance if self.states[node] is NodeState.ANSWERED)
        return [(node_id, self.peers[node_id]) for node_id, _ in zip(answered, range(k), strict=False)]

    def silent(self, k: int) -> list[PeerID]:
        """Nodes that were asked and have not answered, and else would be among the ``k`` nearest heard of."""
        farthest = self._by_distance[k - 1][0] if len(self._by_distance) >= k else DHTID.MAX
        failed = (node_id for node_id in self.asked if self.states[node_id] is NodeState.FAILED)
        return [self.peers[node_id] for node_id in failed if node_id ^ self.target < farthest]

    def crowded(self, density: float) -> bool:
        """Whether far more nodes are near the target than the swarm has elsewhere; see `crowds`."""
        return not self._stopped and is_crowded((distance for distance, _ in self._by_distance), density)

    def crowd(self, density: float) -> list[DHTID]:
        """Of the nodes heard of, those that are too many."""
        counted, others = 0, []
        for distance, node_id in self._by_distance:
            if counted + 1 <= allowed_within(distance, density):
                counted += 1
            else:
                others.append(node_id)
        return others

    def ignore(self, node_ids: Iterable[DHTID]) -> None:
        """Never ask these, whoever names them."""
        self.states.update(dict.fromkeys(node_ids, NodeState.FAILED))

    def look_beyond(self, density: float, beam_size: int, others: Iterable[Node]) -> None:
        """Go on behind a crowd, with ``others`` that were found there."""
        self.density = density
        self.quorum = self.enough = None
        self.beam_size = self.widest = beam_size
        self.hear(others)

    def spread(self, k: int) -> list[Node]:
        """The nearest nodes that have answered, so many that ``k`` of those heard of count, crowd or not."""
        return self.nearest(self._span(k))

    def known(self, k: int) -> list[Node]:
        """Up to ``k`` of the nodes heard of that have not failed, nearest first."""
        return [(node_id, self.peers[node_id]) for _, node_id in self._by_distance[:k]]


class Request(NamedTuple):
    """Whom to ask, and about which ids."""

    node_id: DHTID
    peer_id: PeerID
    targets: list[DHTID]


class LookupPlan:
    """Several lookups that share their requests: one node is asked about several ids at once.

    :param chunk_size: ids in one request
    """

    def __init__(self, lookups: Iterable[Lookup], chunk_size: int) -> None:
        self._open = {lookup.target: lookup for lookup in lookups}
        self._chunk_size = chunk_size
        # those that may have somebody to ask, in order of their last request, so that all advance at the same pace
        self._ready = dict(self._open)
        # by node, those that have heard of it; left empty where there is only one
        self._heard: dict[DHTID, list[Lookup]] = {}
        if len(self._open) > 1:
            for lookup in self._open.values():
                self._note_heard(lookup, lookup.states)
        # those of which something was learnt since the last look whether they have finished
        self._changed: set[DHTID] = set(self._open)

    @property
    def finished(self) -> bool:
        """Whether all lookups have finished and were taken by `take_finished`."""
        return not self._open

    def next_request(self) -> Request | None:
        """The next request to send, noted as sent; None if all that can be asked is being asked."""
        ready = self._ready
        while ready:
            lookup = next(iter(ready.values()))
            node_id = lookup.candidate()
            if node_id is not None:
                break
            del ready[lookup.target]
        else:
            return None
        together = [lookup]
        if self._heard:
            heard = (other for other in self._heard[node_id] if other.target in self._open)
            others = [other for other in heard if other is not lookup and other.wants(node_id)]
            together += heapq.nsmallest(self._chunk_size - 1, others, key=lambda other: other.target ^ node_id)
        for each in together:
            each.ask(node_id)
            ready.pop(each.target, None)
            ready[each.target] = each
        return Request(node_id, lookup.peers[node_id], [each.target for each in together])

    def answer(self, request: Request, named: Mapping[DHTID, Iterable[Node]]) -> None:
        """Note the answer to ``request``: whom it named for each id. An id without an entry was not answered."""
        self._changed.update(request.targets)
        for target in request.targets:
            lookup = self._open.get(target)
            if lookup is None:
                continue
            if target in named:
                heard = lookup.answer(request.node_id, named[target])
                if self._heard:
                    self._note_heard(lookup, heard)
            else:
                lookup.fail(request.node_id)
            self._ready.setdefault(target, lookup)

    def _note_heard(self, lookup: Lookup, nodes: Iterable[DHTID]) -> None:
        for node_id in nodes:
            self._heard.setdefault(node_id, []).append(lookup)

    def doubt(self, request: Request) -> None:
        """Note that the answer to ``request`` takes long."""
        for target in request.targets:
            lookup = self._open.get(target)
            if lookup is not None:
                lookup.doubt(request.node_id)
                self._ready.setdefault(target, lookup)

    def fail(self, request: Request) -> None:
        """Note that ``request`` was not answered."""
        self.answer(request, {})

    def take_finished(self) -> list[Lookup]:
        """Those that have finished since the last call."""
        changed, self._changed = self._changed, set()
        lookups = (self._open.get(target) for target in changed)
        done = [lookup for lookup in lookups if lookup is not None and lookup.finished]
        for lookup in done:
            del self._open[lookup.target]
            self._ready.pop(lookup.target, None)
        return done

    def take_all(self) -> list[Lookup]:
        """All that have not finished: the search ends here."""
        rest = list(self._open.values())
        self._open.clear()
        return rest
