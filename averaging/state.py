"""State from peer to peer: what a newcomer needs to join a run, without a checkpoint (hivemind 1.1 wire format).

A donor copies its state under the lock and sends the copy, so that a slow newcomer holds up nobody. A newcomer asks the
donors of the highest priority first, and the next one whenever one fails.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

import torch

from hivemind.aio import with_deadline
from hivemind.averaging.colleagues import Colleagues
from hivemind.averaging.directory import Roll
from hivemind.clock import Deadline, monotonic
from hivemind.compression import (
    DEFAULT_CHUNK_BYTES,
    CompressionBase,
    CompressionInfo,
    assemble,
    deserialize_torch_tensor,
    split_for_streaming,
)
from hivemind.errors import (
    AuthorizationError,
    DeadlineExceeded,
    HivemindError,
    P2PDaemonError,
    P2PHandlerError,
    SerializationError,
    ValidationError,
)
from hivemind.identity import PeerID
from hivemind.log import RateLimit, get_logger
from hivemind.proto import averaging_pb2, runtime_pb2
from hivemind.runtime import in_pool
from hivemind.serializer import MSGPackSerializer

__all__ = ["Donor", "Downloader", "Snapshot", "State", "donors_in_order", "infos_of", "make_snapshot"]

logger = get_logger(__name__)

#: Metadata and tensors: ``(metadata, tensors)`` as users get it.
State = tuple[Any, list[torch.Tensor]]

#: Newcomers served at the same time. The next one is sent on to another donor.
MAX_DOWNLOADS = 16
#: Seconds for which a copy of the state serves newcomers that come together.
SHARED_SECONDS = 2.0
#: Seconds for the donor's first message, which waits for its lock and its copy.
FIRST_MESSAGE_SECONDS = 30.0
_PROGRESS_SECONDS = 5.0
_MAX_METADATA_BYTES = 64 * 2**20
_MAX_TENSORS = 2**20
_PEER_FAULTS = (
    P2PDaemonError,
    P2PHandlerError,
    AuthorizationError,
    DeadlineExceeded,
    SerializationError,
    ValidationError,
)


def donors_in_order(roll: Roll) -> list[PeerID]:
    """Donors by falling priority; equal ones in random order, so that newcomers spread over them."""
    return sorted(roll.priorities, key=lambda peer: (-roll.priorities[peer], random.random()))


@dataclass(frozen=True)
class Snapshot:
    """A copy of a peer's state."""

    metadata: bytes
    tensors: Sequence[torch.Tensor]
    infos: Sequence[CompressionInfo]


class Donor:
    """Answers downloads. Owned by the network loop.

    :param snapshot: makes a copy of the state
    :param is_sharing: whether downloads are answered now
    :param compression: of the tensors on the wire
    """

    def __init__(
        self,
        snapshot: Callable[[], Awaitable[Snapshot]],
        is_sharing: Callable[[], bool],
        compression: CompressionBase,
    ) -> None:
        self._snapshot = snapshot
        self._is_sharing = is_sharing
        self._compression = compression
        self._active = 0
        self._copying = asyncio.Lock()
        #: the last copy and when it was made, while somebody is being served
        self._shared: tuple[Snapshot, float] | None = None

    async def send(self) -> AsyncGenerator[averaging_pb2.DownloadData, None]:
        """The messages of one download; none if this peer does not share its state, or serves enough newcomers."""
        if not self._is_sharing() or self._active >= MAX_DOWNLOADS:
            return
        self._active += 1
        try:
            wait = Deadline.after(FIRST_MESSAGE_SECONDS)
            snapshot = await with_deadline(self._shared_snapshot(), wait, "a copy of the state")
            metadata = snapshot.metadata
            for tensor, info in zip(snapshot.tensors, snapshot.infos, strict=True):
                # not into the message: then there would be three copies of a large tensor
                header, buffer = await in_pool(self._compression.encode, tensor, info)
                for chunk in split_for_streaming(header, DEFAULT_CHUNK_BYTES, buffer):
                    yield averaging_pb2.DownloadData(metadata=metadata, tensor_part=chunk)
                    metadata = b""  # only with the first
        finally:
            self._active -= 1
            if not self._active:
                self._shared = None

    async def _shared_snapshot(self) -> Snapshot:
        async with self._copying:
            if self._shared is None or monotonic() - self._shared[1] > SHARED_SECONDS:
                self._shared = await self._snapshot(), monotonic()
            return self._shared[0]


