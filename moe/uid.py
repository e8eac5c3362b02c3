"""Names of experts: ``name.3.5`` is the expert at (3, 5) of the grid ``name`` (hivemind 1.1 wire format, "UIDs")."""

from __future__ import annotations

import re
from typing import Final, NamedTuple

from hivemind.errors import ConfigError
from hivemind.identity import PeerID

__all__ = [
    "FLAT_EXPERT",
    "MAX_UID_LENGTH",
    "PREFIX_PATTERN",
    "UID_DELIMITER",
    "UID_PATTERN",
    "Coordinate",
    "ExpertInfo",
    "ExpertPrefix",
    "ExpertUID",
    "Score",
    "check_prefix",
    "check_uid",
    "is_valid_prefix",
    "is_valid_uid",
    "prefixes_of",
    "split_uid",
]

#: A full name, as ``ffn.3.5``: a text without dots, then one coordinate or more.
ExpertUID = str
#: The beginning of a name with a dot behind it, as ``ffn.`` or ``ffn.3.``.
ExpertPrefix = str
#: A place on one axis of the grid, 0 or more.
Coordinate = int
#: What a gating function gives to a place or an expert; more is better.
Score = float

UID_DELIMITER: Final = "."
#: Stands for the coordinate in records of grids that have one axis only.
FLAT_EXPERT: Final = -1
UID_PATTERN: Final = re.compile(r"[^.]+(?:[.](?:0|[1-9][0-9]*))+")
PREFIX_PATTERN: Final = re.compile(r"[^.]+(?:[.](?:0|[1-9][0-9]*))*[.]")

#: Characters of a name; it stands in every message to the expert.
MAX_UID_LENGTH: Final = 1024


class ExpertInfo(NamedTuple):
    """An expert and the peer that serves it."""

    uid: ExpertUID
    peer_id: PeerID


def is_valid_uid(maybe_uid: object) -> bool:
    """Whether it is the full name of an expert."""
    return _matches(UID_PATTERN, maybe_uid)


def is_valid_prefix(maybe_prefix: object) -> bool:
    """Whether it is the beginning of a name, with the dot."""
    return _matches(PREFIX_PATTERN, maybe_prefix)


def _matches(pattern: re.Pattern[str], value: object) -> bool:
    return isinstance(value, str) and len(value) <= MAX_UID_LENGTH and pattern.fullmatch(value) is not None


def check_uid(name: str, value: object) -> None:
    """
    :raises ConfigError: unless ``value`` is the full name of an expert; calls it ``name``
    """
    if not is_valid_uid(value):
        raise ConfigError(name, value, "a name without dots, then one coordinate or more, as 'ffn.3.5'")


def check_prefix(name: str, value: object) -> None:
    """
    :raises ConfigError: unless ``value`` is the beginning of a name; calls it ``name``
    """
    if not is_valid_prefix(value):
        raise ConfigError(name, value, "a name without dots, then coordinates and a dot, as 'ffn.' or 'ffn.3.'")


def split_uid(uid_or_prefix: ExpertUID | ExpertPrefix) -> tuple[ExpertPrefix, Coordinate]:
    """What stands before the last coordinate, with the dot, and that coordinate: ``ffn.1.2`` → ``("ffn.1.", 2)``.

    :raises ConfigError: if there is no coordinate
    """
    head, delimiter, last = uid_or_prefix.rstrip(UID_DELIMITER).rpartition(UID_DELIMITER)
    if not delimiter or not is_valid_uid(f"{head}{delimiter}{last}"):
        raise ConfigError(
            "uid_or_prefix", uid_or_prefix, "a name with one coordinate or more, as 'ffn.3.5' or 'ffn.3.'"
        )
    return head + delimiter, int(last)


def prefixes_of(uid: ExpertUID) -> list[tuple[ExpertPrefix, Coordinate]]:
    """Under which prefixes an expert is declared, and as which entry: the longest prefix first.

    The bare name is none of them: searches begin with one coordinate. An expert of a grid with one axis stands under
    its own name and a dot, as entry `FLAT_EXPERT`.

    :raises ConfigError: if ``uid`` is no full name
    """
    check_uid("uid", uid)
    prefix, last = split_uid(uid)
    if prefix.count(UID_DELIMITER) == 1:
        return [(uid + UID_DELIMITER, FLAT_EXPERT)]
    found = []
    while prefix.count(UID_DELIMITER) > 1:
        found.append((prefix, last))
        prefix, last = split_uid(prefix)
    return found
