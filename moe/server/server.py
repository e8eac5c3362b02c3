"""`Server`: experts for others, in the background of this process."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from multiaddr import Multiaddr

from hivemind.aio import TaskScope, with_deadline
from hivemind.clock import MAX_DHT_TIME_DISCREPANCY_SECONDS, Deadline
from hivemind.config import check_count, check_seconds, make_options, option_names
from hivemind.dht import DHT
from hivemind.errors import ConfigError, DeadlineExceeded, HivemindError, RuntimeClosedError, WrongTypeError
from hivemind.log import get_logger
from hivemind.moe.server.connection_handler import ConnectionHandler
from hivemind.moe.server.creation import ExpertOptions, choose_uids, make_backends
from hivemind.moe.server.module_backend import ModuleBackend
from hivemind.moe.server.presence import Presence, check_free
from hivemind.moe.server.runtime import Runtime
from hivemind.moe.server.schedule import QueueLimits
from hivemind.moe.uid import check_uid
from hivemind.p2p import P2P
from hivemind.runtime import HivemindFuture, get_runtime, wait_for

__all__ = ["Server", "ServerOptions"]

logger = get_logger(__name__)

#: Seconds for the steps of the end besides the work that waits.
_END_SECONDS = 5.0


@dataclass(frozen=True, kw_only=True)
class ServerOptions:
    """Options of `Server`.

    :param update_period: seconds between two declarations in the DHT, and between two checkpoints
    :param expiration: seconds for which a declaration holds; None: two periods, at least 3 s
    :param checkpoint_dir: folder of checkpoints; None: none are written
    :param stats_report_interval: seconds between two lines of statistics in the log; None: none
    :param max_waiting: requests that may wait for one device
    :param max_wait: seconds of work that may wait for one device; see `QueueLimits`
    :param max_bytes: of requests that are held at the same time
    :param drain_timeout: seconds within which `shutdown` serves what waits
    """

    update_period: float = 30.0
    expiration: float | None = None
    checkpoint_dir: Path | str | None = None
    stats_report_interval: float | None = None
    max_waiting: int = 4096
    max_wait: float = 30.0
    max_bytes: int = 2**31
    drain_timeout: float = 30.0

    def __post_init__(self) -> None:
        check_seconds("update_period", self.update_period)
        check_seconds("expiration", self.expiration, optional=True)
        check_seconds("stats_report_interval", self.stats_report_interval, optional=True)
        check_seconds("drain_timeout", self.drain_timeout, zero=True)
        check_count("max_bytes", self.max_bytes)
        QueueLimits(self.max_waiting, self.max_wait)

    @property
    def declared_for(self) -> float:
        """Seconds for which a declaration holds."""
        if self.expiration is not None:
            return self.expiration
        return max(2 * self.update_period, MAX_DHT_TIME_DISCREPANCY_SECONDS)


class Server:
    """Serves experts to other peers until `shutdown`. Thread-safe.

    Calls are taken on the network thread of the process; each device has one thread that runs its experts.

    :param dht: where experts are declared, and whose peer answers; the server ends it
    :param module_backends: the experts, by uid
    :param num_connection_handlers: accepted for hivemind 1.1, which had processes for this
    :param start: start now; otherwise by `run_in_background`
    :param options: those of `ServerOptions`
    :raises ConfigError: if an argument is wrong
    """

    def __init__(
        self,
        dht: DHT,
        module_backends: Mapping[str, ModuleBackend],
        num_connection_handlers: int = 1,
        *,
        start: bool = False,
        **options: Any,
    ) -> None:
        check_count("num_connection_handlers", num_connection_handlers)
        self.options = make_options(ServerOptions, options, where="Server")
        self.dht = dht
        #: set when clients can find the experts, or the start has failed
        self.ready = threading.Event()
        self._lock = threading.Lock()
        # guarded by _lock
        self._starting: HivemindFuture[None] | None = None
        self._ended = False
        self._over = threading.Event()
        self._runtimes: dict[torch.device, Runtime] = {}
        # changed on the network thread only, once it was started
        self._experts: dict[str, ModuleBackend] = {}
        self._handler = ConnectionHandler(self._experts, self.options.max_bytes)
        self._presence: Presence | None = None
        self._p2p: P2P | None = None
        self._scope = TaskScope("server of experts")
        for uid, backend in module_backends.items():
            self._check_expert(uid, backend)
            self._experts[uid] = backend
            self._runtime_of(backend)
        if start:
            self.run_in_background()

    @classmethod
    def create(
        cls,
        num_experts: int | None = None,
        expert_uids: Sequence[str] | None = None,
        expert_pattern: str | None = None,
        expert_cls: str = "ffn",
        hidden_dim: int = 1024,
        *,
        start: bool,
        initial_peers: Sequence[Multiaddr | str] = (),
        **options: Any,
    ) -> Self:
        """A server with new experts, and a DHT of its own.

        :param start: start now, and wait until clients can find the experts
        :param initial_peers: addresses of peers to join through; none: begin a swarm
        :param options: those of `ExpertOptions`, `ServerOptions`, and of `DHT`
        :raises ConfigError: if an option is wrong
        :raises P2PDaemonError: if the DHT does not start
        """
        named = {
            "num_experts": num_experts,
            "expert_uids": expert_uids,
            "expert_pattern": expert_pattern,
            "expert_cls": expert_cls,
            "hidden_dim": hidden_dim,
            **{name: options.pop(name) for name in option_names(ExpertOptions) if name in options},
        }
        for_experts = make_options(ExpertOptions, named, where="Server.create")
        for_server = {name: options.pop(name) for name in option_names(ServerOptions) if name in options}
        make_options(ServerOptions, for_server, where="Server.create")
        dht = DHT(initial_peers=initial_peers, start=True, **options)
        try:
            backends = make_backends(for_experts, choose_uids(for_experts, dht, []))
            return cls(dht, backends, start=start, **for_server)
        except BaseException:
            dht.shutdown()
            raise

    def _check_expert(self, uid: str, backend: ModuleBackend) -> None:
        check_uid("module_backends", uid)
        if not isinstance(backend, ModuleBackend):
            raise WrongTypeError(f"expert {uid}", type(backend).__qualname__, "a ModuleBackend")
        if uid in self._experts:
            raise ConfigError("expert uid", uid, "a uid that this server does not have yet")

    def _runtime_of(self, backend: ModuleBackend) -> Runtime:
        """The thread of the expert's device, which now serves it."""
        runtime = self._runtimes.get(backend.device)
        if runtime is None:
            limits = QueueLimits(self.options.max_waiting, self.options.max_wait)
            runtime = self._runtimes[backend.device] = Runtime(device=backend.device, limits=limits)
        runtime.add_pools(backend.get_pools())
        return runtime

    @property
    def experts(self) -> Mapping[str, ModuleBackend]:
        """Those that are served, by uid."""
        return dict(self._experts)

    # -- life ----------------------------------------------------------------------------------------------------------

    def run_in_background(self, await_ready: bool = True, timeout: float | None = None) -> None:
        """Start.

        :param await_ready: wait until clients can find the experts
        :param timeout: seconds to wait at most
        :raises RuntimeClosedError: if it was started before
        :raises ConfigError: if another peer serves an expert of the same uid
        :raises DeadlineExceeded: if the timeout passes; the server is then shut down
        """
        with self._lock:
            if self._starting is not None or self._ended:
                raise RuntimeClosedError("this server was started before: make a new one")
            if not self.dht.is_alive():
                self.dht.run_in_background(await_ready=False)
            get_runtime().acquire()
            for runtime in self._runtimes.values():
                runtime.start()
            self._starting = get_runtime().submit(self._start)
            self._starting.add_done_callback(lambda _: self.ready.set())
        if await_ready:
            try:
                wait_for(self._starting, Deadline.after(timeout), "start of the server")
            except BaseException:
                self.shutdown()
                raise

    def start(self) -> None:
        """`run_in_background` without waiting, by the name that threads have for it."""
        self.run_in_background(await_ready=False)

    async def _start(self) -> None:
        node = await self.dht._joined()
        await check_free(node, self._experts)
        self._p2p = node.p2p
        await self._handler.add_p2p_handlers(node.p2p)
        self._presence = Presence(
            node, self._experts, period=self.options.update_period, expiration=self.options.declared_for
        )
        await self._presence.declare(self._experts)
        self._scope.start(self._presence.keep(), name="declarations of experts")

    def is_alive(self) -> bool:
        """Whether it was started and neither failed nor was shut down."""
        starting = self._starting
        if starting is None or self._ended:
            return False
        return not starting.done() or (not starting.cancelled() and starting.exception() is None)

    def join(self, timeout: float | None = None) -> None:
        """Wait for the end, for ``timeout`` seconds at most."""
        self._over.wait(timeout)

    def shutdown(self) -> None:
        """Serve what waits, withdraw the experts, end; also ends the DHT. Idempotent.

        Bounded by ``drain_timeout`` and some seconds.
        """
        with self._lock:
            starting, ended, self._ended = self._starting, self._ended, True
        if ended:
            self._over.wait(self.options.drain_timeout + 4 * _END_SECONDS)
            return
        deadline = Deadline.after(self.options.drain_timeout)
        try:
            if starting is not None:
                starting.cancel()
                self._call(self._leave, Deadline.after(_END_SECONDS), "leaving the swarm")
                self._drain(deadline)
                self._call(self._close, Deadline.after(_END_SECONDS), "end of the server")
        finally:
            self.dht.shutdown()
            if starting is not None:
                get_runtime().release()
            self._over.set()
            self.ready.set()

    def _call(self, step: Any, deadline: Deadline, what: str) -> None:
        """A step of the end on the network thread; what goes wrong is logged, as the other steps must be made."""
        try:
            wait_for(get_runtime().submit(step), deadline, what)
        except HivemindError as error:
            logger.warning("%s: %s", what, error)

    async def _leave(self) -> None:
        """No new clients, no new calls."""
        await self._scope.close()
        if self._presence is not None:
            await self._presence.withdraw(self._experts)
        self._handler.draining = True

    def _drain(self, deadline: Deadline) -> None:
        served = [runtime.shutdown(deadline) for runtime in self._runtimes.values()]
        if not all(served):
            logger.warning("requests that waited longer than %s s were dropped", self.options.drain_timeout)

    async def _close(self) -> None:
        """Bring the last answers on their way."""
        wait = Deadline.after(_END_SECONDS / 2)
        try:
            await with_deadline(self._handler.idle.wait(), wait, "the last answers")
        except DeadlineExceeded as error:
            logger.warning("%s", error)
        if self._p2p is not None:
            await self._handler.remove_p2p_handlers(self._p2p)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.shutdown()
