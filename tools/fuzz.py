"""Fuzz both ends of the control protocol and what peers send, for a number of seconds each; ends with a table.

There are five sides, each of which divides its time among its tests: the daemon against its clients and against peers,
Python against its daemon and against peers, a server of experts against peers. Each keeps one core busy, so those of Go
run beside those of Python. An input of Go's that fails is kept under ``testdata/fuzz`` of its package (commit it: it is
a test from then on), one of hypothesis is printed with the decorator that repeats it.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

from build_daemon import ROOT, SOURCE, require_go

CONTROL, WIRE = "./internal/control", "./internal/wire"
GO = {
    "daemon, clients": [(CONTROL, "FuzzControlClient"), (CONTROL, "FuzzParseTarget")],
    "daemon, peers": [
        *((WIRE, name) for name in ("FuzzProtobuf", "FuzzRequest", "FuzzResponse", "FuzzStreamFrames")),
        *((CONTROL, f"FuzzPeer{name}") for name in ("Stream", "Answers", "Request", "Answer")),
        (CONTROL, "FuzzCallStream"),
    ],
}
PYTHON = {
    "Python, daemon": "tests/fuzz/test_control.py",
    "Python, peers": "tests/fuzz/test_peers.py",
    "experts, peers": "tests/fuzz/test_experts.py",
}


#: All that Go says when its time is over while a worker is busy (golang/go#75804, mended in Go 1.27): no finding.
TIME_IS_OVER = re.compile(r"^--- FAIL: \w+ \(([\d.]+)s\)\n +context deadline exceeded\nFAIL$", re.MULTILINE)


def is_only_over(output: str, seconds: float) -> bool:
    """Whether a failed run has merely ended: after its time, without an input that fails."""
    over = TIME_IS_OVER.search(output)
    return over is not None and float(over[1]) >= seconds and "Failing input" not in output


def check_targets(go: str) -> None:
    """
    :raises SystemExit: the packages have other targets than those listed here
    """
    listed = {target for targets in GO.values() for target in targets}
    for package in (CONTROL, WIRE):
        done = subprocess.run([go, "test", "-list", "^Fuzz", package], cwd=SOURCE, capture_output=True, text=True)
        found = {(package, line) for line in done.stdout.splitlines() if line.startswith("Fuzz")}
        if found != {target for target in listed if target[0] == package}:
            raise SystemExit(f"{package} has {sorted(found)}: name them in tools/fuzz.py\n{done.stderr}")


@dataclass
class Outcome:
    """What a run has found: ``output`` where it has, and where it has not how many inputs were tried."""

    good: bool
    output: str
    tried: str = ""


def fuzz_go(go: str, package: str, target: str, seconds: float) -> Outcome:
    command = [go, "test", "-run=^$", f"-fuzz=^{target}$", f"-fuzztime={seconds:g}s"]
    # what background work of the library covers differs from run to run, so that most minimizing would be in vain
    command += ["-fuzzminimizetime=10x", "-parallel=1", package]
    env = {**os.environ, "GOTOOLCHAIN": "local", "CGO_ENABLED": "0"}
    done = subprocess.run(command, cwd=SOURCE, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    tried = re.findall(r"execs: (\d+)", done.stdout)
    good = done.returncode == 0 or is_only_over(done.stdout, seconds)
    return Outcome(good, done.stdout, f"{tried[-1] if tried else 'no'} inputs")


def fuzz_python(path: str, seconds: float) -> Outcome:
    env = {**os.environ, "HIVEMIND_FUZZ_SECONDS": f"{seconds:g}"}
    command = [sys.executable, "-m", "pytest", "--quiet", "--hypothesis-show-statistics", path]
    done = subprocess.run(command, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    return Outcome(done.returncode == 0, done.stdout)


def run(side: str, name: str, fuzz: Callable[[], Outcome]) -> bool:
    """Run one test and print how it ended; whether nothing was found."""
    started = time.monotonic()
    outcome = fuzz()
    verdict = "ok" if outcome.good else f"FOUND\n{outcome.output}"
    print(f"{side:<16} {name:<27} {time.monotonic() - started:6.0f} s  {outcome.tried:<15} {verdict}", flush=True)
    return outcome.good


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--seconds", type=float, default=60.0, help="for each of the five sides (default: 60)")
    seconds = parser.parse_args().seconds
    go = require_go()
    check_targets(go)

    def sides_of_go() -> Iterator[bool]:
        for side, targets in GO.items():
            for package, target in targets:
                yield run(side, target, partial(fuzz_go, go, package, target, seconds / len(targets)))

    def sides_of_python() -> Iterator[bool]:
        for side, path in PYTHON.items():
            yield run(side, path, partial(fuzz_python, path, seconds))

    with ThreadPoolExecutor() as pool:
        found: list[list[bool]] = list(pool.map(list, (sides_of_go(), sides_of_python())))
    return 0 if all(map(all, found)) else 1


if __name__ == "__main__":
    sys.exit(main())
