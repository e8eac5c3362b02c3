"""The connection of a peer to its daemon, over the restarts of that: who waits for the next one, what handlers it gets.

A call that has been sent ends with the daemon that it was given to, as it may have reached its peer: nothing is sent
twice. A call that comes while there is no daemon waits for the next one, up to its deadline; so does what is asked of
the daemon alone.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, NamedTuple, TypeVar

from hivemind.aio import TaskScope, with_deadline
from hivemind.clock import Deadline, monotonic
from hivemind.errors import (
    ControlFailure,
    DaemonDied,
    DeadlineExceeded,
    HivemindError,
    P2PDaemonError,
    RuntimeClosedError,
)
from hivemind.identity import PeerID
from hivemind.log import get_logger
from hivemind.p2p.control import ControlClient
from hivemind.p2p.transport import Mode, StreamHandler, UnaryHandler
from hivemind.p2p.watch import HandlerWatch

__all__ = ["Lifeline"]

logger = get_logger(__name__)

T = TypeVar("T")

#: Bans that a new daemon is told of; it has no room for more.
_MOST_BANS = 4096


class _Registration(NamedTuple):
    mode: Mode
    handler: UnaryHandler | StreamHandler
    balanced: bool


class Lifeline:
    """Owned by one loop, from its first connection on.

    :param recover: called as a task when the connection has been lost: it fails that client with the reason, then makes
        a new connection by `attach` and returns, or raises what the calls of this peer shall raise from now on
    :param peer_id: who the daemon is, where that is known beforehand: the first connection is then made when it is
        needed, by ``recover(None)``
    """

    def __init__(
        self, recover: Callable[[ControlClient | None], Awaitable[None]], peer_id: PeerID | None = None
    ) -> None:
        self.client: ControlClient | None = None
        #: times the handlers, on whatever connection they are called
        self.watch = HandlerWatch()
        self.peer_id = peer_id
        #: how often the connection was made anew
        self.restarts = 0
        self.closed = False
        self._lazy = peer_id is not None
        self._recover = recover
        self._pid = os.getpid()
        self._handlers: dict[str, _Registration] = {}
        # when the bans by this client, and those that the daemon has told of, end, on the monotonic clock
        self._bans: dict[PeerID, float] = {}
        self._scope = TaskScope("restart of the p2p daemon")
        # while there is no connection: done when there is one again, or will be none
        self._gap: asyncio.Future[None] | None = None
        # why there will be none
        self._over: HivemindError | None = None

    # -- making it -------------------------------------------------------------------------------------------------

    async def attach(
        self,
        connect: Callable[[ControlClient], Awaitable[object]],
        on_event: Callable[[Mapping[str, Any]], None] | None = None,
        *,
        watch_peers: bool = False,
    ) -> None:
        """Make a connection: the first, or from within `recover`.

        :param connect: hands a new client its socket
        :param on_event: takes the daemon's events
        :param watch_peers: those on its peers among them
        :raises HivemindError: if the daemon does not answer, or is another peer than before
        """
        client = ControlClient(lambda: self._lost(client), on_event, watch=self.watch)
        await connect(client)
        self.client = client
        try:
            await client.hello(watch_peers=watch_peers)
            if self.peer_id is not None and client.peer_id != self.peer_id:
                raise ControlFailure(f"the daemon is {client.peer_id} now and no longer {self.peer_id}")
            await self._renew_bans(client)
            for name, registration in list(self._handlers.items()):
                await self._register(client, name, registration)
            client.check()  # it may have been lost after the last answer
        except BaseException:
            client.abort(ControlFailure("the daemon did not start"))
            raise
        self.peer_id = client.peer_id

    async def _renew_bans(self, client: ControlClient) -> None:
        now = monotonic()
        self._bans = {peer: end for peer, end in self._bans.items() if end > now}
        for peer, end in list(self._bans.items()):
            await client.request("ban", peer=str(peer), seconds=end - now)

    async def _register(self, client: ControlClient, name: str, registration: _Registration) -> None:
        try:
            await client.listen(name, registration.mode, registration.handler, balanced=registration.balanced)
        except P2PDaemonError as error:
            client.check()
            # another client was faster
            logger.error("after the restart of the p2p daemon nobody answers %s here: %s", name, error)

    def begin(self) -> None:
        """From now on there is no connection, until `end`."""
        self._gap = asyncio.get_running_loop().create_future()

    def end(self, error: HivemindError | None = None) -> None:
        """The gap is over: there is a connection, or for this reason there will be none."""
        gap, self._gap, self._over = self._gap, None, error or self._over
        if gap is not None and not gap.done():
            gap.set_result(None)

    def _lost(self, client: ControlClient) -> None:
        if self.closed:
            return
        if self._gap is not None or client is not self.client:
            # whoever is just making this connection tells why it failed
            client.fail(DaemonDied(None))
            return
        self.begin()
        self._scope.start(self._recovery(client), name="restart of the p2p daemon")

    async def _recovery(self, client: ControlClient | None) -> None:
        error: HivemindError | None = None
        try:
            await self._recover(client)
            self.restarts += client is not None
        except HivemindError as failure:
            error = failure
        except BaseException:
            error = P2PDaemonError("the restart of the p2p daemon has failed")
            raise
        finally:
            self.end(error)
            # by then its handlers have been cancelled; those that do not end must not keep the others waiting
            if client is not None and not self.closed:
                self._scope.start(client.close_handlers(), name="end of a dead daemon's handlers")

    # -- using it --------------------------------------------------------------------------------------------------

    def now(self) -> ControlClient | None:
        """The connection; None while there is none and one has to wait.

        :raises P2PDaemonError: if there will be none
        :raises RuntimeClosedError: in a forked child
        """
        if self._pid != os.getpid():
            raise RuntimeClosedError(
                "this P2P belongs to the parent process and cannot be used in a forked child: start the process with "
                "the 'spawn' or 'forkserver' method and give it the P2P, or call P2P.replicate in the child"
            )
        if self.closed:
            raise P2PDaemonError("this peer was shut down")
        if self._over is not None:
            raise self._over
        if self._gap is not None:
            return None
        if self.client is None:
            if not self._lazy:
                raise P2PDaemonError("this peer was not started")
            self.begin()
            self._scope.start(self._recovery(None), name="connection to the p2p daemon")
        return self.client

    async def ready(self, deadline: Deadline, what: str) -> ControlClient:
        """The connection, waited for if there is none.

        :param what: what is to be done with it, for the error's text
        :raises DeadlineExceeded: if there is none in time: it was not done
        """
        while (client := self.now()) is None:
            gap = self._gap
            assert gap is not None
            try:
                await with_deadline(asyncio.shield(gap), deadline, what)
            except DeadlineExceeded:
                raise DeadlineExceeded(f"{what}: not sent, as the p2p daemon is being restarted") from None
        return client

    async def ask(self, question: Callable[[ControlClient], Awaitable[T]], deadline: Deadline, what: str) -> T:
        """Await what ``question`` asks of the daemon alone; if it dies over that, of the next one."""
        while True:
            client = await self.ready(deadline, what)
            try:
                return await question(client)
            except DaemonDied:
                if self.now() is client:
                    raise

    async def listen(
        self, name: str, mode: Mode, handler: UnaryHandler | StreamHandler, *, balanced: bool, deadline: Deadline
    ) -> None:
        """See `ControlClient.listen`; goes for every connection to come."""
        await self.ask(
            lambda client: client.listen(name, mode, handler, balanced=balanced), deadline, f"handler {name}"
        )
        self._handlers[name] = _Registration(mode, handler, balanced)

    async def unlisten(self, name: str, deadline: Deadline) -> None:
        """See `ControlClient.unlisten`; goes for every connection to come."""
        self._handlers.pop(name, None)
        await self.ask(lambda client: client.unlisten(name), deadline, f"end of handler {name}")

    async def ban(self, peer: PeerID, seconds: float, deadline: Deadline) -> None:
        """Have the daemon refuse ``peer``; goes for every connection to come."""
        await self.ask(lambda client: client.request("ban", peer=str(peer), seconds=seconds), deadline, "ban")
        self.note_ban(peer, seconds)

    def note_ban(self, peer: PeerID, seconds: float) -> None:
        """The daemon refuses ``peer`` from now on, and so are those to come."""
        self._bans.pop(peer, None)
        self._bans[peer] = monotonic() + seconds
        if len(self._bans) > _MOST_BANS:
            del self._bans[next(iter(self._bans))]

    async def unban(self, peer: PeerID, deadline: Deadline) -> bool:
        """The end of `ban`; whether the daemon refused ``peer``."""
        self._bans.pop(peer, None)
        answer = await self.ask(lambda client: client.request("unban", peer=str(peer)), deadline, "unban")
        return bool(answer["banned"])

    # -- the end ---------------------------------------------------------------------------------------------------

    async def close(self) -> None:
        """No more connections; those who wait for one learn it. Idempotent; the client is the caller's to end."""
        self.closed = True
        await self._scope.close()
        self.end()
