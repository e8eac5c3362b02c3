"""Memory of large messages is used again, not asked of the system for each of them."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

_COUNT = """
import resource
from hivemind.p2p.large_blocks import keep_large_blocks

def faults(size, times):
    begun = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(times):
        first, second = bytearray(size), bytearray(size)
        del first, second
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - begun

before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
keep_large_blocks()
grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
faults(4 << 20, 1)
print(faults(4 << 20, 20), grown)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library keeps memory in ways of its own")
def test_large_blocks_are_used_again() -> None:
    done = subprocess.run([sys.executable, "-c", _COUNT], capture_output=True, text=True, check=True)
    faults, grown = map(int, done.stdout.split())
    # each byte of the 40 blocks fresh from the system would be 40960 faults
    assert faults < 4000
    assert grown < 1024, "KiB: it is to take no memory itself"
