"""Folders that nobody was left to remove."""

from __future__ import annotations

import os
import socket
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from hivemind.p2p.control_folder import new_control_path, sweep


@pytest.fixture
def place(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="f") as folder:
        monkeypatch.setattr(tempfile, "tempdir", folder)
        monkeypatch.setattr("hivemind.p2p.control_folder._FALLBACK", Path(folder))
        yield Path(folder)


def make(path: Path, *, age: float, listening: bool = False) -> socket.socket | None:
    """A folder as a daemon leaves it."""
    path.parent.mkdir(mode=0o700)
    sock = socket.socket(socket.AF_UNIX)
    sock.bind(str(path))
    if listening:
        sock.listen()
    else:
        sock.close()
    then = time.time() - age
    os.utime(path.parent, (then, then))
    return sock if listening else None


def test_only_what_is_old_and_dead_is_removed(place: Path) -> None:
    old, young, alive, foreign = (new_control_path() for _ in range(4))
    make(old, age=3600)
    make(young, age=1)
    listener = make(alive, age=3600, listening=True)
    assert listener is not None
    make(foreign.parent.with_name("hivemind-of-mine") / "control.sock", age=3600)
    empty = new_control_path()
    empty.parent.mkdir()
    os.utime(empty.parent, (0, 0))
    link = place / "hivemind-0123456789abcdef"
    link.symlink_to(young.parent)
    (place / "hivemind-fedcba9876543210").write_text("a file")
    with listener:
        sweep()
        left = {each.name for each in place.iterdir()}
    assert left == {
        young.parent.name,
        alive.parent.name,
        "hivemind-of-mine",
        "hivemind-0123456789abcdef",
        "hivemind-fedcba9876543210",
    }
    assert young.exists()


def test_folders_of_other_users_stay(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = new_control_path()
    make(path, age=3600)
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    sweep()
    assert path.exists()


def test_no_place_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", "/does/not/exist")
    monkeypatch.setattr("hivemind.p2p.control_folder._FALLBACK", Path("/does/not/exist"))
    sweep()


def test_a_long_name_of_the_usual_place_is_avoided(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", "/" + "x" * 100)
    assert len(str(new_control_path())) < 103
