"""``hivemind-server``: experts for other peers. Options and output as in hivemind 1.1."""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Sequence
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from typing import Any, Final, NoReturn

from hivemind.cli.config_file import arguments_of, read_options
from hivemind.cli.metrics_endpoint import check_address, serving_metrics
from hivemind.cli.running import EXIT_OK, guarded, run_until_stopped
from hivemind.errors import ConfigError
from hivemind.log import get_logger
from hivemind.proto import runtime_pb2

__all__ = ["add_options", "main", "parse", "run"]

logger = get_logger(__name__)

#: Read where no other is named, if it is there.
_CONFIG: Final = Path("config.yml")
#: Names of those of ``torch.optim``, and what they are given.
_OPTIMIZERS: Final = {"adam": ("Adam", {}), "sgd": ("SGD", {"lr": 0.01}), "none": None}


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument(
        "-c", "--config", metavar="FILE", help=f"YAML file with options of this command; default: {_CONFIG}, if there"
    )
    _add_expert_options(parser.add_argument_group("experts"))
    _add_serving_options(parser.add_argument_group("serving"))
    _add_network_options(parser.add_argument_group("network"))


def _add_expert_options(group: Any) -> None:
    add = group.add_argument
    add("--num_experts", type=int, metavar="N", help="how many; names are drawn by --expert_pattern, or those saved")
    add("--expert_pattern", metavar="TEXT", help="names to draw from, as ffn.[0:32].[0:8]")
    add("--expert_uids", nargs="*", metavar="UID", help="names of the experts, instead of --num_experts")
    add("--expert_cls", default="ffn", metavar="NAME", help="class of the experts; default: ffn")
    add("--hidden_dim", type=int, default=1024, metavar="N", help="their width; default: 1024")
    add("--custom_module_path", metavar="FILE", help="Python file that registers classes of experts")
    add("--device", nargs="+", metavar="DEVICE", help="one, or several to spread them over; default: cuda, if there")
    add("--optimizer", default="adam", metavar="NAME", help="adam, sgd or none; default: adam")
    add("--scheduler", default="none", metavar="NAME", help="of the learning rate: none or linear; default: none")
    add("--num_warmup_steps", type=int, metavar="N", help="of the scheduler")
    add("--num_training_steps", type=int, metavar="N", help="of the scheduler")
    add("--clip_grad_norm", type=float, metavar="NORM", help="clip gradients to this norm")
    add("--checkpoint_dir", metavar="FOLDER", help="where experts are saved, and continue from")


def _add_serving_options(group: Any) -> None:
    add = group.add_argument
    add("--min_batch_size", type=int, default=1, metavar="N", help="samples that a batch waits for; default: 1")
    add("--max_batch_size", type=int, default=16384, metavar="N", help="samples in a batch at most; default: 16384")
    add("--update_period", type=float, default=30, metavar="SECONDS", help="between declarations; default: 30")
    add("--expiration", type=float, metavar="SECONDS", help="of a declaration; default: two periods")
    add(
        "--drain_timeout", type=float, default=30, metavar="SECONDS", help="to serve what waits at the end; default: 30"
    )
    add("--max_waiting", type=int, default=4096, metavar="N", help="requests that may wait for a device; default: 4096")
    add("--max_wait", type=float, default=30, metavar="SECONDS", help="of work that may wait for it; default: 30")
    add("--num_handlers", type=int, metavar="N", help="accepted for hivemind 1.1: there is one process now")
    add("--stats_report_interval", type=float, metavar="SECONDS", help="between lines of statistics; default: none")
    names = [name for name, _ in runtime_pb2.CompressionType.items()]
    add("--compression", default="NONE", metavar="NAME", help=f"of tensors on the wire: {', '.join(names)}")
    add("--increase_file_limit", action="store_true", help="allow the process to open more files and connections")


