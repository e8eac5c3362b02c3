"""However a process ends, nothing of it is left: every way to die, by what the process held.

Each cell is a Python process of its own (`tests.support.mortal`); those that need torch are forked from one that has
loaded it (`tests.support.nursery`). What is counted after its end: processes, unix sockets, files in the folder for
temporary files, and shared memory.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.support.nursery import Nursery, Nursling
from tests.support.processes import children_of, is_alive

PEER = Path(__file__).parents[1] / "support" / "mortal.py"
KINDS = ("P2P", "DHT", "averager", "optimizer")
#: ...with torch, and what they load.
HEAVY = ("averager", "optimizer")
LOADED = ["torch", "torch._dynamo", "hivemind.averaging", "hivemind.optim", "hivemind.crypto"]
#: Each way with the exit code that it gives.
WAYS = {
    "shutdown": 0,
    "end of the program": 0,
    "exception": 1,
    "sys.exit": 4,
    "os._exit": 3,
    "SIGINT": -signal.SIGINT,
    "SIGTERM": -signal.SIGTERM,
    "SIGHUP": -signal.SIGHUP,
    "SIGKILL": -signal.SIGKILL,
    "SIGTERM to all": -signal.SIGTERM,
    "notebook": -signal.SIGKILL,
    "SIGKILL in flight": -signal.SIGKILL,
    "sys.exit in flight": 4,
}
#: torch keeps what it has compiled
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "TORCHINDUCTOR_CACHE_DIR": str(Path(tempfile.gettempdir()) / "torch")}
#: Seconds after the end of the process in which all must be gone, and those of `shutdown`.
GONE = 2.0
SHUTDOWN = 1.0
#: Seconds in which a process must be ready, and end; loading torch is among it.
PATIENCE = 120.0
#: Time on a loaded machine says little: the best of so many `shutdown` counts.
TRIES = 3
#: Processes at a time.
AT_ONCE = 4


@dataclass
class Outcome:
    """What became of one process."""

    exit_code: int | None = None
    #: after `GONE` seconds
    left: list[str] = field(default_factory=list)
    #: seconds from the end of the process until nothing was left
    gone: float = 0.0
    #: seconds of ``shutdown()``, in that way
    shutdown: float = 0.0
    errors: str = ""


class Mortal:
    """A process and what belongs to it. Its temporary files are in a folder of its own."""

    def __init__(self, kind: str, way: str, nursery: Nursery) -> None:
        self.way = way
        self.folder = Path(tempfile.mkdtemp(prefix="m", dir=tempfile.gettempdir()))
        self.log = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed by `close`
        environment = {"TMPDIR": str(self.folder), **ENVIRONMENT}
        session = way == "notebook"  # as its kernel has
        self.process: Nursling | subprocess.Popen[bytes]
        if kind in HEAVY:
            self.process = nursery.start(PEER, [kind, way], environment, self.log, session)
        else:
            self.process = subprocess.Popen(
                [sys.executable, str(PEER), kind, way],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self.log,
                env={**os.environ, **environment},
                start_new_session=session,
            )
        self.daemons: list[int] = []
        self.memory: set[Path] = set()
        self._rest = b""

    def hear(self, event: str) -> dict[str, Any]:
        """Wait until the process says ``event``."""
        assert self.process.stdout is not None
        deadline = time.monotonic() + PATIENCE
        while True:
            line, found, rest = self._rest.partition(b"\n")
            if found:
                self._rest = rest
                said: dict[str, Any] = json.loads(line)
                if said["event"] == event:
                    return said
                continue
            readable, _, _ = select.select([self.process.stdout], [], [], max(0.0, deadline - time.monotonic()))
            data = os.read(self.process.stdout.fileno(), 65536) if readable else b""
            assert data, f"it never said {event!r}:\n{self.errors()}"
            self._rest += data

    def errors(self) -> str:
        self.log.seek(0)
        return self.log.read()

    def look(self) -> None:
        """Note what belongs to it while it lives."""
        self.daemons = children_of(self.process.pid)
        assert self.daemons, "no daemon runs: nothing is tested"
        for pid in (self.process.pid, *self.daemons):
            try:
                maps = Path(f"/proc/{pid}/maps").read_text(errors="replace").splitlines()
            except OSError:
                continue
            paths = (line.split(maxsplit=5)[-1] for line in maps if "/dev/shm/" in line)
            self.memory |= {Path(path) for path in paths if not path.endswith("(deleted)")}

    def die(self) -> None:
        """Let it end in its way, and wait until it has."""
        assert self.process.stdin is not None
        if self.way == "notebook":
            self.process.send_signal(signal.SIGINT)
            self.hear("interrupted")
            # what a notebook server does when it restarts a kernel that hangs
            self.process.stdin.close()
            os.killpg(self.process.pid, signal.SIGKILL)
        elif self.way == "sys.exit in flight":
            self.process.send_signal(signal.SIGTERM)
        elif self.way == "SIGTERM to all":
            # as a service manager does
            for pid in (*self.daemons, self.process.pid):
                os.kill(pid, signal.SIGTERM)
        elif self.way.startswith("SIG"):
            self.process.send_signal(signal.Signals[self.way.split()[0]])
        else:
            self.process.stdin.write(b"go\n")
            self.process.stdin.flush()
        self.process.wait(PATIENCE)

    def left(self) -> list[str]:
        """What is still there."""
        found = [f"process {self.process.pid}"] if is_alive(self.process.pid) else []
        found += [f"daemon {pid}" for pid in self.daemons if is_alive(pid)]
        mark = f"TMPDIR={self.folder}\0".encode()
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                if mark in (entry / "environ").read_bytes() and is_alive(int(entry.name)):
                    found.append(f"process {entry.name}")
            except OSError:
                continue
        found += [f"file {path}" for path in self.folder.rglob("*")]
        sockets = Path("/proc/net/unix").read_text(errors="replace").splitlines()
        found += [f"socket {line}" for line in sockets if str(self.folder) in line]
        named = Path("/dev/shm").glob(f"*_{self.process.pid}_*")
        found += [f"shared memory {path}" for path in {*self.memory, *named} if path.exists()]
        return found

    def close(self) -> None:
        """Kill what is left."""
        for pid in (self.process.pid, *self.daemons):
            if (pid != self.process.pid or self.process.poll() is None) and is_alive(pid):
                os.kill(pid, signal.SIGKILL)
        self.process.wait(PATIENCE)
        for pipe in (self.process.stdin, self.process.stdout, self.log):
            assert pipe is not None
            pipe.close()


def run(kind: str, way: str, nursery: Nursery) -> Outcome:
    mortal = Mortal(kind, way, nursery)
    outcome = Outcome()
    try:
        mortal.hear("ready")
        mortal.look()
        mortal.die()
        ended = time.monotonic()
        while (left := mortal.left()) and time.monotonic() - ended < GONE:
            time.sleep(0.01)
        outcome.gone = time.monotonic() - ended
        outcome.left = left
        outcome.exit_code = mortal.process.returncode
        if way == "shutdown":
            outcome.shutdown = mortal.hear("shutdown")["seconds"]
        outcome.errors = mortal.errors()
    finally:
        mortal.close()
    return outcome


def best(cell: tuple[str, str], nursery: Nursery) -> Outcome:
    """The outcome of a cell; repeated only where `shutdown` was slow."""
    for _ in range(TRIES):
        outcome = run(*cell, nursery)
        if outcome.left or outcome.shutdown < SHUTDOWN:
            break
    return outcome


def faults_of(kind: str, way: str, outcome: Outcome) -> list[str]:
    faults = [f"left {GONE} s later: {each}" for each in outcome.left]
    if outcome.exit_code != WAYS[way]:
        faults.append(f"exit code {outcome.exit_code}, not {WAYS[way]}")
    if outcome.shutdown >= SHUTDOWN:
        faults.append(f"shutdown took {outcome.shutdown:.2f} s")
    if "Traceback" in outcome.errors and way not in ("exception", "SIGINT"):
        faults.append("a traceback")
    return [f"{kind}, {way}: {fault}\n{outcome.errors[-2000:]}" for fault in faults]


def table(outcomes: dict[tuple[str, str], Outcome]) -> str:
    """Leftovers of each cell, and the seconds until they were gone."""
    width = max(map(len, WAYS)) + 2
    lines = ["left behind, and seconds from the end of the process until nothing was:"]
    lines.append(" " * width + "".join(f"{kind:>16}" for kind in KINDS))
    for way in WAYS:
        cells = [outcomes[kind, way] for kind in KINDS]
        lines.append(f"{way:<{width}}" + "".join(f"{len(each.left):>8} {each.gone:5.2f} s" for each in cells))
    took = "".join(f"{outcomes[kind, 'shutdown'].shutdown:>14.2f} s" for kind in KINDS)
    return "\n".join([*lines, f"{'shutdown() took':<{width}}{took}"])


@pytest.mark.timeout(600)
def test_nothing_is_left(capsys: pytest.CaptureFixture[str]) -> None:
    # those without torch first, while it is loaded
    cells = [(kind, way) for kind in KINDS for way in WAYS]
    with Nursery(LOADED, ENVIRONMENT) as nursery, ThreadPoolExecutor(AT_ONCE) as pool:
        outcomes = dict(zip(cells, pool.map(lambda cell: best(cell, nursery), cells), strict=True))
    with capsys.disabled():
        print(f"\n{table(outcomes)}")
    faults = [fault for (kind, way), outcome in outcomes.items() for fault in faults_of(kind, way, outcome)]
    if faults:
        pytest.fail("\n".join(faults), pytrace=False)
