"""Both libraries in one run: every workload under hivemind 1.1.12 and under this library in turn, the ratio printed.

``make bench`` calls it (``make bench ARGS=--quick``). Each side is a process of its own Python that runs the same
file. A line's figure is the median over the rounds; its ratio is the median of the rounds' ratios, each of two runs
next to each other, with the least and the greatest. Above 1 this library is ahead. One time without the other says
nothing: machines are noisy.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
WORKLOADS = ("startup", "records", "calls", "streams", "rounds")
RUN_SECONDS = 900.0  # one workload under one library; typical is 10 to 60
OURS, LEGACY = "hivemind 2", "1.1.12"

UNITS: dict[str, Callable[[float], str]] = {
    "seconds": lambda value: f"{value:.2f} s" if value >= 1 else f"{value * 1e3:.2f} ms",
    "bytes/s": lambda value: f"{value / 1e6:.0f} MB/s",
    "calls/s": lambda value: f"{value:.0f} /s",
}


def unit_of(line: str) -> str:
    """The unit of a line of the table; all but seconds are better when greater."""
    if line.startswith("stream"):
        return "bytes/s"
    return "calls/s" if "in flight" in line else "seconds"


@dataclass
class Line:
    """One line of the table: a figure for each round and side."""

    name: str
    ours: list[float] = field(default_factory=list)
    legacy: list[float] = field(default_factory=list)

    def ratios(self) -> list[float]:
        """How much better this library is, by round."""
        pairs = zip(self.ours, self.legacy, strict=False)
        if unit_of(self.name) == "seconds":
            return [legacy / ours for ours, legacy in pairs]
        return [ours / legacy for ours, legacy in pairs]

    def as_json(self) -> dict[str, Any]:
        """Unit, all figures and the ratio."""
        ratios = self.ratios()
        ratio = statistics.median(ratios) if ratios else None
        return {"unit": unit_of(self.name), "hivemind 2": self.ours, "hivemind 1.1.12": self.legacy, "ratio": ratio}

    def as_row(self) -> tuple[str, ...]:
        """The cells of the table."""
        text = UNITS[unit_of(self.name)]
        ratios = self.ratios()
        if not ratios:
            return (
                self.name,
                *(text(statistics.median(side)) if side else "failed" for side in (self.ours, self.legacy)),
                "",
                "",
            )
        ours, legacy = text(statistics.median(self.ours)), text(statistics.median(self.legacy))
        return self.name, ours, legacy, f"{statistics.median(ratios):.2f}", f"{min(ratios):.2f} to {max(ratios):.2f}"


def find_legacy_python() -> Path:
    """The Python that has hivemind 1.1.12: ``$HIVEMIND_LEGACY_PYTHON``, else ``.venv-legacy`` in the checkout."""
    python = Path(os.environ.get("HIVEMIND_LEGACY_PYTHON", ROOT / ".venv-legacy" / "bin" / "python"))
    if not python.is_file():
        sys.exit(f"no hivemind 1.1.12 to compare with: {python} is not there. `make legacy` makes it")
    return python


def environment() -> dict[str, str]:
    """What both sides get: compiled modules are kept, one computing thread for each of the many processes, no log."""
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return {**kept, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "HIVEMIND_LOGLEVEL": "ERROR"}


def warm_up(python: Path) -> None:
    """Load the library once, so that its modules are compiled and in the page cache; not measured."""
    load = "import hivemind; hivemind.DHT; hivemind.DecentralizedAverager; hivemind.Optimizer"
    subprocess.run([str(python), "-W", "ignore", "-c", load], check=True, env=environment())


def run_workload(python: Path, workload: str, quick: bool) -> dict[str, Any]:
    """The figures of one run; empty, with a ``problems`` entry, if it failed."""
    command = [str(python), "-W", "ignore", str(HERE / f"{workload}.py"), *(["--quick"] if quick else [])]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=RUN_SECONDS, env=environment(), check=False
        )
    except subprocess.TimeoutExpired:
        return {"problems": [f"took over {RUN_SECONDS:g} s"]}
    if done.returncode != 0 or not done.stdout.strip():
        return {"problems": [f"ended with {done.returncode}: {done.stderr.strip()[-2000:]}"]}
    figures: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return figures


def measure(
    pythons: dict[str, Path], workloads: Iterable[str], rounds: int, quick: bool
) -> tuple[dict[str, Line], list[str]]:
    """Run A B A B …; returns the lines, and what went wrong on the way."""
    lines: dict[str, Line] = {}
    problems: list[str] = []
    for python in pythons.values():
        warm_up(python)
    for workload in workloads:
        for number in range(rounds):
            for side, python in pythons.items():
                started = time.monotonic()
                figures = run_workload(python, workload, quick)
                problems += [f"{workload}, {side}: {problem}" for problem in figures.pop("problems", [])]
                for name, value in figures.items():
                    line = lines.setdefault(name, Line(name))
                    (line.ours if side == OURS else line.legacy).append(value)
                progress = f"{workload} {number + 1}/{rounds} {side}: {time.monotonic() - started:.0f} s"
                print(progress, file=sys.stderr, flush=True)
    return lines, problems


def print_table(lines: Iterable[Line]) -> None:
    """Columns padded to their widest cell; figures to the right."""
    head = ("median of the rounds", OURS, LEGACY, "ratio", "of the rounds")
    rows = [head, *(line.as_row() for line in lines)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
    for number, row in enumerate(rows):
        cells = [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        print("| " + " | ".join(cells) + " |")
        if number == 0:
            print("|" + "|".join("-" * (width + 2) for width in widths) + "|")


def main() -> None:
    """Measure, print, write JSON. Ends with 1 if a workload failed under this library."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help="fewer repetitions in each run")
    parser.add_argument("--rounds", type=int, default=3, help="how often each side runs (default: 3)")
    parser.add_argument("--only", nargs="+", choices=WORKLOADS, default=WORKLOADS, help="which workloads")
    parser.add_argument("--json", type=Path, default=ROOT / "build" / "bench.json", help="where the figures go")
    options = parser.parse_args()

    pythons = {OURS: Path(sys.executable), LEGACY: find_legacy_python()}
    lines, problems = measure(pythons, options.only, options.rounds, options.quick)
    print_table(lines.values())
    for problem in problems:
        print(f"problem: {problem}")
    machine = {"cores": os.cpu_count(), "system": platform.platform(), "python": platform.python_version()}
    report = {
        "machine": machine,
        "rounds": options.rounds,
        "quick": options.quick,
        "lines": {name: line.as_json() for name, line in lines.items()},
        "problems": problems,
    }
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(report, indent=1) + "\n")
    print(f"figures: {os.path.relpath(options.json)}")
    if any(f", {OURS}: " in problem for problem in problems):
        sys.exit(1)


if __name__ == "__main__":
    main()
