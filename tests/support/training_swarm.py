"""A swarm of processes that train digits (`support.training_peer`), started, watched and killed from a test.

The processes are forked from one that has loaded torch, so that a peer costs milliseconds, not seconds.
"""

from __future__ import annotations

import multiprocessing
import multiprocessing.util
import os
import signal
import tempfile
import threading
from collections.abc import Sequence
from multiprocessing import forkserver
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from hivemind.clock import Deadline
from tests.support.processes import children_of
from tests.support.training_peer import run_peer

__all__ = ["LEARNED", "TrainingPeer", "TrainingSwarm", "finish_alike", "preload"]

#: Seconds for anything that takes a second or two on an idle machine; loading torch for the first time is among it.
PATIENCE = 120.0
#: Accuracy on the images kept for the test; one process reaches 0.9 after 30 steps of 256.
LEARNED = 0.8
#: ``torch._dynamo`` is what the first step of any optimizer loads.
_PRELOADED = ["torch", "torch._dynamo", "sklearn.datasets", "hivemind.dht", "hivemind.optim"]


def preload() -> None:
    """Start the process that peers are forked from; it lives as long as this one. Idempotent."""
    multiprocessing.set_forkserver_preload(_PRELOADED)
    # its socket must outlive the folder of temporary files that each run of the tests has
    folder, tempfile.tempdir = tempfile.tempdir, str(Path(tempfile.gettempdir()).parent)
    try:
        multiprocessing.util.get_temp_dir()
    finally:
        tempfile.tempdir = folder
    forkserver.ensure_running()


def finish_alike(*peers: TrainingPeer, seconds: float = PATIENCE) -> None:
    """All end the run, have learned, have the same parameters, and leave in order."""
    done = [peer.wait_for("done", seconds) for peer in peers]
    for peer, end in zip(peers, done, strict=True):
        assert end["accuracy"] > LEARNED, peer.report()
    first, *others = (peer.parameters for peer in peers)
    for peer, parameters in zip(peers[1:], others, strict=True):
        apart = max(float(np.abs(a - b).max()) for a, b in zip(first, parameters, strict=True))
        assert apart <= 1e-6, f"{peers[0].report()}\n{peer.report()}"
    for peer in peers:
        peer.finish()


class TrainingPeer:
    """One process. `wait_for` blocks until it has said something; `finish` lets it leave."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name = name
        self.log = folder / f"{name}.log"
        self.events: list[dict[str, Any]] = []
        self._changed = threading.Condition()
        self._ended = False
        #: of the process; None while it runs
        self.exit_code: int | None = None
        context = multiprocessing.get_context("forkserver")
        self._pipe, theirs = context.Pipe()
        self.process = context.Process(target=run_peer, args=(theirs, str(self.log)), name=name, daemon=True)
        self.process.start()
        theirs.close()
        self._reader = threading.Thread(target=self._read, name=f"reader of {name}", daemon=True)
        self._reader.start()

    def tell(self, message: object) -> None:
        """Send it something."""
        self._pipe.send(message)

    def _read(self) -> None:
        try:
            while True:
                event = self._pipe.recv()
                with self._changed:
                    self.events.append(event)
                    self._changed.notify_all()
        except (EOFError, OSError):
            with self._changed:
                self._ended = True
                self._changed.notify_all()

    def said(self, event: str, **facts: Any) -> dict[str, Any] | None:
        """The first event of that kind in which every given number is reached."""
        for said in list(self.events):
            if said["event"] == event and all(said.get(name, -1) >= least for name, least in facts.items()):
                return said
        return None

    def wait_for(self, event: str, seconds: float = PATIENCE, **facts: Any) -> dict[str, Any]:
        """`said`, as soon as it is."""
        deadline = Deadline.after(seconds)
        with self._changed:
            while (said := self.said(event, **facts)) is None:
                if self._ended or deadline.expired:
                    what = "ended" if self._ended else f"was silent for {seconds} s"
                    raise AssertionError(f"{self.name} {what} before {event} {facts}\n{self.report()}")
                self._changed.wait(deadline.remaining())
        return said

    def report(self) -> str:
        """What it said and logged, for failures."""
        said = [{k: v for k, v in event.items() if k != "parameters"} for event in self.events[-20:]]
        log = self.log.read_text(errors="replace")[-6000:] if self.log.exists() else ""
        return f"{self.name} said {said}\n{log}"

    @property
    def epochs(self) -> list[dict[str, Any]]:
        """The events of all epochs that it ended with others or alone; not those that it downloaded."""
        return [said for said in list(self.events) if said["event"] == "epoch" and "gradients" in said]

    @property
    def parameters(self) -> list[np.ndarray[Any, Any]]:
        """What it ended with."""
        return list(self.wait_for("done")["parameters"])

    def signal(self, number: int) -> None:
        """Send a signal to the peer; its daemon is a process of its own."""
        assert self.process.pid is not None
        os.kill(self.process.pid, number)

    def kill_daemon(self) -> None:
        """End its daemon at once; the peer goes on."""
        assert self.process.pid is not None
        (daemon,) = children_of(self.process.pid)
        os.kill(daemon, signal.SIGKILL)

    def kill(self) -> None:
        """End it at once, as the machine does that loses power."""
        self.signal(signal.SIGKILL)
        self._end(PATIENCE)

    def finish(self, seconds: float = PATIENCE) -> None:
        """Let it leave in order.

        :raises AssertionError: if it does not end well in time
        """
        self.tell("leave")
        self.wait_for("left", seconds)
        self._end(seconds)
        assert self.exit_code == 0, self.report()

    def _end(self, seconds: float) -> None:
        self.process.join(seconds)
        self._reader.join(seconds)
        self._pipe.close()
        self.exit_code = self.process.exitcode
        self.process.close()


class TrainingSwarm:
    """Starts peers that find each other through the first, or through ``initial_peers``. A context: at its end all are
    gone.

    :param config: of every peer, see `support.training_peer`; ``network`` are options of its DHT, ``namespace`` is the
        name of the network namespace that it lives in, ``device`` where its model is
    """

    def __init__(self, folder: Path, initial_peers: Sequence[str] | None = None, **config: Any) -> None:
        self._folder = folder
        self._config: dict[str, Any] = {
            "batch_size": 32,
            "target_batch_size": 256,
            "epochs": 20,
            "step_seconds": 0.0,
            "client_mode": False,
            "options": {},
            "network": {},
            "namespace": None,
            "device": "cpu",
            "debug": [],
            **config,
        }
        self.peers: list[TrainingPeer] = []
        self._seeds = initial_peers

    def join(self, **config: Any) -> TrainingPeer:
        """One more peer, which joins the swarm and waits to be told to train."""
        peer = TrainingPeer(f"peer{len(self.peers)}", self._folder)
        self.peers.append(peer)
        peer.tell({**self._config, "seed": len(self.peers), "initial_peers": self._seeds, **config})
        if self._seeds is None:
            self._seeds = peer.wait_for("ready")["addresses"]
        return peer

    def train(self, *peers: TrainingPeer) -> None:
        """Let ``peers`` begin to train as soon as all of them are ready to."""
        for peer in peers:
            peer.wait_for("training")
        for peer in peers:
            peer.tell("go")

    def start(self, number: int, **config: Any) -> list[TrainingPeer]:
        """So many peers that train."""
        peers = [self.join(**config) for _ in range(number)]
        self.train(*peers)
        return peers

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for peer in self.peers:
            if peer.exit_code is None:
                peer.kill()
