"""Generate ``proto/*_pb2.py`` and ``.pyi`` from ``proto/*.proto``; with ``--check`` only say whether they are fresh.

Needs the dependency group ``proto``: pinned to the oldest protobuf major that the package supports, since generated
code never runs on an older runtime.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
from pathlib import Path

PROTO = Path(__file__).resolve().parent.parent / "proto"
#: Generated modules import each other by their installed name.
IMPORT = re.compile(r"^import (\w+_pb2)( as \w+)?$", re.MULTILINE)


def generate(out: Path) -> list[Path]:
    """Write the modules to ``out`` and return them."""
    sources = sorted(PROTO.glob("*.proto"))
    # named by path: the environment of this Python need not be on PATH
    plugin = Path(sys.executable).with_name("protoc-gen-mypy")
    command = [sys.executable, "-m", "grpc_tools.protoc", f"-I{PROTO}", f"--plugin=protoc-gen-mypy={plugin}"]
    command += [f"--python_out={out}", f"--mypy_out={out}"]
    subprocess.run([*command, *map(str, sources)], check=True)
    made = sorted([*out.glob("*_pb2.py"), *out.glob("*_pb2.pyi")])
    for path in made:
        text = IMPORT.sub(lambda m: f"from hivemind.proto import {m[1]}{m[2] or ''}", path.read_text())
        path.write_text(text)
    return made


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args().check
    with tempfile.TemporaryDirectory() as folder:
        stale = []
        for path in generate(Path(folder)):
            target = PROTO / path.name
            if not target.exists() or target.read_text() != path.read_text():
                stale.append(target.name)
                if not check:
                    target.write_text(path.read_text())
    if stale:
        print(("not fresh, run `make proto`: " if check else "written: ") + ", ".join(stale))
    return 1 if check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
