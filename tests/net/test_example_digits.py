"""`make run` in short: the example trains, survives ``kill -9``, takes in latecomers, and ends at once on Ctrl-C."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.processes import is_alive
from tests.support.waiting import eventually_sync

SWARM = Path(__file__).resolve().parents[2] / "examples" / "digits" / "swarm.py"
#: Seconds for a whole run; where nothing else runs it takes 30, half of it for loading torch.
PATIENCE = 240.0

pytestmark = pytest.mark.timeout(2 * PATIENCE)


class Run:
    """The example as a process, and what it has printed so far."""

    def __init__(self, folder: Path, *options: str) -> None:
        env = {**os.environ, "PYTHONUNBUFFERED": "1"}
        command = [sys.executable, str(SWARM), "--folder", str(folder), "--time_limit", str(PATIENCE), *options]
        self.process = subprocess.Popen(
            command, env=env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        self._lines: list[str] = []
        self._reader = threading.Thread(target=self._read, name="output of the example")
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as output:
            self._lines.extend(output)

    @property
    def output(self) -> str:
        return "".join(self._lines)

    def pids(self) -> list[int]:
        """Process ids of the peers that have joined, in that order."""
        return [int(pid) for pid in re.findall(r"has joined: pid (\d+)", self.output)]

    def epoch(self) -> int:
        """The newest that was told."""
        return max(map(int, re.findall(r"epoch (\d+)/", self.output)), default=0)

    def ended(self) -> bool:
        return self.process.poll() is not None

    def finish(self) -> int:
        """Wait for its end; the exit code."""
        code = self.process.wait(PATIENCE)
        self._reader.join(PATIENCE)
        return code

    def close(self) -> None:
        if not self.ended():
            self.process.terminate()
        self.finish()


@pytest.fixture
def runs(tmp_path: Path) -> Iterator[list[Run]]:
    """Where a test puts what it has started."""
    started: list[Run] = []
    yield started
    for run in started:
        run.close()


def children_of(pid: int) -> list[int]:
    tasks = Path(f"/proc/{pid}/task").glob("*/children")
    return [int(child) for task in tasks for child in task.read_text().split()]


def test_a_swarm_that_loses_and_gains_peers_learns_like_one_process(runs: list[Run], tmp_path: Path) -> None:
    run = Run(tmp_path, "--peers", "3", "--late_peers", "1", "--epochs", "20", "--target_batch_size", "1024")
    runs.append(run)
    eventually_sync(lambda: run.epoch() >= 2 or run.ended(), "training", seconds=PATIENCE)
    assert not run.ended(), run.output
    os.kill(run.pids()[0], signal.SIGKILL)

    assert run.finish() == 0, run.output
    assert "peer 1 was killed by SIGKILL" in run.output
    assert "3 of 4 peers came to the end" in run.output
    assert len(run.pids()) == 4
    difference = re.search(r"differ by (\S+) at most", run.output)
    assert difference is not None
    # 0 unless somebody has missed the last round; a step of Adam moves a parameter by 0.005 at most
    assert float(difference[1]) < 0.05, run.output


def test_ctrl_c_ends_peers_and_daemons_at_once(runs: list[Run], tmp_path: Path) -> None:
    run = Run(tmp_path, "--peers", "2", "--epochs", "100000")
    runs.append(run)
    eventually_sync(lambda: run.epoch() >= 1 or run.ended(), "training", seconds=PATIENCE)
    peers = run.pids()
    daemons = [child for peer in peers for child in children_of(peer)]
    assert len(peers) == 2
    assert len(daemons) >= 2

    run.process.send_signal(signal.SIGINT)
    assert run.finish() == 130
    assert "stopped" in run.output
    assert "Traceback" not in run.output
    eventually_sync(lambda: not any(map(is_alive, peers + daemons)), "end of peers and daemons")


@pytest.mark.parametrize("option", [["--peers", "0"], ["--epochs", "0"], ["--late_peers", "-1"]])
def test_wrong_options_are_named(option: list[str]) -> None:
    done = subprocess.run([sys.executable, str(SWARM), *option], capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 2
    assert option[0] in done.stderr
