"""The daemon as a child process: start, logs, death, end. Leaves no process, descriptor, thread or file behind."""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import json
import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hivemind.aio import with_deadline
from hivemind.clock import Deadline, monotonic
from hivemind.errors import DaemonStartError, DeadlineExceeded
from hivemind.p2p.control_folder import new_control_path, sweep
from hivemind.p2p.daemon_log import DaemonLog, PipeLines
from hivemind.p2p.framing import VERSION
from hivemind.p2p.timer_slack import coarse_timers

__all__ = ["DaemonProcess", "find_binary"]

#: Seconds that a daemon whose connection is gone may take to end: one that was told to stop waits for a moment.
_BURY_SECONDS = 1.5
#: Seconds that each step of ending the daemon may take: asking it, SIGTERM, SIGKILL.
_ASK_SECONDS = 0.4
_TERM_SECONDS = 0.3
_KILL_SECONDS = 2.0


def find_binary() -> Path:
    """The daemon's binary: ``$HIVEMIND_P2PD``, or the one in this package.

    :raises DaemonStartError: if there is none
    """
    given = os.environ.get("HIVEMIND_P2PD")
    path = Path(given) if given else Path(__file__).resolve().parent / "p2pd"
    if not path.is_file() or not os.access(path, os.X_OK):
        where = "HIVEMIND_P2PD names" if given else "this package has"
        raise DaemonStartError(
            f"{where} no p2p daemon: {path} is missing or cannot be run",
            "run `make buildgo` in the checkout, or install a wheel that contains the daemon",
        )
    return path


