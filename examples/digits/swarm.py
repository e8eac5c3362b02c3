"""Start a swarm of peer processes on this machine, watch it learn to read digits, and compare it with one process.

Each peer is a process of its own with its own part of the data, see `peer.py`; none is in charge of the others. This
one only starts them, shows what they report, and judges the result. Kill one (``kill -9 PID``): the rest go on.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
import sys
import tempfile
import time
from asyncio.subprocess import PIPE, Process
from collections.abc import Sequence
from pathlib import Path

import digits
import torch
from rich.table import Table
from view import PeerView, SwarmView, megabytes

HERE = Path(__file__).parent
REFRESH_PERIOD = 0.25  # seconds
TOLERANCE = 0.03  # accuracy that the swarm may lack
LOG_LINES = 20


class SwarmError(Exception):
    """The run cannot go on; the text says why."""


class Peer:
    """A peer's process, and what it has reported."""

    def __init__(self, view: PeerView, folder: Path) -> None:
        self.view = view
        self.parameters = folder / f"{view.index}.pt"
        self.log = folder / f"{view.index}.log"
        self.addresses: list[str] = []
        # set when it has reported so, and when it has ended
        self.ready, self.done = asyncio.Event(), asyncio.Event()
        self._process: Process | None = None

    async def start(self, arguments: argparse.Namespace, initial_peers: Sequence[str]) -> None:
        command = [sys.executable, HERE / "peer.py", "--save_to", self.parameters]
        command += ["--shard", str(self.view.index), str(arguments.peers), "--initial_peers", *initial_peers]
        for name in ("epochs", "target_batch_size", "batch_size"):
            command += [f"--{name}", str(getattr(arguments, name))]
        with self.log.open("w") as log:
            # a session of its own: Ctrl-C reaches this process only, which then ends the peers
            self._process = await asyncio.create_subprocess_exec(
                *command, stdin=PIPE, stdout=PIPE, stderr=log, start_new_session=True
            )
        self.view.pid = self._process.pid

    async def follow(self) -> None:
        """Take its reports until it ends."""
        assert self._process is not None
        assert self._process.stdout is not None
        async for line in self._process.stdout:
            self._take(json.loads(line))
        code = await self._process.wait()
        if self.view.state != "done" or code != 0:
            self.view.state = f"lost ({signal.Signals(-code).name})" if code < 0 else f"failed ({code})"
        self.ready.set()
        self.done.set()

    def _take(self, report: dict[str, object]) -> None:
        event = report.pop("event")
        if event == "ready":
            self.addresses = report["addresses"]  # type: ignore[assignment]
            self.ready.set()
        else:
            self.view.update(**report)
        if event == "done":
            self.done.set()
        self.view.state = {"progress": "training"}.get(str(event), str(event))

    def go_on(self) -> None:
        """Let it pass the point at which it waits."""
        if self.view.alive and self._process is not None and self._process.stdin is not None:
            self._process.stdin.write(b"\n")

    async def kill(self) -> None:
        """End it at once, if it runs. Its daemon ends with it."""
        if self._process is not None and self._process.returncode is None:
            self._process.kill()
            await self._process.wait()

    def log_tail(self) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-LOG_LINES:])


async def train(arguments: argparse.Namespace, peers: Sequence[Peer], view: SwarmView) -> float:
    """Run the swarm from the first start to the last end.

    :returns: seconds from the first step to the last
    """
    async with asyncio.TaskGroup() as group:
        refreshing = group.create_task(keep_fresh(view))
        first, *others = peers
        await first.start(arguments, [])
        group.create_task(first.follow())
        await first.ready.wait()
        for peer in others:
            await peer.start(arguments, first.addresses)
            group.create_task(peer.follow())
        await asyncio.gather(*(peer.ready.wait() for peer in others))
        for peer in peers:
            if not peer.view.alive:
                raise SwarmError(f"peer {peer.view.index + 1} did not start:\n{peer.log_tail()}")
            view.say(f"peer {peer.view.index + 1} has joined: pid {peer.view.pid}, {peer.addresses[0]}")

        started = time.monotonic()
        for peer in peers:
            peer.go_on()
        await asyncio.gather(*(peer.done.wait() for peer in peers))
        seconds = time.monotonic() - started
        for peer in peers:
            if not peer.view.alive:
                view.say(f"peer {peer.view.index + 1} was {peer.view.state}\n{peer.log_tail()}".rstrip())
            peer.go_on()
        refreshing.cancel()
    return seconds


