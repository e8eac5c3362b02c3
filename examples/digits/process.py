"""A peer's process as the one that started it sees it."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from view import PeerView

PEER = Path(__file__).with_name("peer.py")
LOG_LINES = 20


class PeerProcess:
    """Starts `peer.py`, takes its reports, and ends it."""

    def __init__(self, view: PeerView, folder: Path) -> None:
        self.view = view
        self.saved = folder / f"{view.name}.pt"
        self.log = folder / f"{view.name}.log"
        self.addresses: list[str] = []
        # set when it has reported so, and when it has ended
        self.ready, self.done = asyncio.Event(), asyncio.Event()
        self._process: Process | None = None

    async def run(self, options: Sequence[str], initial_peers: Sequence[str]) -> None:
        """From its start to its end."""
        command: list[str | Path] = [sys.executable, PEER, *options]
        command += ["--save_to", self.saved, "--initial_peers", *initial_peers]
        with self.log.open("w") as log:
            # a session of its own: Ctrl-C reaches the supervisor only, which then ends the peers
            process = self._process = await asyncio.create_subprocess_exec(
                *command, stdin=PIPE, stdout=PIPE, stderr=log, start_new_session=True
            )
        self.view.pid = process.pid
        assert process.stdout is not None
        async for line in process.stdout:
            self._take(**json.loads(line))
        code = await process.wait()
        if code != 0:
            self.view.state = f"killed by {signal.Signals(-code).name}" if code < 0 else f"failed with exit code {code}"
        self.ready.set()
        self.done.set()

    def _take(self, event: str, addresses: Sequence[str] = (), **progress: Any) -> None:
        self.view.state = event
        self.view.update(**progress)
        if event == "ready":
            self.addresses = list(addresses)
            self.ready.set()
        elif event == "done":
            self.done.set()

    def go_on(self) -> None:
        """Let it pass the point at which it waits: before the first step, and after the last."""
        if self.view.alive and self._process is not None and self._process.stdin is not None:
            self._process.stdin.write(b"\n")

    async def kill(self) -> None:
        """End it at once, if it runs. Its daemon ends with it."""
        if self._process is not None and self._process.returncode is None:
            self._process.kill()
            await self._process.wait()

    def log_tail(self) -> str:
        """The last lines of its log."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-LOG_LINES:]) if self.log.exists() else ""
