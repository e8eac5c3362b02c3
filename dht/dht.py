"""`DHT`: the distributed hash table as users of any thread see it."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from types import TracebackType
from typing import Any, Literal, NoReturn, Self, TypeVar, overload

from multiaddr import Multiaddr

from hivemind.clock import Deadline, DHTExpiration
from hivemind.config import check_choice, check_seconds
from hivemind.dht.bootstrap import parse_initial_peers
from hivemind.dht.config import DEFAULT_NUM_WORKERS, split_node_options
from hivemind.dht.node import DHTNode
from hivemind.dht.records import DHTKey, DHTValue, Subkey
from hivemind.dht.validation import CompositeValidator, RecordValidatorBase
from hivemind.errors import HivemindError, P2PDaemonError, RuntimeClosedError, WrongTypeError
from hivemind.identity import PeerID
from hivemind.log import get_logger
from hivemind.p2p import P2P
from hivemind.runtime import HivemindFuture, get_runtime, wait_for
from hivemind.timed_storage import ValueWithExpiration

__all__ = ["DHT"]

logger = get_logger(__name__)

T = TypeVar("T")
Found = ValueWithExpiration[Any] | None


class DHT:
    """A node of the distributed hash table that runs in the background. Thread-safe.

    ::

        with DHT(initial_peers=[...], start=True) as dht:
            dht.store("key", "value", expiration_time=get_dht_time() + 60)
            dht.get("key").value

    Its node runs on the network thread of the process, which all DHTs share. Blocking methods are for other threads; on
    the network thread use `node` and await its methods.

    :param initial_peers: addresses of nodes of the swarm, each ``/…/p2p/<id>``; None: begin a swarm
    :param start: start now; otherwise by `run_in_background`
    :param p2p: share this peer's daemon, which stays its owner's; by default an own daemon is started
    :param daemon: accepted for hivemind 1.1, where the DHT was a process of its own
    :param num_workers: requests that one search has under way at first
    :param record_validators: check and sign records; see also `add_validators`
    :param shutdown_timeout: seconds within which `shutdown` returns
    :param await_ready: with ``start``, wait until the node has joined; errors of the start are raised here
    :param kwargs: options of `DHTNodeOptions` and, without ``p2p``, of `P2PConfig`
    :raises WrongTypeError: if ``initial_peers`` is one address and not several
    :raises ConfigError: if another argument is wrong
    :raises P2PDaemonError: if the daemon does not start, or no initial peer answers ("failed to connect to bootstrap
        peers", with each address and why)
    """

    def __init__(
        self,
        initial_peers: Sequence[Multiaddr | str] | None = None,
        *,
        start: bool,
        p2p: P2P | None = None,
        daemon: bool = True,
        num_workers: int = DEFAULT_NUM_WORKERS,
        record_validators: Iterable[RecordValidatorBase] = (),
        shutdown_timeout: float = 3,
        await_ready: bool = True,
        **kwargs: Any,
    ) -> None:
        check_choice("start", start, (True, False))
        check_choice("daemon", daemon, (True, False))
        check_seconds("shutdown_timeout", shutdown_timeout)
        self.initial_peers = parse_initial_peers(initial_peers)
        self.num_workers = num_workers
        self.shutdown_timeout = shutdown_timeout
        self._validators = CompositeValidator(record_validators)
        given = {**kwargs, "num_workers": num_workers}
        self._options, self._p2p_options = split_node_options(given, shared=p2p is not None, where="DHT")
        self._given_p2p = p2p
        # guards the three below; the node itself is owned by the network thread
        self._lock = threading.Lock()
        self._runtime = get_runtime()
        self._starting: HivemindFuture[DHTNode] | None = None
        self._ended = False
        self._peer_id: PeerID | None = None
        # owned by the network thread
        self._start_task: asyncio.Task[Any] | None = None
        self._replicas: dict[asyncio.AbstractEventLoop, P2P] = {}
        if start:
            self.run_in_background(await_ready=await_ready)

    # -- life ----------------------------------------------------------------------------------------------------------

    def run_in_background(self, await_ready: bool = True, timeout: float | None = None) -> None:
        """Start the node.

        :param await_ready: wait until it has joined
        :param timeout: seconds to wait at most
        :raises RuntimeClosedError: if it was started before
        """
        with self._lock:
            if self._starting is not None or self._ended:
                raise RuntimeClosedError("this DHT was started before: make a new one")
            self._runtime.acquire()
            self._starting = self._runtime.submit(self._start)
        if await_ready:
            try:
                self.wait_until_ready(timeout)
            except BaseException:
                self.shutdown()
                raise

    def wait_until_ready(self, timeout: float | None = None) -> None:
        """Wait until the node has joined.

        :param timeout: seconds
        :raises DeadlineExceeded: (a `concurrent.futures.TimeoutError`) if that takes longer
        :raises P2PDaemonError: if the start has failed
        """
        wait_for(self._started(), Deadline.after(timeout), "start of the DHT")

    async def _start(self) -> DHTNode:
        self._start_task = asyncio.current_task()
        p2p = self._given_p2p
        shared: P2P | None = None
        if p2p is not None:
            p2p = shared = await _share(p2p)
        try:
            node = await DHTNode.create(
                p2p=p2p,
                initial_peers=self.initial_peers,
                record_validator=self._validators,
                **vars(self._options),
                **self._p2p_options,
            )
        except BaseException:
            if shared is not None and shared is not self._given_p2p:
                await shared.shutdown()
            raise
        self._runtime.add_closer(self._close)
        return node

    async def _close(self) -> None:
        starting = self._starting
        self._runtime.remove_closer(self._close)
        if self._start_task is not None:
            # one that was cancelled still ends its daemon
            await asyncio.wait({self._start_task})
        if starting is None or not starting.done() or starting.cancelled() or starting.exception() is not None:
            return
        node = starting.result()
        await node.shutdown()
        if self._given_p2p is not None and node.p2p is not self._given_p2p:
            await node.p2p.shutdown()

    def shutdown(self) -> None:
        """Leave the swarm and end the own daemon; returns within ``shutdown_timeout``. Idempotent."""
        with self._lock:
            starting, ended, self._ended = self._starting, self._ended, True
        if starting is None or ended:
            return
        try:
            if not starting.done():
                starting.cancel()
            if self._runtime.running:
                wait_for(self._runtime.submit(self._close), Deadline.after(self.shutdown_timeout), "end of the DHT")
        except HivemindError as error:
            logger.warning("shutdown of the DHT: %s", error)
        finally:
            self._runtime.release()

    def is_alive(self) -> bool:
        """Whether it was started and neither failed nor was shut down."""
        starting = self._starting
        if starting is None or self._ended or not self._runtime.running:
            return False
        return not starting.done() or (not starting.cancelled() and starting.exception() is None)

    @property
    def pid(self) -> int:
        """The process in which the node runs: this one."""
        return os.getpid()

    def terminate(self) -> None:
        """`shutdown`, by the name that processes have for it."""
        self.shutdown()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.shutdown()

    def __reduce__(self) -> NoReturn:
        raise WrongTypeError(
            "DHT", "pickle", "use in the process that made it: give others its get_visible_maddrs() as initial_peers"
        )

    # -- records -------------------------------------------------------------------------------------------------------

    @overload
    def get(self, key: DHTKey, latest: bool = False, return_future: Literal[False] = False, **kwargs: Any) -> Found: ...

    @overload
    def get(
        self, key: DHTKey, latest: bool = False, *, return_future: Literal[True], **kwargs: Any
    ) -> HivemindFuture[Found]: ...

    def get(
        self, key: DHTKey, latest: bool = False, return_future: bool = False, **kwargs: Any
    ) -> Found | HivemindFuture[Found]:
        """The value of ``key`` and its expiration, or None; see `DHTNode.get`.

        :param latest: look for the value that expires last
        :param return_future: return at once
        """
        return self._submit(self._get, return_future, key, latest, kwargs)

    async def _get(self, key: DHTKey, latest: bool, kwargs: dict[str, Any]) -> Found:
        node = await self._joined()
        return await node.get(key, latest=latest, **kwargs)

    @overload
    def store(
        self,
        key: DHTKey,
        value: DHTValue,
        expiration_time: DHTExpiration,
        subkey: Subkey | None = None,
        return_future: Literal[False] = False,
        **kwargs: Any,
    ) -> bool: ...

    @overload
    def store(
        self,
        key: DHTKey,
        value: DHTValue,
        expiration_time: DHTExpiration,
        subkey: Subkey | None = None,
        *,
        return_future: Literal[True],
        **kwargs: Any,
    ) -> HivemindFuture[bool]: ...

    def store(
        self,
        key: DHTKey,
        value: DHTValue,
        expiration_time: DHTExpiration,
        subkey: Subkey | None = None,
        return_future: bool = False,
        **kwargs: Any,
    ) -> bool | HivemindFuture[bool]:
        """Store a value that msgpack can hold; see `DHTNode.store_many`.

        :param expiration_time: DHT time, as ``get_dht_time() + 60``
        :param subkey: store it as this entry of the dictionary under ``key``
        :param return_future: return at once
        :returns: whether some node has accepted it
        """
        return self._submit(self._store, return_future, key, value, expiration_time, subkey, kwargs)

    async def _store(
        self, key: DHTKey, value: DHTValue, expiration_time: DHTExpiration, subkey: Subkey, kwargs: dict[str, Any]
    ) -> bool:
        node = await self._joined()
        return await node.store(key, value, expiration_time, subkey=subkey, **kwargs)

    def add_validators(self, record_validators: Iterable[RecordValidatorBase]) -> None:
        """Add validators of records while the node runs.

        :raises RuntimeClosedError: if it was not started
        """
        validators = list(record_validators)
        self._started()
        with self._lock:
            self._validators.extend(validators)

    # -- the node ------------------------------------------------------------------------------------------------------

    @overload
    def run_coroutine(
        self, coro: Callable[[DHT, DHTNode], Awaitable[T]], return_future: Literal[False] = False
    ) -> T: ...

    @overload
    def run_coroutine(
        self, coro: Callable[[DHT, DHTNode], Awaitable[T]], return_future: Literal[True]
    ) -> HivemindFuture[T]: ...

    def run_coroutine(
        self, coro: Callable[[DHT, DHTNode], Awaitable[T]], return_future: bool = False
    ) -> T | HivemindFuture[T]:
        """Run ``await coro(dht, node)`` on the network thread. What it raises is raised here and does the node no harm.

        The coroutine must not block: all peers of the process share the thread.

        :param return_future: return at once; cancelling the future cancels the coroutine
        """
        return self._submit(self._run_coroutine, return_future, coro)

    async def _run_coroutine(self, coro: Callable[[DHT, DHTNode], Awaitable[T]]) -> T:
        node = await self._joined()
        try:
            return await coro(self, node)
        except Exception:
            logger.debug("a coroutine run by the DHT has raised", exc_info=True)
            raise

    @property
    def node(self) -> DHTNode:
        """The node; use its methods on the network thread only (`run_coroutine`, or `hivemind.runtime`).

        Waits until it has joined; on the network thread, which must not wait, that is an error.

        :raises RuntimeClosedError: unless it was started and not shut down
        """
        starting = self._started()
        if not starting.done() and self._runtime.in_network_thread():
            raise RuntimeClosedError("the DHT has not joined yet: wait_until_ready() first")
        return starting.result()

    @property
    def p2p(self) -> P2P:
        """The node's peer, for calls and handlers of one's own; on the network thread only. The DHT ends it.

        :raises RuntimeClosedError: as `node`
        """
        return self.node.p2p

    @property
    def peer_id(self) -> PeerID:
        """The id of the node's peer; waits until the node has joined."""
        if self._peer_id is None:
            self._peer_id = self.node.peer_id
        return self._peer_id

    @property
    def client_mode(self) -> bool:
        """Whether the node only asks and never answers."""
        return self._options.client_mode

    def get_visible_maddrs(self, latest: bool = False) -> list[Multiaddr]:
        """The addresses by which others reach the node, each ending in ``/p2p/<id>``: their ``initial_peers``.

        :param latest: ask the daemon anew
        """
        self._started()
        return self._runtime.call(self._get_visible_maddrs, latest)

    async def _get_visible_maddrs(self, latest: bool) -> list[Multiaddr]:
        return await (await self._joined()).get_visible_maddrs(latest=latest)

    async def replicate_p2p(self) -> P2P:
        """A peer on the same daemon for the running event loop, one a loop. On the network thread it is the node's own.

        One of another loop is its user's to shut down.
        """
        loop = asyncio.get_running_loop()
        node = await asyncio.wrap_future(self._started())
        if self._runtime.in_network_thread():
            return node.p2p
        known = self._replicas.get(loop)
        if known is None or not known.is_alive:
            known = self._replicas[loop] = await P2P.replicate(node.p2p.daemon_listen_maddr)
        return known

    # -- inside --------------------------------------------------------------------------------------------------------

    def _started(self) -> HivemindFuture[DHTNode]:
        if self._ended:
            raise RuntimeClosedError("this DHT was shut down")
        if self._starting is None:
            raise RuntimeClosedError("this DHT was not started: run_in_background() first, or start=True")
        return self._starting

    async def _joined(self) -> DHTNode:
        """The node, on the network thread; waits for the start."""
        starting = self._started()
        if starting.done():
            return starting.result()
        return await asyncio.shield(asyncio.wrap_future(starting))

    def _submit(
        self, function: Callable[..., Coroutine[Any, Any, T]], return_future: bool, *args: Any
    ) -> T | HivemindFuture[T]:
        self._started()
        if return_future:
            return self._runtime.submit(function, *args)
        return self._runtime.call(function, *args)


async def _share(p2p: P2P) -> P2P:
    """A peer on the daemon of ``p2p`` for this loop; one that has no daemon is of this loop already."""
    try:
        address = p2p.daemon_listen_maddr
    except P2PDaemonError:
        return p2p
    return await P2P.replicate(address)
