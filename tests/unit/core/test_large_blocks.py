"""Memory of large messages and tensors is used again, not asked of the system for each of them."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

_COUNT = """
import resource
import sys
from hivemind.large_blocks import keep_large_blocks

kept, size = map(int, sys.argv[1:])

def faults(times):
    begun = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(times):
        first, second = bytearray(size), bytearray(size)
        del first, second
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - begun

before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
keep_large_blocks(kept)
grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
faults(1)
print(faults(20), grown)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library keeps memory in ways of its own")
@pytest.mark.parametrize(("kept", "size"), [(16 << 20, 4 << 20), (1 << 30, 20 << 20)])
def test_large_blocks_are_used_again(kept: int, size: int) -> None:
    command = [sys.executable, "-c", _COUNT, str(kept), str(size)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    faults, grown = map(int, done.stdout.split())
    # each byte of the 40 blocks fresh from the system would be a fault for every 4 KiB
    assert faults < 40 * size // 4096 // 10
    assert grown < 1024, "KiB: it is to take no memory itself"
