"""Path of hivemind 1.1 for `hivemind.moe.uid`."""

from hivemind.moe.uid import (
    FLAT_EXPERT,
    PREFIX_PATTERN,
    UID_DELIMITER,
    UID_PATTERN,
    Coordinate,
    ExpertInfo,
    ExpertPrefix,
    ExpertUID,
    Score,
    is_valid_prefix,
    is_valid_uid,
    split_uid,
)

__all__ = [
    "FLAT_EXPERT",
    "PREFIX_PATTERN",
    "UID_DELIMITER",
    "UID_PATTERN",
    "Coordinate",
    "ExpertInfo",
    "ExpertPrefix",
    "ExpertUID",
    "Score",
    "is_valid_prefix",
    "is_valid_uid",
    "split_uid",
]
