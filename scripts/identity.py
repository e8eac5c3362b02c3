"""``hivemind identity``: make the file of a peer's private key, and show the peer id that belongs to one."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from hivemind.cli.running import EXIT_OK
from hivemind.errors import ConfigError
from hivemind.p2p import ensure_identity, read_peer_id

__all__ = ["add_options", "run"]

#: Permissions with which others than the owner can read the file.
_OTHERS = 0o077


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="make|show")
    make = actions.add_parser("make", help="make the file, readable by its owner only, and print the peer id")
    show = actions.add_parser("show", help="print the peer id of a file")
    for action in (make, show):
        action.add_argument("path", type=Path, metavar="FILE", help="what peers are given as identity_path")


def run(options: argparse.Namespace) -> int:
    """Print the peer id on standard output.

    :raises ConfigError: if the file to be made is there already, or holds no private key
    :raises OSError: if it cannot be read or written
    """
    path: Path = options.path
    if options.action == "make":
        if not path.parent.is_dir():
            raise FileNotFoundError(f"the folder of {path} does not exist: create it first")
        if not ensure_identity(path):
            raise ConfigError("FILE", str(path), f"one that is not there yet (this one is of {read_peer_id(path)})")
    print(read_peer_id(path))
    if path.stat().st_mode & _OTHERS:
        print(f"warning: others than its owner can read {path}, and so take its id: chmod 400 {path}", file=sys.stderr)
    return EXIT_OK
