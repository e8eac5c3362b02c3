"""`DHT`: the distributed hash table as users of any thread see it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, TypeVar, overload

from multiaddr import Multiaddr

from hivemind.clock import DHTExpiration
from hivemind.config import check_choice
from hivemind.dht.background import BackgroundNode
from hivemind.dht.bootstrap import parse_initial_peers
from hivemind.dht.config import DEFAULT_NUM_WORKERS, split_node_options
from hivemind.dht.counters import DHTStats
from hivemind.dht.home import Door
from hivemind.dht.node import DHTNode
from hivemind.dht.recipe import CopyRecipe, NodeRecipe, Recipe
from hivemind.dht.records import DHTKey, DHTValue, Subkey
from hivemind.dht.routing import DHTID
from hivemind.dht.validation import CompositeValidator, RecordValidatorBase
from hivemind.dht.watch import DEFAULT_WATCH_INTERVAL, DHTWatch, Watch
from hivemind.errors import HivemindError, WrongTypeError
from hivemind.identity import PeerID
from hivemind.log import get_logger
from hivemind.p2p import P2P, AuthorizerBase
from hivemind.runtime import HivemindFuture
from hivemind.timed_storage import ValueWithExpiration

__all__ = ["DHT"]

logger = get_logger(__name__)

T = TypeVar("T")
Found = ValueWithExpiration[Any] | None


class DHT(BackgroundNode):
    """A node of the distributed hash table that runs in the background. Thread-safe.

    ::

        with DHT(initial_peers=[...], start=True) as dht:
            dht.store("key", "value", expiration_time=get_dht_time() + 60)
            dht.get("key").value

    Its node runs on the network thread of the process, which all DHTs share. Blocking methods are for other threads; on
    the network thread use `node` and await its methods.

    It can be given to another process (pickled, with the start methods spawn and forkserver): the copy there stands on
    the same daemon, is the same peer, has the same validators, and ends when it is shut down or its process ends.

    :param initial_peers: addresses of nodes of the swarm, each ``/…/p2p/<id>``; None: begin a swarm
    :param start: start now; otherwise by `run_in_background`
    :param p2p: share this peer's daemon, which stays its owner's; by default an own daemon is started
    :param daemon: accepted for hivemind 1.1, where the DHT was a process of its own
    :param num_workers: requests that one search has under way at first
    :param record_validators: check and sign records; see also `add_validators`
    :param authorizer: decides who may call this node and be called by it; None: all
    :param node_id: the place of the node among the keys; by default a random one, as it should be
    :param shutdown_timeout: seconds within which `shutdown` returns
    :param await_ready: with ``start``, wait until the node has joined; errors of the start are raised here
    :param kwargs: options of `DHTNodeOptions` and, without ``p2p``, of `P2PConfig`
    :raises WrongTypeError: if ``initial_peers`` is one address and not several, or ``node_id`` is no id
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
        authorizer: AuthorizerBase | None = None,
        node_id: DHTID | None = None,
        shutdown_timeout: float = 3,
        await_ready: bool = True,
        **kwargs: Any,
    ) -> None:
        check_choice("start", start, (True, False))
        check_choice("daemon", daemon, (True, False))
        if node_id is not None and not isinstance(node_id, DHTID):
            raise WrongTypeError("node_id", node_id, "a DHTID")
        options, p2p_options = split_node_options(
            {**kwargs, "num_workers": num_workers}, shared=p2p is not None, where="DHT"
        )
        recipe = NodeRecipe(
            initial_peers=parse_initial_peers(initial_peers),
            options=options,
            validators=CompositeValidator(record_validators),
            authorizer=authorizer,
            p2p=p2p,
            p2p_options=p2p_options,
            node_id=node_id,
        )
        self._set_up(recipe, shutdown_timeout)
        if start:
            self.run_in_background(await_ready=await_ready)

    def _set_up(self, recipe: Recipe, shutdown_timeout: float) -> None:
        super().__init__(shutdown_timeout)
        self._recipe = recipe
        self.initial_peers = recipe.initial_peers
        self.num_workers = recipe.options.num_workers
        self._peer_id: PeerID | None = None
        # owned by the network thread
        self._replicas: dict[asyncio.AbstractEventLoop, P2P] = {}
        self._door: Door | None = None

    async def _make_node(self) -> DHTNode:
        node = await self._recipe.make_node()
        self._peer_id = node.peer_id
        return node

    async def _end_node(self, node: DHTNode) -> None:
        if self._door is not None:
            await self._door.close()
        await self._recipe.end_node(node)

    # -- other processes -----------------------------------------------------------------------------------------------

    def __reduce__(self) -> tuple[Any, ...]:
        """
        :raises RuntimeClosedError: if it is not running
        :raises P2PDaemonError: if it has no daemon that another process could reach
        """
        return _copy, (type(self), self._submit(self._recipe_of_copies, False), self.shutdown_timeout)

    async def _recipe_of_copies(self) -> CopyRecipe:
        """What a copy in another process is made from; from now on there is a door for it."""
        recipe = self._recipe
        if isinstance(recipe, CopyRecipe):
            return recipe
        node = await self._joined()
        daemon = node.p2p.daemon_listen_maddr
        if self._door is None:
            folder = Path(str(daemon.value_for_protocol("unix"))).parent
            door = Door(folder, node.peer_id, node.protocol.answer_at_home)
            await door.open()
            self._door = door
        return CopyRecipe(
            initial_peers=recipe.initial_peers,
            options=replace(recipe.options, client_mode=True),
            validators=recipe.validators,
            authorizer=recipe.authorizer,
            daemon=str(daemon),
            door=str(self._door.path),
            only_calls=recipe.client_mode,
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

    def watch(self, key: DHTKey, interval: float = DEFAULT_WATCH_INTERVAL) -> DHTWatch:
        """What changes under ``key``, beginning with what is there: ``for change in dht.watch(key)``; see `DHTWatch`.

        :param interval: seconds between two looks at the nodes that hold it
        :raises ConfigError: if the interval is wrong
        """
        self._started()
        return DHTWatch(self._runtime.call(self._watch, key, interval), self._runtime)

    async def _watch(self, key: DHTKey, interval: float) -> Watch:
        return (await self._joined()).watch(key, interval)

    def add_validators(self, record_validators: Iterable[RecordValidatorBase]) -> None:
        """Add validators of records while the node runs.

        :raises RuntimeClosedError: if it was not started
        """
        validators = list(record_validators)
        self._started()
        with self._lock:
            self._recipe.validators.extend(validators)

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

        The coroutine must not block: all peers of the process share the thread. If the DHT is shut down meanwhile, what
        it asks of the node raises `RuntimeClosedError`.

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
        except (SystemExit, KeyboardInterrupt) as error:
            # asyncio would end the loop of all peers of the process
            raise HivemindError(f"a coroutine run by the DHT has tried to end the process: {error!r}") from error

    @property
    def p2p(self) -> P2P:
        """The node's peer, for calls and handlers of one's own; on the network thread only. The DHT ends it.

        :raises RuntimeClosedError: as `node`
        """
        return self.node.p2p

    @property
    def peer_id(self) -> PeerID:
        """The id of the node's peer; waits until the node has joined."""
        return self.node.peer_id if self._peer_id is None else self._peer_id

    @property
    def client_mode(self) -> bool:
        """Whether this peer only asks and never answers."""
        return self._recipe.client_mode

    def stats(self) -> DHTStats:
        """How the node is doing: searches, requests, hits, keys held."""
        self._started()
        return self._runtime.call(self._stats)

    async def _stats(self) -> DHTStats:
        return (await self._joined()).stats()

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


def _copy(kind: type[DHT], recipe: CopyRecipe, shutdown_timeout: float) -> DHT:
    """The copy in another process; it begins to join, and what is asked of it waits for that."""
    dht = kind.__new__(kind)
    dht._set_up(recipe, shutdown_timeout)
    dht.run_in_background(await_ready=False)
    return dht
