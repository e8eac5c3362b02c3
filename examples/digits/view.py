"""What a person sees of the swarm: one live view on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Self

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

SPEED_WINDOW = 5.0  # seconds over which samples/s are measured
PLAIN_PERIOD = 1.0  # seconds between two plain lines


@dataclass
class PeerView:
    """What is known of one peer from its reports."""

    name: str
    pid: int = 0
    state: str = "starting"
    epoch: int = 0
    samples: int = 0
    loss: float = float("nan")
    accuracy: float = 0.0
    bytes_sent: int = 0
    _history: deque[tuple[float, int]] = field(default_factory=deque)

    @property
    def alive(self) -> bool:
        return self.state in ("ready", "training", "done")

    def update(self, **reported: float) -> None:
        """Take what it has reported: values of the fields above."""
        for name, value in reported.items():
            setattr(self, name, value)
        now = time.monotonic()
        self._history.append((now, self.samples))
        while self._history[0][0] < now - SPEED_WINDOW:
            self._history.popleft()

    @property
    def samples_per_second(self) -> float:
        """Over the last seconds; 0 for those that do not train."""
        if self.state != "training" or len(self._history) < 2:
            return 0.0
        (start, before), (end, after) = self._history[0], self._history[-1]
        return (after - before) / (end - start) if end > start else 0.0


class SwarmView:
    """Shows the peers; `refresh` it a few times a second."""

    def __init__(self, peers: Sequence[PeerView], epochs: int) -> None:
        self.peers = peers
        self.epochs = epochs
        self.console = Console(highlight=False)
        self._started = time.monotonic()
        self._live = Live(console=self.console, auto_refresh=False) if sys.stdout.isatty() else None
        self._next_line = 0.0
        self._last_epoch = -1

    def __enter__(self) -> Self:
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._live:
            self.refresh()
            self._live.stop()

    @property
    def epoch(self) -> int:
        """The newest epoch that any peer has reached."""
        return max(peer.epoch for peer in self.peers)

    def say(self, text: str) -> None:
        """One line that stays."""
        self.console.print(text, markup=False, soft_wrap=True)

    def refresh(self) -> None:
        """Show what has changed."""
        if self._live:
            self._live.update(self._draw(), refresh=True)
        elif any(peer.state == "training" for peer in self.peers):
            now = time.monotonic()
            if self.epoch != self._last_epoch and now >= self._next_line:
                self._last_epoch, self._next_line = self.epoch, now + PLAIN_PERIOD
                self.say(self._summary())

    def _summary(self) -> str:
        training = [peer for peer in self.peers if peer.alive and peer.samples] or [self.peers[0]]
        return (
            f"{time.monotonic() - self._started:5.1f} s  "
            f"epoch {self.epoch}/{self.epochs}  "
            f"peers {sum(peer.alive for peer in self.peers)}/{len(self.peers)}  "
            f"{sum(peer.samples_per_second for peer in self.peers):,.0f} samples/s  "
            f"loss {sum(peer.loss for peer in training) / len(training):.3f}  "
            f"accuracy {sum(peer.accuracy for peer in training) / len(training):.1%}  "
            f"sent {megabytes(sum(peer.bytes_sent for peer in self.peers))}"
        )

    def _draw(self) -> Group:
        table = Table(expand=False)
        for column in ("peer", "pid", "state", "epoch", "samples", "samples/s", "loss", "accuracy", "sent"):
            table.add_column(column, justify="left" if column in ("peer", "state") else "right")
        for peer in self.peers:
            table.add_row(
                peer.name,
                str(peer.pid or ""),
                Text(peer.state, style="green" if peer.alive else "yellow" if peer.state == "starting" else "red"),
                str(peer.epoch),
                f"{peer.samples:,}",
                f"{peer.samples_per_second:,.0f}",
                f"{peer.loss:.3f}" if peer.samples else "",
                f"{peer.accuracy:.1%}" if peer.samples else "",
                megabytes(peer.bytes_sent),
            )
        bar = ProgressBar(total=self.epochs, completed=self.epoch, width=72)
        return Group(table, Text(self._summary()), bar)


def megabytes(count: float) -> str:
    return f"{count / 1e6:,.1f} MB"
