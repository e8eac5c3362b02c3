"""Matchmaking: how peers that want to average find each other and agree on a group (hivemind 1.1 wire format).

A search does three things at once: it *declares* itself under the group key and leads those that ask to join, it
*watches* the DHT for others, and it *follows* those that come before it (`group_state.leads`). Whatever happens first
decides: a leader sends the group, or its own group is ready. Decisions are in `group_state`, whom to wait for in
`attendance`, whom to ask in `leaders`; this module and `following` feed them.

No lock is held while another peer is waited for: a request to join is answered at once, also while this peer itself
waits for an answer, so that requests in a circle end with the first answer instead of a timeout.
"""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import Awaitable, Callable, Mapping
from typing import TypeVar

from hivemind.aio import TaskScope, with_deadline
from hivemind.averaging.attendance import Attendance, SwarmView
from hivemind.averaging.colleagues import Colleagues
from hivemind.averaging.config import AveragerOptions
from hivemind.averaging.control import StepControl
from hivemind.averaging.following import MAX_MEMBERS, Answers, Following
from hivemind.averaging.gather import unpack_gather
from hivemind.averaging.group import GroupInfo
from hivemind.averaging.group_key import GroupKeyManager
from hivemind.averaging.group_state import Action, JoinView, Refusal, Verdict, begin_decision, check_join
from hivemind.averaging.leaders import PotentialLeaders
from hivemind.averaging.search import Follower, Search
from hivemind.clock import Deadline, DHTExpiration, get_dht_time
from hivemind.errors import DeadlineExceeded, HivemindError, MatchmakingException, ProtocolViolation
from hivemind.identity import PeerID
from hivemind.log import get_logger
from hivemind.p2p import P2PContext
from hivemind.proto import averaging_pb2

__all__ = ["Matchmaking"]

logger = get_logger(__name__)

Code = averaging_pb2.MessageCode
Found = TypeVar("Found")

_GROUP_ID_BYTES = 20
#: Seconds between two looks at the group key: short at first, for peers that arrive together.
_FIRST_LOOK, _LAST_LOOK = 0.05, 1.0
#: Seconds between two looks at who is alive under the prefix.
_DECLARED_LOOK = 3.0
#: Seconds of a declaration that are worth taking it back.
_WORTH_RETRACTING = 0.1
#: Seconds for one request to the DHT.
_DHT_SECONDS = 10.0


class Matchmaking:
    """Finds groups for one averager, one search at a time. Owned by the network loop.

    :param colleagues: whom this peer may follow
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
        colleagues: Colleagues,
        keys: GroupKeyManager,
        attendance: Attendance,
        alive: Callable[[], Awaitable[Mapping[PeerID, DHTExpiration]]],
        schema_hash: bytes,
        options: AveragerOptions,
        client_mode: bool,
        on_group: Callable[[GroupInfo, Deadline], None],
        background: TaskScope,
    ) -> None:
        self._own = colleagues.own
        self._keys = keys
        self._attendance = attendance
        self._alive = alive
        self._schema_hash = schema_hash
        self._options = options
        self._client_mode = client_mode
        self._on_group = on_group
        self._background = background
        self._following = Following(
            colleagues=colleagues,
            keys=keys,
            attendance=attendance,
            schema_hash=schema_hash,
            options=options,
            client_mode=client_mode,
            on_group=self._assembled,
        )
        self._turn = asyncio.Lock()
        self._search: Search | None = None
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
        search = self._search = Search(
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

    async def _run(self, search: Search) -> GroupInfo:
        jobs = [self._following.run(search), self._watch_looking(search), self._watch_alive(search)]
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

    def _why_no_group(self, search: Search) -> str:
        verdict = search.last_verdict
        missing = ", ".join(map(str, sorted(verdict.missing)[:5])) if verdict is not None else ""
        reason = verdict.reason.value if verdict is not None else "nobody accepted this peer"
        text = f"no group under {search.key} in time: {reason}"
        return f"{text}; missing: {missing}" if missing else text

    # -- lead ------------------------------------------------------------------------------------------------------

    async def _lead(self, search: Search) -> None:
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

    async def _declare(self, search: Search) -> None:
        """Say under the group key when this peer will begin; requests to join are taken from now on."""
        if search.key != self._keys.current_key:
            if search.declared is not None:
                self._retract(search.key, search.declared)
            search.key, search.looking = self._keys.current_key, {}
        search.window_end = search.next_window(self._options)
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
        """Take the declaration back, unless it ends by itself; nobody needs to wait for that."""
        if declared - get_dht_time() < _WORTH_RETRACTING:
            return

        async def retract() -> None:
            retracted = self._keys.retract_averager(key, declared)
            await with_deadline(retracted, Deadline.after(_DHT_SECONDS), "retracting in the DHT")

        self._background.start(retract(), name="retract from group key")

    async def _decided(self, search: Search) -> Verdict:
        while True:
            verdict = search.last_verdict = self._verdict(search)
            if verdict.action is not Action.WAIT:
                return verdict
            left = search.window_end - get_dht_time()
            # while another peer leads this one, its declared time may pass
            await search.changes.wait(left if search.leader is None else None)

    def _verdict(self, search: Search) -> Verdict:
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

    def _expected(self, search: Search, now: DHTExpiration) -> frozenset[PeerID] | None:
        known = search.control.known_peers
        hint = frozenset[PeerID]() if isinstance(known, int) else known
        elsewhere = search.leaders.elsewhere(search.looking) - search.followers.keys()
        return self._attendance.expected(self._view(search), hint, elsewhere, now)

    def _view(self, search: Search) -> SwarmView:
        # in a grid of keys the peers under the prefix belong to many groups: nobody knows who comes to this one
        return SwarmView(search.looking, search.alive if not self._keys.group_bits else None)

    def _begin(self, search: Search, verdict: Verdict) -> None:
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

    def _assembled(self, search: Search, group: GroupInfo) -> None:
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
        follower = Follower(request.gather, asyncio.get_running_loop().create_future())
        search.followers[sender] = follower
        search.changes.notify()
        try:
            yield averaging_pb2.MessageFromLeader(code=Code.ACCEPTED)
            yield await with_deadline(asyncio.shield(follower.outcome), search.deadline, "the group")
        finally:
            if search.followers.get(sender) is follower:
                del search.followers[sender]
                search.changes.notify()

    def _refusal(self, search: Search | None, request: averaging_pb2.JoinRequest, sender: PeerID) -> Refusal | None:
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
            target=self._options.target_group_size or MAX_MEMBERS,
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

    async def _watch_looking(self, search: Search) -> None:
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

    async def _look(self, search: Search) -> None:
        key = search.key
        found = await _ask_dht(self._keys.get_averagers(key))
        if found is not None and key == search.key:
            search.looking = dict(found)
            search.changes.notify()

    async def _watch_alive(self, search: Search) -> None:
        while True:
            if search.leader is None or search.alive is None:
                found = await _ask_dht(self._alive())
                if found is not None:
                    search.alive = found
                    search.changes.notify()
            await asyncio.sleep(_DECLARED_LOOK if search.alive is not None else _FIRST_LOOK)


async def _ask_dht(question: Awaitable[Found]) -> Found | None:
    try:
        return await with_deadline(question, Deadline.after(_DHT_SECONDS), "looking into the DHT")
    except HivemindError as error:
        logger.debug("looking for peers: %s", error)
        return None
