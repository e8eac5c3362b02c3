"""Limits that the system sets a process."""

from __future__ import annotations

import resource

from hivemind.log import get_logger

__all__ = ["increase_file_limit"]

logger = get_logger(__name__)


def increase_file_limit(new_soft: int = 2**15, new_hard: int = 2**15) -> None:
    """Allow this process to have more files and connections open, as far as the system lets it; never fewer.

    :param new_soft: the limit that is in force
    :param new_hard: up to which it may be raised; only root can raise this one
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    for wanted_hard in (max(hard, new_hard), hard):
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (min(max(soft, new_soft), wanted_hard), wanted_hard))
        except (ValueError, OSError) as error:
            logger.debug("the limit of open files cannot be raised to %d: %s", wanted_hard, error)
        else:
            return
    logger.warning("the limit of open files stays at %d", soft)
