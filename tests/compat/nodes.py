"""DHT nodes of either kind, with the same actions on both."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

from hivemind.dht import DHT
from hivemind.utils import get_dht_time
from tests.compat.pairs import LOCAL, Kind
from tests.support.legacy import LegacyPeer
from tests.support.legacy_repeat import LegacyPeers

RECORD_SECONDS = 30.0  # for one store or get of 1.1.12; typical is 0.02


class Node(Protocol):
    """A DHT node."""

    kind: Kind
    peer_id: str
    maddrs: list[str]

    def store(self, key: Any, value: Any, lifetime: float, subkey: Any = None) -> bool:
        """Store a value for ``lifetime`` seconds."""

    def get(self, key: Any, latest: bool = True) -> Any:
        """The value, ``{subkey: value}`` for a dictionary, None if there is none."""


class OurNode:
    """:class:`Node` on this library."""

    kind: Kind = "ours"

    def __init__(self, dht: DHT) -> None:
        self.dht = dht
        self.peer_id = dht.peer_id.to_base58()
        self.maddrs = [str(maddr) for maddr in dht.get_visible_maddrs()]

    def store(self, key: Any, value: Any, lifetime: float, subkey: Any = None) -> bool:
        return bool(self.dht.store(key, value, get_dht_time() + lifetime, subkey=subkey))

    def get(self, key: Any, latest: bool = True) -> Any:
        found = self.dht.get(key, latest=latest)
        if found is None:
            return None
        if isinstance(found.value, dict):
            return {subkey: getattr(entry, "value", entry) for subkey, entry in found.value.items()}
        return found.value


class LegacyNode:
    """:class:`Node` on hivemind 1.1.12; its process may hold an averager or a trainer as well."""

    kind: Kind = "legacy"

    def __init__(self, process: LegacyPeer, started: dict[str, Any], name: str = "d") -> None:
        self.process = process
        self.name = name
        self.peer_id: str = started["peer_id"]
        self.maddrs: list[str] = started["maddrs"]

    def store(self, key: Any, value: Any, lifetime: float, subkey: Any = None) -> bool:
        arguments = {"name": self.name, "key": key, "value": value, "lifetime": lifetime, "subkey": subkey}
        return bool(self.process.call("dht_store", RECORD_SECONDS, **arguments))

    def get(self, key: Any, latest: bool = True) -> Any:
        return self.process.call("dht_get", RECORD_SECONDS, name=self.name, key=key, latest=latest)


@contextmanager
def start_node(
    kind: Kind, legacy: LegacyPeers, initial_peers: list[str], **options: Any
) -> Iterator[OurNode | LegacyNode]:
    """A DHT node of either kind, joined through ``initial_peers``; ``options`` are those of ``DHT``."""
    if kind == "legacy":
        process = legacy.spawn()
        yield LegacyNode(process, process.call("dht_start", name="d", initial_peers=initial_peers, **options))
        process.close()
        return
    with DHT(initial_peers=initial_peers, start=True, **LOCAL, **options) as dht:
        yield OurNode(dht)


def eventually(condition: Callable[[], bool], seconds: float = 30.0) -> bool:
    """Ask until ``condition`` holds; False if it does not within ``seconds``."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True
