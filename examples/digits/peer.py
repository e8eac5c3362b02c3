"""One peer of the swarm. What turns a training script into a peer are the two lines marked with an arrow.

It tells `swarm.py`, which started it, how it is doing: lines of JSON on standard output. It begins to train, and it
leaves at the end, when a line comes on standard input.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import digits
import torch
from torch.nn.functional import cross_entropy

import hivemind
from hivemind.dht import DHTNode

REPORT_PERIOD = 0.5  # seconds


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--initial_peers", nargs="*", default=[], help="addresses of any peers of the swarm")
    parser.add_argument("--epochs", type=int, required=True, help="steps of the swarm to take part in")
    parser.add_argument("--target_batch_size", type=int, required=True, help="samples of the whole swarm per step")
    parser.add_argument("--batch_size", type=int, required=True, help="samples that this peer does at once")
    parser.add_argument("--shard", type=int, nargs=2, default=(0, 1), help="which part of the data, of how many")
    parser.add_argument("--save_to", type=Path, help="where to write the trained parameters")
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()
    torch.set_num_threads(1)  # the peers of this example share one machine
    train, test = digits.load()
    model = digits.make_model()
    shard, shards = arguments.shard
    batches = digits.batches(train, arguments.batch_size, shard=shard, shards=shards)

    dht = hivemind.DHT(initial_peers=arguments.initial_peers, start=True)  # <--
    optimizer = hivemind.Optimizer(  # <--
        dht=dht,
        run_id="digits",
        target_batch_size=arguments.target_batch_size,
        batch_size_per_step=arguments.batch_size,
        optimizer=torch.optim.Adam(model.parameters(), lr=digits.LEARNING_RATE),
        matchmaking_time=4.0,
        averaging_timeout=10.0,
    )

    report("ready", addresses=[str(address) for address in dht.get_visible_maddrs()])
    input()
    samples, epoch, last_report = 0, -1, 0.0
    while optimizer.local_epoch < arguments.epochs:
        loss = cross_entropy_of(model, next(batches))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        samples += arguments.batch_size
        if optimizer.local_epoch != epoch or time.monotonic() > last_report + REPORT_PERIOD:
            epoch, last_report = optimizer.local_epoch, time.monotonic()
            accuracy, sent = digits.accuracy(model, test), dht.run_coroutine(bytes_sent)
            report("training", epoch=epoch, samples=samples, loss=loss.item(), accuracy=accuracy, bytes_sent=sent)

    torch.save(model.state_dict(), arguments.save_to)
    report("done", epoch=optimizer.local_epoch, samples=samples, bytes_sent=dht.run_coroutine(bytes_sent))
    input()
    optimizer.shutdown()
    dht.shutdown()


def cross_entropy_of(model: torch.nn.Module, batch: digits.Samples) -> torch.Tensor:
    images, labels = batch
    return cross_entropy(model(images), labels)


async def bytes_sent(dht: hivemind.DHT, node: DHTNode) -> int:
    """What this peer has sent to others so far, as its daemon counts it."""
    return (await node.p2p.stats())["bytes_out"]


def report(event: str, **fields: Any) -> None:
    print(json.dumps({"event": event, **fields}), flush=True)


if __name__ == "__main__":
    main()
