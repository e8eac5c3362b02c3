"""A server of experts in a process of its own, for as long as a ``with`` block."""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import Any, Final

from multiaddr import Multiaddr

from hivemind.config import check_seconds
from hivemind.errors import HivemindError, ServerStartError
from hivemind.identity import PeerID
from hivemind.p2p import PeerInfo

__all__ = ["background_server"]

#: Seconds for a start: loading torch takes most of it, on slow machines a minute.
_START_SECONDS: Final = 300.0
#: Seconds after which a process that was told to end is told so again, less politely.
_TERM_SECONDS: Final = 5.0


@contextmanager
def background_server(*args: Any, shutdown_timeout: float = 5, **kwargs: Any) -> Iterator[PeerInfo]:
    """Run `Server.create` in a new process until the ``with`` block ends; gives the server's peer and its addresses.

    ::

        with background_server(expert_uids=["ffn.0"], hidden_dim=64) as peer:
            dht = DHT(initial_peers=peer.addrs, start=True)

    The process is made with the start method "spawn": a script that uses this needs the usual
    ``if __name__ == "__main__":``, and a class of experts that is not in an importable module needs
    ``custom_module_path``. Without a process of its own, `Server.create` runs in the background as well.

    The process ends with this one, however that ends.

    :param args: those of `Server.create`
    :param shutdown_timeout: seconds in which the server may serve what waits at the end
    :param kwargs: those of `Server.create`
    :raises ServerStartError: (a RuntimeError) if the server does not start; says why
    """
    check_seconds("shutdown_timeout", shutdown_timeout)
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    options = {"drain_timeout": shutdown_timeout / 2, **kwargs, "start": True}
    process = context.Process(target=_serve, args=(theirs, args, options), name="hivemind-server", daemon=True)
    with ours:
        with theirs:
            process.start()
        try:
            yield _peer_of(process, ours)
        finally:
            ours.close()
            _end(process, shutdown_timeout)


def _peer_of(process: SpawnProcess, pipe: Connection) -> PeerInfo:
    wait([pipe, process.sentinel], _START_SECONDS)
    if not pipe.poll():
        if process.is_alive():
            raise ServerStartError(f"the server has not started in {_START_SECONDS} s")
        raise ServerStartError(f"the process of the server has ended while it started (exit code {process.exitcode})")
    try:
        peer, told = pipe.recv()
    except EOFError:
        process.join(_TERM_SECONDS)
        raise ServerStartError(
            f"the process of the server has ended while it started (exit code {process.exitcode})"
        ) from None
    if peer is None:
        raise ServerStartError(f"the server did not start: {told}")
    return PeerInfo(PeerID.from_base58(peer), tuple(Multiaddr(address) for address in told))


def _end(process: SpawnProcess, seconds: float) -> None:
    """Wait for the end of a process whose pipe was closed, ever less politely."""
    process.join(seconds)
    if process.is_alive():
        process.terminate()
        process.join(_TERM_SECONDS)
    if process.is_alive():
        process.kill()
        process.join()
    process.close()


def _serve(pipe: Connection, args: tuple[Any, ...], options: dict[str, Any]) -> None:
    """The other process: serve until the pipe is closed, by the owner or by its end."""
    # Ctrl-C on a terminal reaches both processes: the owner decides when this one ends
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    from hivemind.moe.server.server import Server

    try:
        server = Server.create(*args, **options)
    except (HivemindError, OSError, TypeError) as error:
        pipe.send((None, f"{type(error).__name__}: {error}"))
        return
    with server, suppress(EOFError, OSError):
        addresses = [str(address) for address in server.dht.get_visible_maddrs()]
        pipe.send((str(server.dht.peer_id), addresses))
        pipe.recv()
