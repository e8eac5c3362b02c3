"""`Server`: experts for others, in the background of this process."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Self

import torch
from multiaddr import Multiaddr

from hivemind.aio import TaskScope, with_deadline
from hivemind.clock import Deadline, monotonic
from hivemind.config import check_count, make_options, option_names
from hivemind.dht import DHT
from hivemind.errors import (
    ConfigError,
    DeadlineExceeded,
    HivemindError,
    RuntimeClosedError,
    UnknownExpert,
    WrongTypeError,
)
from hivemind.log import get_logger
from hivemind.moe.server.checkpoints import CheckpointSaver, check_folder, copy_state, load_experts, saved_uids
from hivemind.moe.server.config import ExpertOptions, ServerOptions
from hivemind.moe.server.connection_handler import ConnectionHandler
from hivemind.moe.server.counters import conceal, expose
from hivemind.moe.server.creation import choose_uids, make_backends
from hivemind.moe.server.creation import generate_uids as _generate_uids  # noqa: F401 - programs take it from here
from hivemind.moe.server.module_backend import ModuleBackend
from hivemind.moe.server.presence import Presence, check_free
from hivemind.moe.server.runtime import Runtime
from hivemind.moe.server.schedule import QueueLimits
from hivemind.moe.server.statistics import ExpertStats, ServerStats, line
from hivemind.moe.uid import check_uid
from hivemind.p2p import P2P
from hivemind.runtime import HivemindFuture, get_runtime, wait_for

__all__ = ["Server"]

logger = get_logger(__name__)

#: Seconds for the steps of the end besides the work that waits.
_END_SECONDS = 5.0


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
        self._saver: CheckpointSaver | None = None
        self._p2p: P2P | None = None
        self._scope = TaskScope("server of experts")
        for uid, backend in module_backends.items():
            self._check_expert(uid, backend)
            self._experts[uid] = backend
            self._runtime_of(backend)
        if self.options.checkpoint_dir is not None:
            folder = check_folder(self.options.checkpoint_dir)
            self._saver = CheckpointSaver(self._experts, folder, self._snapshot, self.options.update_period)
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
        """A server with new experts, and a DHT of its own. Experts that have a checkpoint continue from there.

        :param start: start now, and wait until clients can find the experts
        :param initial_peers: addresses of peers to join through; none: begin a swarm
        :param options: those of `ExpertOptions`, `ServerOptions`, and of `DHT`
        :raises ConfigError: if an option is wrong, a checkpoint does not fit, or another peer serves one of the uids
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
            folder = for_server.get("checkpoint_dir")
            backends = make_backends(for_experts, choose_uids(for_experts, dht, saved_uids(folder) if folder else []))
            if folder:
                load_experts(backends, folder)
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

    def stats(self) -> ServerStats:
        """What it has done so far."""
        if not self.is_alive():
            return self._stats()
        return get_runtime().call(self._stats_now)

    async def _stats_now(self) -> ServerStats:
        return self._stats()

    def _stats(self) -> ServerStats:
        experts = {
            uid: ExpertStats(expert.forward_pool.stats, expert.backward_pool.stats)
            for uid, expert in self._experts.items()
        }
        waiting = [runtime.schedule.waiting_seconds for runtime in self._runtimes.values()]
        return ServerStats(experts, self._handler.active, max(waiting, default=0.0))

    def add_expert(self, backend: ModuleBackend) -> None:
        """Serve one expert more, from now on; waits until clients can find it.

        :raises ConfigError: if this server or another peer has an expert of this uid
        :raises RuntimeClosedError: if the server does not run
        """
        self._check_runs()
        with self._lock:
            self._check_expert(backend.name, backend)
            runtime = self._runtime_of(backend)
            if not runtime.is_alive():
                runtime.start()
        get_runtime().call(self._add, backend)

    async def _add(self, backend: ModuleBackend) -> None:
        await check_free((await self.dht._joined()), [backend.name])
        self._check_expert(backend.name, backend)
        self._experts[backend.name] = backend
        if self._presence is not None:
            await self._presence.declare([backend.name])

    def remove_expert(self, uid: str) -> ModuleBackend:
        """Serve an expert no longer. What waits for it is still served; its last checkpoint is written.

        :returns: the expert, which nobody uses any more
        :raises UnknownExpert: if there is none of this uid
        :raises RuntimeClosedError: if the server does not run
        """
        self._check_runs()
        return get_runtime().call(self._remove, uid)

    async def _remove(self, uid: str) -> ModuleBackend:
        expert = self._experts.pop(uid, None)
        if expert is None:
            raise UnknownExpert(f"this server has no expert {uid!r}")
        if self._presence is not None:
            await self._presence.withdraw([uid])
        runtime = self._runtimes[expert.device]
        wait = Deadline.after(self.options.drain_timeout)
        for pool in expert.get_pools():
            try:
                await with_deadline(asyncio.wrap_future(pool.close()), wait, f"what waits for {uid}")
            except DeadlineExceeded as error:
                logger.warning("%s; it is dropped", error)
                pool.drop_all()
        runtime.remove_pools(expert.get_pools())
        if self._saver is not None:
            await self._saver.save(expert)
        return expert

    def _check_runs(self) -> None:
        if not self.is_alive():
            raise RuntimeClosedError("this server does not run")

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
        expose(self)
        self._scope.start(self._presence.keep(), name="declarations of experts")
        if self._saver is not None:
            self._scope.start(self._saver.keep(), name="checkpoints of experts")
        if self.options.stats_report_interval is not None:
            self._scope.start(self._report(self.options.stats_report_interval), name="statistics of experts")

    async def _snapshot(self, expert: ModuleBackend) -> Any:
        return await self._runtimes[expert.device].submit(lambda: copy_state(expert))

    async def _report(self, period: float) -> None:
        before, since = self._stats(), monotonic()
        while True:
            await asyncio.sleep(period)
            now, at = self._stats(), monotonic()
            logger.info("%s", line(before, now, at - since))
            before, since = now, at

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
            self._over.wait(self.options.drain_timeout + 5 * _END_SECONDS)
            return
        deadline = Deadline.after(self.options.drain_timeout)
        try:
            if starting is not None:
                starting.cancel()
                self._call(self._leave, Deadline.after(2 * _END_SECONDS), "leaving the swarm")
                self._drain(deadline)
                self._call(self._close, Deadline.after(_END_SECONDS), "end of the server")
                self._save()
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
        conceal(self)
        await self._scope.close()
        if self._presence is not None:
            await self._presence.withdraw(self._experts)
        self._handler.draining = True

    def _drain(self, deadline: Deadline) -> None:
        served = [runtime.shutdown(deadline) for runtime in self._runtimes.values()]
        if not all(served):
            logger.warning("requests that waited longer than %s s were dropped", self.options.drain_timeout)

    def _save(self) -> None:
        """The last checkpoints; the threads of the devices have ended."""
        if self._saver is None:
            return
        for expert in self._saver.changed():
            try:
                self._saver.write(expert.name, expert.state_dict())
            except (OSError, RuntimeError) as error:
                logger.error("%s: no checkpoint was written: %s", expert.name, error)

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