class DaemonProcess:
    """One child at a time: after its death and burial another can be started. Used on the loop that started it, except
    `dispose`.

    :param config: of the protocol; ``parent_pid``, ``owner_fd`` and what guests need are filled in here
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        self._config = dict(config)
        self._pid = os.getpid()
        self._popen: subprocess.Popen[bytes] | None = None
        self._pipes: list[PipeLines] = []
        self._log = DaemonLog()
        self._first_line: asyncio.Future[str] | None = None
        #: whether `dispose` has ended it for good; also read on the loop after another thread has set it
        self.disposed = False
        # made by the first daemon with mode 0700, and removed by the one that outlives this process
        self.control_path = new_control_path()
        self._folder = self.control_path.parent

    @property
    def pid(self) -> int | None:
        """Its process id; None if it never ran."""
        return None if self._popen is None else self._popen.pid

    @property
    def exit_code(self) -> int | None:
        """None while it runs; negative for a signal."""
        return None if self._popen is None else self._popen.poll()

    @property
    def log_tail(self) -> str:
        """Its last log lines; after a crash its message."""
        return self._log.last_words

    async def start(
        self, deadline: Deadline, changes: Mapping[str, Any] | None = None
    ) -> tuple[dict[str, Any], socket.socket]:
        """Run the daemon and wait until it is ready.

        :param changes: to the configuration, for this start
        :returns: its ready line and this side of the owner's connection
        :raises DaemonStartError: with the daemon's own words
        """
        global _swept
        binary = find_binary()
        if not _swept:
            _swept = True
            sweep()
        ours, theirs = socket.socketpair()
        try:
            with theirs:
                self._spawn(binary, theirs, changes or {})
            return await self._ready(deadline), ours
        except BaseException:
            ours.close()
            self.kill()
            raise

    def _spawn(self, binary: Path, theirs: socket.socket, changes: Mapping[str, Any]) -> None:
        config = {
            **self._config,
            **changes,
            "parent_pid": os.getpid(),
            "owner_fd": theirs.fileno(),
            "control_path": str(self.control_path),
            "own_folder": True,
        }
        self._log.begin()
        out, out_end = os.pipe()
        log, log_end = os.pipe()
        self._first_line = asyncio.get_running_loop().create_future()
        self._pipes = [PipeLines(out, self._take_first), PipeLines(log, self._log.take)]
        try:
            with tempfile.TemporaryFile() as stdin:
                stdin.write(json.dumps(config).encode())
                stdin.seek(0)
                with coarse_timers():
                    self._popen = subprocess.Popen(
                        [str(binary)],
                        stdin=stdin,
                        stdout=out_end,
                        stderr=log_end,
                        pass_fds=(theirs.fileno(),),
                        cwd="/",
                        # a group of its own: Ctrl-C is for the program, which ends the daemon in order
                        process_group=0,
                    )
        except OSError as error:
            raise DaemonStartError(f"{binary} cannot be run: {error}", "run `make buildgo` anew") from error
        finally:
            os.close(out_end)
            os.close(log_end)
        _live.add(self)
        if self.disposed:
            # from another thread, which may not have seen this child
            self.dispose()
            raise DaemonStartError("its owner has been dropped")

    def _take_first(self, line: str) -> None:
        if self._first_line is not None and not self._first_line.done():
            self._first_line.set_result(line)

    async def _ready(self, deadline: Deadline) -> dict[str, Any]:
        first = self._first_line
        assert first is not None
        out = self._pipes[0]
        started = monotonic()
        try:
            waiting = asyncio.wait((first, out.ended), return_when=asyncio.FIRST_COMPLETED)
            await with_deadline(waiting, deadline, "the daemon's start")
        except DeadlineExceeded:
            took = round(monotonic() - started, 1)
            raise DaemonStartError(f"Daemon failed to start in {took} seconds", self.log_tail) from None
        if not first.done():
            code = await self.wait(_KILL_SECONDS)
            raise DaemonStartError(f"the daemon ended with exit code {code} before it was ready", self.log_tail)
        try:
            line: dict[str, Any] = json.loads(first.result())
        except ValueError as error:
            raise DaemonStartError(f"the daemon began with {first.result()[:200]!r}") from error
        if not line.get("ready"):
            reason, hint, kind = (str(line.get(name, "")) for name in ("error", "hint", "fatal"))
            raise DaemonStartError(reason or str(line), hint, kind)
        if line.get("version") != VERSION:
            raise DaemonStartError(
                f"the daemon speaks version {line.get('version')} of the control protocol, this is {VERSION}",
                "run `make buildgo` anew",
            )
        return line

    async def wait(self, seconds: float) -> int | None:
        """Wait up to ``seconds`` for its end and reap it; its exit code, or None."""
        deadline, pause = Deadline.after(seconds), 0.001
        while (code := self.exit_code) is None and not deadline.expired:
            await asyncio.sleep(min(pause, deadline.remaining()))
            pause = min(2 * pause, 0.05)
        return code

    async def bury(self) -> int | None:
        """After its death: reap it and read its last words. Its exit code.

        The folder stays, for another start; `stop_now` removes it.
        """
        code = await self.wait(_BURY_SECONDS)
        if code is None:
            self._signal("kill")
            code = await self.wait(_KILL_SECONDS)
        with contextlib.suppress(DeadlineExceeded):
            for pipe in self._pipes:
                await with_deadline(asyncio.shield(pipe.ended), Deadline.after(_ASK_SECONDS), "the daemon's last words")
        self.kill()
        return code

    async def stop(self) -> None:
        """End it, after it was asked to: wait, SIGTERM, SIGKILL. Bounded and idempotent."""
        try:
            if await self.wait(_ASK_SECONDS) is None:
                self._signal("terminate")
                if await self.wait(_TERM_SECONDS) is None:
                    self._signal("kill")
                    await self.wait(_KILL_SECONDS)
        finally:
            self.stop_now()

    def stop_now(self) -> None:
        """End it at once and for good, on its loop. Idempotent."""
        self.dispose()
        for pipe in self._pipes:
            pipe.close()

    def kill(self) -> None:
        """End this child at once, on its loop; another may be started. Idempotent."""
        self._end()
        for pipe in self._pipes:
            pipe.close()
        # the next one could not listen there
        self.control_path.unlink(missing_ok=True)

    def dispose(self) -> None:
        """End it at once and for good, from any thread, and without its loop. Idempotent; does nothing in a forked
        child."""
        if self._pid != os.getpid():
            return
        self.disposed = True
        self._end()
        for pipe in self._pipes:
            pipe.close_if_forsaken()
        _live.discard(self)
        shutil.rmtree(self._folder, ignore_errors=True)

    def _end(self) -> None:
        popen = self._popen
        if popen is not None and popen.poll() is None:
            self._signal("kill")
            with contextlib.suppress(subprocess.TimeoutExpired):
                popen.wait(_KILL_SECONDS)

    def _signal(self, how: str) -> None:
        if self._popen is not None:
            with contextlib.suppress(ProcessLookupError):
                getattr(self._popen, how)()


#: Those that run. At exit, whoever was not shut down is killed; registered when this module is loaded, so that the
#: network thread, which is made later, has ended its peers in order before.
_live: set[DaemonProcess] = set()

#: Whether this process has looked for what others left behind.
_swept = False


def _dispose_all() -> None:
    for process in list(_live):
        process.dispose()


atexit.register(_dispose_all)
