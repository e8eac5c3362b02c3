"""Make ``build/tree/hivemind``: links in which the mapped folders stand as the package that they are installed as.

Type checkers and import-linter read packages as folders; an editable install maps folders by an import hook that they
do not run. Prints the path to put on ``MYPYPATH`` or ``PYTHONPATH``. Links that are right are left alone, so that two
checks may run at once.
"""

from __future__ import annotations

import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TREE = ROOT / "build" / "tree"
SUFFIXES = {".py", ".pyi", ".typed"}


def wanted() -> dict[Path, Path]:
    """Link → file of the checkout, for every file of the package."""
    mapping = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-dir"]
    return {
        TREE.joinpath(*package.split("."), path.name): path
        for package, folder in mapping.items()
        for path in (ROOT / folder).iterdir()
        if path.is_file() and path.suffix in SUFFIXES
    }


def main() -> None:
    links = wanted()
    for stale in [path for path in TREE.rglob("*") if path.is_symlink() and path not in links]:
        stale.unlink(missing_ok=True)
    for link, path in links.items():
        link.parent.mkdir(parents=True, exist_ok=True)
        if not link.is_symlink() or link.readlink() != path:
            link.unlink(missing_ok=True)
            link.symlink_to(path)
    print(TREE)


if __name__ == "__main__":
    main()
