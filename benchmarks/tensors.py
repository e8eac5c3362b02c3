"""MB/s of every codec, to compress and to extract, its size and its errors; and how that compares to copying memory,
to where something was before and to where nothing was.

Rates are of float32 that goes in or comes out, through ``serialize_torch_tensor`` and ``deserialize_torch_tensor``
with as many threads of torch as there are cores.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable

from common import MIB, emit, parse_arguments

CODECS = ("NONE", "FLOAT16", "MEANSTD_16BIT", "QUANTILE_8BIT", "UNIFORM_8BIT", "BLOCKWISE_8BIT")
#: A part of averaging, the size that 1.1's own benchmark has, and the size of a small model.
SIZES = {"2 MB": 2 * MIB, "40 MB": 40_000_000, "100 MB": 100_000_000}
SECONDS = 2.0  # for each figure, at the most, after one that is not counted


def best_of(action: Callable[[], object], repeat: int) -> float:
    """Seconds of the quickest of some runs: what other work on the machine takes is not the codec's."""
    action()
    best, end = float("inf"), time.perf_counter() + SECONDS
    for number in range(repeat):
        started = time.perf_counter()
        action()
        best = min(best, time.perf_counter() - started)
        if number >= 2 and time.perf_counter() > end:
            break
    return best


def main(repeat: int, sizes: dict[str, int]) -> None:
    """All codecs and sizes, one after another."""
    import torch

    from hivemind.compression import deserialize_torch_tensor, serialize_torch_tensor
    from hivemind.proto import runtime_pb2

    torch.set_num_threads(os.cpu_count() or 1)
    figures: dict[str, object] = {}
    for size, length in sizes.items():
        tensor = torch.randn(length // 4, generator=torch.Generator().manual_seed(0))
        target = torch.empty_like(tensor)
        copying = length / best_of(lambda target=target, tensor=tensor: target.copy_(tensor), repeat)
        fresh = length / best_of(lambda tensor=tensor: tensor.clone(), repeat)
        figures[f"copy {size} of memory"] = copying, "B/s"
        figures[f"copy {size} into fresh memory"] = fresh, "B/s"
        for codec in CODECS:
            kind = runtime_pb2.CompressionType.Value(codec)
            message = serialize_torch_tensor(tensor, kind)
            restored = deserialize_torch_tensor(message)
            compress = best_of(lambda tensor=tensor, kind=kind: serialize_torch_tensor(tensor, kind), repeat)
            extract = best_of(lambda message=message: deserialize_torch_tensor(message), repeat)
            figures[f"{codec}, compress {size}"] = length / compress, "B/s"
            figures[f"{codec}, extract {size}"] = length / extract, "B/s"
            figures[f"{codec}, compress {size}, of copying"] = length / compress / copying, "copies"
            figures[f"{codec}, bytes for {size}"] = len(message.buffer), "B"
            if codec != "NONE":
                error = (restored - tensor).abs()
                figures[f"{codec}, mean error of {size} of N(0, 1)"] = float(error.mean()), "error"
                figures[f"{codec}, greatest error of {size} of N(0, 1)"] = float(error.max()), "error"
    emit(figures)


if __name__ == "__main__":
    options = parse_arguments()
    quick = dict(list(SIZES.items())[:2])
    main(repeat=5 if options.quick else 20, sizes=quick if options.quick else SIZES)
