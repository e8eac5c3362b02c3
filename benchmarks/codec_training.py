"""What a codec costs a training run: loss after equal steps, with gradients that four peers average through it.

``.venv/bin/python benchmarks/codec_training.py`` prints a table. Peers are in this process,
and their averages are those of a round: parts that each peer encodes, that their reducers decode and reduce, and that
are answered with encoded differences. As with ``hivemind.Optimizer``, parameters are averaged without compression
after each step.

Two tasks: scikit-learn's digits, and the next character of Python's own documentation, which comes with Python.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from hivemind.averaging.partition import TensorPartContainer
from hivemind.averaging.reduction import reduce_part
from hivemind.compression import CompressionBase, NoCompression, deserialize_torch_tensor, known_codecs
from hivemind.proto import runtime_pb2

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples" / "digits"))
import digits

PEERS = 4
Batch = tuple[Tensor, Tensor]
CONTEXT = 32


def average(tensors: list[list[Tensor]], compression: CompressionBase) -> list[list[Tensor]]:
    """What each peer has after a round, given what each of them had before it."""
    containers = [TensorPartContainer(own, [1] * len(tensors), compression) for own in tensors]
    for reducer, parts in enumerate(containers[0].num_parts_by_peer):
        for index in range(parts):
            local = containers[reducer].local_part(reducer, index)
            inputs = {
                sender: (None if sender == reducer else container.encode(reducer, index), 1.0)
                for sender, container in enumerate(containers)
            }
            reduced = reduce_part(local, reducer, inputs)
            assert reduced.average is not None
            containers[reducer].register_processed_part(reducer, index, reduced.average, delta=False)
            for sender, answer in reduced.answers.items():
                received = type(answer).FromString(answer.SerializeToString()).tensor_part
                message = runtime_pb2.Tensor(
                    buffer=bytes(received.buffer),
                    size=received.size,
                    dtype=received.dtype,
                    compression=received.compression,  # type: ignore[arg-type]
                )
                containers[sender].register_processed_part(reducer, index, deserialize_torch_tensor(message))
    return [container.averaged for container in containers]


class Characters(nn.Module):
    """A transformer of two layers that says which character comes next; about 70,000 parameters."""

    def __init__(self, characters: int, width: int = 48) -> None:
        super().__init__()
        self.embedding = nn.Embedding(characters, width)
        self.places = nn.Parameter(torch.randn(CONTEXT, width) / 10)
        layer = nn.TransformerEncoderLayer(width, 4, 4 * width, dropout=0.0, batch_first=True, norm_first=True)
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(width, characters)
        self.register_buffer("mask", nn.Transformer.generate_square_subsequent_mask(CONTEXT), persistent=False)

    def forward(self, text: Tensor) -> Tensor:
        """:param text: int64 ``(batch, CONTEXT)``; returns logits ``(batch, characters, CONTEXT)``"""
        hidden = self.layers(self.embedding(text) + self.places, mask=self.mask, is_causal=True)
        return self.head(hidden).transpose(1, 2)


def python_documentation() -> tuple[Tensor, int]:
    """The text of ``help()``'s topics as numbers of characters, and how many different ones there are."""
    from pydoc_data.topics import topics

    text = "\n".join(topics[name] for name in sorted(topics))
    characters = {character: number for number, character in enumerate(sorted(set(text)))}
    return torch.tensor([characters[character] for character in text]), len(characters)


def batches_of_text(text: Tensor, size: int, seed: int) -> Iterator[Batch]:
    random = torch.Generator().manual_seed(seed)
    while True:
        starts = torch.randint(len(text) - CONTEXT, (size,), generator=random)
        pieces = torch.stack([text[start : start + CONTEXT + 1] for start in starts.tolist()])
        yield pieces[:, :-1], pieces[:, 1:]


