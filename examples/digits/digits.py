"""The task: 1,797 scanned digits of 8x8 pixels (scikit-learn ships them), and a small network that reads them."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

TEST_IMAGES = 360
LEARNING_RATE = 0.005

Samples = tuple[Tensor, Tensor]


def load() -> tuple[Samples, Samples]:
    """Training and test set: images float32 [n, 1, 8, 8] from 0 to 1, labels int64 [n]. The same split each time."""
    # the file that sklearn.datasets.load_digits reads: importing all of scikit-learn takes longer than the training
    package = find_spec("sklearn")
    assert package is not None
    assert package.submodule_search_locations is not None
    path = Path(package.submodule_search_locations[0], "datasets", "data", "digits.csv.gz")
    table = torch.from_numpy(np.loadtxt(path, delimiter=",", dtype=np.float32))
    images, labels = table[:, :64].reshape(-1, 1, 8, 8) / 16, table[:, 64].long()
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    test, train = order[:TEST_IMAGES], order[TEST_IMAGES:]
    return (images[train], labels[train]), (images[test], labels[test])


def make_model() -> nn.Module:
    """Two convolutions and a linear layer, 14,698 parameters; the same ones each time."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(32, 32, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(512, 10),
    )


def batches(samples: Samples, batch_size: int, *, shard: int = 0, shards: int = 1) -> Iterator[Samples]:
    """Random batches for ever, from every ``shards``-th sample: no two shards have a sample in common."""
    images, labels = samples[0][shard::shards], samples[1][shard::shards]
    random = torch.Generator().manual_seed(1 + shard)
    while True:
        chosen = torch.randint(len(labels), (batch_size,), generator=random)
        yield images[chosen], labels[chosen]


@torch.no_grad()
def accuracy(model: nn.Module, samples: Samples) -> float:
    """Share of the samples that the model reads right."""
    images, labels = samples
    return float((model(images).argmax(1) == labels).float().mean())


def train_alone(steps: int, samples_per_step: int) -> nn.Module:
    """What the swarm is compared with: one process, no network, the same number of steps with as many samples."""
    train, _ = load()
    model = make_model()
    optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE)
    for images, labels in batches(train, samples_per_step):
        if steps == 0:
            break
        nn.functional.cross_entropy(model(images), labels).backward()
        optimizer.step()
        optimizer.zero_grad()
        steps -= 1
    return model
