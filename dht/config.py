"""Options of a node of the DHT."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from hivemind.config import check_choice, check_count, check_seconds, make_options, option_names, split_options
from hivemind.errors import ConfigError
from hivemind.p2p import P2PConfig

__all__ = ["DEFAULT_NUM_WORKERS", "DHTNodeOptions", "split_node_options"]

#: Requests that one search has under way at first; ``HIVEMIND_DHT_NUM_WORKERS``.
DEFAULT_NUM_WORKERS: Final = int(os.environ.get("HIVEMIND_DHT_NUM_WORKERS", "4"))

_SWITCHES: Final = (
    "cache_locally",
    "cache_on_store",
    "reuse_get_requests",
    "client_mode",
    "ensure_bootstrap_success",
    "strict",
)


@dataclass(frozen=True, kw_only=True)
class DHTNodeOptions:
    """The keywords of `DHTNode.create`, as in hivemind 1.1.

    :raises ConfigError: if one is wrong
    """

    #: Kademlia's k: capacity of a bucket, default width of the beam, neighbours in an answer
    bucket_size: int = 20
    #: nodes on which each record is stored
    num_replicas: int = 5
    #: a full bucket is split if it covers the own id or its depth is no multiple of this
    depth_modulo: int = 5
    #: requests of this node under way at a time; None: 128
    parallel_rpc: int | None = None
    #: seconds in which a peer must answer a request
    wait_timeout: float = 3.0
    #: seconds after which a bucket in which nothing has happened is refreshed by a search; None: never
    refresh_timeout: float | None = None
    #: seconds for the pings of initial peers, and again for the first search; None: ``wait_timeout``
    bootstrap_timeout: float | None = None
    #: keep values that were found elsewhere, until they expire
    cache_locally: bool = True
    #: after a search, give the value to so many of the nearest nodes that do not have it; 0: to none
    cache_nearest: int = 1
    #: most keys in the cache; None: bounded by its bytes only
    cache_size: int | None = None
    #: renew a cached value that is in use so many seconds before it expires; 0: do not
    cache_refresh_before_expiry: float = 5.0
    #: remember for so many seconds that a key has no value, unless this node stores or is given one, or looks for the
    #: latest and finds one. 0: do not, so that a value of another node is found as soon as it is stored
    cache_missing: float = 0.0
    #: put own records in the cache when they are stored
    cache_on_store: bool = True
    #: concurrent gets of one key share one search
    reuse_get_requests: bool = True
    #: requests that one search has under way at first; more as it gets answers
    num_workers: int = DEFAULT_NUM_WORKERS
    #: most keys in one find request
    chunk_size: int = 16
    #: seconds for which a peer that did not answer is left alone; 0 or less: it is not
    blacklist_time: float = 5.0
    #: factor on ``blacklist_time`` for each further failure in a row
    backoff_rate: float = 2.0
    #: only ask, never answer: for peers that others cannot call
    client_mode: bool = False
    #: an error if no initial peer answers; otherwise a warning
    ensure_bootstrap_success: bool = True
    #: an initial peer that cannot call back, or whose clock is off by more than 3 s, counts as not answering;
    #: otherwise a warning
    strict: bool = True

    def __post_init__(self) -> None:
        for name in ("bucket_size", "num_replicas", "depth_modulo", "num_workers", "chunk_size"):
            check_count(name, getattr(self, name))
        check_count("parallel_rpc", self.parallel_rpc, optional=True)
        check_count("cache_size", self.cache_size, least=0, optional=True)
        # hivemind 1.1 takes a bool here too
        check_count("cache_nearest", int(self.cache_nearest), least=0)
        check_seconds("wait_timeout", self.wait_timeout)
        check_seconds("refresh_timeout", self.refresh_timeout, optional=True)
        check_seconds("bootstrap_timeout", self.bootstrap_timeout, optional=True)
        check_seconds("cache_refresh_before_expiry", self.cache_refresh_before_expiry, zero=True)
        check_seconds("cache_missing", self.cache_missing, zero=True)
        if isinstance(self.blacklist_time, bool) or not isinstance(self.blacklist_time, int | float):
            raise ConfigError("blacklist_time", self.blacklist_time, "seconds; 0 or less: nobody is blacklisted")
        if isinstance(self.backoff_rate, bool) or not self.backoff_rate >= 1:
            raise ConfigError("backoff_rate", self.backoff_rate, "a factor >= 1")
        for name in _SWITCHES:
            check_choice(name, getattr(self, name), (True, False))


def split_node_options(given: Mapping[str, Any], *, shared: bool, where: str) -> tuple[DHTNodeOptions, dict[str, Any]]:
    """Sort keywords to the node and to its peer (`P2PConfig`), and check both before anything starts.

    :param shared: the peer is there already: its options cannot be given any more
    :param where: the public name whose keywords these are
    :raises ConfigError: if one is unknown or wrong
    """
    if not shared:
        node_part, p2p_part = split_options(given, DHTNodeOptions, P2PConfig, where=where)
        make_options(P2PConfig, p2p_part, where=where)
        return make_options(DHTNodeOptions, node_part, where=where), p2p_part
    for name, value in given.items():
        if name in option_names(P2PConfig):
            raise ConfigError(name, value, "not together with p2p, which was made with options of its own")
    return make_options(DHTNodeOptions, given, where=where), {}