class Downloader:
    """Gets the state from other peers. Owned by the network loop.

    :param chunk_seconds: between two messages
    :param max_bytes: of all buffers of one download
    """

    def __init__(self, colleagues: Colleagues, *, chunk_seconds: float, max_bytes: int) -> None:
        self._colleagues = colleagues
        self._chunk_seconds = chunk_seconds
        self._max_bytes = max_bytes

    async def load(
        self, donors: Iterable[PeerID], deadline: Deadline, check: Callable[[Any, Sequence[torch.Tensor]], None]
    ) -> State | None:
        """The state of the first donor that gives one.

        :param check: raises `ValidationError` if a state is not one that this peer can use
        :returns: None if none of the donors did by the deadline; the log says why
        """
        failures: list[str] = []
        for donor in donors:
            if deadline.expired:
                failures.append("the deadline has passed")
                break
            try:
                state = await with_deadline(self._download(donor, deadline), deadline, "downloading the state")
                check(*state)
            except _PEER_FAULTS as error:
                logger.debug("state from %s: %s: %s", donor, type(error).__name__, error)
                failures.append(f"{donor}: {type(error).__name__}: {str(error)[:200]}")
                continue
            logger.info("downloaded the state from %s: %d tensors", donor, len(state[1]))
            return state
        if failures:
            logger.warning("no peer gave its state: %s", "; ".join(failures[:8]))
        return None

    async def _download(self, donor: PeerID, deadline: Deadline) -> State:
        first = Deadline.after(max(FIRST_MESSAGE_SECONDS, self._chunk_seconds)).earlier(deadline)
        stub: Any = await self._colleagues.meet(donor, first)
        opening = stub.rpc_download_state(averaging_pb2.DownloadRequest())
        stream: AsyncGenerator[averaging_pb2.DownloadData, None] = await with_deadline(opening, first, "opening")
        receiver, progress = _Receiver(self._max_bytes), RateLimit(_PROGRESS_SECONDS)
        progress.allow()
        async with aclosing(stream):
            wait = first
            while (message := await _next(stream, wait)) is not None:
                await receiver.add(message)
                if progress.allow():
                    logger.info("downloading the state from %s: %.1f MB so far", donor, receiver.received / 1e6)
                wait = Deadline.after(self._chunk_seconds).earlier(deadline)
        return await receiver.finish()


async def _next(
    stream: AsyncIterator[averaging_pb2.DownloadData], deadline: Deadline
) -> averaging_pb2.DownloadData | None:
    try:
        return await with_deadline(anext(stream), deadline, "the next part of the state")
    except StopAsyncIteration:
        return None


class _Receiver:
    """Puts the messages of one download together, within bounds."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self.received = 0
        self._metadata = b""
        self._tensors: list[torch.Tensor] = []
        self._chunks: list[runtime_pb2.Tensor] = []

    async def add(self, message: averaging_pb2.DownloadData) -> None:
        if message.metadata and not self._metadata:
            self._metadata = message.metadata
        chunk = message.tensor_part
        if chunk.dtype and self._chunks:
            await self._decode()
        self.received += len(chunk.buffer)
        if self.received > self._max_bytes or len(self._metadata) > _MAX_METADATA_BYTES:
            raise ValidationError(f"a state of over {self._max_bytes} bytes (see max_state_bytes)")
        if len(self._tensors) >= _MAX_TENSORS or len(self._chunks) > self._max_bytes // 1024 + 1024:
            raise ValidationError("a state in too many pieces")
        self._chunks.append(chunk)

    async def _decode(self) -> None:
        chunks, self._chunks = self._chunks, []
        self._tensors.append(await in_pool(lambda: deserialize_torch_tensor(assemble(chunks))))

    async def finish(self) -> State:
        if self._chunks:
            await self._decode()
        if not self._metadata:
            raise ValidationError("no metadata came: the peer shares no state now")
        metadata = MSGPackSerializer.loads(self._metadata)
        if not metadata:
            raise ValidationError("empty metadata")
        return metadata, self._tensors


def infos_of(tensors: Sequence[torch.Tensor]) -> list[CompressionInfo]:
    """Descriptions of tensors of which nothing more is known."""
    return [CompressionInfo.from_tensor(tensor, key=index) for index, tensor in enumerate(tensors)]


def make_snapshot(
    state: tuple[Any, Sequence[torch.Tensor], Sequence[CompressionInfo] | None], copies: Sequence[torch.Tensor]
) -> Snapshot:
    """
    :param state: metadata, tensors, descriptions
    :param copies: of the tensors
    :raises HivemindError: if the metadata cannot be serialized
    """
    metadata, tensors, infos = state
    described = list(infos) if infos is not None else infos_of(tensors)
    if len(described) != len(copies):
        raise HivemindError(f"a state of {len(copies)} tensors with {len(described)} descriptions")
    return Snapshot(MSGPackSerializer.dumps(metadata), copies, described)
