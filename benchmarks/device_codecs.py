"""GB/s of every codec on the device of its tensors, beside that device's memory and its link to the processor.

``.venv/bin/python benchmarks/device_codecs.py`` prints a table for the first GPU, or with ``--device cpu`` for the
processor. Rates are of float32 that is encoded to memory that the network can send from, or decoded from there; on a
GPU with its kernels and, the environment variable ``HIVEMIND_FUSED_KERNELS`` being "0", with torch's operations. There
is no other library to compare with: hivemind 1.1.12 copies tensors to the processor first.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable

import torch

from hivemind.compression import CompressionInfo, known_codecs
from hivemind.compression.buffers import from_buffer, to_buffer
from hivemind.compression.fused import ENVIRONMENT
from hivemind.proto import runtime_pb2

SIZES = {"2 MB": 2**19, "40 MB": 10_000_000, "400 MB": 100_000_000}
SECONDS = 1.0  # for each figure, at the most


def rate(device: torch.device, length: int, action: Callable[[], object]) -> float:
    """GB/s at which ``action`` goes through ``length`` bytes, at the best of some runs after a first one."""

    def run() -> float:
        _wait_for(device)
        started = time.perf_counter()
        action()
        _wait_for(device)
        return time.perf_counter() - started

    run()
    best, end = run(), time.perf_counter() + SECONDS
    while time.perf_counter() < end:
        best = min(best, run())
    return length / best / 1e9


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def lines(device: torch.device, sizes: dict[str, int]) -> list[list[str]]:
    """The table, after its head."""
    ways = ("1", "0") if device.type == "cuda" else ("0",)
    table = []
    for size, count in sizes.items():
        tensor = torch.randn(count, device=device)
        target, length = torch.empty_like(tensor), 4 * count
        copying = rate(device, length, lambda target=target, tensor=tensor: target.copy_(tensor))
        table.append(["copy within the device's memory", size, f"{copying:.2f}", f"{copying:.2f}"])
        for codec in known_codecs():
            info = CompressionInfo.from_tensor(tensor)
            _, buffer = codec.encode(tensor, info)
            octets = from_buffer(buffer, torch.uint8, device)
            there = rate(device, length, lambda octets=octets: to_buffer(octets))
            back = rate(device, length, lambda buffer=buffer: from_buffer(buffer, torch.uint8, device))
            name = runtime_pb2.CompressionType.Name(codec.compression_type)
            table.append([f"{name}: its bytes alone", size, f"{there:.2f}", f"{back:.2f}"])
            for way in ways:
                os.environ[ENVIRONMENT] = way
                encoding = rate(
                    device, length, lambda codec=codec, info=info, tensor=tensor: codec.encode(tensor, info)
                )
                decoding = rate(
                    device,
                    length,
                    lambda codec=codec, buffer=buffer, tensor=tensor: codec.decode(
                        buffer, tensor.dtype, tensor.shape, device
                    ),
                )
                label = "with kernels" if way == "1" else "with torch's operations"
                table.append([f"{name} {label}", size, f"{encoding:.2f}", f"{decoding:.2f}"])
    return table


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--device", default="cuda" if torch.cuda.is_available() else "cpu", help="default: a GPU if any"
    )
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES), help="of the tensors")
    options = parser.parse_args()
    device = torch.device(options.device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "the processor"
    print(f"{name}, torch {torch.__version__}; GB/s of float32\n")
    print("| codec | tensor | encode | decode |\n|---|---|---|---|")
    for line in lines(device, {size: SIZES[size] for size in options.sizes}):
        print(f"| {' | '.join(line)} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
