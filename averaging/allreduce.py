"""One round of averaging in a group that has been formed: every member ends with the weighted mean of all.

The tensors, taken as one vector, are cut into parts, and each part has one member that reduces it (butterfly
all-reduce, as in Moshpit SGD, 2103.03239). A member streams its copies of each other member's parts there and gets
back, part by part, what to add to them (hivemind 1.1 wire format, "All-reduce").

The tensors are only read. The result stands in fresh buffers, so that a round that fails leaves everything as it was.
Senders that fail are left out and named; a reducer that fails makes the round fail, as nobody can say who has got its
parts: see `decide_outcome`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass

import torch

from hivemind.aio import TaskScope
from hivemind.averaging.aggregation import MAX_WEIGHT, PartAggregator, code_name
from hivemind.averaging.messages import PartMessage
from hivemind.averaging.modes import AveragingMode
from hivemind.averaging.partition import DEFAULT_PART_SIZE_BYTES, TensorPartContainer
from hivemind.clock import Deadline
from hivemind.compression import CompressionBase, CompressionInfo, TensorMessage, codec_for
from hivemind.config import check_seconds
from hivemind.errors import AllreduceException, ConfigError, HivemindError, P2PDaemonError, ProtocolViolation
from hivemind.identity import PeerID
from hivemind.log import get_logger
from hivemind.p2p import P2P, P2PContext, ServicerBase
from hivemind.proto import averaging_pb2

__all__ = ["AllReduceResult", "AllReduceRunner", "decide_outcome"]

logger = get_logger(__name__)

#: Seconds that a finished member stays, at the most, for others to take its last answers.
LINGER_SECONDS = 5.0
#: Seconds for a reducer to end its stream after its last answer.
_GOODBYE_SECONDS = 1.0


@dataclass(frozen=True)
class AllReduceResult:
    """What a round has brought.

    :param averaged: the mean, in fresh buffers; shapes, dtypes and devices of the tensors
    :param contributors: members whose values are in the mean, as far as this member sees: in the parts it has reduced
    :param failed_senders: members whose values lack in some of the parts this member has reduced, and why
    :param failed_reducers: members whose parts have no mean, and why; empty, as such a round fails
    """

    averaged: list[torch.Tensor]
    contributors: tuple[PeerID, ...]
    failed_senders: Mapping[PeerID, str]
    failed_reducers: Mapping[PeerID, str]


def decide_outcome(
    *,
    group_size: int,
    reduces: bool,
    contributors: Sequence[PeerID],
    failed_reducers: Mapping[PeerID, str],
    interruption: str | None = None,
) -> str | None:
    """Whether a round may change the tensors: None, or why not. Pure.

    A reducer that failed fails the round: some members may have got its parts and others not, so that keeping the rest
    would leave the group with different tensors. (Peers of hivemind 1.1 keep the rest; with them in the group nothing
    can be agreed upon, and the round fails here all the same.) A sender that failed only lacks in the mean, alike for
    all. If no other member has contributed, there is no mean.

    :param group_size: number of members
    :param reduces: whether this member has parts of its own, and so knows who has contributed to them
    :param interruption: why the round ended before its time, if it did
    """
    if failed_reducers:
        return "no averages from " + _listed(failed_reducers)
    if interruption is not None:
        return interruption
    if reduces and group_size > 1 and len(contributors) < 2:
        return "no other member of the group has contributed"
    return None


class AllReduceRunner:
    """One round, seen by one member. Owned by one event loop.

    Construct it as soon as the group is known, hand it the calls of `rpc_aggregate_part` that name its group, and await
    `run` once. Calls that come before `run` wait for it. Call `close` if `run` will not be called.

    :param servicer_type: the servicer whose ``rpc_aggregate_part`` the other members answer
    :param prefix: the namespace of that servicer
    :param group_id: names this round
    :param tensors: to be averaged; read, never written. Nobody may change them before `run` has ended
    :param ordered_peer_ids: all members, this one among them, in the order on which all agree
    :param peer_counts: how many elements each member reduces, in any one unit; 0 = none
    :param modes: of the members; only this peer's own matters: an AUX member's tensors have weight 0
    :param weight: of the own tensors, from 0 to 1e18
    :param compression: how parts travel; the same for all members, as ``part_size_bytes`` is
    :param sender_timeout: seconds of silence after which a sender is left out
    :param reducer_timeout: seconds without progress after which a reducer counts as failed; more than
        ``sender_timeout``, as reducers wait that long for others
    :param deadline: of the whole round
    :raises ConfigError: if an argument is wrong
    """

    def __init__(  # noqa: PLR0913 - all by keyword, most of them names of hivemind 1.1
        self,
        *,
        p2p: P2P,
        servicer_type: type[ServicerBase],
        prefix: str | None,
        group_id: bytes,
        tensors: Sequence[torch.Tensor],
        ordered_peer_ids: Sequence[PeerID],
        peer_counts: Sequence[int],
        sender_timeout: float,
        reducer_timeout: float,
        deadline: Deadline,
        modes: Sequence[AveragingMode] | None = None,
        weight: float = 1.0,
        compression: CompressionBase | None = None,
        tensor_infos: Sequence[CompressionInfo] | None = None,
        part_size_bytes: int = DEFAULT_PART_SIZE_BYTES,
    ) -> None:
        _check_group(p2p.peer_id, ordered_peer_ids, peer_counts, modes)
        check_seconds("sender_timeout", sender_timeout)
        check_seconds("reducer_timeout", reducer_timeout)
        if reducer_timeout <= sender_timeout:
            raise ConfigError("reducer_timeout", reducer_timeout, f"more than sender_timeout, {sender_timeout}")
        if not 0 <= weight <= MAX_WEIGHT:
            raise ConfigError("weight", weight, f"a number from 0 to {MAX_WEIGHT:g}")
        self.group_id = group_id
        self.peer_ids = tuple(ordered_peer_ids)
        #: reducers that failed so far, and why
        self.failed_reducers: dict[PeerID, str] = {}
        self._p2p, self._servicer_type, self._prefix = p2p, servicer_type, prefix
        self._local = self.peer_ids.index(p2p.peer_id)
        self._is_client = not peer_counts[self._local]
        self._weight = 0.0 if modes is not None and modes[self._local] is AveragingMode.AUX else float(weight)
        self._sender_timeout, self._reducer_timeout, self._deadline = sender_timeout, reducer_timeout, deadline
        self._container = TensorPartContainer(tensors, peer_counts, compression, part_size_bytes, tensor_infos)
        self._aggregator = PartAggregator(
            self._container,
            group_id=group_id,
            peer_ids=self.peer_ids,
            local_index=self._local,
            clients=frozenset(index for index, count in enumerate(peer_counts) if count == 0),
            weight=self._weight,
            sender_timeout=sender_timeout,
            deadline=deadline,
        )
        self._encoders = TaskScope("encoding of parts")
        self._watch: asyncio.Timeout | None = None
        self._interruption: str | None = None
        self._running = False
        #: reducers whose answers are not all here
        self._pending: set[int] = set()

    @property
    def failed_senders(self) -> Mapping[PeerID, str]:
        """Senders that were left out so far, and why."""
        return self._aggregator.failed_senders

    async def run(self) -> AllReduceResult:
        """Exchange parts with the group; call it once.

        :raises AllreduceException: if the round failed; the text says why, and the tensors are as they were. That may
            be late: reducing for others goes on as long as it can
        """
        self._running = True
        try:
            completed = await self._exchange()
            failure = decide_outcome(
                group_size=len(self.peer_ids),
                reduces=self._aggregator.num_parts > 0,
                contributors=self._aggregator.contributors,
                failed_reducers=self.failed_reducers,
                interruption=None if completed else self._interruption or self._overdue(),
            )
            if completed:
                await self._aggregator.linger(min(LINGER_SECONDS, self._sender_timeout))
        finally:
            self._running = False
            await self._end()
        if failure is not None:
            raise AllreduceException(f"averaging in a group of {len(self.peer_ids)} failed: {failure}")
        return AllReduceResult(self._container.averaged, self._aggregator.contributors, dict(self.failed_senders), {})

    async def rpc_aggregate_part(
        self, stream: AsyncIterator[PartMessage], context: P2PContext
    ) -> AsyncGenerator[PartMessage, None]:
        """Answer another member's parts with what to add to them. Close it (`contextlib.aclosing`) if its call ends.

        :param stream: that member's messages, the first one included
        :raises ProtocolViolation: if the caller is not in the group
        """
        async with aclosing(self._aggregator.serve(stream, context.remote_id)) as answers:
            async for answer in answers:
                yield answer

    def cancel(self, reason: str = "cancelled") -> None:
        """End the round: `run` raises with ``reason``, and the other members are told. Idempotent."""
        if self._interruption is None:
            self._interruption = reason
            if self._watch is not None:
                self._watch.reschedule(asyncio.get_running_loop().time())

    async def close(self) -> None:
        """Take no more calls; a `run` under way is cancelled and ends by itself. Idempotent."""
        if self._running:
            self.cancel("the averager is shutting down")
        else:
            await self._end()

    async def _end(self) -> None:
        cancelled = self._interruption is not None
        await self._aggregator.close(averaging_pb2.CANCELLED if cancelled else averaging_pb2.INTERNAL_ERROR)
        await self._encoders.close()

    def _overdue(self) -> str:
        text = "it was not done in time"
        if awaited := self._aggregator.awaited:
            text += f"; awaited parts from {', '.join(map(str, awaited))}"
        if self._pending:
            text += f"; awaited averages from {', '.join(str(self.peer_ids[reducer]) for reducer in self._pending)}"
        return text

    async def _exchange(self) -> bool:
        """Reduce and be reduced; False if the deadline or `cancel` came first."""
        self._watch = watch = asyncio.timeout(self._deadline.timeout())
        try:
            async with watch:
                if self._interruption is not None:
                    return False
                async with asyncio.TaskGroup() as group:
                    group.create_task(self._aggregator.run())
                    for reducer, num_parts in enumerate(self._container.num_parts_by_peer):
                        if reducer != self._local and num_parts:
                            group.create_task(self._exchange_with(reducer))
        except TimeoutError:
            if not watch.expired():
                raise
            return False
        return True

    async def _exchange_with(self, reducer: int) -> None:
        """Have one member reduce its parts; whatever it does wrong is its failure, not this member's."""
        peer, loop = self.peer_ids[reducer], asyncio.get_running_loop()
        self._pending.add(reducer)
        try:
            async with asyncio.timeout(self._reducer_timeout) as watch:

                def progress() -> None:
                    watch.reschedule(loop.time() + self._reducer_timeout)

                stub = self._servicer_type.get_stub(self._p2p, peer, namespace=self._prefix)
                answered = asyncio.Event()
                parts = self._parts_for(reducer, progress, answered)
                async with aclosing(await stub.rpc_aggregate_part(parts)) as answers:
                    await self._take_answers(reducer, answers, progress, answered)
        except (HivemindError, TimeoutError, OSError) as error:
            silent = isinstance(error, TimeoutError) and not isinstance(error, HivemindError)
            reason = f"no progress for {self._reducer_timeout:g} s" if silent else f"{type(error).__name__}: {error}"
            self.failed_reducers[peer] = reason
            self._container.register_failed_reducer(reducer)
            logger.debug("no averages from %s: %s", peer, reason)
            if isinstance(error, P2PDaemonError):
                # most likely it is gone: nobody needs to wait out the sender's timeout for its parts here
                self._aggregator.ban_if_absent(reducer, reason)
        self._pending.discard(reducer)

    async def _parts_for(
        self, reducer: int, progress: Callable[[], None], answered: asyncio.Event
    ) -> AsyncIterator[PartMessage]:
        """The parts, in order. The stream of them ends once all are ``answered``: a reducer of hivemind 1.1 that has
        given its last answer when the end marker comes resets the stream, and with it answers that are under way. A
        client's answers come after that marker only."""
        count = self._container.num_parts_by_peer[reducer]
        ahead: list[asyncio.Task[PartMessage]] = []
        for index in range(count):
            while len(ahead) <= self._container.prefetch and index + len(ahead) < count:
                work = self._container.run_for_part(reducer, index + len(ahead), self._pack)
                ahead.append(self._encoders.start(work))
            message = await ahead.pop(0)
            progress()
            yield message
            progress()
        if not self._is_client:
            await answered.wait()

    def _pack(self, reducer: int, index: int) -> PartMessage:
        header, buffer = self._container.encode_buffer(reducer, index)
        if index:
            return PartMessage.pack(header, buffer, weight=self._weight)
        code = averaging_pb2.PART_FOR_AVERAGING
        return PartMessage.pack(header, buffer, code=code, group_id=self.group_id, weight=self._weight)

    async def _take_answers(
        self,
        reducer: int,
        answers: AsyncIterator[PartMessage],
        progress: Callable[[], None],
        answered: asyncio.Event,
    ) -> None:
        count = self._container.num_parts_by_peer[reducer]
        for index in range(count):
            answer = await anext(answers, None)
            if answer is None:
                raise ProtocolViolation(f"{index} answers to {count} parts")
            if answer.code != averaging_pb2.AVERAGED_PART:
                raise ProtocolViolation(f"answered part {index} of {count} with {code_name(answer.code)}")
            await self._container.run_for_part(reducer, index, self._register, answer.tensor_part)
            progress()
        answered.set()
        with suppress(TimeoutError, HivemindError):
            async with asyncio.timeout(_GOODBYE_SECONDS):
                await anext(answers, None)

    def _register(self, reducer: int, index: int, answer: TensorMessage) -> None:
        device = self._container.local_part(reducer, index).device
        delta = codec_for(answer.compression).extract(answer, device)
        self._container.register_processed_part(reducer, index, delta)


def _check_group(
    local: PeerID, peer_ids: Sequence[PeerID], counts: Sequence[int], modes: Sequence[AveragingMode] | None
) -> None:
    if len(set(peer_ids)) != len(peer_ids) or local not in peer_ids:
        raise ConfigError("ordered_peer_ids", list(map(str, peer_ids)), f"different peers, {local} among them")
    if len(counts) != len(peer_ids):
        raise ConfigError("peer_counts", list(counts), f"one count for each of {len(peer_ids)} peers")
    if modes is None:
        return
    if len(modes) != len(peer_ids):
        raise ConfigError("modes", list(modes), f"one mode for each of {len(peer_ids)} peers")
    for mode, count in zip(modes, counts, strict=True):
        if mode is AveragingMode.CLIENT and count:
            raise ConfigError("peer_counts", list(counts), "0 for members in client mode")


def _listed(failures: Mapping[PeerID, str]) -> str:
    return "; ".join(f"{peer} ({reason})" for peer, reason in failures.items())
