"""``hivemind``: one command with all tools in it."""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Sequence
from functools import partial
from typing import Final, NoReturn

from hivemind.cli.running import guarded
from hivemind.cli.versions import describe_versions

__all__ = ["main"]

#: command → its module of `hivemind.cli`, which is loaded only if it is run, and what it does
_COMMANDS: Final = {
    "dht": ("dht", "run a DHT peer that others can join through (as hivemind-dht)"),
    "dht-view": ("dht_view", "show who is in a DHT, how fast they answer, and what is stored under given keys"),
    "doctor": ("doctor", "check this machine, and its way to given peers; says what to do"),
    "identity": ("identity", "make or show the file of a peer's private key"),
    "relay": ("relay", "run a relay for peers behind NATs and firewalls (as hivemind-relay)"),
    "server": ("server", "serve experts of a mixture to other peers (as hivemind-server)"),
    "swarm-key": ("swarm_key", "make or compare the file with the secret of a private swarm"),
    "version": ("versions", "print the versions of what is installed"),
}


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """The console command."""
    parser = argparse.ArgumentParser(
        prog="hivemind", description="Train one PyTorch model on many computers that come and go, with no master."
    )
    parser.add_argument("--version", action="version", version=describe_versions())
    names = "".join(f"  {name:<11}{what}\n" for name, (_, what) in _COMMANDS.items())
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = f"commands:\n{names}\n`hivemind COMMAND --help` lists the options of a command."
    parser.add_argument("command", choices=_COMMANDS, metavar="COMMAND", help="one of those below")
    parser.add_argument("rest", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    module_name, what = _COMMANDS[given.command]
    module = importlib.import_module(f"hivemind.cli.{module_name}")
    command = argparse.ArgumentParser(prog=f"hivemind {given.command}", description=what)
    if hasattr(module, "add_options"):
        module.add_options(command)
    parse = getattr(module, "parse", argparse.ArgumentParser.parse_args)
    options = parse(command, given.rest)
    raise SystemExit(guarded(command.prog, partial(module.run, options)))
