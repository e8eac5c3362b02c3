"""Start a swarm of peer processes on this machine, watch it learn to read digits, and compare it with one process.

Each peer is a process of its own with its own part of the data, see `peer.py`; none is in charge of the others. This
one only starts them, shows what they report, and judges the result. Kill one (``kill -9 PID``): the rest go on.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from process import PeerProcess
from view import PeerView, SwarmView

REFRESH_PERIOD = 0.25  # seconds


class SwarmError(Exception):
    """The run cannot go on; the text says why."""


class Swarm:
    """The peers of one run."""

    def __init__(self, arguments: argparse.Namespace, folder: Path) -> None:
        self.arguments = arguments
        count = arguments.peers + arguments.late_peers
        self.peers = [PeerProcess(PeerView(f"peer {number + 1}"), folder) for number in range(count)]
        self.view = SwarmView([peer.view for peer in self.peers], arguments.epochs)
        self.seconds = 0.0  # from the first step to the last
        self._third_done = asyncio.Event()

    async def train(self) -> None:
        """Run the peers from the first start to the last end."""
        punctual, late = self.peers[: self.arguments.peers], self.peers[self.arguments.peers :]
        async with asyncio.TaskGroup() as group:
            refreshing = group.create_task(self._keep_fresh())
            for peer in punctual:
                group.create_task(peer.run(self._options(peer), self._addresses()))
                if peer is punctual[0]:
                    await self._joined(peer)  # the others need its address
            for peer in punctual[1:]:
                await self._joined(peer)
            started = time.monotonic()
            for peer in punctual:
                peer.go_on()
            for peer in late:
                await self._third_done.wait()
                group.create_task(peer.run(self._options(peer), self._addresses()))
                await self._joined(peer)
                peer.go_on()
            for peer in self.peers:
                await peer.done.wait()
            self.seconds = time.monotonic() - started
            for peer in self.peers:
                peer.go_on()
            refreshing.cancel()

    async def end(self) -> None:
        """Whatever still runs."""
        await asyncio.gather(*(peer.kill() for peer in self.peers))

    def finished(self) -> list[PeerProcess]:
        """Those that came to the end, after a word on those that did not."""
        for peer in self.peers:
            if not peer.saved.exists():
                self.view.say(f"{peer.view.name} was {peer.view.state}\n{peer.log_tail()}".rstrip())
        return [peer for peer in self.peers if peer.saved.exists()]

    def _options(self, peer: PeerProcess) -> list[str]:
        options = ["--shard", str(self.peers.index(peer)), str(len(self.peers))]
        for name in ("epochs", "target_batch_size", "batch_size"):
            options += [f"--{name}", str(getattr(self.arguments, name))]
        return options

    def _addresses(self) -> list[str]:
        return [address for peer in self.peers if peer.view.alive for address in peer.addresses]

    async def _joined(self, peer: PeerProcess) -> None:
        await peer.ready.wait()
        if not peer.view.alive:
            raise SwarmError(f"{peer.view.name} {peer.view.state}:\n{peer.log_tail()}")
        self.view.say(f"{peer.view.name} has joined: pid {peer.view.pid}, {peer.addresses[0]}")

    async def _keep_fresh(self) -> None:
        while True:
            self.view.refresh()
            if self.view.epoch >= self.arguments.epochs // 3:
                self._third_done.set()
            await asyncio.sleep(REFRESH_PERIOD)


async def supervise(arguments: argparse.Namespace, folder: Path) -> int:
    """The whole run; the exit code."""
    swarm = Swarm(arguments, folder)
    # needs torch, which takes seconds to load: meanwhile the peers start
    loading = asyncio.create_task(asyncio.to_thread(importlib.import_module, "verdict"))
    try:
        with swarm.view:
            async with asyncio.timeout(arguments.time_limit):
                await swarm.train()
    except TimeoutError:
        raise SwarmError(f"not done after {arguments.time_limit:g} s\n{swarm.peers[0].log_tail()}") from None
    except BaseExceptionGroup as group:
        raise group.exceptions[0] from None
    finally:
        await swarm.end()
    finished = swarm.finished()
    if not finished:
        raise SwarmError("no peer came to the end")
    swarm.view.say("for comparison, one process now does as many steps with as many samples alone")
    verdict = (await loading).judge(
        [peer.saved for peer in finished],
        steps=arguments.epochs,
        samples=sum(peer.view.samples for peer in swarm.peers),
        seconds=swarm.seconds,
        bytes_sent=sum(peer.view.bytes_sent for peer in swarm.peers),
    )
    swarm.view.console.print(verdict.table())
    swarm.view.say(
        f"{len(finished)} of {len(swarm.peers)} peers came to the end; "
        f"their parameters differ by {verdict.difference:.1e} at most"
    )
    if not verdict.good:
        swarm.view.say("the swarm has learnt less than one process: something is wrong")
    return 0 if verdict.good else 1


@contextmanager
def folder_for(path: Path | None) -> Iterator[Path]:
    """``path``, made if missing; without one a folder that is gone afterwards."""
    if path is None:
        with tempfile.TemporaryDirectory() as folder:
            yield Path(folder)
    else:
        path.mkdir(parents=True, exist_ok=True)
        yield path


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peers", type=int, default=4, help="peers that begin together")
    parser.add_argument("--late_peers", type=int, default=0, help="peers that join when a third is done")
    parser.add_argument("--epochs", type=int, default=30, help="steps of the swarm")
    parser.add_argument("--target_batch_size", type=int, default=2048, help="samples of the whole swarm per step")
    parser.add_argument("--batch_size", type=int, default=32, help="samples that a peer does at once")
    parser.add_argument("--time_limit", type=float, default=300.0, help="seconds after which the run has failed")
    parser.add_argument("--folder", type=Path, help="where to leave the peers' logs and parameters")
    arguments = parser.parse_args()
    if arguments.peers < 1 or arguments.epochs < 1 or arguments.late_peers < 0:
        parser.error("--peers and --epochs: at least 1; --late_peers: at least 0")
    return arguments


def main() -> int:
    arguments = parse_arguments()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with folder_for(arguments.folder) as folder:
            return asyncio.run(supervise(arguments, folder))
    except SwarmError as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
