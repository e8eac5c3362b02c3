"""`DecentralizedAverager`: the thread-safe face of an averager."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Literal, Self, Unpack, overload

import torch

from hivemind.averaging.config import AveragerKeywords, AveragerOptions
from hivemind.averaging.control import StepControl
from hivemind.averaging.core import AveragerCore, CurrentState, Hooks
from hivemind.averaging.group_key import check_bits, check_prefix
from hivemind.averaging.modes import AveragingMode
from hivemind.averaging.state import State
from hivemind.averaging.tensors import TensorLock, check_tensors
from hivemind.clock import Deadline, DHTExpiration
from hivemind.config import make_options
from hivemind.dht import DHT
from hivemind.errors import ConfigError, DeadlineExceeded, RuntimeClosedError, ValidationError
from hivemind.identity import PeerID
from hivemind.log import get_logger
from hivemind.runtime import HivemindFuture, get_runtime, wait_for

__all__ = ["DecentralizedAverager"]

logger = get_logger(__name__)

#: Seconds that `DecentralizedAverager.step` waits past its deadline for the end of what cannot be broken off.
_GRACE = 10.0


class DecentralizedAverager:
    """Averages tensors with other peers, without a master. All methods are thread-safe.

    Peers with the same prefix and the same tensors (shapes, dtypes, order) that call `step` at about the same time
    form groups; afterwards all members of a group hold the (weighted) average. A round works on a copy of the tensors:
    they can be read meanwhile, and changed under `get_tensors`, and stay as they are if the round fails.

    Runs on the network thread of the process (`hivemind.runtime`); a subclass is known to other peers by its own class
    name, so that only peers with the same class meet. Subclasses may override `get_current_state`, `check_state`,
    `step` and `load_state_from_peers`.

    :param averaged_tensors: dense leaf tensors, changed in place
    :param dht: a running DHT
    :param start: begin at once; otherwise `run_in_background` does
    :param prefix: text without dots that all peers to average with share
    :param options: see `AveragerOptions`
    :raises ConfigError: on an argument that makes no sense, or an unknown option (names the nearest)
    """

    def __init__(
        self,
        averaged_tensors: Iterable[torch.Tensor],
        dht: DHT,
        *,
        start: bool,
        prefix: str,
        **options: Unpack[AveragerKeywords],
    ) -> None:
        check_prefix(prefix)
        if options.get("tensor_infos") is not None:
            options["tensor_infos"] = tuple(options["tensor_infos"] or ())
        settings = make_options(AveragerOptions, options, where=type(self).__name__)
        tensors = check_tensors(averaged_tensors)
        self.dht = dht
        self.prefix = prefix
        self.shutdown_timeout = settings.shutdown_timeout
        self.lock_averaged_tensors = TensorLock()
        self._core = AveragerCore(
            tensors,
            dht=dht.node,
            p2p=dht.p2p,
            prefix=prefix,
            options=settings,
            name=type(self).__name__,
            client_mode=dht.client_mode if settings.client_mode is None else settings.client_mode,
            lock=self.lock_averaged_tensors,
            hooks=Hooks(self.get_current_state, self.check_state, dht.node.membership),
        )
        self._ready: HivemindFuture[None] | None = None
        self._shut_down = False
        if start:
            self.run_in_background(await_ready=True)

    # -- life ------------------------------------------------------------------------------------------------------

    def run_in_background(self, await_ready: bool = True, timeout: float | None = None) -> None:
        """Begin to answer other peers. Idempotent.

        :param timeout: seconds to wait; None = 15
        :raises P2PDaemonError: if another averager of the same class and prefix runs on this DHT
        """
        if self._ready is None:
            get_runtime().acquire()
            self._ready = get_runtime().submit(self._start)
        if await_ready:
            try:
                self.wait_until_ready(timeout)
            except DeadlineExceeded:
                raise
            except BaseException:
                self.shutdown()
                raise

    def start(self) -> None:
        """`run_in_background`."""
        self.run_in_background(await_ready=True)

    def wait_until_ready(self, timeout: float | None = None) -> None:
        """Return when other peers can reach this averager.

        :param timeout: seconds; None = 15
        """
        if self._ready is None:
            raise RuntimeClosedError("the averager has not been started: call run_in_background()")
        wait_for(self._ready, Deadline.after(15.0 if timeout is None else timeout), "the start of the averager")

    async def _start(self) -> None:
        get_runtime().add_closer(self._core.close)
        await self._core.start()

    def shutdown(self) -> None:
        """Leave: running steps fail, peers are told not to wait. Idempotent, takes less than a second."""
        if self._shut_down:
            return
        self._shut_down = True
        if self._ready is None:
            return
        runtime = get_runtime()
        try:
            closed = runtime.submit(self._close)
            wait_for(closed, Deadline.after(self.shutdown_timeout), "the shutdown of the averager")
        except RuntimeClosedError:
            logger.debug("the network thread has ended before the averager of %s", self.prefix)
        except DeadlineExceeded:
            logger.warning("the averager of %s has not ended in %s s", self.prefix, self.shutdown_timeout)
        finally:
            runtime.release()

    async def _close(self) -> None:
        await self._core.close()
        get_runtime().remove_closer(self._core.close)

    def is_alive(self) -> bool:
        """Whether it runs."""
        ready = self._ready
        if ready is None or self._shut_down or not ready.done() or ready.cancelled():
            return False
        return ready.exception() is None and get_runtime().running

    @property
    def pid(self) -> int:
        """The process that it runs in: this one."""
        return os.getpid()

    def __enter__(self) -> Self:
        self.run_in_background()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.shutdown()

    # -- averaging -------------------------------------------------------------------------------------------------

    @overload
    def step(
        self,
        gather: Any = ...,
        scheduled_time: DHTExpiration | None = ...,
        weight: float | None = ...,
        timeout: float | None = ...,
        allow_retries: bool = ...,
        require_trigger: bool = ...,
        wait: Literal[True] = ...,
        known_peers: int | Iterable[PeerID] | None = ...,
    ) -> Mapping[PeerID, Any]: ...

    @overload
    def step(
        self,
        gather: Any = ...,
        scheduled_time: DHTExpiration | None = ...,
        weight: float | None = ...,
        timeout: float | None = ...,
        allow_retries: bool = ...,
        require_trigger: bool = ...,
        *,
        wait: Literal[False],
        known_peers: int | Iterable[PeerID] | None = ...,
    ) -> StepControl: ...

    def step(
        self,
        gather: Any = None,
        scheduled_time: DHTExpiration | None = None,
        weight: float | None = None,
        timeout: float | None = None,
        allow_retries: bool = True,
        require_trigger: bool = False,
        wait: bool = True,
        known_peers: int | Iterable[PeerID] | None = None,
    ) -> Mapping[PeerID, Any] | StepControl:
        """Average once with the peers that can be found.

        :param gather: anything msgpack can carry; all members of the group get it
        :param scheduled_time: DHT time at which the exchange is expected to begin; peers are waited for until then, or
            for ``min_matchmaking_time`` if that is longer, unless all are there before
        :param weight: share of this peer in the average, >= 0; None = 1, or 0 for an auxiliary peer
        :param timeout: seconds for everything; None = 300 s and the ``allreduce_timeout``
        :param allow_retries: after a failed round, try again with those that are left, within the timeout
        :param require_trigger: form a group now, but exchange only after `StepControl.allow_allreduce`
        :param wait: return the result instead of the control
        :param known_peers: who is expected, ids or a number with this peer: the exchange begins as soon as they are
            there. None: those that the DHT knows under the prefix
        :returns: ``{peer: what it gave to gather}`` of the group, without members that failed; or the `StepControl`
        :raises AllreduceException: if there is no group, or no round succeeded; the tensors are as before
        :raises ConfigError: on an argument that makes no sense
        """
        if wait and require_trigger:
            raise ConfigError("require_trigger", True, "False with wait=True: nobody could trigger the exchange")
        if wait and get_runtime().in_network_thread():
            raise RuntimeClosedError("a blocking step on the network thread would wait for itself: use wait=False")
        self._check_running()
        control = self._core.make_step(
            gather=gather,
            scheduled_time=scheduled_time,
            weight=weight,
            timeout=timeout,
            allow_retries=allow_retries,
            known_peers=known_peers,
        )
        if not require_trigger:
            control.allow_allreduce()
        get_runtime().loop.call_soon_threadsafe(self._core.start_step, control)
        if not wait:
            return control
        try:
            return wait_for(control, Deadline.after(control.get_timeout() + _GRACE), "the averaging step")
        except BaseException:
            control.cancel()
            raise

    @contextmanager
    def get_tensors(self) -> Iterator[Sequence[torch.Tensor]]:
        """The averaged tensors, under their lock: within this block no average is put into them. Keep it short."""
        with self.lock_averaged_tensors:
            yield self._core.tensors

    def get_group_bits(self, wait: bool = True) -> Any:
        """The cell in which the next group is looked for; a future with ``wait=False``."""
        return self._call(self._core.get_group_bits, wait=wait)

    def set_group_bits(self, bits: str, wait: bool = True) -> Any:
        """Look for the next groups in the cell ``bits``; a future with ``wait=False``.

        :raises ConfigError: unless it is text of 0 and 1
        """
        check_bits(bits)
        return self._call(self._core.set_group_bits, bits, wait=wait)

    # -- state -----------------------------------------------------------------------------------------------------

    def get_current_state(self) -> CurrentState:
        """What newcomers download: metadata (msgpack-able, not empty), tensors, and their descriptions or None.

        Override it to share more. It is called in a thread of the pool that holds the lock of `get_tensors` (and may
        take it again); the tensors are copied before the lock is released, so they may be the live ones.
        """
        core = self._core
        return {"group_key": core.keys.group_bits}, core.tensors, core.options.tensor_infos

    def check_state(self, metadata: Any, tensors: Sequence[torch.Tensor], expected: int) -> None:
        """Whether a downloaded state can be used; if not, the next donor is asked. Called on the network thread.

        :param expected: the number of tensors in this peer's own state
        :raises ValidationError: if it cannot
        """
        if len(tensors) != expected:
            raise ValidationError(f"a state of {len(tensors)} tensors, expected {expected}")

    def load_state_from_peers(self, wait: bool = True, timeout: float | None = None) -> Any:
        """Download the state of the peer with the highest priority, or of the next if that fails.

        :param timeout: seconds for all of it; None = 600
        :returns: ``(metadata, tensors)`` with CPU tensors, or None if no peer gave its state; a future of that with
            ``wait=False``. The own tensors are not touched
        """
        Deadline.after(timeout)  # checks it
        future: HivemindFuture[State | None] = self._call(self._core.load_state, timeout, wait=False)
        if not wait:
            return future
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    @property
    def allow_state_sharing(self) -> bool:
        """Whether newcomers may download this peer's state.

        :raises ConfigError: on setting it in client mode
        """
        return self._core.allow_state_sharing

    @allow_state_sharing.setter
    def allow_state_sharing(self, value: bool) -> None:
        if value and self.client_mode:
            raise ConfigError("allow_state_sharing", True, "False in client mode: nobody could reach it")
        self._later(self._core.set_state_sharing, value)

    @property
    def state_sharing_priority(self) -> float:
        """Newcomers ask the peer of the highest priority first."""
        return self._core.state_sharing_priority

    @state_sharing_priority.setter
    def state_sharing_priority(self, value: float) -> None:
        if value and self.client_mode:
            raise ConfigError("state_sharing_priority", value, "no priority in client mode: nobody could reach it")
        self._later(self._core.set_state_sharing_priority, float(value))

    # -- facts -----------------------------------------------------------------------------------------------------

    @property
    def peer_id(self) -> PeerID:
        """This peer."""
        return self._core.peer_id

    @property
    def client_mode(self) -> bool:
        """Whether it only calls, and cannot be called."""
        return self._core.client_mode

    @property
    def mode(self) -> AveragingMode:
        """Its part in each round."""
        return self._core.mode

    @property
    def bandwidth(self) -> float | None:
        """Relative, >= 0: how much it reduces for others; may be set between rounds."""
        return self._core.bandwidth

    @bandwidth.setter
    def bandwidth(self, value: float | None) -> None:
        self._core.set_bandwidth(value)

    @property
    def tensor_infos(self) -> Sequence[Any] | None:
        """Descriptions of the tensors, for adaptive compression."""
        return self._core.options.tensor_infos

    @property
    def total_size(self) -> int:
        """Elements in all averaged tensors."""
        return self._core.total_size

    @property
    def schema_hash(self) -> bytes:
        """Peers with another one have other tensors, and are in other groups."""
        return self._core.schema_hash

    @property
    def last_updated(self) -> DHTExpiration:
        """DHT time of the last average that went into the tensors; ``-inf`` before the first."""
        return self._core.last_updated

    # -- to the network thread -------------------------------------------------------------------------------------

    def _check_running(self) -> None:
        if self._ready is None or self._shut_down:
            what = "has been shut down" if self._shut_down else "has not been started: call run_in_background()"
            raise RuntimeClosedError(f"the averager of {self.prefix} {what}")

    def _call(self, function: Any, *args: Any, wait: bool) -> Any:
        self._check_running()
        future = get_runtime().submit(function, *args)
        return future.result() if wait else future

    def _later(self, function: Any, value: Any) -> None:
        """Set something on the network thread, in order; before the start at once."""
        if self._ready is None or self._shut_down or get_runtime().in_network_thread():
            function(value)
        else:
            get_runtime().loop.call_soon_threadsafe(function, value)
