"""A peer that floods is slowed down, then dropped, and the others keep their latency."""

from __future__ import annotations

import asyncio
import json
import statistics
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from hivemind.identity import PeerID
from hivemind.p2p import P2P, Mode, Stream
from tests.support.processes import resident_bytes
from tests.support.service_contract import Numbers
from tests.support.waiting import PATIENCE, eventually

ROOT = Path(__file__).resolve().parents[3]
MIB = 1024 * 1024
#: Calls of the polite peer in each phase: enough for a 99th percentile that is not one call.
CALLS = 500
#: What a flood may cost others. It takes its share of the processors until it is dropped, which is what the factor
#: stands for; the sum is what 512 calls, all that one peer may have at once, take a handler of 0.1 ms.
FACTOR, EXTRA = 10, 0.05
#: What a flood may make the victim's Python and daemon hold: of one peer 256 MiB of messages, and its streams' windows.
MEMORY = 768 * MIB


class Process:
    """A peer of `tests.support.flood_peers`."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process

    async def line(self) -> Any:
        assert self.process.stdout is not None
        return json.loads(await asyncio.wait_for(self.process.stdout.readline(), 2 * PATIENCE))

    async def ask(self) -> list[float]:
        """The seconds of the polite peer's calls since the last time."""
        assert self.process.stdin is not None
        self.process.stdin.write(b"\n")
        found: list[float] = await self.line()
        return found


@asynccontextmanager
async def peer(role: str, victim: P2P) -> AsyncIterator[tuple[Process, PeerID]]:
    addresses = [str(each) for each in await victim.get_visible_maddrs()]
    command = [sys.executable, "-m", "tests.support.flood_peers", role, str(victim.peer_id), *addresses]
    process = await asyncio.create_subprocess_exec(
        *command, cwd=ROOT, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, limit=64 * MIB
    )
    try:
        one = Process(process)
        yield one, PeerID.from_base58((await one.line())["id"])
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def measure(polite: Process, until: asyncio.Future[None] | None = None) -> tuple[float, float]:
    """p50 and p99 in seconds of the next calls, at least until that is done."""
    took = await polite.ask()
    took.clear()
    async with asyncio.timeout(4 * PATIENCE):
        while len(took) < CALLS or (until is not None and not until.done()):
            await asyncio.sleep(0.1)
            took += await polite.ask()
    steps = statistics.quantiles(took, n=100)
    return steps[49], steps[98]


async def deaf(stream: Stream) -> None:
    """Never read; ends with its peer, which cancels it."""
    await asyncio.Event().wait()


@pytest.mark.asyncio
@pytest.mark.timeout(300)
@pytest.mark.parametrize("role", ["calls", "unknown", "unread"])
async def test_a_flood_harms_its_sender_only(role: str, caplog: pytest.LogCaptureFixture) -> None:
    async with await P2P.create() as victim:
        child = victim._child
        assert child is not None
        assert child.pid is not None
        await Numbers().add_p2p_handlers(victim)
        await victim.transport.listen_stream("Deaf.stream", Mode.MESSAGES, deaf)
        async with peer("polite", victim) as (polite, polite_id):
            before = await measure(polite)
            memory = resident_bytes(child.pid) + resident_bytes()
            async with peer(role, victim) as (_, flooder_id):

                async def dropped() -> bool:
                    return flooder_id in await victim.bans()

                waiting = asyncio.ensure_future(eventually(dropped, "the flooder is dropped", seconds=2 * PATIENCE))
                during = await measure(polite, waiting)
                await waiting
                grown = resident_bytes(child.pid) + resident_bytes() - memory
                assert all(known.peer_id != flooder_id for known in await victim.list_peers())
            # what the machine does besides is in both quiet phases
            after = await measure(polite)
            quiet = max(before[0], after[0]), max(before[1], after[1])
            print(
                f"{role}: p50 {quiet[0] * 1e3:.2f} -> {during[0] * 1e3:.2f} ms, "
                f"p99 {quiet[1] * 1e3:.2f} -> {during[1] * 1e3:.2f} ms, {grown / MIB:.0f} MiB"
            )
            assert during[0] < FACTOR * quiet[0] + EXTRA
            assert during[1] < FACTOR * quiet[1] + EXTRA
            assert grown < MEMORY
            # the polite one was never in question
            assert polite_id not in await victim.bans()
            assert not (await victim.metrics()).peers[polite_id].slowed
            assert (await victim.metrics()).peers[polite_id].incoming.failed == 0
        # who it was, and what to do; however much it sent, few lines
        await eventually(lambda: "was dropped" in caplog.text, "the log names the flooder")
        lines = [record.getMessage() for record in caplog.records if "floods this one" in record.getMessage()]
        assert any(str(flooder_id) in line and "flood limit" in line for line in lines)
        assert len(lines) <= 4
