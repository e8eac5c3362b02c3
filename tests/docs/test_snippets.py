"""The code that the documentation shows runs.

All blocks of Python in one page are one program, as a reader would type them one after the other. Blocks whose fence
says ``python fragment`` stand for code that needs more around it; they only have to be Python.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FENCE = re.compile(r"^```python( fragment)?\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
#: The quickstart runs as two peers in `test_quickstart`.
PROGRAMS = [page for page in PAGES if page.name != "README.md" and "```python\n" in page.read_text()]

every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


def blocks(page: Path, *, fragments: bool) -> list[str]:
    return [code for mark, code in FENCE.findall(page.read_text()) if bool(mark) == fragments]


@pytest.mark.parametrize("page", PROGRAMS, ids=lambda page: page.name)
def test_page_runs(page: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", "\n".join(blocks(page, fragments=False))]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=100, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, done.stderr


@every_page
def test_fragments_are_python(page: Path) -> None:
    for code in blocks(page, fragments=True):
        compile(code, str(page), "exec")


@every_page
def test_links_lead_somewhere(page: Path) -> None:
    """Relative links name files that are there."""
    targets = re.findall(r"\]\((?!https?://|#)([^)#]+)(?:#[^)]*)?\)", page.read_text())
    assert [target for target in targets if not (page.parent / target).exists()] == []


@every_page
def test_make_targets_exist(page: Path) -> None:
    """A ``make`` command that a page shows is a target of the Makefile."""
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    shown = set(re.findall(r"`make ([a-z-]+)", page.read_text())) | set(
        re.findall(r"^make ([a-z-]+)", page.read_text(), re.MULTILINE)
    )
    assert shown <= targets
