"""What a node of the DHT has counted."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any, Final

from hivemind.p2p import register_metrics
from hivemind.prometheus_text import head

__all__ = ["Counters", "DHTStats"]


class Counters:
    """Counts of one node since its start. Written on the network thread only; reading is safe anywhere."""

    def __init__(self) -> None:
        #: keys that were asked for here, and those of them for which a value was found
        self.gets = 0
        self.gets_found = 0
        #: gets that this node could answer by itself: from its records, and from its cache
        self.local_hits = 0
        self.cache_hits = 0
        #: records that were stored here, and those of them that some node accepted
        self.stores = 0
        self.stores_accepted = 0
        #: searches that have ended, and the answers that built on each other in them, at the longest
        self.lookups = 0
        self.hops = 0
        #: searches of which the target was crowded by far more nodes than the swarm has elsewhere
        self.crowded = 0
        #: requests to other nodes, those of them that failed, and those of them that got no answer in time
        self.requests = 0
        self.failures = 0
        self.timeouts = 0
        #: requests of other nodes
        self.served = 0
        _living.add(self)


_living: weakref.WeakSet[Counters] = weakref.WeakSet()

_HELP: Final = {
    "gets": "Keys asked for.",
    "gets_found": "Keys asked for that have a value.",
    "local_hits": "Keys found among the node's own records.",
    "cache_hits": "Keys found in the node's cache.",
    "stores": "Records stored.",
    "stores_accepted": "Records stored that some node has accepted.",
    "lookups": "Searches ended.",
    "hops": "Answers that built on each other, summed over all searches.",
    "crowded": "Searches for keys around which suspiciously many nodes sit.",
    "requests": "Requests to other nodes.",
    "failures": "Requests to other nodes that failed.",
    "timeouts": "Requests to other nodes without an answer in time.",
    "served": "Requests of other nodes.",
}


def _metrics() -> Iterator[str]:
    """All nodes of this process together, as Prometheus text."""
    nodes = list(_living)
    if not nodes:
        return
    for name, text in _HELP.items():
        family = f"hivemind_dht_{name}_total"
        yield from head(family, "counter", text)
        yield f"{family} {sum(getattr(node, name) for node in nodes)}"


register_metrics(_metrics)


@dataclass(frozen=True, kw_only=True)
class DHTStats:
    """How a node is doing; counts are since its start, and those of `Counters`."""

    gets: int
    gets_found: int
    local_hits: int
    cache_hits: int
    stores: int
    stores_accepted: int
    lookups: int
    hops: int
    crowded: int
    requests: int
    failures: int
    timeouts: int
    served: int
    #: nodes in the routing table, this one not among them
    known_nodes: int
    #: keys that this node holds for the swarm, and their bytes, bookkeeping included
    stored_keys: int
    stored_bytes: int
    #: keys in the cache
    cached_keys: int
    #: peers that are left alone for a while
    blacklisted: int
    #: seconds by which the clocks of others are ahead of this one, at the median; None while too few are known
    clock_offset: float | None

    @classmethod
    def of(cls, counters: Counters, **now: Any) -> DHTStats:
        """The counts with what holds now."""
        counted = {each.name: getattr(counters, each.name) for each in fields(cls) if each.name not in now}
        return cls(**counted, **now)

    @property
    def mean_hops(self) -> float:
        """Answers that built on each other in a search, on average; 0 before the first one."""
        return self.hops / self.lookups if self.lookups else 0.0
