"""The follower's side of matchmaking: ask others to lead, one after the other, and stay with the first that accepts."""

from __future__ import annotations

import math
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing

from hivemind.aio import with_deadline
from hivemind.averaging.attendance import Attendance
from hivemind.averaging.colleagues import Colleagues
from hivemind.averaging.config import AveragerOptions
from hivemind.averaging.gather import unpack_gather
from hivemind.averaging.group import GroupInfo
from hivemind.averaging.group_key import GroupKeyManager
from hivemind.averaging.group_state import Answer, on_answer
from hivemind.averaging.leaders import Candidate
from hivemind.averaging.search import Search
from hivemind.clock import Deadline, DHTExpiration, get_dht_time
from hivemind.errors import (
    AuthorizationError,
    ConfigError,
    DeadlineExceeded,
    P2PDaemonError,
    P2PHandlerError,
    ProtocolViolation,
    SerializationError,
)
from hivemind.identity import PeerID
from hivemind.log import get_logger
from hivemind.proto import averaging_pb2

__all__ = ["MAX_MEMBERS", "Answers", "Following"]

logger = get_logger(__name__)

#: A leader's messages.
Answers = AsyncGenerator[averaging_pb2.MessageFromLeader, None]

#: A group as a follower takes it from its leader: bounds on what is allocated for it.
MAX_MEMBERS = 4096
_MAX_GROUP_ID_BYTES = 64
#: What a peer's fault, or the way to it, may raise.
_PEER_FAULTS = (
    P2PDaemonError,
    P2PHandlerError,
    AuthorizationError,
    DeadlineExceeded,
    SerializationError,
    ProtocolViolation,
)


class Following:
    """Asks others to lead. Owned by the network loop; parameters as those of `Matchmaking`.

    :param on_group: called with the group that a leader sends
    """

    def __init__(
        self,
        *,
        colleagues: Colleagues,
        keys: GroupKeyManager,
        attendance: Attendance,
        schema_hash: bytes,
        options: AveragerOptions,
        client_mode: bool,
        on_group: Callable[[Search, GroupInfo], None],
    ) -> None:
        self._colleagues = colleagues
        self._own = colleagues.own
        self._keys = keys
        self._attendance = attendance
        self._schema_hash = schema_hash
        self._options = options
        self._client_mode = client_mode
        self._on_group = on_group

    async def run(self, search: Search) -> None:
        """Ask one after the other, for ever; ends only by cancellation."""
        while True:
            now = get_dht_time()
            if self._client_mode and now >= search.window_end:
                search.window_end = search.next_window(self._options)
                search.key = self._keys.current_key
            declared = math.inf if self._client_mode else search.declared
            doubtful = self._attendance.doubtful(search.looking)
            candidate = None
            if declared is not None:
                candidate = search.leaders.next(search.looking, declared, now, doubtful)
            if candidate is None:
                await search.changes.wait(search.leaders.seconds_to_retry(now))
                continue
            search.leaders.asked(candidate)
            try:
                await self._ask(search, candidate)
            except _PEER_FAULTS as error:
                logger.debug("asked %s to lead: %s: %s", candidate.peer_id, type(error).__name__, error)
                search.leaders.refuse(candidate)
            search.changes.notify()

    async def _ask(self, search: Search, candidate: Candidate) -> None:
        """Ask ``candidate`` to lead this peer, and stay with it until it sends the group or sends this peer away."""
        expiration = search.declared
        if expiration is None:
            # a client declares nothing: it comes along whenever the leader begins, within its own deadline
            latest = min(candidate.expiration or 0.0, search.control.deadline)
            expiration = max(search.window_end, search.next_window(self._options), latest)
        request = averaging_pb2.JoinRequest(
            schema_hash=self._schema_hash,
            expiration=expiration,
            client_mode=self._client_mode,
            gather=search.control.data_for_gather,
            group_key=search.key,
        )
        bound = Deadline.after(self._options.request_timeout).earlier(search.deadline)
        stub = await self._colleagues.meet(candidate.peer_id, bound)
        stream: Answers = await with_deadline(stub.rpc_join_group(request), bound, "asking to join")
        async with aclosing(stream):
            message = await _next_message(stream, bound)
            answer = on_answer(message, accepted=False, own=self._own)
            if answer is Answer.STAY:
                message = await self._stay(search, candidate, stream, expiration)
                answer = on_answer(message, accepted=True, own=self._own)
        if answer is Answer.JOIN:
            group = self._checked_group(message)
            if not search.group.done():
                self._on_group(search, group)
            return
        if answer is Answer.RETRY:
            search.leaders.retry_later(candidate, get_dht_time())
            return
        logger.debug("%s does not lead this peer: %s", candidate.peer_id, averaging_pb2.MessageCode.Name(message.code))
        search.leaders.refuse(candidate)
        if answer is Answer.REDIRECT:
            search.leaders.suggest(_peer_id(message.suggested_leader))

    async def _stay(
        self,
        search: Search,
        candidate: Candidate,
        stream: Answers,
        expiration: DHTExpiration,
    ) -> averaging_pb2.MessageFromLeader:
        """Wait for the group as an accepted follower."""
        search.leader = candidate.peer_id
        search.disband(candidate.peer_id)
        search.changes.notify()
        try:
            until = Deadline.at_dht_time(expiration + self._options.request_timeout)
            return await _next_message(stream, until.earlier(search.deadline))
        finally:
            search.leader = None
            search.changes.notify()

    def _checked_group(self, message: averaging_pb2.MessageFromLeader) -> GroupInfo:
        """
        :raises ProtocolViolation: unless ``message`` describes a group with this peer in it
        """
        if not 0 < len(message.group_id) <= _MAX_GROUP_ID_BYTES:
            raise ProtocolViolation(f"a group id of {len(message.group_id)} bytes")
        if not 0 < len(message.ordered_peer_ids) <= MAX_MEMBERS:
            raise ProtocolViolation(f"a group of {len(message.ordered_peer_ids)} members")
        peers = tuple(_peer_id(data) for data in message.ordered_peer_ids)
        if len(set(peers)) != len(peers) or self._own not in peers or len(message.gathered) != len(peers):
            raise ProtocolViolation("a group with members twice, without this peer, or without the data of each")
        for problem in filter(None, map(self._colleagues.membership.problem_with, set(peers) - {self._own})):
            raise ProtocolViolation(f"a group with a stranger: {problem}")
        for blob in message.gathered:
            unpack_gather(blob)
        return GroupInfo(message.group_id, peers, tuple(message.gathered))


async def _next_message(stream: Answers, deadline: Deadline) -> averaging_pb2.MessageFromLeader:
    """The leader's next message; an empty one if it sends no more."""
    try:
        return await with_deadline(anext(stream), deadline, "the leader's answer")
    except StopAsyncIteration:
        return averaging_pb2.MessageFromLeader()


def _peer_id(data: bytes) -> PeerID:
    try:
        return PeerID(data)
    except ConfigError as error:
        raise ProtocolViolation(f"a peer id of {len(data)} bytes") from error