def _add_network_options(group: Any) -> None:
    add = group.add_argument
    add(
        "--initial_peers",
        nargs="*",
        default=[],
        metavar="MADDR",
        help="addresses of peers to join through; none: begin",
    )
    add("--host_maddrs", nargs="*", default=["/ip4/0.0.0.0/tcp/0"], metavar="MADDR", help="addresses to listen on")
    add("--announce_maddrs", nargs="*", metavar="MADDR", help="addresses to tell others instead, as of forwarded ports")
    add("--identity_path", metavar="FILE", help="of this peer's private key; made if it is missing")
    add("--no_relay", action="store_false", dest="use_relay", help="do not reach other peers through relays")
    add("--use_auto_relay", action="store_true", help="be reached through relays if this machine is behind a NAT")
    add("--metrics", metavar="HOST:PORT", help="serve Prometheus text there, of experts too, as at 127.0.0.1:9100")
    add("--metrics_public", action="store_true", help="let --metrics be on an address that others can reach")


def parse(parser: argparse.ArgumentParser, arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The options of the file, and those that are typed, which come before them."""
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("-c", "--config")
    named, typed = first.parse_known_args(arguments)
    path = Path(named.config) if named.config is not None else _CONFIG
    from_file: list[str] = []
    if named.config is not None or path.is_file():
        try:
            from_file = arguments_of(read_options(path), parser, path)
        except ConfigError as error:
            parser.error(str(error))
    return parser.parse_args([*from_file, *typed])


def run(options: argparse.Namespace) -> int:
    """Serve until the process is told to stop; then serve what waits, withdraw the experts and save them.

    :raises ConfigError: if an option is wrong
    :raises P2PDaemonError: if it does not start, or no initial peer answers
    """
    given = vars(options).copy()
    for name in ("config", "command", "rest"):
        given.pop(name, None)
    address, public = given.pop("metrics"), given.pop("metrics_public")
    metrics = None if address is None else check_address(address, public=public)
    if metrics is not None:
        given["metrics"] = "127.0.0.1:0"  # the daemon's own, of which the text is added
    given["optim_cls"] = _optimizer(given.pop("optimizer"))
    compression = given.pop("compression")
    numbers = dict(runtime_pb2.CompressionType.items())
    if compression not in numbers:
        raise ConfigError("--compression", compression, ", ".join(numbers))
    given["compression"] = numbers[compression]
    given["announce_maddrs"] = given["announce_maddrs"] or None
    given["expert_uids"] = given["expert_uids"] or None
    if given.pop("increase_file_limit"):
        from hivemind.utils.limits import increase_file_limit

        increase_file_limit()
    if given["identity_path"] is not None and not Path(given["identity_path"]).exists():
        logger.info("Generating new identity, to be kept in %s", given["identity_path"])
    from hivemind.moe.server import Server

    # a signal before the experts are served just ends the process: there is nothing to save yet
    server = Server.create(**given, start=True)
    addresses = [str(address) for address in server.dht.get_visible_maddrs()]
    logger.info("Running DHT node on %s, initial peers = %s", addresses, given["initial_peers"])
    logger.info("Serving %d experts: %s", len(server.experts), ", ".join(list(server.experts)[:16]))
    return run_until_stopped(partial(_serve, server, metrics))


def _optimizer(name: str) -> Any:
    if name not in _OPTIMIZERS:
        raise ConfigError("--optimizer", name, ", ".join(_OPTIMIZERS))
    chosen = _OPTIMIZERS[name]
    if chosen is None:
        return None
    import torch

    kind, defaults = chosen
    return partial(getattr(torch.optim, kind), **defaults)


async def _serve(server: Any, metrics: tuple[str, int] | None) -> int:
    try:
        async with AsyncExitStack() as stack:
            if metrics is not None:
                url = await stack.enter_async_context(serving_metrics(metrics, server.dht.p2p.metrics_address))
                logger.info("Prometheus text is served at %s", url)
            await asyncio.Event().wait()  # until it is cancelled
        return EXIT_OK
    finally:
        server.shutdown()


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """The console command."""
    parser = argparse.ArgumentParser(prog="hivemind-server", description="Serve experts of a mixture to other peers.")
    add_options(parser)
    options = parse(parser, arguments)
    raise SystemExit(guarded(parser.prog, partial(run, options)))