def train(
    make: Callable[[], nn.Module], streams: list[Iterator[Batch]], steps: int, rate: float, compression: CompressionBase
) -> tuple[float, nn.Module]:
    """Mean loss of all peers in the last tenth of the steps, and the model of one of them."""
    models = [make() for _ in streams]
    optimizers = [torch.optim.Adam(model.parameters(), lr=rate) for model in models]
    losses: list[float] = []
    for _ in range(steps):
        for model, stream in zip(models, streams, strict=True):
            inputs, targets = next(stream)
            loss = nn.functional.cross_entropy(model(inputs), targets)
            model.zero_grad()
            loss.backward()
            losses.append(loss.item())
        own = [[parameter.grad for parameter in model.parameters() if parameter.grad is not None] for model in models]
        gradients = average(own, compression)
        for model, optimizer, averaged in zip(models, optimizers, gradients, strict=True):
            for parameter, gradient in zip(model.parameters(), averaged, strict=True):
                parameter.grad = gradient
            optimizer.step()
        with torch.no_grad():
            for values in zip(*(model.parameters() for model in models), strict=True):
                mean = torch.stack([value.detach() for value in values]).mean(0)
                for value in values:
                    value.copy_(mean)
    return statistics.mean(losses[-max(1, steps // 10) * len(streams) :]), models[0]


def batches_of_digits(samples: Batch, size: int, shard: int, seed: int) -> Iterator[Batch]:
    images, labels = samples[0][shard::PEERS], samples[1][shard::PEERS]
    random = torch.Generator().manual_seed(seed)
    while True:
        chosen = torch.randint(len(labels), (size,), generator=random)
        yield images[chosen], labels[chosen]


def train_digits(seed: int, steps: int, compression: CompressionBase) -> tuple[float, float]:
    """Training loss and share of the test images that are read wrongly."""
    samples, test = digits.load()
    streams = [batches_of_digits(samples, 32, peer, 100 * seed + peer) for peer in range(PEERS)]
    loss, model = train(digits.make_model, streams, steps, digits.LEARNING_RATE, compression)
    return loss, 1 - digits.accuracy(model, test)


def train_characters(seed: int, steps: int, compression: CompressionBase) -> tuple[float, float]:
    """Training loss and loss on the last tenth of the text, in nats a character."""
    text, characters = python_documentation()
    kept = len(text) // 10
    streams = [batches_of_text(text[:-kept], 16, 100 * seed + peer) for peer in range(PEERS)]

    def make() -> nn.Module:
        torch.manual_seed(seed)
        return Characters(characters)

    loss, model = train(make, streams, steps, 0.003, compression)
    with torch.no_grad():
        inputs, targets = next(batches_of_text(text[-kept:], 256, 1))
        return loss, nn.functional.cross_entropy(model(inputs), targets).item()


def cell(results: list[float], plain: list[float]) -> str:
    """Mean over the seeds, and how far they lie from the same seeds without compression, with half their range."""
    if results == plain:
        return f"{statistics.mean(results):.4f}"
    distances = [result - without for result, without in zip(results, plain, strict=True)]
    spread = (max(distances) - min(distances)) / 2
    return f"{statistics.mean(results):.4f} ({statistics.mean(distances):+.4f} ± {spread:.4f})"


def main() -> None:
    """Every codec on both tasks with the same seeds."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=150, help="of the characters; digits take half of them")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print("| codec | digits: training loss | test error | characters: training loss | on other text |")
    print("|---|---|---|---|---|")
    plain: list[list[float]] = []
    for codec in sorted(known_codecs(), key=lambda codec: not isinstance(codec, NoCompression)):
        columns: list[list[float]] = []
        for task, steps in ((train_digits, options.steps // 2), (train_characters, options.steps)):
            columns += map(list, zip(*(task(seed, steps, codec) for seed in range(options.seeds)), strict=True))
        plain = plain or columns
        cells = [cell(column, without) for column, without in zip(columns, plain, strict=True)]
        name = runtime_pb2.CompressionType.Name(codec.compression_type)  # type: ignore[arg-type]
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
