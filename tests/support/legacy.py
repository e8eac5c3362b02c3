"""Peers of hivemind 1.1.12: processes of its own Python, driven over lines of JSON.

A :class:`LegacyNursery` loads 1.1.12 once (seconds, most of it torch) and forks a fresh process from there for each
:class:`LegacyPeer` (milliseconds). Each peer leads a session of its own, so that the many processes which 1.1.12
    forks end with it.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import itertools
import os
import select
import signal
import socket
import subprocess
import tempfile
import threading
import time
from pathlib import Path
from typing import IO, Any

from tests.compat import linejson

ROOT = Path(__file__).resolve().parents[2]
DRIVER = ROOT / "tests" / "compat" / "legacy_driver.py"
LOAD_TIMEOUT = 120.0  # seconds to import 1.1.12 with torch; typical is 8
COMMAND_TIMEOUT = 60.0
POLL_INTERVAL = 0.1  # how soon the end of a peer is seen: it is not our child, so it has to be looked at
LOG_LINES = 25


class LegacyFault(Exception):
    """A peer of hivemind 1.1.12 misbehaved: it died, hung, or a command that needs nobody else raised.

    Never raised for what a peer of ours did: a test may be repeated after this, and after nothing else.
    """


class LegacyMissing(Exception):
    """There is no Python with hivemind 1.1.12."""


def find_legacy_python() -> Path:
    """The Python that has hivemind 1.1.12: ``$HIVEMIND_LEGACY_PYTHON``, else ``.venv-legacy`` in the checkout.

    :raises LegacyMissing: there is none; says how to make it
    """
    named = os.environ.get("HIVEMIND_LEGACY_PYTHON")
    python = Path(named) if named else ROOT / ".venv-legacy" / "bin" / "python"
    if not python.is_file():
        raise LegacyMissing(
            f"no hivemind 1.1.12: {python} is not there. `make legacy` makes it (requirements-legacy.txt)"
        )
    return python


def legacy_environment() -> dict[str, str]:
    """The environment that a process of 1.1.12 gets: one computing thread each, as many of them share few cores."""
    quiet = {
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
        "PYTHONWARNINGS": "ignore",
        "HIVEMIND_LOGLEVEL": "INFO",
    }
    kept = {
        name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"
    }  # loads twice as fast
    return {**kept, **quiet}


class LegacyPeer:
    """One process of hivemind 1.1.12. Commands are the functions of ``tests/compat/legacy_commands.py``.

    Thread-safe. :meth:`close` ends the process and everything it forked; it never outlives this process either, as it
    ends itself when its standard input does.
    """

    def __init__(self, pid: int, stdin: int, stdout: int, log: IO[bytes]) -> None:
        self.pid = pid
        self.fault: LegacyFault | None = None
        self._stdin = stdin
        self._stdout = stdout
        self._log = log
        self._numbers = itertools.count()
        self._lock = threading.Lock()  # guards _waiting, fault and writes to _stdin
        self._waiting: dict[int, concurrent.futures.Future[Any]] = {}
        self._closing = threading.Event()
        self._reader = threading.Thread(target=self._read, name=f"legacy-{pid}", daemon=True)
        self._reader.start()

    def call(self, command: str, within: float = COMMAND_TIMEOUT, **arguments: Any) -> Any:
        """Run a command and wait for its result.

        :raises LegacyFault: the command raised, the process died, or ``within`` seconds passed (it is then of no more
            use)
        """
        return self.result(self.submit(command, **arguments), within, command)

    def submit(self, command: str, **arguments: Any) -> concurrent.futures.Future[Any]:
        """Start a command. Its result is had from :meth:`result`."""
        future: concurrent.futures.Future[Any] = concurrent.futures.Future()
        with self._lock:
            if self.fault is not None:
                raise self.fault
            number = next(self._numbers)
            self._waiting[number] = future
            with contextlib.suppress(BrokenPipeError):  # it is gone: the reader sees that and ends every waiter
                self._write(linejson.dumps({"number": number, "command": command, "arguments": arguments}))
        return future

    def result(self, future: concurrent.futures.Future[Any], within: float, command: str = "a command") -> Any:
        """The result of a command that was submitted before; raises as :meth:`call` does."""
        try:
            return future.result(within)
        except concurrent.futures.TimeoutError:
            self._fail(f"{command} took over {within:g} s")
            assert self.fault is not None
            raise self.fault from None

    def log(self) -> str:
        """What the process wrote to standard error so far."""
        return Path(self._log.name).read_text(errors="replace")

    def log_tail(self) -> str:
        """The last lines of :meth:`log`."""
        return "\n".join(self.log().splitlines()[-LOG_LINES:])

    def close_input(self) -> None:
        """Close the peer's standard input, as the end of this process would."""
        with self._lock:
            if self._stdin >= 0:
                os.close(self._stdin)
                self._stdin = -1

    def wait_until_dead(self, timeout: float) -> bool:
        """Wait until nothing of the peer runs; False if something still does after ``timeout`` seconds."""
        return _wait_for_end(self.pid, timeout)

    def close(self) -> None:
        """End the process with all that it forked, and wait for that. Idempotent."""
        with self._lock:
            if self._closing.is_set():
                return
            self._closing.set()
        self._reader.join(timeout=5)
        _end_session(self.pid)
        self.close_input()
        os.close(self._stdout)
        self._log.close()

    def _write(self, line: bytes) -> None:
        while line:
            line = line[os.write(self._stdin, line) :]

    def _read(self) -> None:
        pending = b""
        while not self._closing.is_set():
            if select.select([self._stdout], [], [], POLL_INTERVAL)[0]:
                data = os.read(self._stdout, 1 << 20)
                *lines, pending = (pending + data).split(b"\n")
                for line in lines:
                    self._resolve(linejson.loads(line))
                if data:
                    continue
            if not _is_running(self.pid):
                self._fail("the process died")
                return

    def _resolve(self, reply: dict[str, Any]) -> None:
        with self._lock:
            future = self._waiting.pop(reply["number"], None)
        if future is None:
            return
        if "error" in reply:
            future.set_exception(LegacyFault(f"{reply['error']}\n{self.log_tail()}"))
        else:
            future.set_result(reply["result"])

    def _fail(self, reason: str) -> None:
        with self._lock:
            self.fault = self.fault or LegacyFault(f"{reason}\n{self.log_tail()}")
            waiting = list(self._waiting.values())
            self._waiting.clear()
        for future in waiting:
            if not future.done():
                future.set_exception(self.fault)


