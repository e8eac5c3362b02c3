"""Parameters in large pages of memory."""

from __future__ import annotations

import mmap
from typing import Final

import torch
from torch import nn

from hivemind.large_blocks import give_back
from hivemind.log import get_logger

__all__ = ["move_to_large_pages"]

logger = get_logger(__name__)

#: Bytes of a large page, and of a line of the processor's cache.
_PAGE: Final = 2**21
_LINE: Final = 64


def move_to_large_pages(module: nn.Module) -> None:
    """Move the parameters of ``module`` that are on a CPU to memory of which Linux makes large pages.

    A small batch waits for its expert's parameters to be read once, and in pages of 4 KiB also for their addresses: a
    tenth of its time. Call it before anything else refers to that memory; what is shared stays where it is.
    """
    movable = [each for each in module.parameters() if _is_movable(each.data)]
    offsets, size = [], 0
    for parameter in movable:
        offsets.append(size)
        size += -(-parameter.nbytes // _LINE) * _LINE
    if size < _PAGE or not hasattr(mmap, "MADV_HUGEPAGE"):
        return
    try:
        memory = mmap.mmap(-1, size + _PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        start = -torch.frombuffer(memory, dtype=torch.uint8).data_ptr() % _PAGE
        # no large page where a part would be enough
        memory.madvise(mmap.MADV_HUGEPAGE, start, size // _PAGE * _PAGE)
    except OSError as error:  # a kernel that makes none
        logger.debug("parameters stay in small pages: %s", error)
        return
    for parameter, offset in zip(movable, offsets, strict=True):
        moved = torch.frombuffer(memory, dtype=parameter.dtype, count=parameter.numel(), offset=start + offset)
        parameter.data = moved.view(parameter.shape).copy_(parameter.data)
    give_back()  # where they have been


def _is_movable(data: torch.Tensor) -> bool:
    if data.device.type != "cpu" or data.layout != torch.strided or not data.numel():
        return False
    storage = data.untyped_storage()
    return storage.nbytes() == data.nbytes and data.is_contiguous() and not storage.is_shared()
