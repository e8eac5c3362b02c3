"""The folder of a daemon's sockets: where it is, and what becomes of one that nobody was left to remove.

Owner and daemon remove it, whoever ends last. If both are killed at once, as all processes of a container are, the next
daemon that this user starts on the machine does.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
import socket
import stat
import tempfile
import time
from pathlib import Path

__all__ = ["new_control_path", "sweep"]

#: The longest path that a socket can have: 108 bytes on Linux, 104 on macOS, with the zero at the end.
_SOCKET_PATH_BYTES = 103
_FALLBACK = Path("/tmp")
_NAME = re.compile(r"hivemind-[0-9a-f]{16}")
#: Seconds for which nothing has changed in a folder that is removed; an owner restarts its daemon much sooner.
_STALE_SECONDS = 600.0


def new_control_path() -> Path:
    """A new place for the socket: in the folder for temporary files, or in /tmp where that has too long a name."""
    path = Path(f"hivemind-{secrets.token_hex(8)}", "control.sock")
    usual = tempfile.gettempdir() / path
    return usual if len(os.fsencode(usual)) <= _SOCKET_PATH_BYTES else _FALLBACK / path


def sweep() -> None:
    """Remove this user's folders whose daemons were killed together with their owners. Never raises."""
    for place in {Path(tempfile.gettempdir()), _FALLBACK}:
        try:
            names = [name for name in os.listdir(place) if _NAME.fullmatch(name)]
        except OSError:
            continue
        for name in names:
            if _is_stale(place / name):
                shutil.rmtree(place / name, ignore_errors=True)


def _is_stale(folder: Path) -> bool:
    """Whether it is ours, nothing has happened there for a while, and no daemon listens there."""
    try:
        status = folder.lstat()
        if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid():
            return False
        if time.time() - status.st_mtime < _STALE_SECONDS:
            return False
        with socket.socket(socket.AF_UNIX) as probe:
            probe.setblocking(False)
            probe.connect(str(folder / "control.sock"))
    except (FileNotFoundError, ConnectionRefusedError):
        return True
    except OSError:  # one that is busy lives
        return False
    return False
