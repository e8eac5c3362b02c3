"""Matchmaking: how peers that want to average find each other and agree on a group (hivemind 1.1 wire format).

A search does three things at once: it *declares* itself under the group key and leads those that ask to join, it
*watches* the DHT for others, and it *follows* those that come before it (`group_state.leads`). Whatever happens first
decides: a leader sends the group, or its own group is ready. Decisions are in `group_state`, whom to wait for in
`attendance`, whom to ask in `leaders`; this module feeds them.

No lock is held while another peer is waited for: a request to join is answered at once, also while this peer itself
waits for an answer, so that requests in a circle end with the first answer instead of a timeout.
"""

from __future__ import annotations

import asyncio
import math
import os
import random
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import TypeVar

from hivemind.aio import TaskScope, with_deadline
from hivemind.averaging.attendance import Attendance, SwarmView
from hivemind.averaging.changes import Changes
from hivemind.averaging.config import AveragerOptions
from hivemind.averaging.control import StepControl
from hivemind.averaging.gather import unpack_gather
from hivemind.averaging.group import GroupInfo
from hivemind.averaging.group_key import GroupKeyManager
from hivemind.averaging.group_state import (
    Action,
    Answer,
    JoinView,
    Refusal,
    Verdict,
    begin_decision,
    check_join,
    on_answer,
)
from hivemind.averaging.leaders import Candidate, PotentialLeaders
from hivemind.clock import Deadline, DHTExpiration, get_dht_time
from hivemind.errors import (
    ConfigError,
    DeadlineExceeded,
    HivemindError,
    MatchmakingException,
    P2PDaemonError,
    P2PHandlerError,
    ProtocolViolation,
    SerializationError,
)
from hivemind.identity import PeerID
from hivemind.log import get_logger
from hivemind.p2p import P2P, P2PContext, ServicerBase
from hivemind.proto import averaging_pb2

__all__ = ["Matchmaking"]

logger = get_logger(__name__)

Code = averaging_pb2.MessageCode
Found = TypeVar("Found")
#: A leader's messages.
Answers = AsyncGenerator[averaging_pb2.MessageFromLeader, None]

_GROUP_ID_BYTES = 20
#: A group as a follower takes it from its leader: bounds on what is allocated for it.
_MAX_GROUP_ID_BYTES = 64
_MAX_MEMBERS = 4096
#: Seconds between two looks at the group key: short at first, for peers that arrive together.
_FIRST_LOOK, _LAST_LOOK = 0.05, 1.0
#: Seconds between two looks at who is alive under the prefix.
_DECLARED_LOOK = 3.0
#: Seconds for one request to the DHT.
_DHT_SECONDS = 10.0
#: What a peer's fault, or the way to it, may raise.
_PEER_FAULTS = (P2PDaemonError, P2PHandlerError, DeadlineExceeded, SerializationError, ProtocolViolation)


@dataclass
class _Follower:
    """One that this peer has accepted; ``outcome`` is the last message to it."""

    gather: bytes
    outcome: asyncio.Future[averaging_pb2.MessageFromLeader]


@dataclass
class _Search:
    """The state of one search for a group. Owned by the network loop."""

    control: StepControl
    deadline: Deadline
    leaders: PotentialLeaders
    group: asyncio.Future[GroupInfo]
    key: str
    changes: Changes = field(default_factory=Changes)
    #: up to when peers are waited for; `declared` is the same unless the DHT wants a later time than before
    window_end: DHTExpiration = 0.0
    declared: DHTExpiration | None = None
    #: whether the DHT has taken (or refused) the declaration
    stored: bool = False
    followers: dict[PeerID, _Follower] = field(default_factory=dict)
    #: the peer that has accepted this one
    leader: PeerID | None = None
    looking: Mapping[PeerID, DHTExpiration] = field(default_factory=dict)
    #: None before the DHT has been asked
    alive: Mapping[PeerID, DHTExpiration] | None = None
    last_verdict: Verdict | None = None

    def disband(self, suggested: PeerID | None) -> None:
        """Send all followers away."""
        message = averaging_pb2.MessageFromLeader(code=Code.GROUP_DISBANDED)
        if suggested is not None:
            message.suggested_leader = suggested.to_bytes()
        followers, self.followers = self.followers, {}
        for follower in followers.values():
            if not follower.outcome.done():
                follower.outcome.set_result(message)


