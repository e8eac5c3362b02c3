"""What the daemon is made of, as it says itself."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

from hivemind.errors import DaemonStartError

__all__ = ["daemon_versions"]

#: Seconds in which it must answer; it takes some milliseconds.
_SECONDS = 10.0


def daemon_versions(binary: Path) -> dict[str, str]:
    """Versions of the daemon ``binary`` by name: ``agent`` (what other peers are told), ``go``, ``libp2p``, and
    ``version`` of the control protocol. Blocks for some milliseconds.

    :raises DaemonStartError: if it does not say so
    """
    command = [str(binary), "--version"]
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=_SECONDS, check=False)
        told = json.loads(done.stdout)
        return {name: str(told[name]) for name in ("agent", "go", "libp2p", "version")}
    except (OSError, subprocess.TimeoutExpired, ValueError, KeyError, TypeError) as error:
        reason = f"{binary} does not say its version: {error!r}"
        raise DaemonStartError(reason, "it may be of another release: run `make buildgo` anew") from error
