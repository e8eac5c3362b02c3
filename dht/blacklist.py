"""Peers that do not answer are left alone for a while, longer each time."""

from __future__ import annotations

from collections import Counter
from typing import Any

from hivemind.clock import get_dht_time
from hivemind.identity import PeerID
from hivemind.timed_storage import TimedStorage

__all__ = ["Blacklist"]

#: Seconds that a peer is left alone at most.
MAX_BAN_SECONDS = 3600.0


class Blacklist:
    """Peers to leave alone. Owned by the network thread.

    :param base_time: seconds after the first failure; 0 or less: nobody is ever blacklisted
    :param backoff_rate: each further failure in a row multiplies the time by this
    :param options: of the `TimedStorage` that holds them, as ``maxsize``
    """

    def __init__(self, base_time: float, backoff_rate: float, **options: Any) -> None:
        self.base_time = base_time
        self.backoff = backoff_rate
        self.banned_peers: TimedStorage[PeerID, int] = TimedStorage(**{"maxsize": 10_000, **options})
        #: failures in a row
        self.ban_counter: Counter[PeerID] = Counter()

    def register_failure(self, peer: PeerID) -> None:
        """The peer has not answered. Failures while it is blacklisted already do not count."""
        if self.base_time <= 0 or peer in self.banned_peers:
            return
        failures = self.ban_counter.pop(peer, 0)
        seconds = min(MAX_BAN_SECONDS, self.base_time * self.backoff ** min(failures, 64))
        self.banned_peers.store(peer, failures + 1, get_dht_time() + seconds)
        self.ban_counter[peer] = failures + 1
        if len(self.ban_counter) > self.banned_peers.maxsize:
            del self.ban_counter[next(iter(self.ban_counter))]

    def register_success(self, peer: PeerID) -> None:
        """The peer has answered: all is forgiven."""
        if self.ban_counter.pop(peer, None) is not None and peer in self.banned_peers:
            del self.banned_peers[peer]

    def __contains__(self, peer: PeerID) -> bool:
        return bool(self.banned_peers.data) and peer in self.banned_peers

    def __getitem__(self, peer: PeerID) -> int:
        """Failures in a row."""
        return self.ban_counter[peer]

    def __len__(self) -> int:
        return len(self.banned_peers)

    def clear(self) -> None:
        """Forget all."""
        self.banned_peers.clear()
        self.ban_counter.clear()

    def __repr__(self) -> str:
        return f"Blacklist(base_time={self.base_time}, backoff_rate={self.backoff}, {len(self)} peers)"