class Matchmaking:
    """Finds groups for one averager, one search at a time. Owned by the network loop.

    :param servicer_type: the class whose name is on the wire
    :param keys: declares this peer under the group key
    :param attendance: remembers who comes
    :param alive: asks the DHT who is alive under the prefix: ``{peer: expiration of its declaration}``
    :param schema_hash: peers with another one have other tensors
    :param client_mode: this peer only follows
    :param on_group: called with each group and its step's deadline, before any member can know that this peer is in it
    :param background: owner of what may end after a search: retracting its declaration
    """

    def __init__(
        self,
        *,
        p2p: P2P,
        servicer_type: type[ServicerBase],
        keys: GroupKeyManager,
        attendance: Attendance,
        alive: Callable[[], Awaitable[Mapping[PeerID, DHTExpiration]]],
        schema_hash: bytes,
        options: AveragerOptions,
        client_mode: bool,
        on_group: Callable[[GroupInfo, Deadline], None],
        background: TaskScope,
    ) -> None:
        self._p2p = p2p
        self._own = p2p.peer_id
        self._servicer_type = servicer_type
        self._keys = keys
        self._attendance = attendance
        self._alive = alive
        self._schema_hash = schema_hash
        self._options = options
        self._client_mode = client_mode
        self._on_group = on_group
        self._background = background
        self._turn = asyncio.Lock()
        self._search: _Search | None = None
        self._has_been_in_a_group = False
        #: what the DHT said during the last search that found a group
        self.last_view = SwarmView({}, None)

    @property
    def is_looking(self) -> bool:
        """Whether a search runs and has no group yet."""
        return self._search is not None and not self._search.group.done()

    async def look_for_group(self, control: StepControl, deadline: Deadline) -> GroupInfo:
        """Find a group.

        :raises MatchmakingException: if there is none by the deadline; says who was missing
        """
        try:
            await with_deadline(self._turn.acquire(), deadline, "the search of an earlier step")
        except DeadlineExceeded as error:
            raise MatchmakingException(str(error)) from None
        loop = asyncio.get_running_loop()
        search = self._search = _Search(
            control, deadline, PotentialLeaders(self._own), loop.create_future(), self._keys.current_key
        )
        try:
            return await with_deadline(self._run(search), deadline, "looking for a group")
        except DeadlineExceeded:
            raise MatchmakingException(self._why_no_group(search)) from None
        finally:
            self._search = None
            self._turn.release()
            search.disband(None)
            search.group.cancel()
            if search.declared is not None:
                self._retract(search.key, search.declared)

    async def _run(self, search: _Search) -> GroupInfo:
        jobs = [self._follow(search), self._watch_looking(search), self._watch_alive(search)]
        if not self._client_mode:
            jobs.append(self._lead(search))
        async with asyncio.TaskGroup() as tasks:
            running = [tasks.create_task(job) for job in jobs]
            try:
                # a group that is known stays known: only the deadline and the user end the search without it
                return await search.group
            finally:
                for task in running:
                    task.cancel()

    def _why_no_group(self, search: _Search) -> str:
        verdict = search.last_verdict
        missing = ", ".join(map(str, sorted(verdict.missing)[:5])) if verdict is not None else ""
        reason = verdict.reason.value if verdict is not None else "nobody accepted this peer"
        text = f"no group under {search.key} in time: {reason}"
        return f"{text}; missing: {missing}" if missing else text

    # -- lead ------------------------------------------------------------------------------------------------------

    def _next_window(self, search: _Search) -> DHTExpiration:
        earliest = get_dht_time() + self._options.min_matchmaking_time
        return min(max(search.control.scheduled_time, earliest), search.control.deadline)

    async def _lead(self, search: _Search) -> None:
        while True:
            await self._declare(search)
            verdict = await self._decided(search)
            if verdict.action is Action.BEGIN:
                self._begin(search, verdict)
                return
            search.disband(None)
            if search.window_end >= search.control.deadline:
                return  # there is no later time to declare; what is left of the search is to follow others
            await self._keys.update_key_on_not_enough_peers()

    async def _declare(self, search: _Search) -> None:
        """Say under the group key when this peer will begin; requests to join are taken from now on."""
        if search.key != self._keys.current_key:
            if search.declared is not None:
                self._retract(search.key, search.declared)
            search.key, search.looking = self._keys.current_key, {}
        search.window_end = self._next_window(search)
        search.declared = self._keys.declarable(search.key, search.window_end)
        try:
            bound = Deadline.after(_DHT_SECONDS).earlier(search.deadline)
            stored = self._keys.declare_averager(search.key, search.declared)
            if not await with_deadline(stored, bound, "declaring in the DHT"):
                logger.debug("no node of the DHT took the declaration under %s", search.key)
        except HivemindError as error:
            logger.debug("declaring under %s: %s", search.key, error)
        search.stored = True
        search.changes.notify()

    def _retract(self, key: str, declared: DHTExpiration) -> None:
        """Take the declaration back; nobody needs to wait for that."""

        async def retract() -> None:
            retracted = self._keys.retract_averager(key, declared)
            await with_deadline(retracted, Deadline.after(_DHT_SECONDS), "retracting in the DHT")

        self._background.start(retract(), name="retract from group key")

    async def _decided(self, search: _Search) -> Verdict:
        while True:
            verdict = search.last_verdict = self._verdict(search)
            if verdict.action is not Action.WAIT:
                return verdict
            left = search.window_end - get_dht_time()
            # while another peer leads this one, its declared time may pass
            await search.changes.wait(left if search.leader is None else None)

    def _verdict(self, search: _Search) -> Verdict:
        now, known = get_dht_time(), search.control.known_peers
        size = known - self._attendance.absentees(now) if isinstance(known, int) else None
        if size is None and not self._has_been_in_a_group:
            # who sets a target may know of peers that never declare themselves: it counts until a group is smaller
            size = self._options.target_group_size
        return begin_decision(
            now=now,
            window_end=search.window_end,
            followers=search.followers.keys(),
            follows=search.leader,
            expected=self._expected(search, now),
            expected_size=size,
            target=self._options.target_group_size,
            minimum=self._options.min_group_size,
        )

    def _expected(self, search: _Search, now: DHTExpiration) -> frozenset[PeerID] | None:
        known = search.control.known_peers
        hint = frozenset[PeerID]() if isinstance(known, int) else known
        elsewhere = search.leaders.elsewhere(search.looking) - search.followers.keys()
        return self._attendance.expected(self._view(search), hint, elsewhere, now)

    def _view(self, search: _Search) -> SwarmView:
        # in a grid of keys the peers under the prefix belong to many groups: nobody knows who comes to this one
        return SwarmView(search.looking, search.alive if not self._keys.group_bits else None)

    def _begin(self, search: _Search, verdict: Verdict) -> None:
        """Fix the group and send it to the followers."""
        gathered = {self._own: search.control.data_for_gather}
        gathered.update((peer, follower.gather) for peer, follower in search.followers.items())
        order = list(gathered)
        random.shuffle(order)
        group = GroupInfo(os.urandom(_GROUP_ID_BYTES), tuple(order), tuple(gathered[peer] for peer in order))
        message = averaging_pb2.MessageFromLeader(
            code=Code.BEGIN_ALLREDUCE,
            group_id=group.group_id,
            ordered_peer_ids=[peer.to_bytes() for peer in order],
            gathered=list(group.gathered),
        )
        logger.debug("leading %d peers under %s: %s", len(order), search.key, verdict.reason.value)
        self._assembled(search, group)
        followers, search.followers = search.followers, {}
        for follower in followers.values():
            if not follower.outcome.done():
                follower.outcome.set_result(message)

    def _assembled(self, search: _Search, group: GroupInfo) -> None:
        """The search is over. Remembers who came and who did not."""
        now = get_dht_time()
        self.last_view = self._view(search)
        expected = self._expected(search, now) or frozenset()
        target = self._options.target_group_size
        self._attendance.showed_up(group.peer_ids, now)
        if target is None or len(group.peer_ids) < target:
            self._attendance.stayed_away(expected - frozenset(group.peer_ids), self.last_view, now)
        self._has_been_in_a_group = True
        self._on_group(group, search.control.as_deadline())
        search.group.set_result(group)

    async def rpc_join_group(self, request: averaging_pb2.JoinRequest, context: P2PContext) -> Answers:
        """Answer one that asks to join."""
        search, sender = self._search, context.remote_id
        refusal = self._refusal(search, request, sender)
        if search is None or refusal is not None:
            code = (refusal or Refusal.NOT_LOOKING_FOR_GROUP).value
            answer = averaging_pb2.MessageFromLeader(code=code)
            if search is not None and refusal is Refusal.NOT_A_LEADER and search.leader is not None:
                answer.suggested_leader = search.leader.to_bytes()
            if refusal is Refusal.NOT_LOOKING_FOR_GROUP:
                self._attendance.showed_up([sender], get_dht_time())  # it will want to be in the next group
            yield answer
            return
        follower = _Follower(request.gather, asyncio.get_running_loop().create_future())
        search.followers[sender] = follower
        search.changes.notify()
        try:
            yield averaging_pb2.MessageFromLeader(code=Code.ACCEPTED)
            yield await with_deadline(asyncio.shield(follower.outcome), search.deadline, "the group")
        finally:
            if search.followers.get(sender) is follower:
                del search.followers[sender]
                search.changes.notify()

    def _refusal(self, search: _Search | None, request: averaging_pb2.JoinRequest, sender: PeerID) -> Refusal | None:
        looking = search is not None and not search.group.done()
        view = JoinView(
            own=self._own,
            looking=looking,
            client_mode=self._client_mode,
            schema_hash=self._schema_hash,
            group_key=search.key if search is not None else "",
            declared=search.declared if search is not None else None,
            leader=search.leader if search is not None else None,
            followers=search.followers.keys() if search is not None else frozenset(),
            target=self._options.target_group_size or _MAX_MEMBERS,
        )
        refusal = check_join(view, request, sender)
        if refusal is None:
            try:
                unpack_gather(request.gather)
            except ProtocolViolation as error:
                logger.debug("refused %s: %s", sender, error)
                return Refusal.PROTOCOL_VIOLATION
        return refusal

    # -- watch -----------------------------------------------------------------------------------------------------

    async def _watch_looking(self, search: _Search) -> None:
        """Look who else looks for a group: at once, again when this peer is declared, so that of two that arrive
        together at least one sees the other, and then now and then."""
        pause = _FIRST_LOOK
        await self._look(search)
        while not search.stored and not self._client_mode:
            await search.changes.wait()
        while True:
            if search.leader is None:
                await self._look(search)
            await asyncio.sleep(pause)
            pause = min(2 * pause, _LAST_LOOK)

    async def _look(self, search: _Search) -> None:
        key = search.key
        found = await _ask_dht(self._keys.get_averagers(key))
        if found is not None and key == search.key:
            search.looking = dict(found)
            search.changes.notify()

    async def _watch_alive(self, search: _Search) -> None:
        while True:
            if search.leader is None or search.alive is None:
                found = await _ask_dht(self._alive())
                if found is not None:
                    search.alive = found
                    search.changes.notify()
            await asyncio.sleep(_DECLARED_LOOK if search.alive is not None else _FIRST_LOOK)

    # -- follow ----------------------------------------------------------------------------------------------------

    async def _follow(self, search: _Search) -> None:
        while True:
            now = get_dht_time()
            if self._client_mode and now >= search.window_end:
                search.window_end = self._next_window(search)
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

    async def _ask(self, search: _Search, candidate: Candidate) -> None:
        """Ask ``candidate`` to lead this peer, and stay with it until it sends the group or sends this peer away."""
        expiration = search.declared
        if expiration is None:
            # a client declares nothing: it comes along whenever the leader begins, within its own deadline
            latest = min(candidate.expiration or 0.0, search.control.deadline)
            expiration = max(search.window_end, self._next_window(search), latest)
        request = averaging_pb2.JoinRequest(
            schema_hash=self._schema_hash,
            expiration=expiration,
            client_mode=self._client_mode,
            gather=search.control.data_for_gather,
            group_key=search.key,
        )
        stub = self._servicer_type.get_stub(self._p2p, candidate.peer_id, namespace=self._keys.prefix)
        bound = Deadline.after(self._options.request_timeout).earlier(search.deadline)
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
                self._assembled(search, group)
            return
        if answer is Answer.RETRY:
            search.leaders.retry_later(candidate, get_dht_time())
            return
        logger.debug("%s does not lead this peer: %s", candidate.peer_id, Code.Name(message.code))
        search.leaders.refuse(candidate)
        if answer is Answer.REDIRECT:
            search.leaders.suggest(_peer_id(message.suggested_leader))

    async def _stay(
        self,
        search: _Search,
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
        if not 0 < len(message.ordered_peer_ids) <= _MAX_MEMBERS:
            raise ProtocolViolation(f"a group of {len(message.ordered_peer_ids)} members")
        peers = tuple(_peer_id(data) for data in message.ordered_peer_ids)
        if len(set(peers)) != len(peers) or self._own not in peers or len(message.gathered) != len(peers):
            raise ProtocolViolation("a group with members twice, without this peer, or without the data of each")
        for blob in message.gathered:
            unpack_gather(blob)
        return GroupInfo(message.group_id, peers, tuple(message.gathered))


async def _ask_dht(question: Awaitable[Found]) -> Found | None:
    try:
        return await with_deadline(question, Deadline.after(_DHT_SECONDS), "looking into the DHT")
    except HivemindError as error:
        logger.debug("looking for peers: %s", error)
        return None


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
