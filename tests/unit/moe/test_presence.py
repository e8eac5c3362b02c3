"""How a server's experts stay declared."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, cast

from hivemind.dht import DHTNode
from hivemind.errors import PeerUnreachable
from hivemind.identity import PeerID
from hivemind.moe.server.presence import Presence
from hivemind.virtual_clock import run_virtual


class Node:
    """Takes records as it is told, and notes when it was asked to."""

    peer_id = PeerID(b"\x00\x24\x08\x01\x12\x20" + bytes(32))

    def __init__(self, outcomes: Sequence[bool | float]) -> None:
        self._outcomes = list(outcomes)
        self.asked: list[float] = []

    async def store_many(self, keys: Sequence[Any], values: Any, expirations: Any, subkeys: Any) -> dict[Any, bool]:
        self.asked.append(asyncio.get_running_loop().time())
        outcome = self._outcomes.pop(0) if self._outcomes else True
        if outcome is False:
            raise PeerUnreachable("nobody is there")
        await asyncio.sleep(float(outcome is not True and outcome))
        names = [key if subkey is None else (key, subkey) for key, subkey in zip(keys, subkeys, strict=True)]
        return dict.fromkeys(names, True)


def times(outcomes: Sequence[bool | float]) -> list[float]:
    """When the experts are declared in the first 200 s, every 30 s."""
    node = Node(outcomes)

    async def main() -> None:
        presence = Presence(cast("DHTNode", node), {"e.0": None}, period=30, expiration=60)
        begin = asyncio.get_running_loop().time()
        try:
            async with asyncio.timeout(130):
                await presence.keep()
        except TimeoutError:
            node.asked = [round(each - begin) for each in node.asked]

    run_virtual(main)
    return node.asked


def test_experts_are_declared_each_period() -> None:
    assert times([]) == [30, 60, 90, 120]


def test_a_declaration_that_fails_is_made_again_soon() -> None:
    """One may also take long: up to a period, as there is nothing better to wait for."""
    assert times([False, False, True]) == [30, 32, 34, 64, 94, 124]
    assert times([25.0]) == [30, 60, 90, 120]
    assert times([99.0]) == [30, 62, 92, 122]
