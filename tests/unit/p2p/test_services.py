"""`P2P` and services over the in-memory network."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest_asyncio

from hivemind.p2p import MemoryNetwork
from tests.support.service_contract import Pair, ServiceContract


@pytest_asyncio.fixture
async def pair() -> AsyncIterator[Pair]:
    network = MemoryNetwork()
    async with await network.create_p2p() as alice, await network.create_p2p() as bob:
        yield alice, bob


class TestMemory(ServiceContract):
    """Runs the contract."""
