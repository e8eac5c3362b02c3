"""A small trainer on scikit-learn's digits that both libraries run unchanged."""

import time
from typing import Any

import torch
from sklearn.datasets import load_digits

from hivemind import DHT, Optimizer
from tests.compat.packing import pack_tensor

BATCH_SIZE = 32
HIDDEN = 32
LEARNING_RATE = 0.03


def warm_up() -> None:
    """Load what torch loads with its first optimizer (seconds), so that forked processes have it."""
    torch.optim.Adam([torch.zeros(1, requires_grad=True)], lr=1.0).step()


class Trainer:
    """One peer of a run: a two-layer network on its share of the digits, under ``hivemind.Optimizer``.

    :param share: train on every ``shares``-th image, from this one on
    :param seed: of the initial parameters; peers of one run may differ, the first state averaging makes them equal
    :param pause: seconds between steps: a step of so small a network is too short for a swarm to notice
    :param options: passed to ``Optimizer``
    """

    def __init__(
        self, dht: DHT, run_id: str, share: int, shares: int, seed: int = 0, pause: float = 0.05, **options: Any
    ) -> None:
        digits = load_digits()
        images = torch.tensor(digits.data, dtype=torch.float32) / 16
        labels = torch.tensor(digits.target)
        self.images, self.labels = images, labels
        self._train = torch.arange(share, len(images), shares)
        torch.manual_seed(seed)
        self.model = torch.nn.Sequential(torch.nn.Linear(64, HIDDEN), torch.nn.ReLU(), torch.nn.Linear(HIDDEN, 10))
        self._pause = pause
        self._generator = torch.Generator().manual_seed(share)
        self.optimizer = Optimizer(
            dht=dht,
            run_id=run_id,
            batch_size_per_step=BATCH_SIZE,
            params=self.model.parameters(),
            optimizer=lambda params: torch.optim.Adam(params, lr=LEARNING_RATE),
            **options,
        )

    def run(self, epochs: int, deadline: float) -> dict[str, Any]:
        """Train until the local epoch is ``epochs``, for at most ``deadline`` seconds; returns :meth:`report`."""
        end = time.monotonic() + deadline
        while self.optimizer.local_epoch < epochs and time.monotonic() < end:
            batch = self._train[torch.randint(len(self._train), (BATCH_SIZE,), generator=self._generator)]
            self.optimizer.zero_grad()
            loss = torch.nn.functional.cross_entropy(self.model(self.images[batch]), self.labels[batch])
            loss.backward()  # type: ignore[no-untyped-call]
            self.optimizer.step()
            time.sleep(self._pause)
        return self.report()

    def report(self) -> dict[str, Any]:
        """Epoch, loss and accuracy over all images, and the parameters."""
        with torch.no_grad():
            logits = self.model(self.images)
            loss = torch.nn.functional.cross_entropy(logits, self.labels)
            accuracy = (logits.argmax(-1) == self.labels).float().mean()
        return {
            "epoch": self.optimizer.local_epoch,
            "loss": loss.item(),
            "accuracy": accuracy.item(),
            "parameters": [pack_tensor(parameter) for parameter in self.model.parameters()],
        }