async def keep_fresh(view: SwarmView) -> None:
    while True:
        view.refresh()
        await asyncio.sleep(REFRESH_PERIOD)


async def supervise(arguments: argparse.Namespace) -> int:
    """The whole run; the exit code."""
    with tempfile.TemporaryDirectory() as folder:
        peers = [Peer(PeerView(index), Path(folder)) for index in range(arguments.peers)]
        try:
            with SwarmView([peer.view for peer in peers], arguments.epochs) as view:
                async with asyncio.timeout(arguments.time_limit):
                    seconds = await train(arguments, peers, view)
        except TimeoutError:
            raise SwarmError(f"not done after {arguments.time_limit:.0f} s\n{peers[0].log_tail()}") from None
        except BaseExceptionGroup as group:
            raise group.exceptions[0] from None
        finally:
            await asyncio.gather(*(peer.kill() for peer in peers))
        return judge(arguments, peers, seconds, view)


def judge(arguments: argparse.Namespace, peers: Sequence[Peer], seconds: float, view: SwarmView) -> int:
    """Compare what the peers have saved with one process that does the same alone; the exit code."""
    _, test = digits.load()
    model = digits.make_model()
    accuracies, vectors = [], []
    for peer in peers:
        if peer.parameters.exists():
            model.load_state_dict(torch.load(peer.parameters, weights_only=True))
            accuracies.append(digits.accuracy(model, test))
            vectors.append(torch.nn.utils.parameters_to_vector(model.parameters()).detach())
    if not vectors:
        raise SwarmError(f"no peer came to the end:\n{peers[0].log_tail()}")
    samples = sum(peer.view.samples for peer in peers)
    sent = sum(peer.view.bytes_sent for peer in peers)

    samples_per_step = max(1, samples // arguments.epochs)
    started = time.monotonic()
    alone = digits.accuracy(digits.train_alone(arguments.epochs, samples_per_step), test)
    seconds_alone = time.monotonic() - started

    swarm = sum(accuracies) / len(accuracies)
    table = Table(title=f"{arguments.epochs} steps of about {samples_per_step:,} samples")
    for column in ("", "test accuracy", "wall time", "bytes sent"):
        table.add_column(column, justify="right" if column else "left")
    table.add_row(f"swarm of {len(peers)}", f"{swarm:.1%}", f"{seconds:.1f} s", megabytes(sent))
    table.add_row("one process", f"{alone:.1%}", f"{seconds_alone:.1f} s", megabytes(0))
    view.console.print(table)
    difference = max(float((vector - vectors[0]).abs().max()) for vector in vectors)
    view.say(
        f"{len(vectors)} of {len(peers)} peers came to the end; their parameters differ by {difference:.1e} at most"
    )
    if swarm < alone - TOLERANCE:
        view.say(f"the swarm is worse than one process by more than {TOLERANCE:.0%}: something is wrong")
        return 1
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peers", type=int, default=4)
    parser.add_argument("--epochs", type=int, default=30, help="steps of the swarm")
    parser.add_argument("--target_batch_size", type=int, default=2048, help="samples of the whole swarm per step")
    parser.add_argument("--batch_size", type=int, default=32, help="samples that a peer does at once")
    parser.add_argument("--time_limit", type=float, default=300.0, help="seconds after which the run has failed")
    arguments = parser.parse_args()
    if arguments.peers < 1 or arguments.epochs < 1:
        parser.error("--peers and --epochs: at least 1")
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        return asyncio.run(supervise(arguments))
    except SwarmError as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
