"""`P2P` and services over real daemons."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest_asyncio

from hivemind.p2p import P2P
from tests.support.service_contract import Pair, ServiceContract


@pytest_asyncio.fixture
async def pair() -> AsyncIterator[Pair]:
    async with await P2P.create(startup_timeout=60) as alice:
        addresses = await alice.get_visible_maddrs()
        async with await P2P.create(initial_peers=addresses, startup_timeout=60) as bob:
            yield alice, bob


class TestDaemon(ServiceContract):
    """Runs the contract."""
