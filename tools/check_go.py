"""All checks of ``go/``: format, vet, staticcheck, tests; with the race detector where a C compiler is.

staticcheck comes through Go's module proxy, pinned in ``tools/go/go.mod``.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

from build_daemon import ROOT, SOURCE, require_go


def main() -> int:
    go = require_go()
    race = any(shutil.which(compiler) for compiler in ("cc", "gcc", "clang"))
    env = {**os.environ, "GOTOOLCHAIN": "local", "CGO_ENABLED": "1" if race else "0"}

    def run(*command: str) -> bool:
        print("$", *(os.path.relpath(part, ROOT) if os.path.isabs(part) else part for part in command), flush=True)
        return subprocess.run(command, cwd=SOURCE, env=env).returncode == 0

    root = subprocess.run([go, "env", "GOROOT"], env=env, capture_output=True, text=True, check=True).stdout.strip()
    gofmt = os.path.join(root, "bin", "gofmt")
    unformatted = subprocess.run([gofmt, "-l", "."], cwd=SOURCE, capture_output=True, text=True, check=True).stdout
    if unformatted:
        print("not formatted (gofmt -w):", *unformatted.split())
    ok = not unformatted
    ok &= run(go, "vet", "./...")
    ok &= run(go, "tool", f"-modfile={ROOT / 'tools' / 'go' / 'go.mod'}", "staticcheck", "./...")
    ok &= run(go, "test", *(["-race"] if race else []), "-timeout=10m", "./...")
    return 0 if ok else 1


if __name__ == "__main__":
    sys.exit(main())
