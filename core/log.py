"""Logging: plain `logging` under the name ``hivemind``; the root logger and the user's handlers are never touched.

``HIVEMIND_LOGLEVEL`` (default INFO) sets the level of the tree. With no handler of the user's own, messages go to
standard error through one handler on the ``hivemind`` logger.
"""

from __future__ import annotations

import logging
import os
import time
from typing import Final

__all__ = ["RateLimit", "get_logger", "loglevel", "use_hivemind_log_handler"]

loglevel: Final = os.environ.get("HIVEMIND_LOGLEVEL", "INFO").upper()
_ROOT: Final = logging.getLogger("hivemind")
_FORMAT: Final = "%(asctime)s.%(msecs)03d [%(levelname)s] [%(name)s] %(message)s"


def _handler() -> logging.Handler:
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter(_FORMAT, datefmt="%b %d %H:%M:%S"))
    return handler


def _set_up() -> None:
    known = logging.getLevelNamesMapping()
    _ROOT.setLevel(known.get(loglevel, logging.INFO))
    if not _ROOT.handlers:
        _ROOT.addHandler(_handler())
        _ROOT.propagate = False


_set_up()


def get_logger(name: str | None = None) -> logging.Logger:
    """The logger ``name``; names outside ``hivemind`` are the user's own and are left as they are."""
    return logging.getLogger(name if name is not None else "hivemind")


def use_hivemind_log_handler(where: str) -> None:
    """Choose where hivemind's own handler stands, as in hivemind 1.1.

    :param where: ``"in_root_logger"``: format the messages of all libraries so; ``"in_hivemind"`` (the default): only
        hivemind's; ``"nowhere"``: hivemind's messages go to the user's own handlers
    :raises ValueError: on any other word
    """
    if where not in ("in_root_logger", "in_hivemind", "nowhere"):
        raise ValueError(f"where: got {where!r}, allowed: 'in_root_logger', 'in_hivemind', 'nowhere'")
    for logger in (_ROOT, logging.getLogger()):
        for handler in [h for h in logger.handlers if getattr(h.formatter, "_fmt", None) == _FORMAT]:
            logger.removeHandler(handler)
    _ROOT.propagate = where != "in_hivemind"
    if where == "in_hivemind":
        _ROOT.addHandler(_handler())
    elif where == "in_root_logger":
        logging.getLogger().addHandler(_handler())


class RateLimit:
    """Lets one message through per ``period`` seconds, so that a peer cannot flood the log. Thread-safe enough:
    a race lets one message too many through."""

    def __init__(self, period: float = 10.0) -> None:
        self._period = period
        self._next = 0.0
        #: messages held back since the last one that passed
        self.suppressed = 0

    def allow(self) -> bool:
        """Whether a message may be written now."""
        now = time.monotonic()
        if now < self._next:
            self.suppressed += 1
            return False
        self._next = now + self._period
        self.suppressed = 0
        return True
