"""Which part of which tensor goes to which peer, and the container that holds the parts of one round.

`partition` is pure and part of the wire format (hivemind 1.1 wire format, "Partition"): every member must compute the
same, or their parts do not fit each other.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch

from hivemind.averaging.arithmetic import is_finite, write_answer
from hivemind.compression import Buffer, CompressionBase, CompressionInfo, NoCompression
from hivemind.errors import ConfigError, ProtocolViolation
from hivemind.proto import runtime_pb2
from hivemind.runtime import in_pool

__all__ = [
    "DEFAULT_PART_SIZE_BYTES",
    "POOL_THRESHOLD_BYTES",
    "PartSlice",
    "TensorPartContainer",
    "partition",
    "values_per_part",
]

T = TypeVar("T")

#: Bytes of one part before compression.
DEFAULT_PART_SIZE_BYTES = 2**19
#: Work on fewer bytes is done on the loop: handing it to the pool would take longer.
POOL_THRESHOLD_BYTES = 2**16
#: The same for work that only goes once or twice over memory, 0.1 ms for a part of 512 KiB: with all of that in the
#: pool a round of 4 peers on 2 cores takes a fifth more CPU time in Python, for switching between threads.
LIGHT_POOL_THRESHOLD_BYTES = 2**20


@dataclass(frozen=True)
class PartSlice:
    """Elements ``start`` to ``stop`` of the flattened tensor number ``tensor``: its part number ``index``."""

    tensor: int
    index: int
    start: int
    stop: int

    @property
    def size(self) -> int:
        """Number of elements."""
        return self.stop - self.start


def values_per_part(part_size_bytes: int, element_size: int, compression_ratio: float) -> int:
    """Elements in one part of a tensor.

    :param part_size_bytes: bytes of a part as it travels
    :param element_size: bytes of an element in memory
    :raises ConfigError: if not a single element would fit
    """
    values = int(part_size_bytes / (element_size * compression_ratio))
    if values < 1:
        raise ConfigError("part_size_bytes", part_size_bytes, f"at least {element_size}, the size of one element")
    return values


def partition(
    sizes: Sequence[int], part_values: Sequence[int], peer_counts: Sequence[float]
) -> tuple[tuple[PartSlice, ...], ...]:
    """Cut tensors into parts and give each part to a peer.

    The tensors, one after the other, form a vector, of which each peer gets a stretch in proportion to its count. A
    part goes to the peer with the largest share of it, so that a peer of a small count may get none.

    :param sizes: elements of each tensor; one without elements still makes one (empty) part
    :param part_values: elements per part of each tensor
    :param peer_counts: shares of the peers, >= 0, not all 0
    :returns: for each peer its parts, in order
    """
    shares, total = np.cumsum(np.asarray(peer_counts, dtype=np.float64)), sum(sizes)
    if not shares.size or min(peer_counts) < 0 or not 0 < shares[-1] < np.inf:
        raise ConfigError("peer_counts", list(peer_counts), "numbers >= 0, not all of them 0")
    pivots = [int(pivot) for pivot in (shares / shares[-1] * total).astype(np.int64)]
    pivots[-1] = total

    owned: list[list[PartSlice]] = [[] for _ in peer_counts]
    peer = offset = 0
    for tensor, (size, length) in enumerate(zip(sizes, part_values, strict=True)):
        for index, start in enumerate(range(0, max(size, 1), length)):
            part = PartSlice(tensor, index, start, min(start + length, size))
            first = peer
            while offset + part.stop > pivots[peer]:
                peer += 1
            owner = _largest_overlap(pivots, first, peer, offset + part.start, offset + part.stop)
            owned[owner].append(part)
        offset += size
    return tuple(tuple(parts) for parts in owned)


def _largest_overlap(pivots: Sequence[int], first: int, last: int, start: int, stop: int) -> int:
    """The first of the peers ``first`` to ``last`` whose stretch has most of the elements ``start`` to ``stop``."""

    def overlap(peer: int) -> int:
        begin = pivots[peer - 1] if peer else 0
        return min(pivots[peer], stop) - max(begin, start)

    return max(range(first, last + 1), key=overlap)


class TensorPartContainer:
    """The tensors of one round in parts: what this peer sends to each peer, and what becomes of the answers.

    The tensors are only read. The result stands in tensors of its own on the same devices, which take up the answers
    part by part; parts without an answer keep the local values.

    Parts of different peers, and different parts of one, may be read and registered by several threads at once.

    :param tensors: real numbers, any shapes, dtypes, strides and devices. They must not change before the round ends
    :param peer_fractions: each peer's share of the vector in any unit, 0 = it reduces nothing
    :param compression: how parts travel; the same for all members, as sizes of parts follow from it
    :param tensor_infos: of each tensor, for the codec; their dtypes (not the tensors') enter the sizes of parts
    :param return_deltas: answers are to be added to the local values; else they replace them
    :param prefetch: parts to encode ahead of the network, for each receiver
    :raises ConfigError: if an argument is wrong
    :raises SerializationError: if the codec does not carry a tensor's dtype
    """

    def __init__(
        self,
        tensors: Sequence[torch.Tensor],
        peer_fractions: Sequence[float],
        compression: CompressionBase | None = None,
        part_size_bytes: int = DEFAULT_PART_SIZE_BYTES,
        tensor_infos: Sequence[CompressionInfo] | None = None,
        return_deltas: bool = True,
        prefetch: int = 1,
    ) -> None:
        if tensor_infos is None:
            tensor_infos = [CompressionInfo.from_tensor(tensor, key=key) for key, tensor in enumerate(tensors)]
        if len(tensor_infos) != len(tensors):
            raise ConfigError("tensor_infos", f"{len(tensor_infos)} of them", f"one for each of {len(tensors)} tensors")
        for key, tensor in enumerate(tensors):
            if tensor.is_complex() or tensor.layout != torch.strided:
                raise ConfigError(
                    f"tensors[{key}]", f"{tensor.layout}, {tensor.dtype}", "dense tensors of real numbers"
                )
        self.compression = compression if compression is not None else NoCompression()
        for tensor, info in zip(tensors, tensor_infos, strict=True):
            # a dtype that the codec does not carry is an error here rather than in the middle of a round
            self.compression.compress(torch.zeros(1, dtype=tensor.dtype), info.get_part(0, 1))
        self.tensor_infos = tuple(tensor_infos)
        self.return_deltas, self.prefetch = return_deltas, prefetch
        self.sizes = tuple(tensor.numel() for tensor in tensors)
        self.part_values = tuple(
            values_per_part(part_size_bytes, tensor.element_size(), self.compression.estimate_compression_ratio(info))
            for tensor, info in zip(tensors, tensor_infos, strict=True)
        )
        # an empty tensor at the very start falls to the first peer even if that one reduces nothing: nobody sends it
        self.parts_by_peer = tuple(
            parts if fraction else ()
            for parts, fraction in zip(
                partition(self.sizes, self.part_values, peer_fractions), peer_fractions, strict=True
            )
        )
        self.num_parts_by_peer = tuple(map(len, self.parts_by_peer))
        #: elements of parts whose reducer failed; they keep the local values
        self.failed_size = 0
        with torch.no_grad():
            self._local = [tensor.detach().contiguous().view(-1) for tensor in tensors]
            self._results = [torch.empty_like(tensor, memory_format=torch.contiguous_format) for tensor in tensors]
        self._registered: list[set[int]] = [set() for _ in peer_fractions]

    @property
    def averaged(self) -> list[torch.Tensor]:
        """The tensors with all answers so far; same shapes, dtypes and devices as the tensors."""
        for peer_index, registered in enumerate(self._registered):
            for part_index in set(range(self.num_parts_by_peer[peer_index])) - registered:
                self._result_part(peer_index, part_index).copy_(self.local_part(peer_index, part_index))
        return list(self._results)

    @property
    def num_bytes(self) -> int:
        """Size of the tensors in memory."""
        return sum(tensor.nbytes for tensor in self._local)

    def local_part(self, peer_index: int, part_index: int) -> torch.Tensor:
        """The local values of one part, 1-d; not to be written to."""
        part = self.parts_by_peer[peer_index][part_index]
        return self._local[part.tensor][part.start : part.stop]

    def _result_part(self, peer_index: int, part_index: int) -> torch.Tensor:
        part = self.parts_by_peer[peer_index][part_index]
        return self._results[part.tensor].view(-1)[part.start : part.stop]

    def get_raw_input_parts(self, peer_index: int) -> tuple[torch.Tensor, ...]:
        """All parts that ``peer_index`` reduces, in order; see `local_part`."""
        return tuple(self.local_part(peer_index, index) for index in range(self.num_parts_by_peer[peer_index]))

    def info_of(self, peer_index: int, part_index: int) -> CompressionInfo:
        """What the codec may know of one part."""
        part = self.parts_by_peer[peer_index][part_index]
        return self.tensor_infos[part.tensor].get_part(part.index, self.part_values[part.tensor])

    def encode(self, peer_index: int, part_index: int) -> runtime_pb2.Tensor:
        """The message with the local values of one part."""
        return self.compression.compress(self.local_part(peer_index, part_index), self.info_of(peer_index, part_index))

    def encode_buffer(self, peer_index: int, part_index: int) -> tuple[runtime_pb2.Tensor, Buffer]:
        """As `encode`, with the buffer beside the message; it may be the local values themselves."""
        return self.compression.encode(self.local_part(peer_index, part_index), self.info_of(peer_index, part_index))

    async def iterate_input_parts_for(self, peer_index: int) -> AsyncIterator[runtime_pb2.Tensor]:
        """The messages with the parts that ``peer_index`` reduces, in order; large ones are encoded in the pool."""
        for part_index in range(self.num_parts_by_peer[peer_index]):
            yield await self.run_for_part(peer_index, part_index, self.encode)

    async def run_for_part(self, peer_index: int, part_index: int, work: Callable[..., T], *args: Any) -> T:
        """``work(peer_index, part_index, *args)``: on the loop if it only goes over some memory, else in the pool."""
        tensor = self._local[self.parts_by_peer[peer_index][part_index].tensor]
        light = self.compression.light and tensor.device.type == "cpu"
        size = self.parts_by_peer[peer_index][part_index].size * tensor.element_size()
        if size < (LIGHT_POOL_THRESHOLD_BYTES if light else POOL_THRESHOLD_BYTES):
            return work(peer_index, part_index, *args)
        return await in_pool(work, peer_index, part_index, *args)

    def register_processed_part(
        self, peer_index: int, part_index: int, part: torch.Tensor, delta: bool | None = None
    ) -> None:
        """Take up the answer to one part.

        :param part: 1-d, any real dtype and device
        :param delta: whether it is to be added to the local values or to replace them; None = as ``return_deltas``
        :raises ProtocolViolation: if it does not fit the part, is not finite, or is the second answer to it
        """
        target = self._result_part(peer_index, part_index)
        if part.numel() != target.numel() or part.is_complex():
            raise ProtocolViolation(f"{tuple(part.shape)} {part.dtype} in answer to {target.numel()} {target.dtype}")
        if part_index in self._registered[peer_index]:
            raise ProtocolViolation(f"a second answer to part {part_index}")
        if not is_finite(part):
            raise ProtocolViolation(f"the answer to part {part_index} has values that are not finite")
        base = self.local_part(peer_index, part_index) if (self.return_deltas if delta is None else delta) else None
        write_answer(target, part.view(-1), base)
        self._registered[peer_index].add(part_index)

    def register_failed_reducer(self, peer_index: int) -> None:
        """Parts of ``peer_index`` without an answer by now keep the local values."""
        registered = self._registered[peer_index]
        missing = [part for index, part in enumerate(self.parts_by_peer[peer_index]) if index not in registered]
        self.failed_size += sum(part.size for part in missing)
