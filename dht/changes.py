"""What has changed under a key from one look to the next. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from hivemind.clock import DHTExpiration
from hivemind.dht.records import Subkey
from hivemind.timed_storage import ValueWithExpiration

__all__ = ["ADDED", "EXPIRED", "UPDATED", "Change", "Entries", "coalesce", "entries_of", "progress"]

ADDED: Final = "added"
UPDATED: Final = "updated"
EXPIRED: Final = "expired"

#: A record entry by entry; a plain value is the entry None.
Entries = Mapping[Subkey, ValueWithExpiration[Any]]


@dataclass(frozen=True)
class Change:
    """One entry of a dictionary, or a plain value, has come, was replaced, or holds no longer."""

    #: "added", "updated" or "expired"
    kind: str
    #: of the dictionary; None if the key holds a plain value
    subkey: Subkey
    #: what it is now; with "expired", what it was
    value: Any
    #: DHT time
    expiration_time: DHTExpiration


def entries_of(found: ValueWithExpiration[Any] | None) -> dict[Subkey, ValueWithExpiration[Any]]:
    """The entries of what a get has given. A dictionary of the DHT comes as one of values with expirations."""
    if found is None:
        return {}
    value = found.value
    if isinstance(value, dict) and value and all(isinstance(each, ValueWithExpiration) for each in value.values()):
        return dict(value)
    return {None: found}


def progress(
    known: Entries, found: Entries, now: DHTExpiration
) -> tuple[dict[Subkey, ValueWithExpiration[Any]], list[Change]]:
    """What holds after another look, and what has changed.

    A look may miss what is there, as nodes come and go: an entry that was not found holds until it expires. A plain
    value and a dictionary do not hold together: the one that expires later wins, as in the storage of each node.

    :param known: what held before
    :param found: what this look has found
    :param now: DHT time
    """
    merged = dict(known)
    for subkey, entry in found.items():
        if subkey not in merged or entry.expiration_time > merged[subkey].expiration_time:
            merged[subkey] = entry
    after = {subkey: entry for subkey, entry in merged.items() if entry.expiration_time > now}
    if None in after and len(after) > 1:
        plain = after.pop(None)
        if plain.expiration_time > max(entry.expiration_time for entry in after.values()):
            after = {None: plain}
    return after, list(_changes(known, after))


def _changes(before: Entries, after: Entries) -> Iterator[Change]:
    for subkey, entry in before.items():
        if subkey not in after:
            yield Change(EXPIRED, subkey, *entry)
    for subkey, entry in after.items():
        if subkey not in before:
            yield Change(ADDED, subkey, *entry)
        elif entry.expiration_time != before[subkey].expiration_time:
            yield Change(UPDATED, subkey, *entry)


def coalesce(earlier: Change | None, later: Change) -> Change | None:
    """Two changes of one entry as one, for a reader who has seen neither; None if nothing is left to tell."""
    if earlier is None:
        return later
    if earlier.kind == ADDED:
        return None if later.kind == EXPIRED else Change(ADDED, later.subkey, later.value, later.expiration_time)
    if earlier.kind == EXPIRED and later.kind == ADDED:
        return Change(UPDATED, later.subkey, later.value, later.expiration_time)
    return later
