"""``hivemind swarm-key``: make the file with the secret of a private swarm, and compare two without showing them."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from hivemind.cli.running import EXIT_OK
from hivemind.errors import ConfigError
from hivemind.p2p import SwarmKey

__all__ = ["add_options", "run"]

#: Permissions with which others than the owner can read the file.
_OTHERS = 0o077


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="make|show")
    make = actions.add_parser("make", help="make the file, readable by its owner only, and print its fingerprint")
    show = actions.add_parser("show", help="print the fingerprint of a file: the same for all peers of the swarm")
    for action in (make, show):
        action.add_argument("path", type=Path, metavar="FILE", help="what peers are given as swarm_key_path")


def run(options: argparse.Namespace) -> int:
    """Print the fingerprint on standard output.

    :raises ConfigError: if the file to be made is there already, or holds no key
    :raises OSError: if it cannot be read or written
    """
    path: Path = options.path
    if options.action == "make":
        if not path.parent.is_dir():
            raise FileNotFoundError(f"the folder of {path} does not exist: create it first")
        if path.exists() or not SwarmKey.generate().write(path):
            raise ConfigError("FILE", str(path), "one that is not there yet: peers may be using this one")
    print(SwarmKey.read(path).fingerprint)
    if path.stat().st_mode & _OTHERS:
        print(
            f"warning: others than its owner can read {path}, and so join the swarm: chmod 400 {path}", file=sys.stderr
        )
    return EXIT_OK
