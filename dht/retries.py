"""Records for nodes that did not answer, offered to them again.

A node that was busy or asleep for a moment goes on as one of the nearest to a key, and is the first to be asked: what
it lacks seems not to be there, until whoever has stored it does so again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from typing import Final

from hivemind.aio import TaskScope
from hivemind.clock import get_dht_time
from hivemind.dht.contacts import Contacts
from hivemind.dht.outgoing import Record
from hivemind.identity import PeerID

__all__ = ["Retries"]

#: Seconds before each further try.
_PAUSES: Final = (5.0, 25.0)
#: Nodes that are waited for, and records of each: of more the newest are not offered again.
_MAX_NODES: Final = 64
_MAX_RECORDS: Final = 1024


class Retries:
    """What one node still has to store on others. Owned by the network thread."""

    def __init__(self, contacts: Contacts, scope: TaskScope) -> None:
        self._contacts = contacts
        self._scope = scope
        self._owed: dict[PeerID, list[Record]] = {}

    def add(self, peer: PeerID, records: Sequence[Record], *, at_once: bool = False) -> None:
        """``peer`` should keep ``records`` and has not said that it does.

        :param at_once: it was not asked yet
        """
        owed = self._owed.get(peer)
        if owed is not None:
            owed += records[: _MAX_RECORDS - len(owed)]
        elif len(self._owed) < _MAX_NODES and not self._scope.closed:
            self._owed[peer] = list(records[:_MAX_RECORDS])
            pauses = (0.0, *_PAUSES) if at_once else _PAUSES
            self._scope.start(self._offer(peer, pauses), name="records for a node that did not answer")

    async def _offer(self, peer: PeerID, pauses: Iterable[float]) -> None:
        try:
            for pause in pauses:
                await asyncio.sleep(pause)
                now = get_dht_time()
                records = [record for record in self._owed[peer] if record.expiration_time > now]
                if not records or await self._contacts.store(peer, records) is not None:
                    return
        finally:
            del self._owed[peer]
