"""Spawned processes that are given an object and told what to do with it."""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import os
import signal
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from tests.support.waiting import PATIENCE

Connection = multiprocessing.connection.Connection

SPAWN = multiprocessing.get_context("spawn")


class Spawned:
    """Runs ``serve(given, commands)`` in another process, which ends when the command None comes."""

    def __init__(self, serve: Callable[[Any, Connection], None], given: Any) -> None:
        self.commands, theirs = SPAWN.Pipe()
        self.process = SPAWN.Process(target=serve, args=(given, theirs))
        self.process.start()
        theirs.close()
        assert self.process.pid is not None
        self.pid = self.process.pid

    def answer(self) -> Any:
        """What it sends next."""
        assert self.commands.poll(2 * PATIENCE), "no answer"
        return self.commands.recv()

    def run(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Send it a function and its arguments; what it answers."""
        self.commands.send((function, arguments))
        return self.answer()

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)
        self.process.join(PATIENCE)

    def end(self) -> int | None:
        """Ask it to end; its exit code, None if it had to be killed for it."""
        with suppress(OSError):
            self.commands.send(None)
        self.process.join(PATIENCE)
        code = self.process.exitcode
        if code is None:
            self.process.kill()
            self.process.join()
        self.commands.close()
        self.process.close()
        return code
