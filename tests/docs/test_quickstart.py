"""The quickstart of the README, run as it says: in two terminals."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.waiting import eventually_sync

README = Path(__file__).resolve().parents[2] / "README.md"
PATIENCE = 200.0  # seconds; typical is 20

pytestmark = pytest.mark.timeout(2 * PATIENCE)


class Terminal:
    """A peer whose output goes to a file: nobody has to read it for the peer to go on."""

    def __init__(self, script: Path, log: Path, *addresses: str) -> None:
        self._log = log
        with log.open("w") as output:
            self._process = subprocess.Popen(
                [sys.executable, str(script), *addresses],
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, "OMP_NUM_THREADS": "1"},  # two peers share few cores
            )

    @property
    def output(self) -> str:
        return self._log.read_text()

    def address(self) -> str:
        """What the other terminal has to be given."""
        eventually_sync(lambda: "\n" in self.output, "the first line", seconds=PATIENCE)
        assert self.output.startswith("join with: /ip4/127.0.0.1/"), self.output
        return self.output.split()[2]

    def finish(self) -> int:
        return self._process.wait(PATIENCE)

    def close(self) -> None:
        self._process.kill()
        self.finish()


@pytest.fixture
def terminals() -> Iterator[list[Terminal]]:
    """Where a test puts what it has started."""
    started: list[Terminal] = []
    yield started
    for terminal in started:
        terminal.close()


def test_two_peers_train_one_model(terminals: list[Terminal], tmp_path: Path) -> None:
    (program,) = re.findall(r"^```python\n(.*?)^```$", README.read_text(), re.MULTILINE | re.DOTALL)
    assert len(program.strip().splitlines()) <= 25, "a quickstart is short"
    script = tmp_path / "peer.py"
    script.write_text(program)
    terminals.append(Terminal(script, tmp_path / "first.log"))
    terminals.append(Terminal(script, tmp_path / "second.log", terminals[0].address()))
    for terminal in terminals:
        assert terminal.finish() == 0, terminal.output
        # what is logged may follow on the same line of a terminal
        last_loss = float(re.findall(r"loss (\d+\.\d+)", terminal.output)[-1])
        assert last_loss < 1.0, "it starts at 2.3, which is guessing"
