"""Sixteen progress trackers on the in-memory network under the virtual clock agree on when epochs end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from hivemind.clock import get_dht_time
from hivemind.dht import CompositeValidator, DHTNode, RSAPrivateKey, RSASignatureValidator
from hivemind.optim.config import TrackerOptions
from hivemind.optim.epoch import Readiness
from hivemind.optim.progress import ProgressValidator, progress_key
from hivemind.optim.reporting import ProgressReporting
from hivemind.optim.swarm_view import SwarmView
from hivemind.p2p import MemoryNetwork
from hivemind.virtual_clock import run_virtual

PEERS = 16
TARGET = 1000
#: Samples per second of the fastest peer; the slowest has a fourth of it.
SPEED = 40.0
BATCH = 4


@cache
def key(number: int) -> RSAPrivateKey:
    """Keys are made once, as that takes longer than all the rest."""
    return RSAPrivateKey()


@dataclass
class Tracker:
    number: int
    node: DHTNode
    addresses: list[Any]
    view: SwarmView
    reporting: ProgressReporting
    running: asyncio.Task[None] | None = None
    #: seconds and reason of each end of an epoch, as this peer sees it
    ends: list[tuple[float, Readiness]] = field(default_factory=list)

    @property
    def seconds_per_batch(self) -> float:
        return BATCH / (SPEED / (1 + self.number % 4))

    async def leave(self) -> None:
        self.reporting.stop()
        if self.running is not None:
            await asyncio.wait({self.running})
        await self.node.shutdown()
        await self.node.p2p.shutdown()


@asynccontextmanager
async def trackers(count: int, **options: Any) -> AsyncIterator[list[Tracker]]:
    network, swarm = MemoryNetwork(0), list[Tracker]()
    with network.delay(0.03):
        async with asyncio.TaskGroup() as tasks:
            for number in range(count):
                seeds = [address for tracker in swarm[:3] for address in tracker.addresses]
                p2p = await network.create_p2p(seeds)
                signatures = RSASignatureValidator(key(number))
                node = await DHTNode.create(
                    p2p,
                    initial_peers=seeds or None,
                    record_validator=CompositeValidator([ProgressValidator("run"), signatures]),
                )
                swarm.append(make_tracker(number, node, await p2p.get_visible_maddrs(), signatures, options))
            for tracker in swarm:
                tracker.running = tasks.create_task(tracker.reporting.run(1.0))
            yield swarm
            for tracker in list(swarm):
                await tracker.leave()


def make_tracker(
    number: int, node: DHTNode, addresses: list[Any], signatures: RSASignatureValidator, options: dict[str, Any]
) -> Tracker:
    reporting: ProgressReporting

    def changed(new_epoch: bool) -> None:
        reporting.progressed(new_epoch)

    view = SwarmView(node.peer_id.to_bytes(), TARGET, TrackerOptions(**options), client_mode=False, on_change=changed)
    reporting = ProgressReporting(node, view, "run", signatures.local_public_key)
    return Tracker(number, node, addresses, view, reporting)


async def train(tracker: Tracker, round_of: dict[int, asyncio.Barrier], epochs: int) -> None:
    """Batches at this peer's speed; at the end of an epoch a round that begins when all are there."""
    while tracker.view.own.epoch < epochs:
        await asyncio.sleep(tracker.seconds_per_batch)
        own = tracker.view.own
        tracker.view.set_progress(own.epoch, own.samples_accumulated + BATCH)
        reason = tracker.view.readiness
        if reason:
            tracker.ends.append((get_dht_time(), reason))
            with tracker.view.pause():
                await round_of[own.epoch].wait()
            tracker.view.enter_epoch(own.epoch + 1)


def test_all_end_their_epochs_together() -> None:
    epochs = 3

    async def main() -> list[list[tuple[float, Readiness]]]:
        async with trackers(PEERS) as swarm:
            rounds = {epoch: asyncio.Barrier(PEERS) for epoch in range(epochs)}
            began = get_dht_time()
            async with asyncio.TaskGroup() as tasks:
                for tracker in swarm:
                    tasks.create_task(train(tracker, rounds, epochs))
            assert {tracker.view.own.epoch for tracker in swarm} == {epochs}
            # 40, 20, 13 and 10 samples a second: 16 peers make 333 a second, an epoch takes 3 s
            speed = sum(BATCH / tracker.seconds_per_batch for tracker in swarm)
            # the first end is known late, as nobody knows the others yet
            assert get_dht_time() - began < (epochs + 1.5) * TARGET / speed
            return [tracker.ends for tracker in swarm]

    ends = run_virtual(main)
    for epoch in range(epochs):
        times = [peer[epoch][0] for peer in ends]
        # the slowest peer's batch takes 0.4 s; nobody waits for much more than that and a fetch
        assert max(times) - min(times) < 1.5
    assert all(reason is not Readiness.PEERS_AHEAD for peer in ends for _, reason in peer)
    # once the speeds are known the end is foreseen
    assert sum(reason is Readiness.EXPECTED for peer in ends for _, reason in peer[1:]) > PEERS


def test_newcomer_and_laggard_see_the_swarms_epoch() -> None:
    async def main() -> None:
        async with trackers(4) as swarm:
            newcomer, laggard, *others = swarm
            for tracker in others:
                tracker.view.set_progress(7, 10)
            laggard.view.set_progress(6, 10)
            await asyncio.sleep(15)
            for tracker in (newcomer, laggard):
                assert tracker.view.global_epoch == 7
                assert tracker.view.readiness is Readiness.PEERS_AHEAD
            assert newcomer.view.swarm.num_peers == 3
            assert laggard.view.swarm.num_peers == 3
            assert newcomer.view.swarm.samples_accumulated == 20

    run_virtual(main)


def test_the_dead_are_forgotten_and_those_who_leave_at_once() -> None:
    async def main() -> None:
        async with trackers(4, metadata_expiration=20.0) as swarm:
            for tracker in swarm:
                tracker.view.set_progress(1, 10)
            await asyncio.sleep(12)
            watching, dying, leaving, _ = swarm
            assert watching.view.swarm.num_peers == 4
            # one says goodbye, one is gone from one moment to the next
            swarm.remove(leaving)
            await leaving.leave()
            assert dying.running is not None
            dying.running.cancel()
            await asyncio.sleep(12)
            assert watching.view.swarm.num_peers == 3
            await asyncio.sleep(20)
            assert watching.view.swarm.num_peers == 2
            # those that live renew their reports without training
            await asyncio.sleep(100)
            assert watching.view.swarm.num_peers == 2

    run_virtual(main)


def test_garbage_under_the_key_harms_nobody() -> None:
    async def main() -> None:
        async with trackers(3) as swarm:
            network_time = get_dht_time()
            vandal = swarm[2].node
            for subkey, value in ((b"x", 1), (swarm[0].reporting._own_subkey, {"epoch": 10**9}), (None, "plain")):
                await vandal.store(progress_key("run"), value, network_time + 600, subkey=subkey)
            for tracker in swarm:
                tracker.view.set_progress(1, 10)
            await asyncio.sleep(30)
            assert all(tracker.view.swarm.num_peers == 3 for tracker in swarm)
            assert all(tracker.view.global_epoch == 1 for tracker in swarm)

    run_virtual(main)
