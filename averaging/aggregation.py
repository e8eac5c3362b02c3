"""The reducer's side of a round: takes the parts of the other members and answers each with its way to the mean.

A sender that goes silent, breaks off or breaks the protocol is banned: the round goes on without it. The answers of a
sender come in the order of its parts. A member that reduces nothing (a client) reads no answers before it has sent
everything, as peers of hivemind 1.1 do, so it gets none before.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import aclosing, suppress

import torch

from hivemind.aio import TaskScope, cancel_and_wait, with_deadline
from hivemind.averaging.messages import PartMessage
from hivemind.averaging.partition import DEFAULT_PART_SIZE_BYTES, TensorPartContainer
from hivemind.averaging.reducer import TensorPartReducer
from hivemind.averaging.reduction import ReducedPart, reduce_part
from hivemind.clock import Deadline
from hivemind.compression import TensorMessage, read_header
from hivemind.errors import AllreduceException, BannedException, DeadlineExceeded, HivemindError, ProtocolViolation
from hivemind.identity import PeerID
from hivemind.log import get_logger
from hivemind.proto import averaging_pb2

__all__ = ["MAX_WEIGHT", "PartAggregator", "code_name"]

logger = get_logger(__name__)

#: Weights above are refused: sums of weighted float32 values must not overflow because of one of them.
MAX_WEIGHT = 1e18
#: Parts that are reduced at a time.
PARALLEL_PARTS = 4
#: Bytes of parts that may wait for slower senders, of all senders together, and parts of one sender.
_AHEAD_BYTES = 64 * 2**20
_MAX_AHEAD = 8
#: How long a sender may take to end its side once it has all its answers.
_END_SECONDS = 5.0

Messages = AsyncIterator[PartMessage]
Answers = AsyncGenerator[PartMessage, None]


class PartAggregator:
    """Reduces this peer's parts for the group. Owned by one event loop.

    :param container: the local values; takes up the means of this peer's parts
    :param local_index: this peer's place in ``peer_ids``
    :param clients: places of the members that reduce nothing
    :param weight: of the local values
    :param sender_timeout: seconds of silence after which a sender is banned
    """

    def __init__(
        self,
        container: TensorPartContainer,
        *,
        group_id: bytes,
        peer_ids: Sequence[PeerID],
        local_index: int,
        clients: frozenset[int],
        weight: float,
        sender_timeout: float,
        deadline: Deadline,
    ) -> None:
        self.num_parts = container.num_parts_by_peer[local_index]
        #: senders that were left out, and why
        self.failed_senders: dict[PeerID, str] = {}
        self._container, self._group_id, self._peer_ids = container, group_id, tuple(peer_ids)
        self._local, self._clients, self._weight = local_index, clients, weight
        self._sender_timeout, self._deadline = sender_timeout, deadline
        self._sizes = [part.size for part in container.parts_by_peer[local_index]]
        self._reducer = TensorPartReducer[TensorMessage | None, ReducedPart](
            [torch.Size([size]) for size in self._sizes], len(peer_ids), self._reduce
        )
        self._ahead = max(2, min(_MAX_AHEAD, _AHEAD_BYTES // (DEFAULT_PART_SIZE_BYTES * len(peer_ids))))
        self._begun: set[int] = {local_index}
        self._readers = TaskScope("parts of other peers")
        self._ended: averaging_pb2.MessageCode.ValueType | None = None
        self._serving = 0
        self._idle = asyncio.Event()
        self._idle.set()

    # -- this peer's own part -----------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Contribute the local values and reduce all parts; ends when the last one is reduced.

        :raises AllreduceException: if `close` comes before
        """
        for index in range(self.num_parts):
            self._reducer.deliver(self._local, index, None, self._weight)
        timer = asyncio.get_running_loop().call_later(self._sender_timeout, self._ban_absent)
        try:
            async with asyncio.TaskGroup() as group:
                for first in range(min(PARALLEL_PARTS, self.num_parts)):
                    group.create_task(self._reduce_every(first))
        finally:
            timer.cancel()

    async def _reduce_every(self, first: int) -> None:
        for index in range(first, self.num_parts, PARALLEL_PARTS):
            reduced = await self._reduced(index)
            if reduced.average is not None:
                write = self._container.register_processed_part
                await self._container.run_for_part(self._local, index, write, reduced.average, False)
                reduced.average = None

    def _reduce(self, index: int, inputs: Mapping[int, tuple[TensorMessage | None, float]]) -> ReducedPart:
        return reduce_part(self._container.local_part(self._local, index), self._local, inputs)

    async def _reduced(self, index: int) -> ReducedPart:
        reduced = await self._reducer.result(index)
        for sender, reason in reduced.rejected.items():
            self._reducer.on_sender_failed(sender)
            self._record(sender, f"part {index}: {reason}")
        return reduced

    # -- other senders ------------------------------------------------------------------------------------------------

    @property
    def contributors(self) -> tuple[PeerID, ...]:
        """The members that no reduced part is known to lack."""
        return tuple(peer for peer in self._peer_ids if peer not in self.failed_senders)

    @property
    def awaited(self) -> tuple[PeerID, ...]:
        """The members of which parts are still to come."""
        ledger = self._reducer.ledger
        return tuple(
            peer
            for sender, peer in enumerate(self._peer_ids)
            if sender not in ledger.banned and ledger.delivered[sender] < self.num_parts
        )

    def ban(self, sender: int, reason: str) -> None:
        """Go on without a sender, unless all its parts are here."""
        if self._ended is None and self._reducer.on_sender_failed(sender):
            self._record(sender, reason)

    def ban_if_absent(self, sender: int, reason: str) -> None:
        """Go on without a sender that has not begun."""
        if sender not in self._begun:
            self.ban(sender, reason)

    def _ban_absent(self) -> None:
        for sender in range(len(self._peer_ids)):
            self.ban_if_absent(sender, f"sent nothing for {self._sender_timeout:g} s")

    def _record(self, sender: int, reason: str) -> None:
        if self.failed_senders.setdefault(self._peer_ids[sender], reason) is reason:
            logger.debug("averaging goes on without %s: %s", self._peer_ids[sender], reason)

    async def serve(self, stream: Messages, remote_id: PeerID) -> Answers:
        """Answer the call of another member.

        :raises ProtocolViolation: if ``remote_id`` is no other member of the group
        """
        if remote_id not in self._peer_ids or remote_id == self._peer_ids[self._local]:
            raise ProtocolViolation(f"{remote_id} is not a sender in this group")
        sender = self._peer_ids.index(remote_id)
        self._serving += 1
        self._idle.clear()
        try:
            first = await self._receive(stream) or PartMessage()
            if (refusal := self._refusal(sender, first)) is not None:
                yield PartMessage(code=refusal)
                return
            self._begun.add(sender)
            # numbers of parts that are here, then None; slots bound how many of them wait
            arrived: asyncio.Queue[int | None] = asyncio.Queue()
            slots = asyncio.Semaphore(self._ahead)
            reader = self._readers.start(self._read(sender, first, stream, arrived, slots))
            try:
                async with aclosing(self._answers(sender, arrived, slots)) as answers:
                    async for answer in answers:
                        yield answer
                if reader.done():
                    await self._await_end(stream)
            finally:
                await cancel_and_wait(reader)
                self.ban(sender, "its call ended")
        finally:
            self._serving -= 1
            if not self._serving:
                self._idle.set()

    async def _await_end(self, stream: Messages) -> None:
        """Let a sender that has all its answers end its side first: a peer of hivemind 1.1 whose call is over before it
        has sent its end marker drops the answers that it has not read yet, without an error."""
        with suppress(HivemindError, OSError):
            await with_deadline(anext(stream, None), Deadline.after(_END_SECONDS).earlier(self._deadline), "an end")

    def _refusal(self, sender: int, first: PartMessage) -> averaging_pb2.MessageCode.ValueType | None:
        if first.group_id != self._group_id:
            return averaging_pb2.BAD_GROUP_ID
        if self._ended is not None:
            return self._ended
        if not self.num_parts or sender in self._begun:
            return averaging_pb2.PROTOCOL_VIOLATION
        if sender in self._reducer.ledger.banned:
            return averaging_pb2.INTERNAL_ERROR
        if first.code != averaging_pb2.PART_FOR_AVERAGING:
            self.ban(sender, f"began with {code_name(first.code)}")
            return averaging_pb2.INTERNAL_ERROR
        return None

    async def _read(
        self,
        sender: int,
        first: PartMessage,
        stream: Messages,
        arrived: asyncio.Queue[int | None],
        slots: asyncio.Semaphore,
    ) -> None:
        """Take the parts of one sender; what is wrong with them is its failure, not the round's."""
        message: PartMessage | None = first
        try:
            for index in range(self.num_parts):
                await slots.acquire()
                if index:
                    message = await self._receive(stream)
                if message is None:
                    raise ProtocolViolation(f"ended after {index} of {self.num_parts} parts")
                self._check(message, self._sizes[index])
                self._reducer.deliver(sender, index, message.tensor_part, message.weight)
                arrived.put_nowait(index)
        except BannedException:
            logger.debug("%s went on sending after it was excluded", self._peer_ids[sender])
        except (HivemindError, OSError) as error:
            self.ban(sender, f"{type(error).__name__}: {error}")
        finally:
            arrived.put_nowait(None)

    async def _receive(self, stream: Messages) -> PartMessage | None:
        deadline = Deadline.after(self._sender_timeout).earlier(self._deadline)
        return await with_deadline(anext(stream, None), deadline, "parts of a sender")

    def _check(self, message: PartMessage, size: int) -> None:
        if not 0 <= message.weight <= MAX_WEIGHT:
            raise ProtocolViolation(f"weight: got {message.weight}, allowed: 0 to {MAX_WEIGHT:g}")
        shape, _ = read_header(message.tensor_part)
        if shape != (size,):
            raise ProtocolViolation(f"a part of shape {tuple(shape)[:8]}, expected ({size},)")

    async def _answers(self, sender: int, arrived: asyncio.Queue[int | None], slots: asyncio.Semaphore) -> Answers:
        held: list[PartMessage] = []
        while (index := await with_deadline(arrived.get(), self._deadline, "parts of a sender")) is not None:
            try:
                reduced = await with_deadline(self._reduced(index), self._deadline, "parts of other senders")
            except AllreduceException:
                break
            answer = reduced.answers.pop(sender, None)
            if answer is None:
                break
            slots.release()
            if sender in self._clients and index + 1 < self.num_parts:
                held.append(answer)
                continue
            for each in (*held, answer):
                yield each
            if index + 1 == self.num_parts:
                return
        yield PartMessage(code=self._ended or averaging_pb2.INTERNAL_ERROR)

    # -- the end ------------------------------------------------------------------------------------------------------

    async def linger(self, seconds: float) -> None:
        """Wait until the answers under way have been taken, but no longer than ``seconds``."""
        deadline = Deadline.after(seconds).earlier(self._deadline)
        with suppress(DeadlineExceeded):
            await with_deadline(self._idle.wait(), deadline, "answers to other members")

    async def close(self, code: averaging_pb2.MessageCode.ValueType = averaging_pb2.INTERNAL_ERROR) -> None:
        """Take no more parts: who still sends, or calls later, is told ``code``. Idempotent."""
        if self._ended is None:
            self._ended = code
        self._reducer.finalize()
        await self._readers.close()


def code_name(code: int) -> str:
    """The name of a message code, or its number if it has none."""
    names = averaging_pb2.MessageCode
    return names.Name(code) if code in names.values() else str(code)  # type: ignore[arg-type]
