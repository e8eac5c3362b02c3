"""Loops of the tests with real daemons: uvloop, which the network thread uses, and for the contract asyncio's too."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping

import pytest
import pytest_asyncio
import uvloop

from hivemind.p2p import P2P
from tests.support.service_contract import Pair


def pytest_asyncio_loop_factories(
    config: pytest.Config, item: pytest.Item
) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    loops: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {"uvloop": uvloop.new_event_loop}
    if item.path.name == "test_conformance.py":
        loops["asyncio"] = asyncio.new_event_loop
    return loops


@pytest_asyncio.fixture
async def pair() -> AsyncIterator[Pair]:
    async with await P2P.create(startup_timeout=60) as alice:
        addresses = await alice.get_visible_maddrs()
        async with await P2P.create(initial_peers=addresses, startup_timeout=60) as bob:
            yield alice, bob