class LegacyNursery:
    """The process that has 1.1.12 loaded and forks peers. Start one for a whole run of tests; close it at the end."""

    def __init__(self) -> None:
        self._directory = tempfile.TemporaryDirectory(prefix="hivemind-legacy-")
        self._logs = itertools.count()
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        with theirs, self._new_log() as log:
            self._process = subprocess.Popen(
                [find_legacy_python(), DRIVER, str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=[theirs.fileno()],
                env=legacy_environment(),
                start_new_session=True,
            )
        self._loaded = False

    def spawn(self) -> LegacyPeer:
        """A fresh process of 1.1.12 with nothing started in it.

        :raises LegacyFault: 1.1.12 does not load, or does not fork
        """
        self._wait_until_loaded()
        their_stdin, our_stdin = os.pipe()
        our_stdout, their_stdout = os.pipe()
        log = self._new_log()
        try:
            socket.send_fds(self._control, [b"+"], [their_stdin, their_stdout, log.fileno()])
            pid = int.from_bytes(self._receive(4, COMMAND_TIMEOUT), "little")
        finally:
            os.close(their_stdin)
            os.close(their_stdout)
        return LegacyPeer(pid, our_stdin, our_stdout, log)

    def close(self) -> None:
        """End the nursery; its peers are closed by whoever spawned them."""
        self._control.close()
        _end_session(self._process.pid)
        self._process.wait(timeout=10)
        self._directory.cleanup()

    def _wait_until_loaded(self) -> None:
        if not self._loaded:
            self._receive(1, LOAD_TIMEOUT)
            self._loaded = True

    def _receive(self, length: int, timeout: float) -> bytes:
        self._control.settimeout(timeout)
        try:
            data = self._control.recv(length, socket.MSG_WAITALL)
        except TimeoutError:
            data = b""
        if len(data) < length:
            raise LegacyFault(f"hivemind 1.1.12 did not load or fork within {timeout:g} s\n{self._read_log()}")
        return data

    def _new_log(self) -> IO[bytes]:
        return open(Path(self._directory.name) / f"{next(self._logs)}.log", "w+b")

    def _read_log(self) -> str:
        return (Path(self._directory.name) / "0.log").read_text(errors="replace")[-4000:]


def _is_running(pid: int) -> bool:
    try:
        return _stat(pid)[0] != "Z"
    except OSError:
        return False


def _stat(pid: int | str) -> list[str]:
    """Fields of ``/proc/<pid>/stat`` after the name: state, parent, group, session, …"""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def session_members(session: int) -> list[int]:
    """Live processes of a session: those that a peer forked, at any depth."""
    members = []
    for entry in os.listdir("/proc"):
        if not entry.isdigit():
            continue
        try:
            state, _, _, owner, *_ = _stat(entry)
        except OSError:
            continue  # ended meanwhile
        if int(owner) == session and state != "Z":
            members.append(int(entry))
    return members


def _end_session(session: int, timeout: float = 10.0) -> None:
    """Kill every process of a session that a process of ours started, and wait until they are gone."""
    if not _wait_for_end(session, timeout, kill=True):
        raise RuntimeError(f"processes {session_members(session)} of hivemind 1.1.12 do not end")


def _wait_for_end(session: int, timeout: float, kill: bool = False) -> bool:
    """Wait until a session has no process; with ``kill``, also of those that were being forked at the first look."""
    deadline = time.monotonic() + timeout
    while members := session_members(session):
        if time.monotonic() > deadline:
            return False
        for pid in members if kill else ():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(POLL_INTERVAL / 10)
    return True
