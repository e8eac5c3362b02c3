"""The transport of a process that shares the daemon of another."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path

from hivemind.clock import Deadline
from hivemind.errors import ControlFailure, DaemonDied, HivemindError, StreamReset
from hivemind.identity import PeerID
from hivemind.p2p.control import ControlClient
from hivemind.p2p.daemon import ControlTransport

__all__ = ["GuestTransport"]

#: Seconds in which a guest's connection must stand.
_CONNECT_SECONDS = 5.0
#: Seconds for what a daemon does when a guest leaves.
_LEAVE_SECONDS = 0.3
#: Seconds for which a guest waits for another daemon in the place of one that has died, and between two looks.
_REVIVAL_SECONDS = 120.0
_FIRST_LOOK = 0.02
_LONGEST_LOOK = 1.0


class GuestTransport(ControlTransport):
    """Another client of a daemon that runs. If that daemon is restarted by its owner, the guest returns to it.

    :param path: its control socket
    :param peer_id: the daemon's peer, if it is known: it is then connected to when it is first needed, without `start`
    """

    def __init__(self, path: Path, peer_id: PeerID | None = None) -> None:
        super().__init__(peer_id)
        self._path = path

    @property
    def control_path(self) -> Path:
        return self._path

    async def start(self) -> None:
        self._line.begin()
        try:
            await self._enter()
        except BaseException:
            self._line.closed = True
            raise
        finally:
            self._line.end()

    async def _enter(self) -> None:
        """
        :raises HivemindError: if no daemon answers
        """
        loop = asyncio.get_running_loop()

        async def connect(client: ControlClient) -> None:
            try:
                async with asyncio.timeout(_CONNECT_SECONDS):
                    await loop.create_unix_connection(lambda: client, str(self._path))
            except (OSError, TimeoutError) as error:
                why = f"{error}; it may have been shut down"
                raise ControlFailure(f"no p2p daemon answers at {self._path}: {why}") from error

        await self._line.attach(connect)

    async def _recover(self, client: ControlClient | None) -> None:
        if client is not None:
            client.fail(DaemonDied(None, note="its owner knows more"))
        deadline, pause = Deadline.after(_REVIVAL_SECONDS), _FIRST_LOOK
        while True:
            try:
                await self._enter()
            except HivemindError as error:
                # the folder is there as long as the owner means to have a daemon
                if deadline.expired or not self._path.parent.exists():
                    raise (error if client is None else DaemonDied(None, note="its owner has given it up")) from error
            else:
                return
            await asyncio.sleep(pause)
            pause = min(2 * pause, _LONGEST_LOOK)

    async def close(self) -> None:
        if self._line.closed:
            return
        client = self._line.client
        try:
            await self._line.close()
            if client is not None:
                # before the handlers end, so that no call comes to a client that is gone
                with contextlib.suppress(HivemindError):
                    await client.unlisten_all(Deadline.after(_LEAVE_SECONDS))
                await client.close_handlers()
        finally:
            if client is not None:
                client.abort(StreamReset("this peer was shut down"))
