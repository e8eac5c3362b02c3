"""A unary call on the in-memory network: request, handler and answer as callbacks of one loop.

Swarms of thousands of peers make millions of calls: one costs its caller a future, its callee a task, and each way
across the network a timer.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from hivemind.clock import Deadline
from hivemind.errors import DeadlineExceeded, HivemindError, ProtocolNotSupported, StreamReset
from hivemind.p2p.limits import DEFAULT_MAX_MSG_SIZE
from hivemind.p2p.memory_host import Client, Host
from hivemind.p2p.memory_links import Links
from hivemind.p2p.refusals import error_told
from hivemind.p2p.serving import answer
from hivemind.p2p.transport import Buffer, Mode, UnaryHandler

__all__ = ["MemoryCall", "handler_of"]


class MemoryCall:
    """One call, known to both peers: it breaks with their connection."""

    __slots__ = ("_data", "_here", "_links", "_name", "_outcome", "_task", "_there")

    def __init__(self, links: Links, here: Host, there: Host, name: str, data: bytes) -> None:
        self._links = links
        self._here = here
        self._there = there
        self._name = name
        self._data = data
        self._outcome: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        # runs the handler
        self._task: asyncio.Task[None] | None = None

    async def run(self, deadline: Deadline) -> bytes:
        """The answer.

        :raises HivemindError: as `transport.Transport.call`
        """
        self._send(self._here, self._there, len(self._data), self._arrived)
        self._here.live[self] = self._there.peer_id
        seconds = deadline.timeout()
        timer = None if seconds is None else asyncio.get_running_loop().call_later(seconds, self._time_is_over)
        try:
            return await self._outcome
        finally:
            if timer is not None:
                timer.cancel()
            self._here.live.pop(self, None)
            self._there.live.pop(self, None)
            if self._task is not None and not self._task.done():
                self._links.deliver(self._here, self._there, self._cancel)

    def break_off(self, why: str) -> None:
        """The connection broke."""
        self._fail(StreamReset(why))
        self._cancel()

    def _send(self, source: Host, target: Host, size: int, arrived: Callable[..., None], *args: Any) -> None:
        """Call ``arrived(*args)`` when a message of ``size`` bytes has travelled.

        :raises StreamReset: if it is lost on the way
        """
        at, loop = self._links.arrival(source, target, size), asyncio.get_running_loop()
        if at is None:
            self._links.deliver(source, target, lambda: arrived(*args))
        elif at <= loop.time():
            arrived(*args)
        else:
            loop.call_at(at, arrived, *args)

    def _arrived(self) -> None:
        if self._outcome.done():
            return  # the caller has given up
        there = self._there
        if there.dead:
            self._fail(StreamReset(f"the connection to {there.peer_id} broke"))
            return
        try:
            client, handler = handler_of(there, self._name, Mode.UNARY)
        except ProtocolNotSupported as error:
            self._fail(error)
            return
        there.live[self] = self._here.peer_id
        self._task = client.scope.start(self._serve(handler), name=self._name)
        self._task.add_done_callback(self._served)

    async def _serve(self, handler: UnaryHandler) -> None:
        here, there = self._here, self._there
        result, error = await answer(handler, self._name, self._data, here.peer_id, DEFAULT_MAX_MSG_SIZE)
        size = len(error) if result is None else len(result)
        try:
            self._send(there, here, size, self._settle, result, error)
        except StreamReset as lost:
            self._fail(lost)

    def _served(self, task: asyncio.Task[None]) -> None:
        if task.cancelled() or task.exception() is not None:
            self._fail(StreamReset(f"call of {self._name}: the peer gave up"))

    def _settle(self, result: Buffer | None, error: str) -> None:
        if result is None:
            self._fail(error_told(error))
        elif not self._outcome.done():
            self._outcome.set_result(result if isinstance(result, bytes) else bytes(result))

    def _time_is_over(self) -> None:
        self._fail(DeadlineExceeded(f"call of {self._name} on {self._there.peer_id}: no answer in time"))

    def _fail(self, error: HivemindError) -> None:
        if not self._outcome.done():
            self._outcome.set_exception(error)

    def _cancel(self) -> None:
        if self._task is not None:
            self._task.cancel()


def handler_of(host: Host, name: str, mode: Mode) -> tuple[Client, Any]:
    """Who answers to ``name`` on ``host``.

    :raises ProtocolNotSupported: if nobody does
    """
    known = host.handlers.get(name)
    if known is None or known.mode is not mode:
        raise ProtocolNotSupported(f"{host.peer_id}: protocol not supported: {name}")
    return known.pick()
