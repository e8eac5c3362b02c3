"""``hivemind version``: what is installed, found without loading it."""

from __future__ import annotations

import argparse
import platform
from importlib import metadata

from hivemind.cli.running import EXIT_OK

__all__ = ["describe_versions", "run", "version_of"]


def version_of(distribution: str) -> str | None:
    """The version of an installed distribution, or None."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def describe_versions() -> str:
    """Versions of this library and of what it stands on most, in one line."""
    parts = [f"hivemind {version_of('hivemind') or '(not installed)'}", f"Python {platform.python_version()}"]
    parts += [f"{name} {version_of(name) or '(not installed)'}" for name in ("torch", "protobuf", "cryptography")]
    return ", ".join([*parts, f"{platform.system()} {platform.machine()}"])


def run(options: argparse.Namespace) -> int:
    """Print the versions, each on a line of its own."""
    del options
    from hivemind.errors import DaemonStartError
    from hivemind.p2p import daemon_versions, find_binary

    print(describe_versions().replace(", ", "\n"))
    try:
        daemon = daemon_versions(find_binary())
    except DaemonStartError as error:
        print(f"p2pd ({error.reason})")
    else:
        print(f"{daemon['agent'].replace('/', ' ')}, {daemon['go']}, libp2p {daemon['libp2p']}")
    return EXIT_OK
