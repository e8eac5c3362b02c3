"""Group keys: where peers that may form a group find each other in the DHT (hivemind 1.1 wire format).

The key is ``{prefix}.0b{bits}``. With a target size the bits place a peer in a cell of a grid (Moshpit SGD,
https://arxiv.org/abs/2103.03239): after each group its members move to cells that all of them can compute.
"""

from __future__ import annotations

import math
import random
import re
from collections.abc import Mapping
from typing import Protocol

from hivemind.averaging.group import GroupInfo
from hivemind.clock import DHTExpiration, get_dht_time
from hivemind.errors import ConfigError
from hivemind.identity import PeerID
from hivemind.log import get_logger

__all__ = [
    "GROUP_PATTERN",
    "DHTStore",
    "GroupKeyManager",
    "check_bits",
    "check_prefix",
    "is_valid_group",
    "next_bits",
    "peers_by_expiration",
]

logger = get_logger(__name__)

GROUP_PATTERN = re.compile(r"^(([^.])+)[.]0b[01]*$")
#: Declarations read under one key at most; what stands beyond is ignored.
MAX_PEERS = 8192


class DHTStore(Protocol):
    """What this package needs of a DHT node."""

    async def get(self, key: str, latest: bool = False) -> object: ...

    async def store(self, key: str, value: object, expiration_time: DHTExpiration, subkey: object = None) -> object: ...


def is_valid_group(key: str) -> bool:
    """Whether ``key`` is a group key."""
    return GROUP_PATTERN.fullmatch(key) is not None


def check_prefix(prefix: str) -> None:
    """
    :raises ConfigError: unless ``prefix`` is text without dots
    """
    if not isinstance(prefix, str) or not prefix or "." in prefix or "\n" in prefix:
        raise ConfigError("prefix", prefix, "text without '.', not empty")


def check_bits(bits: str) -> None:
    """
    :raises ConfigError: unless ``bits`` is text of 0 and 1
    """
    if not isinstance(bits, str) or set(bits) - {"0", "1"}:
        raise ConfigError("group bits", bits, "text of '0' and '1', may be empty")


def next_bits(bits: str, group_id: bytes, index: int, group_size: int, target: int | None) -> str:
    """The bits of the member ``index`` after its group; no two members go to the same cell.

    :param target: target size of groups; None = the power of two that holds this group
    """
    if not bits:
        return bits
    cells = target if target is not None and target >= group_size else 1 << max(0, group_size - 1).bit_length()
    cell = random.Random(group_id).sample(range(cells), group_size)[index]
    width = math.ceil(math.log2(cells))
    new = format(cell, "b").rjust(width, "0") if width else ""
    return (bits + new)[-len(bits) :]


def peers_by_expiration(record: object, own: PeerID | None = None) -> dict[PeerID, tuple[object, DHTExpiration]]:
    """The entries of a dictionary record whose subkeys are binary peer ids: ``{peer: (value, expiration)}``.

    Entries that are no such thing are dropped: anybody may write there.

    :param record: what `DHTStore.get` gave
    :param own: left out
    """
    entries = getattr(record, "value", None)
    if not isinstance(entries, Mapping):
        return {}
    peers: dict[PeerID, tuple[object, DHTExpiration]] = {}
    for subkey, entry in entries.items():
        if len(peers) >= MAX_PEERS:
            logger.debug("over %d peers under one key: the rest is ignored", MAX_PEERS)
            break
        value, expiration = getattr(entry, "value", None), getattr(entry, "expiration_time", math.nan)
        if not isinstance(subkey, bytes) or not math.isfinite(expiration):
            continue
        try:
            peer = PeerID(subkey)
        except ConfigError:
            continue
        if peer != own:
            peers[peer] = (value, expiration)
    return peers


class GroupKeyManager:
    """Declares this peer under the group key, and reads who else is there. Owned by one loop.

    :param dht: the DHT node
    :param prefix: see `check_prefix`
    :param initial_group_bits: see `check_bits`
    :param target_group_size: see `next_bits`
    """

    def __init__(
        self, dht: DHTStore, prefix: str, initial_group_bits: str, target_group_size: int | None, *, own: PeerID
    ) -> None:
        check_prefix(prefix)
        check_bits(initial_group_bits)
        self._dht = dht
        self.prefix = prefix
        self.group_bits = initial_group_bits
        self.target_group_size = target_group_size
        self.peer_id = own
        #: the latest expiration stored so far: the DHT takes only later ones
        self._stored: dict[str, DHTExpiration] = {}

    @property
    def current_key(self) -> str:
        """Where this peer looks for its next group."""
        return f"{self.prefix}.0b{self.group_bits}"

    def declarable(self, key: str, wanted: DHTExpiration) -> DHTExpiration:
        """The earliest expiration from ``wanted`` on that the DHT still takes from this peer under ``key``."""
        last = self._stored.get(key)
        return wanted if last is None or wanted > last else math.nextafter(last, math.inf)

    async def declare_averager(self, group_key: str, expiration_time: DHTExpiration) -> bool:
        """Say that this peer looks for a group under ``group_key`` until ``expiration_time``.

        :returns: whether at least one node took it
        """
        self._stored[group_key] = expiration_time
        return bool(await self._dht.store(group_key, True, expiration_time, subkey=self.peer_id.to_bytes()))

    async def retract_averager(self, group_key: str, expiration_time: DHTExpiration) -> bool:
        """Say that it no longer does; ``expiration_time`` is the one that was declared."""
        later = math.nextafter(expiration_time, math.inf)
        self._stored[group_key] = later
        # keys of cells that are left behind would pile up
        self._stored = {key: when for key, when in self._stored.items() if when > get_dht_time()}
        return bool(await self._dht.store(group_key, False, later, subkey=self.peer_id.to_bytes()))

    async def get_averagers(self, group_key: str, only_active: bool = True) -> list[tuple[PeerID, DHTExpiration]]:
        """Those declared under ``group_key``, this peer left out.

        :param only_active: those that still look for a group
        """
        record = await self._dht.get(group_key, latest=True)
        return [
            (peer, expiration)
            for peer, (value, expiration) in peers_by_expiration(record, self.peer_id).items()
            if value is True or (not only_active and value is False)
        ]

    async def update_key_on_group_assembled(self, group_info: GroupInfo) -> None:
        """Move to the next cell. Override it for another walk through the grid."""
        index = group_info.peer_ids.index(self.peer_id)
        size = len(group_info.peer_ids)
        self.group_bits = next_bits(self.group_bits, group_info.group_id, index, size, self.target_group_size)

    async def update_key_on_not_enough_peers(self) -> None:
        """Called when the declared time came with too few peers. Stays where it is; override it to move."""
