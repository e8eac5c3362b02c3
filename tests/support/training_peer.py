"""One peer that trains scikit-learn's digits in a process of its own, over a pipe to the test.

It receives its configuration, then "go", perhaps another number of epochs, and leaves when the pipe is closed. It sends
events: ``ready`` (with addresses), ``training``, ``epoch`` (each), ``done`` (with accuracy and parameters; it goes on
serving the others), ``leaving``, ``left``.
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import torch
from sklearn.datasets import load_digits

from hivemind.dht import DHT
from hivemind.optim import Optimizer
from tests.support import nat_lab
from tests.support.emulated_gpu import GPU, gpu

__all__ = ["accuracy", "load_data", "make_model", "run_peer"]

RUN_ID = "digits"


def make_model() -> torch.nn.Module:
    """The same for all peers."""
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(64, 32), torch.nn.ReLU(), torch.nn.Linear(32, 10))


def load_data() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Images and labels for training, then for the test."""
    data = load_digits()
    order = np.random.default_rng(0).permutation(len(data.target))
    x = torch.tensor(data.data[order] / 16, dtype=torch.float32)
    y = torch.tensor(data.target[order])
    return x[:1400], y[:1400], x[1400:], y[1400:]


def accuracy(model: torch.nn.Module, x: torch.Tensor, y: torch.Tensor) -> float:
    """The share of images whose digit ``model`` gets right."""
    with torch.no_grad():
        return (model(x).argmax(1) == y).float().mean().item()


class _Peer:
    def __init__(self, pipe: Connection, config: dict[str, Any]) -> None:
        self._pipe = pipe
        self._config = config

    def say(self, event: str, **facts: Any) -> None:
        self._pipe.send({"event": event, "time": time.time(), **facts})

    def run(self) -> None:
        client_mode = self._config["client_mode"]
        seeds = self._config["initial_peers"]
        # on a loaded machine the first answer of a peer may take long
        options = {"wait_timeout": 10, "bootstrap_timeout": 30, **self._config["network"]}
        with DHT(seeds, start=True, client_mode=client_mode, **options) as dht:
            addresses = [] if client_mode else [str(address) for address in dht.get_visible_maddrs()]
            self.say("ready", addresses=addresses, peer_id=str(dht.peer_id))
            self.train(dht)
        self.say("left")

    def train(self, dht: DHT) -> None:
        config = self._config
        model = make_model().to(config["device"])
        x, y, test_x, test_y = (data.to(config["device"]) for data in load_data())
        auxiliary = config["options"].get("auxiliary", False)
        batches = torch.Generator().manual_seed(config["seed"])
        optimizer = Optimizer(
            dht=dht,
            run_id=RUN_ID,
            target_batch_size=config["target_batch_size"],
            batch_size_per_step=None if auxiliary else config["batch_size"],
            optimizer=torch.optim.Adam(model.parameters(), lr=0.01),
            **{"matchmaking_time": 3.0, "averaging_timeout": 15.0, **config["options"]},
        )
        with optimizer:
            self.say("training", epoch=optimizer.tracker.global_epoch)
            self._pipe.recv()
            while optimizer.local_epoch < self.last_epoch():
                report, epoch = optimizer.last_step, optimizer.local_epoch
                time.sleep(config["step_seconds"])
                if not auxiliary:
                    batch = torch.randint(0, len(x), (config["batch_size"],), generator=batches)
                    optimizer.zero_grad()
                    torch.nn.functional.cross_entropy(model(x[batch]), y[batch]).backward()
                optimizer.step()
                if optimizer.local_epoch != epoch:
                    self.tell_epoch(optimizer, averaged=optimizer.last_step is not report)
            result = [parameter.detach().cpu().numpy().copy() for parameter in model.parameters()]
            self.say("done", epoch=optimizer.local_epoch, accuracy=accuracy(model, test_x, test_y), parameters=result)
            with contextlib.suppress(EOFError):
                self._pipe.recv()
            self.say("leaving")

    def last_epoch(self) -> int:
        """At which to end; the test may have changed its mind."""
        if self._pipe.poll():
            self._config["epochs"] = self._pipe.recv()
        return int(self._config["epochs"])

    def tell_epoch(self, optimizer: Optimizer, *, averaged: bool) -> None:
        report = optimizer.last_step if averaged else None
        facts = {"gradients": report.gradient_peers, "state": report.state_peers} if report else {}
        self.say("epoch", epoch=optimizer.local_epoch, seconds=report.seconds if report else 0.0, **facts)


def run_peer(pipe: Connection, log: str) -> None:
    """The process's main function; messages of the library go to the file ``log``."""
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 2)
    os.close(descriptor)
    torch.set_num_threads(1)
    with contextlib.suppress(EOFError):
        config = pipe.recv()
        if config["namespace"] is not None:
            nat_lab.enter(config["namespace"])
        for name in config["debug"]:
            logging.getLogger(name).setLevel(logging.DEBUG)
        with gpu() if config["device"] == str(GPU) else contextlib.nullcontext():
            _Peer(pipe, config).run()
