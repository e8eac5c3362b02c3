"""What other peers may ask an averager; the names are those of hivemind 1.1."""

from __future__ import annotations

import functools
from collections.abc import AsyncIterator
from contextlib import aclosing

from hivemind.aio import with_deadline
from hivemind.averaging.matchmaking import Matchmaking
from hivemind.averaging.messages import PartMessage
from hivemind.averaging.rounds import Rounds
from hivemind.averaging.state import Donor
from hivemind.clock import Deadline
from hivemind.errors import ProtocolViolation
from hivemind.p2p import Membership, P2PContext, ServicerBase
from hivemind.proto import averaging_pb2

__all__ = ["AveragerServicer", "servicer_named"]

Parts = AsyncIterator[PartMessage]


class AveragerServicer(ServicerBase):
    """Brings each call to its part of the averager. Peers meet only if their servicers have the same class name, so
    each averager registers a class named as its own public class (`servicer_named`).

    :param membership: who may join groups and download the state; parts are taken from members of a group only
    :param first_part_seconds: for the first message of a stream of parts
    """

    def __init__(
        self,
        matchmaking: Matchmaking,
        rounds: Rounds,
        donor: Donor,
        membership: Membership,
        *,
        first_part_seconds: float,
    ) -> None:
        self._matchmaking = matchmaking
        self._rounds = rounds
        self._donor = donor
        self._membership = membership
        self._first_part_seconds = first_part_seconds

    async def rpc_join_group(
        self, request: averaging_pb2.JoinRequest, context: P2PContext
    ) -> AsyncIterator[averaging_pb2.MessageFromLeader]:
        """Lead the caller, or say why not.

        :raises AuthorizationError: if it is no member of the swarm
        """
        await self._membership.check(context.remote_id)
        async with aclosing(self._matchmaking.rpc_join_group(request, context)) as answers:
            async for answer in answers:
                yield answer

    async def rpc_aggregate_part(
        self, stream: AsyncIterator[PartMessage], context: P2PContext
    ) -> AsyncIterator[PartMessage]:
        """Reduce the caller's parts."""
        wait = Deadline.after(self._first_part_seconds)
        try:
            first = await with_deadline(anext(stream), wait, "the first part")
        except StopAsyncIteration:
            raise ProtocolViolation("a stream of parts without a single one") from None
        runner = await self._rounds.runner_of(first.group_id)
        if runner is None:
            yield PartMessage(code=averaging_pb2.BAD_GROUP_ID)
            return
        async with aclosing(runner.rpc_aggregate_part(_with_first(first, stream), context)) as answers:
            async for answer in answers:
                yield answer

    async def rpc_download_state(
        self, request: averaging_pb2.DownloadRequest, context: P2PContext
    ) -> AsyncIterator[averaging_pb2.DownloadData]:
        """Send this peer's state.

        :raises AuthorizationError: if the caller is no member of the swarm
        """
        await self._membership.check(context.remote_id)
        async with aclosing(self._donor.send()) as messages:
            async for message in messages:
                yield message


async def _with_first(first: PartMessage, rest: Parts) -> Parts:
    yield first
    async for part in rest:
        yield part


@functools.cache
def servicer_named(name: str) -> type[AveragerServicer]:
    """The servicer whose class is called ``name`` on the wire."""
    return type(name, (AveragerServicer,), {"__doc__": f"The service of {name}.", "__module__": __name__})
