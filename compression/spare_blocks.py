"""Memory of large tensors that are gone, used again for the next ones.

glibc keeps what is freed in blocks of up to 32 MiB, and maps larger ones anew (`hivemind.large_blocks`). Their page
faults, huge pages or not, take as long as what a codec does with the memory.
"""

from __future__ import annotations

import mmap
import weakref
from collections import deque
from typing import Any, Final

import numpy as np

__all__ = ["LARGEST", "SMALLEST", "take_block"]

#: Bytes of blocks that are kept; smaller ones are glibc's.
SMALLEST: Final = 2**25
LARGEST: Final = 2**27
#: A block is taken for no less than this part of it.
_LEAST_USE: Final = 0.75

#: What nobody uses. A deque, as blocks come back from whichever thread lets go of a tensor, also amid another call.
_spare: deque[mmap.mmap] = deque(maxlen=2)


def take_block(size: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Memory of ``size`` bytes that are not set, uint8, at the start of a page; thread-safe.

    It is used again when nothing refers to the array any more. What is spare meanwhile, two blocks of up to `LARGEST`
    bytes, the system may take back when it is short of memory.

    :param size: from `SMALLEST` to `LARGEST`
    """
    block = _spare_for(size) or _new_block(size)
    memory = np.frombuffer(block, np.uint8, size)
    # not at exit: nothing is to be used again then
    weakref.finalize(memory, _give_back, block).atexit = False
    return memory


def _spare_for(size: int) -> mmap.mmap | None:
    for _ in range(len(_spare)):
        try:
            block = _spare.pop()
        except IndexError:  # another thread has taken it
            return None
        if size <= len(block) <= size / _LEAST_USE:
            return block
        _spare.appendleft(block)
    return None


def _new_block(size: int) -> mmap.mmap:
    block = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    _advise(block, "MADV_HUGEPAGE")
    return block


def _give_back(block: mmap.mmap) -> None:
    if _advise(block, "MADV_FREE"):  # of what the system could not take back, nothing is kept
        _spare.append(block)


def _advise(block: mmap.mmap, advice: str) -> bool:
    """Whether the system knows this advice."""
    if not hasattr(mmap, advice):
        return False
    try:
        block.madvise(getattr(mmap, advice))
    except OSError:
        return False
    return True
