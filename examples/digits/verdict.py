"""Compare what the swarm has learnt with one process that does the same work alone."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import digits
import torch
from rich.table import Table
from torch.nn.utils import parameters_to_vector
from view import megabytes

TOLERANCE = 0.03  # accuracy that the swarm may lack


@dataclass
class Verdict:
    """The outcome of a run.

    :param swarm: test accuracy, the mean of the peers that came to the end
    :param alone: test accuracy of one process after as many steps, each on as many samples
    :param difference: the largest one between the same parameter of two peers
    """

    steps: int
    samples_per_step: int
    swarm: float
    swarm_seconds: float
    alone: float
    alone_seconds: float
    bytes_sent: int
    difference: float

    @property
    def good(self) -> bool:
        return self.swarm >= self.alone - TOLERANCE

    def table(self) -> Table:
        table = Table(title=f"{self.steps} steps of about {self.samples_per_step:,} samples")
        for column in ("", "test accuracy", "wall time", "bytes sent"):
            table.add_column(column, justify="right" if column else "left")
        table.add_row("swarm", f"{self.swarm:.1%}", f"{self.swarm_seconds:.1f} s", megabytes(self.bytes_sent))
        table.add_row("one process", f"{self.alone:.1%}", f"{self.alone_seconds:.1f} s", megabytes(0))
        return table


def judge(saved: Sequence[Path], *, steps: int, samples: int, seconds: float, bytes_sent: int) -> Verdict:
    """
    :param saved: parameters of the peers that came to the end, at least one
    :param samples: all that the peers of the swarm have done, in ``seconds``
    """
    _, test = digits.load()
    model = digits.make_model()
    accuracies, vectors = [], []
    for path in saved:
        model.load_state_dict(torch.load(path, weights_only=True))
        accuracies.append(digits.accuracy(model, test))
        vectors.append(parameters_to_vector(model.parameters()).detach())
    samples_per_step = max(1, samples // steps)
    started = time.monotonic()
    alone = digits.train_alone(steps, samples_per_step)
    return Verdict(
        steps=steps,
        samples_per_step=samples_per_step,
        swarm=sum(accuracies) / len(accuracies),
        swarm_seconds=seconds,
        alone=digits.accuracy(alone, test),
        alone_seconds=time.monotonic() - started,
        bytes_sent=bytes_sent,
        difference=max(float((vector - vectors[0]).abs().max()) for vector in vectors),
    )
