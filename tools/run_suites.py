"""Run targets of the Makefile one after the other, all of them also when one fails, and end with a table.

Prints each one's time, and for suites of pytest what their JUnit reports in ``build/reports`` count. The exit code is 0
only if every target has succeeded and tests have run.
"""

from __future__ import annotations

import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
REPORTS = ROOT / "build" / "reports"


@dataclass
class Outcome:
    """How a target ended.

    :param counts: of its tests by outcome; empty where it has no report
    """

    target: str
    code: int
    seconds: float
    counts: dict[str, int] = field(default_factory=dict)

    @property
    def line(self) -> str:
        verdict = "ok" if self.code == 0 else f"FAILED ({self.code})"
        tests = ", ".join(f"{count} {name}" for name, count in self.counts.items() if count)
        return f"{self.target:<12} {verdict:<12} {self.seconds:7.1f} s  {tests}"


def read_report(path: Path) -> dict[str, int]:
    """Passed, failed and skipped tests of a JUnit report; empty where there is none."""
    if not path.exists():
        return {}
    counts = {"passed": 0, "failed": 0, "skipped": 0}
    for suite in ElementTree.parse(path).getroot().iter("testsuite"):
        total, failures, errors, skipped = (int(suite.get(k, "0")) for k in ("tests", "failures", "errors", "skipped"))
        counts["failed"] += failures + errors
        counts["skipped"] += skipped
        counts["passed"] += total - failures - errors - skipped
    return counts


def run(target: str) -> Outcome:
    """Run ``make target``."""
    report = REPORTS / f"{target}.xml"
    report.unlink(missing_ok=True)
    print(f"\n──── make {target}", flush=True)
    started = time.monotonic()
    code = subprocess.run(["make", target], cwd=ROOT).returncode
    return Outcome(target, code, time.monotonic() - started, read_report(report))


def main(targets: list[str]) -> int:
    outcomes = [run(target) for target in targets]
    print("\n──── all")
    for outcome in outcomes:
        print(outcome.line)
    print(f"{'':<25} {sum(outcome.seconds for outcome in outcomes):7.1f} s\n")
    passed, failed, skipped = (
        sum(outcome.counts.get(name, 0) for outcome in outcomes) for name in ("passed", "failed", "skipped")
    )
    print(f"{passed} passed, {failed} failed, {skipped} skipped")
    return 0 if passed and all(outcome.code == 0 for outcome in outcomes) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
