"""Make ``build/tree/hivemind``: links in which the mapped folders stand as the package that they are installed as.

Type checkers and import-linter read packages as folders; an editable install maps folders by an import hook that they
do not run. Prints the path to put on ``MYPYPATH`` or ``PYTHONPATH``.
"""

from __future__ import annotations

import shutil
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TREE = ROOT / "build" / "tree"


def main() -> None:
    mapping = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-dir"]
    shutil.rmtree(TREE, ignore_errors=True)
    for package, folder in sorted(mapping.items()):
        place = TREE.joinpath(*package.split("."))
        place.mkdir(parents=True, exist_ok=True)
        for path in (ROOT / folder).iterdir():
            if path.is_file() and path.suffix in {".py", ".pyi", ".typed"}:
                (place / path.name).symlink_to(path)
    print(TREE)


if __name__ == "__main__":
    main()
