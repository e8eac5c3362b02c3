"""The daemon as a child process: start, logs, death, end. Leaves no process, descriptor, thread or file behind."""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import json
import logging
import os
import secrets
import shutil
import socket
import subprocess
import tempfile
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hivemind.aio import with_deadline
from hivemind.clock import Deadline, monotonic
from hivemind.errors import DaemonStartError, DeadlineExceeded
from hivemind.log import get_logger
from hivemind.p2p.framing import VERSION

__all__ = ["DaemonProcess", "find_binary"]

logger = get_logger(__name__)
daemon_logger = get_logger("hivemind.p2pd")

#: Log lines kept for errors.
_TAIL = 20
#: Log lines of one level re-emitted in `_LOG_PERIOD` seconds; peers can make the daemon write more.
_LOG_LINES = 20
_LOG_PERIOD = 10.0
#: Bytes of the longest line read from the daemon.
_LINE_LIMIT = 1024 * 1024
_READ_BYTES = 64 * 1024
#: The longest path that a socket can have: 108 bytes on Linux, 104 on macOS, with the zero at the end.
_SOCKET_PATH_BYTES = 103
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


class _Logs:
    """The daemon's standard error: JSON lines, re-emitted as log records of ``hivemind.p2pd``."""

    def __init__(self) -> None:
        self.tail: deque[str] = deque(maxlen=_TAIL)
        # per level: lines in this period, its end, lines held back
        self._counts: dict[int, tuple[int, float]] = {}

    def take(self, line: str) -> None:
        """One line, without its end."""
        self.tail.append(line[:2000])
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


class _Lines:
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


def _control_path() -> Path:
    """A new place for the socket: in the folder for temporary files, or in /tmp where that has too long a name."""
    path = Path(f"hivemind-{secrets.token_hex(8)}", "control.sock")
    usual = tempfile.gettempdir() / path
    return usual if len(os.fsencode(usual)) <= _SOCKET_PATH_BYTES else Path("/tmp") / path


class DaemonProcess:
    """One child. Used on the loop that started it, except `dispose`.

    :param config: of the protocol; ``parent_pid``, ``owner_fd`` and ``control_path`` are filled in here
    """

    def __init__(self, config: dict[str, Any]) -> None:
        self._config = config
        self._pid = os.getpid()
        self._popen: subprocess.Popen[bytes] | None = None
        self._pipes: list[_Lines] = []
        self._logs = _Logs()
        self._first_line: asyncio.Future[str] | None = None
        # made by the daemon with mode 0700, and removed by it unless it is killed
        self.control_path = _control_path()
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
        """Its last log lines."""
        return "\n".join(self._logs.tail)

    async def start(self, deadline: Deadline) -> tuple[dict[str, Any], socket.socket]:
        """Run the daemon and wait until it is ready.

        :returns: its ready line and this side of the owner's connection
        :raises DaemonStartError: with the daemon's own words
        """
        binary = find_binary()
        ours, theirs = socket.socketpair()
        try:
            with theirs:
                self._spawn(binary, theirs)
            return await self._ready(deadline), ours
        except BaseException:
            ours.close()
            self.stop_now()
            raise

    def _spawn(self, binary: Path, theirs: socket.socket) -> None:
        config = {
            **self._config,
            "parent_pid": os.getpid(),
            "owner_fd": theirs.fileno(),
            "control_path": str(self.control_path),
        }
        out, out_end = os.pipe()
        log, log_end = os.pipe()
        self._first_line = asyncio.get_running_loop().create_future()
        self._pipes = [_Lines(out, self._take_first), _Lines(log, self._logs.take)]
        try:
            with tempfile.TemporaryFile() as stdin:
                stdin.write(json.dumps(config).encode())
                stdin.seek(0)
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
            raise DaemonStartError(str(line.get("error", line)), str(line.get("hint", "")))
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
        """After its death: reap it, read its last words, remove its files. Its exit code."""
        code = await self.wait(_ASK_SECONDS)
        if code is None:
            self._signal("kill")
            code = await self.wait(_KILL_SECONDS)
        with contextlib.suppress(DeadlineExceeded):
            for pipe in self._pipes:
                await with_deadline(asyncio.shield(pipe.ended), Deadline.after(_ASK_SECONDS), "the daemon's last words")
        self._cleanup()
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
        """End it at once, on its loop. Idempotent."""
        self.dispose()
        for pipe in self._pipes:
            pipe.close()

    def dispose(self) -> None:
        """End it at once, from any thread, and without its loop. Idempotent; does nothing in a forked child."""
        if self._pid != os.getpid():
            return
        popen = self._popen
        if popen is not None and popen.poll() is None:
            self._signal("kill")
            with contextlib.suppress(subprocess.TimeoutExpired):
                popen.wait(_KILL_SECONDS)
        for pipe in self._pipes:
            pipe.close_if_forsaken()
        self._cleanup()

    def _signal(self, how: str) -> None:
        if self._popen is not None:
            with contextlib.suppress(ProcessLookupError):
                getattr(self._popen, how)()

    def _cleanup(self) -> None:
        _live.discard(self)
        shutil.rmtree(self._folder, ignore_errors=True)


#: Those that run. At exit, whoever was not shut down is killed; registered when this module is loaded, so that the
#: network thread, which is made later, has ended its peers in order before.
_live: set[DaemonProcess] = set()


def _dispose_all() -> None:
    for process in list(_live):
        process.dispose()


atexit.register(_dispose_all)
