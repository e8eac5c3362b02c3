"""Both libraries in one run: every workload under hivemind 1.1.12 and under this library in turn, the ratio printed.

``make bench`` calls it (``make bench ARGS=--quick``). Each side is a process of its own Python that runs the same
file. A line's figure is the median over the rounds; its ratio is the median of the rounds' ratios, each of two runs
next to each other, with the least and the greatest. Above 1 this library is ahead. One time without the other says
nothing: machines are noisy.

Calls and streams are measured a third time, on go-libp2p alone with this library's transport (``go/cmd/p2pbench``):
the share says how much of that is reached.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from report import LEGACY, OURS, RAW, Line, table

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
WORKLOADS = (
    "startup",
    "idle",
    "records",
    "swarm",
    "calls",
    "streams",
    "relayed",
    "crowd",
    "rounds",
    "experts",
    "tensors",
)
#: Those that `p2pbench` has as well.
CEILINGS = ("calls", "streams")
RUN_SECONDS = 900.0  # one workload on one side; typical is 5 to 60


@dataclass
class Findings:
    """What the runs have given so far."""

    lines: dict[str, Line] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def add(self, workload: str, side: str, figures: dict[str, Any]) -> None:
        """The figures of one run, with its ``problems`` (it failed) and ``notes``."""
        for kind in ("problems", "notes"):
            found = [f"{workload}, {side}: {text}" for text in figures.pop(kind, ())]
            known = getattr(self, kind)
            known += [text for text in found if text not in known]
        for name, (value, unit) in figures.items():
            self.lines.setdefault(name, Line(name, unit)).add(side, value)


def find_legacy_python() -> Path:
    """The Python that has hivemind 1.1.12: ``$HIVEMIND_LEGACY_PYTHON``, else ``.venv-legacy`` in the checkout."""
    python = Path(os.environ.get("HIVEMIND_LEGACY_PYTHON", ROOT / ".venv-legacy" / "bin" / "python"))
    if not python.is_file():
        sys.exit(f"no hivemind 1.1.12 to compare with: {python} is not there. `make legacy` makes it")
    return python


def build_p2pbench() -> Path:
    """Compile ``go/cmd/p2pbench``."""
    sys.path.insert(0, str(ROOT / "tools"))
    from build_daemon import SOURCE, require_go

    target = ROOT / "build" / "p2pbench"
    command = [require_go(), "build", "-trimpath", "-o", str(target), "./cmd/p2pbench"]
    subprocess.run(command, cwd=SOURCE, env={**os.environ, "CGO_ENABLED": "0", "GOTOOLCHAIN": "local"}, check=True)
    return target


def environment(p2pbench: Path) -> dict[str, str]:
    """What all sides get: compiled modules are kept, one computing thread for each of the many processes, no log."""
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return {
        **kept,
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
        "HIVEMIND_LOGLEVEL": "ERROR",
        "HIVEMIND_P2PBENCH": str(p2pbench),
    }


def warm_up(python: Path, env: dict[str, str]) -> None:
    """Load the library once, so that its modules are compiled and in the page cache; not measured."""
    load = "import hivemind; hivemind.DHT; hivemind.DecentralizedAverager; hivemind.Optimizer"
    subprocess.run([str(python), "-W", "ignore", "-c", load], check=True, env=env)


def run(command: list[str], env: dict[str, str]) -> dict[str, Any]:
    """The figures of one run; only a ``problems`` entry if it failed."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=RUN_SECONDS, env=env, check=False)
    except subprocess.TimeoutExpired:
        return {"problems": [f"took over {RUN_SECONDS:g} s"]}
    if done.returncode != 0 or not done.stdout.strip():
        return {"problems": [f"ended with {done.returncode}: {done.stderr.strip()[-2000:]}"]}
    figures: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return figures


def sides_of(workload: str, pythons: dict[str, Path], p2pbench: Path, quick: bool) -> dict[str, list[str]]:
    """The commands that measure a workload, by side."""
    flags = ["--quick"] if quick else []
    commands = {
        side: [str(python), "-W", "ignore", str(HERE / f"{workload}.py"), *flags] for side, python in pythons.items()
    }
    if workload in CEILINGS:
        commands[RAW] = [str(p2pbench), workload, *flags]
    return commands


def measure(pythons: dict[str, Path], p2pbench: Path, workloads: Iterable[str], rounds: int, quick: bool) -> Findings:
    """Run A B A B …"""
    findings = Findings()
    env = environment(p2pbench)
    for python in pythons.values():
        warm_up(python, env)
    for workload in workloads:
        commands = sides_of(workload, pythons, p2pbench, quick)
        for number in range(rounds):
            for side, command in commands.items():
                started = time.monotonic()
                findings.add(workload, side, run(command, env))
                progress = f"{workload} {number + 1}/{rounds} {side}: {time.monotonic() - started:.0f} s"
                print(progress, file=sys.stderr, flush=True)
    return findings


def main() -> None:
    """Measure, print, write JSON. Ends with 1 if a workload failed under this library."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument(
        "--quick", action="store_true", help="few repetitions: all in about three minutes on an idle machine"
    )
    parser.add_argument("--rounds", type=int, help="how often each side runs (default: 3, with --quick 1)")
    parser.add_argument("--only", nargs="+", choices=WORKLOADS, default=WORKLOADS, help="which workloads")
    parser.add_argument("--json", type=Path, default=ROOT / "build" / "bench.json", help="where the figures go")
    options = parser.parse_args()
    rounds = options.rounds or (1 if options.quick else 3)

    pythons = {OURS: Path(sys.executable), LEGACY: find_legacy_python()}
    found = measure(pythons, build_p2pbench(), options.only, rounds, options.quick)
    print(table(found.lines.values()))
    for kind, texts in (("note", found.notes), ("problem", found.problems)):
        for text in texts:
            print(f"{kind}: {text}")
    machine = {"cores": os.cpu_count(), "system": platform.platform(), "python": platform.python_version()}
    report = {
        "machine": machine,
        "rounds": rounds,
        "quick": options.quick,
        "lines": {name: line.as_json() for name, line in found.lines.items()},
        "notes": found.notes,
        "problems": found.problems,
    }
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(report, indent=1) + "\n")
    print(f"figures: {os.path.relpath(options.json)}")
    if any(f", {OURS}: " in problem for problem in found.problems):
        sys.exit(1)


if __name__ == "__main__":
    main()
