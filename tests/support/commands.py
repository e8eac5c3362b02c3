"""Commands of the command line as processes: their lines, their children, their end."""

from __future__ import annotations

import queue
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from tests.support.processes import children_of, is_alive
from tests.support.waiting import PATIENCE, eventually_sync

__all__ = ["STARTED", "Command", "command"]

#: As programs that use hivemind 1.1 look for it.
STARTED = re.compile(r"Running a DHT instance. To connect other peers to this one, use (.+)$")


class Command:
    """A running command and its lines on standard error.

    :param module: of `hivemind.cli`, whose ``main`` is run
    :param inside: what the command line begins with, as `NatLab.inside` gives it
    """

    def __init__(self, module: str, *arguments: str, inside: Sequence[str] = ()) -> None:
        code = f"from hivemind.cli.{module} import main; main()"
        line = [*inside, sys.executable, "-c", code, *arguments]
        self.process = subprocess.Popen(line, stderr=subprocess.PIPE, text=True)
        self._lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self._lines.put(line.rstrip("\n"))
        self._lines.put(None)

    def line(self, seconds: float = PATIENCE) -> str:
        """The next line."""
        line = self._lines.get(timeout=seconds)
        assert line is not None, f"it has ended with {self.process.wait(PATIENCE)}"
        return line

    def until(self, words: str, seconds: float = PATIENCE) -> str:
        """The next line with ``words``; ``seconds`` for each line before it."""
        while words not in (line := self.line(seconds)):
            pass
        return line

    def children(self) -> list[int]:
        """Its child processes: the daemon."""
        return children_of(self.process.pid)

    def end(self, number: signal.Signals) -> int:
        """Send a signal; the exit code. No child may be left."""
        children = self.children()
        self.process.send_signal(number)
        code = self.process.wait(PATIENCE)
        eventually_sync(lambda: not any(map(is_alive, children)), "the daemon has ended")
        return code

    def close(self) -> None:
        """Kill it if it runs."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(PATIENCE)
        self._reader.join(PATIENCE)
        assert self.process.stderr is not None
        self.process.stderr.close()


@contextmanager
def command(module: str, *arguments: str, inside: Sequence[str] = ()) -> Iterator[Command]:
    """A command that runs in the block; it is killed if it still does at the end."""
    running = Command(module, *arguments, inside=inside)
    try:
        yield running
    finally:
        running.close()
