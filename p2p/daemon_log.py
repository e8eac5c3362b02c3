"""What the daemon says: the lines of its pipes, its log re-emitted as ours, its last words."""

from __future__ import annotations

import asyncio
import json
import logging
import os
from collections import deque
from collections.abc import Callable

from hivemind.clock import monotonic
from hivemind.log import get_logger

__all__ = ["DaemonLog", "PipeLines"]

daemon_logger = get_logger("hivemind.p2pd")

#: Log lines kept for errors.
_TAIL = 20
#: Characters of a line that are kept.
_LINE_CHARACTERS = 2000
#: Log lines of one level re-emitted in `_LOG_PERIOD` seconds; peers can make the daemon write more.
_LOG_LINES = 20
_LOG_PERIOD = 10.0
#: Bytes of the longest line read from the daemon.
_LINE_LIMIT = 1024 * 1024
_READ_BYTES = 64 * 1024
#: How the Go runtime begins when it ends the process: the cause comes first, then stacks of any length.
_CRASHES = ("panic: ", "fatal error: ", "SIGABRT: ", "SIGQUIT: ", "SIGSEGV: ", "unexpected fault address ")


class DaemonLog:
    """The daemon's standard error: JSON lines, re-emitted as log records of ``hivemind.p2pd``."""

    def __init__(self) -> None:
        self._tail: deque[str] = deque(maxlen=_TAIL)
        # the first lines of a crash; empty as long as there was none
        self._crash: list[str] = []
        # per level: lines in this period, its end, lines held back
        self._counts: dict[int, tuple[int, float]] = {}

    @property
    def last_words(self) -> str:
        """The last lines; after a crash the last before it and its first, which tell the cause."""
        return "\n".join([*self._tail, *self._crash])

    def begin(self) -> None:
        """Another process writes from here on."""
        self._tail.clear()
        self._crash.clear()

    def take(self, line: str) -> None:
        """One line, without its end."""
        if self._crash or line.startswith(_CRASHES):
            if len(self._crash) < _TAIL:
                self._crash.append(line[:_LINE_CHARACTERS])
        else:
            self._tail.append(line[:_LINE_CHARACTERS])
        try:
            entry = json.loads(line)
            level = logging.getLevelNamesMapping().get(str(entry["level"]).upper(), logging.INFO)
            name, text = str(entry.pop("logger", "")), str(entry.pop("msg", ""))
        except (ValueError, KeyError, TypeError, AttributeError):
            level, name, text, entry = logging.WARNING, "", line, {}
        if not daemon_logger.isEnabledFor(level) or not self._allow(level):
            return
        fields = " ".join(f"{key}={value}" for key, value in entry.items() if key not in ("time", "level"))
        source, details = f"{name}: " if name else "", f" ({fields[:2000]})" if fields else ""
        daemon_logger.log(level, "%s%s%s", source, text[:2000], details)

    def _allow(self, level: int) -> bool:
        now = monotonic()
        count, end = self._counts.get(level, (0, 0.0))
        if now >= end:
            if count > _LOG_LINES:
                daemon_logger.log(level, "%d more lines of the daemon were left out", count - _LOG_LINES)
            count, end = 0, now + _LOG_PERIOD
        self._counts[level] = (count + 1, end)
        return count < _LOG_LINES


class PipeLines:
    """The lines of a pipe's reading end, which it owns."""

    def __init__(self, descriptor: int, take: Callable[[str], None]) -> None:
        self._descriptor = descriptor
        self._take = take
        self._rest = bytearray()
        self._loop = asyncio.get_running_loop()
        self.ended: asyncio.Future[None] = self._loop.create_future()
        self._open = True
        os.set_blocking(descriptor, False)
        self._loop.add_reader(descriptor, self._read)

    def _read(self) -> None:
        try:
            data = os.read(self._descriptor, _READ_BYTES)
        except BlockingIOError:
            return
        if not data:
            self.close()
            return
        self._rest += data
        *lines, rest = self._rest.split(b"\n")
        self._rest = bytearray(rest[:_LINE_LIMIT])
        for line in lines:
            self._take(line.decode("utf-8", "replace"))

    def close(self) -> None:
        """Idempotent; on the loop, or when that is closed."""
        if not self._open:
            return
        self._open = False
        if not self._loop.is_closed():
            self._loop.remove_reader(self._descriptor)
            if not self.ended.done():
                self.ended.set_result(None)
        os.close(self._descriptor)

    def close_if_forsaken(self) -> None:
        """From any thread: close it if its loop is closed; else the loop does so when the writer has ended."""
        if self._loop.is_closed():
            self.close()
