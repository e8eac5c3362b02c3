"""A mixture of 64 experts on slow and unreliable servers, trained by 8 trainers at once, beside a dense layer.

After the experiment of Ryabinin and Gusev, 2020 ("Towards Crowdsourced Training of Large Neural Networks using
Decentralized Mixture-of-Experts", section 4.2), in small: digits of 8x8 pixels, one mixture, an in-memory network in
which every call takes the given time and one in ten fails. ``python examples/dmoe/experiment.py --latency 0.1``
"""

from __future__ import annotations

import argparse
import itertools
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from multiaddr import Multiaddr
from torch import nn

sys.path.append(str(Path(__file__).resolve().parents[1] / "digits"))

from digits import Samples, accuracy, batches, load

from hivemind.compression import BatchTensorDescriptor
from hivemind.dht import DHT
from hivemind.errors import HivemindError
from hivemind.moe import ModuleBackend, RemoteMixtureOfExperts, Server
from hivemind.moe.server.layers import ClippingWrapper
from hivemind.p2p import MemoryNetwork
from hivemind.runtime import get_runtime

GRID = (8, 8)
WIDTH = 32
SERVERS = 4
TRAINERS = 8
BATCH = 16
LEARNING_RATE = 2e-3
#: Norm to which gradients are clipped, of trainers and experts: steps with gradients that are old are unstable without.
CLIP = 1.0


class Expert(nn.Module):
    """32 features to 64 and back, beside what came."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(WIDTH, 2 * WIDTH), nn.ReLU(), nn.Linear(2 * WIDTH, WIDTH))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.layers(x)


class Reader(nn.Module):
    """Pixels to the digit's logits, by way of a layer in the middle."""

    def __init__(self, middle: nn.Module) -> None:
        super().__init__()
        self.before, self.middle, self.after = nn.Linear(64, WIDTH), middle, nn.Linear(WIDTH, 10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        hidden = self.middle(self.before(images.flatten(1)).relu())
        logits: torch.Tensor = self.after(hidden)
        return logits


def dense() -> nn.Module:
    """A layer of as many parameters as an input meets in the mixture: four experts."""
    return nn.Sequential(nn.Linear(WIDTH, 8 * WIDTH), nn.ReLU(), nn.Linear(8 * WIDTH, WIDTH))


class Trainers:
    """Threads that train one reader: each copies it, computes gradients of its copy, and the optimizer makes a step
    with them, however old they are by then. Steps that fail are counted.

    :param make: makes a reader, for the trainers as for the result
    """

    def __init__(self, make: Callable[[], Reader], train: Samples, steps: int) -> None:
        torch.manual_seed(0)
        self.reader = make()
        self._make = make
        self._train = train
        self._optimizer = torch.optim.Adam(self.reader.parameters(), lr=LEARNING_RATE)
        self._lock = threading.Lock()
        # guarded by _lock
        self._left = steps
        self.losses: list[float] = []
        self.failed = 0

    def run(self, trainers: int) -> None:
        with ThreadPoolExecutor(trainers) as threads:
            for ended in [threads.submit(self._work, shard, trainers) for shard in range(trainers)]:
                ended.result()

    def _work(self, shard: int, shards: int) -> None:
        reader = self._make()
        for images, labels in batches(self._train, BATCH, shard=shard, shards=shards):
            with self._lock:
                self._left -= 1
                if self._left < 0:
                    return
                reader.load_state_dict(self.reader.state_dict())
            try:
                loss = nn.functional.cross_entropy(reader(images), labels)
                gradients = torch.autograd.grad(loss, list(reader.parameters()), allow_unused=True)
            except HivemindError:
                with self._lock:
                    self.failed += 1
                continue
            with self._lock:
                for parameter, gradient in zip(self.reader.parameters(), gradients, strict=True):
                    parameter.grad = gradient
                nn.utils.clip_grad_norm_(self.reader.parameters(), CLIP)
                self._optimizer.step()
                self.losses.append(loss.item())


@contextmanager
def swarm(network: MemoryNetwork) -> Iterator[DHT]:
    """All experts on a few servers, each trained by an optimizer of its own; gives the DHT of the trainers."""
    features = BatchTensorDescriptor(WIDTH, dtype=torch.float32, requires_grad=True)
    uids = [f"expert.{row}.{column}" for row, column in itertools.product(*map(range, GRID))]

    runtime = get_runtime()
    runtime.acquire()
    with ExitStack() as stack:
        stack.callback(runtime.release)

        def join(*addresses: Multiaddr) -> DHT:
            p2p = runtime.call(network.create_p2p)
            stack.callback(runtime.call, p2p.shutdown)
            return stack.enter_context(DHT(addresses, start=True, p2p=p2p))

        first = join()
        addresses = first.get_visible_maddrs()
        for share in range(SERVERS):
            dht = join(*addresses)
            experts = {}
            for uid in uids[share::SERVERS]:
                module = Expert()
                optimizer = ClippingWrapper(torch.optim.Adam(module.parameters(), lr=LEARNING_RATE), CLIP)
                experts[uid] = ModuleBackend(
                    uid, module, optimizer=optimizer, args_schema=[features], outputs_schema=features
                )
            stack.enter_context(Server(dht, experts, start=True))
        yield first


def run(steps: int, latency: float, failures: float) -> dict[str, float]:
    """Train both, and say how well they read what they have not seen."""
    train, test = load()
    alone = Trainers(lambda: Reader(dense()), train, steps)
    alone.run(1)
    network = MemoryNetwork()
    with swarm(network) as dht:

        def make() -> Reader:
            options: Any = {"k_best": 4, "backward_k_min": 0, "forward_timeout": 10 + 4 * latency}
            return Reader(
                RemoteMixtureOfExperts(in_features=WIDTH, grid_size=GRID, dht=dht, uid_prefix="expert.", **options)
            )

        trainers = Trainers(make, train, steps)
        begin = time.monotonic()
        # a call is two messages
        with network.delay(latency / 2), network.drop(1 - (1 - failures) ** 0.5):
            trainers.run(TRAINERS)
        seconds = time.monotonic() - begin
        mixture = accuracy(trainers.reader, test)
    last = trainers.losses[-max(1, len(trainers.losses) // 10) :]
    return {
        "accuracy of the dense layer": accuracy(alone.reader, test),
        "accuracy of the mixture": mixture,
        "loss, mean of the last tenth": sum(last) / len(last),
        "loss, highest of the last half": max(trainers.losses[len(trainers.losses) // 2 :]),
        "failed steps": trainers.failed,
        "seconds": seconds,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=2000, help="steps of all trainers together")
    parser.add_argument("--latency", type=float, default=0.1, help="seconds that a call takes")
    parser.add_argument("--failures", type=float, default=0.1, help="share of the calls that fail")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for name, value in run(arguments.steps, arguments.latency, arguments.failures).items():
        print(f"{name:30} {value:.4g}")


if __name__ == "__main__":
    main()
