"""The averager itself: lives on one event loop, finds groups, averages, shares its state.

`AveragerCore` is what `hivemind.averaging.DecentralizedAverager` runs on the network thread; simulations use it
directly, with the in-memory network and a virtual clock. All of its methods are called on its loop.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from typing import Any

import torch

from hivemind.aio import TaskScope, with_deadline
from hivemind.averaging.attendance import Attendance
from hivemind.averaging.colleagues import Colleagues
from hivemind.averaging.config import AveragerOptions, check_share, step_seconds
from hivemind.averaging.control import AveragingStage, RoundReport, StepControl
from hivemind.averaging.counters import Counters
from hivemind.averaging.directory import Directory
from hivemind.averaging.exchange import Exchange
from hivemind.averaging.gather import pack_gather, unpack_gather
from hivemind.averaging.group_key import DHTStore, GroupKeyManager, check_bits
from hivemind.averaging.matchmaking import Matchmaking
from hivemind.averaging.modes import AveragingMode
from hivemind.averaging.rounds import Rounds
from hivemind.averaging.schema import compute_schema_hash
from hivemind.averaging.servicer import servicer_named
from hivemind.averaging.state import Donor, Downloader, Snapshot, State, donors_in_order, make_snapshot
from hivemind.averaging.tensors import TensorLock, check_compression, check_tensors, copy_tensors
from hivemind.clock import Deadline, DHTExpiration, get_dht_time, monotonic
from hivemind.compression import CompressionInfo
from hivemind.errors import (
    AllreduceException,
    ConfigError,
    DeadlineExceeded,
    HivemindError,
    MatchmakingException,
    SerializationError,
    ValidationError,
)
from hivemind.identity import PeerID
from hivemind.log import get_logger
from hivemind.p2p import P2P, Membership

__all__ = ["AveragerCore", "CurrentState", "Hooks"]

logger = get_logger(__name__)

#: Metadata, tensors and their descriptions (None = nothing more is known of them).
CurrentState = tuple[Any, Sequence[torch.Tensor], Sequence[CompressionInfo] | None]

#: Seconds for a state download that is called without a timeout.
DOWNLOAD_SECONDS = 600.0
#: Seconds in which the first declaration is made before `AveragerCore.start` returns, and the goodbyes before `close`.
_FIRST_DECLARATION, _GOODBYE = 2.0, 0.5
#: Seconds between a failed round and the next attempt: short at first.
_RETRY_PAUSE, _LONGEST_PAUSE = 0.05, 2.0


@dataclass(frozen=True)
class Hooks:
    """What the public class, its subclasses and its DHT decide.

    :param current_state: see `AveragerCore.current_state`
    :param check_state: see `AveragerCore.check_state`
    :param membership: who may take part: that of the DHT, so that a closed DHT makes a closed run
    """

    current_state: Callable[[], CurrentState] | None = None
    check_state: Callable[[Any, Sequence[torch.Tensor], int], None] | None = None
    membership: Membership = field(default_factory=Membership)


class AveragerCore:
    """One averager.

    :param tensors: what is averaged; changed in place, under ``lock``
    :param dht: a DHT node
    :param p2p: the peer that it runs on
    :param name: the class name on the wire; peers with other names do not meet
    :param prefix: text without dots; peers with other prefixes do not meet
    :param client_mode: only call, never be called
    :param lock: around ``tensors``
    :raises ConfigError: on tensors that cannot be averaged
    """

    def __init__(
        self,
        tensors: Iterable[torch.Tensor],
        *,
        dht: DHTStore,
        p2p: P2P,
        prefix: str,
        options: AveragerOptions,
        name: str = "DecentralizedAverager",
        client_mode: bool = False,
        lock: TensorLock | None = None,
        hooks: Hooks | None = None,
    ) -> None:
        self.tensors = check_tensors(tensors)
        check_compression("compression", options.compression, self.tensors, options.tensor_infos)
        self.options = options
        self.prefix = prefix
        self.lock = lock or TensorLock()
        self.client_mode = client_mode
        self.mode = _mode(options, client_mode)
        self.bandwidth = options.bandwidth if not client_mode else None
        self.total_size = sum(tensor.numel() for tensor in self.tensors)
        self.total_bytes = sum(tensor.nbytes for tensor in self.tensors)
        self.schema_hash = compute_schema_hash(self.tensors)
        self.allow_state_sharing = _shares_state(options, self.mode)
        self.state_sharing_priority = 0.0
        #: DHT time of the last average that went into the tensors
        self.last_updated: DHTExpiration = -float("inf")
        self._hooks = hooks or Hooks()
        self._p2p = p2p
        self._servicer_type = servicer_named(name)
        self._counters = Counters(prefix)
        self._started = self._closed = False
        self._steps = TaskScope(f"steps of {prefix}")
        self._loops = TaskScope(f"declarations of {prefix}")
        self._background = TaskScope(f"background of {prefix}")

        self.keys = GroupKeyManager(dht, prefix, options.initial_group_bits, options.target_group_size, own=p2p.peer_id)
        self.attendance = Attendance(p2p.peer_id, period=options.declare_state_period)
        self.directory = Directory(
            dht, prefix, p2p.peer_id, period=options.declare_state_period, priority=self._declared_priority
        )
        self._rounds = Rounds(lambda: self._matchmaking.is_looking, seconds=2 * options.request_timeout)
        colleagues = Colleagues(p2p, self._servicer_type, prefix, self._hooks.membership)
        self._matchmaking = Matchmaking(
            colleagues=colleagues,
            keys=self.keys,
            attendance=self.attendance,
            alive=self._alive,
            schema_hash=self.schema_hash,
            options=options,
            client_mode=client_mode,
            on_group=self._rounds.begin,
            background=self._background,
        )
        self._exchange = Exchange(
            self.tensors,
            self.lock,
            options,
            p2p=p2p,
            servicer_type=self._servicer_type,
            prefix=prefix,
            rounds=self._rounds,
            on_failed=self._on_failed,
        )
        donor = Donor(self._snapshot, lambda: self.allow_state_sharing, options.state_compression)
        chunk_seconds = options.next_chunk_timeout or 15.0
        self._downloader = Downloader(
            colleagues,
            chunk_seconds=chunk_seconds,
            max_bytes=options.max_state_bytes or max(2**30, 16 * self.total_bytes),
        )
        self._servicer = self._servicer_type(
            self._matchmaking, self._rounds, donor, self._hooks.membership, first_part_seconds=chunk_seconds
        )

    @property
    def peer_id(self) -> PeerID:
        """This peer."""
        return self._p2p.peer_id

    # -- life ------------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Answer other peers, and declare this one.

        :raises P2PDaemonError: if another averager of the same name and prefix runs on this peer
        """
        if self.client_mode:
            self._started = True
            return
        await self._servicer.add_p2p_handlers(self._p2p, namespace=self.prefix)
        self._started = True
        self._loops.start(self.directory.keep_declaring())
        if self.allow_state_sharing:
            await self.directory.wait_declared(_FIRST_DECLARATION)

    async def close(self) -> None:
        """Leave: running steps fail, other peers are told. Idempotent, takes less than a second."""
        if self._closed:
            return
        self._closed = True
        await self._loops.close()
        await self._steps.close()
        if not self._started:  # the names may be those of another averager
            await self._background.close()
            return
        if not self.client_mode:
            try:
                await self._servicer.remove_p2p_handlers(self._p2p, namespace=self.prefix)
            except HivemindError as error:  # the daemon has died, and the handlers with it
                logger.debug("while leaving %s: %s", self.prefix, error)
        self._background.start(self.directory.say_goodbye(), name="goodbye")
        await asyncio.wait(list(self._background.tasks), timeout=_GOODBYE)
        await self._background.close()

    # -- steps -----------------------------------------------------------------------------------------------------

    def make_step(
        self,
        *,
        gather: Any = None,
        scheduled_time: DHTExpiration | None = None,
        weight: float | None = None,
        timeout: float | None = None,
        allow_retries: bool = True,
        known_peers: int | Iterable[PeerID] | None = None,
    ) -> StepControl:
        """The control of a new step, for `start_step`; thread-safe. Arguments as `DecentralizedAverager.step`.

        :raises ConfigError: on an argument that makes no sense
        """
        now = get_dht_time()
        scheduled = now if scheduled_time is None else scheduled_time
        if timeout is None:
            deadline = max(now, scheduled) + step_seconds(self.options, self.total_bytes)
        else:
            deadline = now + Deadline.after(timeout).remaining()
        return StepControl(
            scheduled_time=scheduled,
            deadline=deadline,
            allow_retries=allow_retries,
            weight=weight if weight is not None else float(self.mode is not AveragingMode.AUX),
            data_for_gather=pack_gather(self.bandwidth, self.mode, gather),
            known_peers=known_peers,
        )

    def start_step(self, control: StepControl) -> None:
        """Run a step; the control tells its end."""
        if self._closed:
            control.finish(AllreduceException("the averager has been shut down"))
            return
        loop = asyncio.get_running_loop()
        task = self._steps.start(self._run_step(control), name=f"step of {self.prefix}")
        task.add_done_callback(lambda ended: self._finish(ended, control))

        def when_done(future: Any) -> None:
            if future.cancelled() and not loop.is_closed():
                loop.call_soon_threadsafe(task.cancel)

        control.add_done_callback(when_done)

    async def step(self, **arguments: Any) -> Mapping[PeerID, Any]:
        """`make_step`, allow it, run it, and wait for its end."""
        control = self.make_step(**arguments)
        control.allow_allreduce()
        self.start_step(control)
        return await control

    def _finish(self, task: asyncio.Task[Mapping[PeerID, Any]], control: StepControl) -> None:
        if task.cancelled():
            self._counters.cancelled += 1
            if self._closed:
                control.finish(AllreduceException("the averager has been shut down"))
            else:
                control.cancel()
            return
        error = task.exception()
        if error is not None:
            self._counters.failed += 1
        elif control.report is not None:
            self._counters.take(control.report)
        control.finish(error if error is not None else task.result())

    async def _run_step(self, control: StepControl) -> Mapping[PeerID, Any]:
        """Look for groups until a round ends well, or the deadline comes."""
        deadline = control.as_deadline()
        search_until, pause, attempts = deadline, _RETRY_PAUSE, 1
        while True:
            try:
                return await self._attempt(control, search_until, deadline, attempts)
            except MatchmakingException as error:
                raise AllreduceException(f"averaging step failed: could not find a group: {error}") from error
            except (ConfigError, SerializationError) as error:
                raise _as_allreduce(error) from error  # this peer's own fault: the next round would end alike
            except HivemindError as error:
                if not control.allow_retries or deadline.remaining() <= pause:
                    raise _as_allreduce(error) from error
                logger.info("a round under %s failed, trying again: %s", self.prefix, error)
            await asyncio.sleep(pause)
            pause, attempts = min(2 * pause, _LONGEST_PAUSE), attempts + 1
            # those that were in the round come back at once; if nobody does, there is nobody left to average with
            window = self.options.min_matchmaking_time + 2 * self.options.request_timeout
            search_until = Deadline.after(window).earlier(deadline)

    async def _attempt(
        self, control: StepControl, search_until: Deadline, deadline: Deadline, attempts: int
    ) -> Mapping[PeerID, Any]:
        control.enter(AveragingStage.LOOKING_FOR_GROUP)
        started = monotonic()
        group = await self._matchmaking.look_for_group(control, search_until)
        found = monotonic()
        try:
            await self.keys.update_key_on_group_assembled(group)
            members = {peer: unpack_gather(blob) for peer, blob in zip(group.peer_ids, group.gathered, strict=True)}
            control.enter(AveragingStage.AWAITING_TRIGGER)
            try:
                await with_deadline(control.wait_for_trigger(), deadline, "waiting for allow_allreduce()")
            except DeadlineExceeded as error:
                raise AllreduceException(f"averaging step failed: {error}") from None
            control.enter(AveragingStage.RUNNING_ALLREDUCE)
            began = monotonic()
            result = await self._exchange.average(group, members, control.weight, deadline)
            self.last_updated = get_dht_time()
        finally:
            self._rounds.end(group.group_id)
        failed = frozenset(result.failed_senders)
        control.set_report(
            RoundReport(
                group_id=group.group_id,
                members=group.peer_ids,
                contributors=tuple(result.contributors),
                failed=tuple(peer for peer in group.peer_ids if peer in failed),
                attempts=attempts,
                matchmaking_seconds=found - started,
                allreduce_seconds=monotonic() - began,
            )
        )
        return {peer: told.user for peer, told in members.items() if peer not in failed}

    # -- who is there ----------------------------------------------------------------------------------------------

    def _on_failed(self, peers: AbstractSet[PeerID]) -> None:
        """``peers`` broke off in an exchange: they are not waited for before they show signs of life."""
        window = self.options.min_matchmaking_time
        self.attendance.failed(peers, self._matchmaking.last_view, get_dht_time(), window=window)

    def _declared_priority(self) -> float | None:
        return float(self.state_sharing_priority) if self.allow_state_sharing else None

    async def _alive(self) -> Mapping[PeerID, DHTExpiration]:
        roll = await self.directory.fetch()
        for peer, expiration in roll.silent.items():
            self.attendance.departed(peer, expiration)
        return roll.expirations

    def set_bandwidth(self, bandwidth: float | None) -> None:
        """How much to reduce for others from the next group on; thread-safe.

        :raises ConfigError: unless it is a number >= 0 or None
        """
        check_share("bandwidth", bandwidth)
        self.bandwidth = bandwidth

    async def set_group_bits(self, bits: str) -> None:
        """Look for the next groups in the cell ``bits``.

        :raises ConfigError: unless it is text of 0 and 1
        """
        check_bits(bits)
        self.keys.group_bits = bits

    async def get_group_bits(self) -> str:
        """The cell in which this peer looks for its next group."""
        return self.keys.group_bits

    # -- state -----------------------------------------------------------------------------------------------------

    def set_state_sharing(self, allowed: bool) -> None:
        """Answer downloads, or no longer.

        :raises ConfigError: if ``allowed`` in client mode
        """
        if allowed and self.client_mode:
            raise ConfigError("allow_state_sharing", True, "False in client mode: nobody could reach it")
        self.allow_state_sharing = allowed
        self.directory.changes.notify()

    def set_state_sharing_priority(self, priority: float) -> None:
        """Newcomers ask the peer of the highest priority first."""
        self.state_sharing_priority = priority
        self.directory.changes.notify()

    def current_state(self) -> CurrentState:
        """What newcomers get: by default the averaged tensors. Called with the lock held, in a thread of the pool;
        the tensors are copied before the lock is released."""
        if self._hooks.current_state is not None:
            return self._hooks.current_state()
        return {"group_key": self.keys.group_bits}, self.tensors, self.options.tensor_infos

    async def _snapshot(self) -> Snapshot:
        def copy() -> Snapshot:
            state = self.current_state()
            return make_snapshot(state, copy_tensors(state[1]))

        return await self.lock.run(copy)

    async def load_state(self, timeout: float | None = None) -> State | None:
        """Download the state of another peer.

        :param timeout: seconds for all of it; None = 600
        :returns: metadata and CPU tensors; None if no peer gave its state, the log says why
        """
        deadline = Deadline.after(DOWNLOAD_SECONDS if timeout is None else timeout)
        try:
            roll = await with_deadline(self.directory.fetch(), deadline, "asking the DHT for donors")
        except HivemindError as error:
            logger.warning("no state downloaded: %s", error)
            return None
        expected = await self.lock.run(lambda: len(self.current_state()[1]))

        check = functools.partial(self.check_state, expected=expected)
        return await self._downloader.load(donors_in_order(roll), deadline, check)

    def check_state(self, metadata: Any, tensors: Sequence[torch.Tensor], expected: int) -> None:
        """Whether this peer can use a downloaded state; if not, the next donor is asked.

        :param expected: the number of tensors in its own state
        :raises ValidationError: if it cannot
        """
        if self._hooks.check_state is not None:
            self._hooks.check_state(metadata, tensors, expected)
        elif len(tensors) != expected:
            raise ValidationError(f"a state of {len(tensors)} tensors, expected {expected}")


def _mode(options: AveragerOptions, client_mode: bool) -> AveragingMode:
    if options.auxiliary:
        if client_mode:
            raise ConfigError("auxiliary", True, "False in client mode: nobody could reach a peer that only reduces")
        return AveragingMode.AUX
    return AveragingMode.CLIENT if client_mode else AveragingMode.NODE


def _shares_state(options: AveragerOptions, mode: AveragingMode) -> bool:
    if options.allow_state_sharing is None:
        return mode is AveragingMode.NODE
    if options.allow_state_sharing and mode is AveragingMode.CLIENT:
        raise ConfigError("allow_state_sharing", True, "False in client mode: nobody could reach it")
    return options.allow_state_sharing


def _as_allreduce(error: HivemindError) -> AllreduceException:
    return error if isinstance(error, AllreduceException) else AllreduceException(f"averaging step failed: {error}")
