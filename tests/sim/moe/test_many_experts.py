"""4,096 experts of a grid in the DHT: all are found, by name and by search."""

from __future__ import annotations

import itertools
from typing import Any

import torch

from hivemind.clock import get_dht_time
from hivemind.moe.client import MoEBeamSearcher
from hivemind.moe.declare import find_experts, store_declarations, store_withdrawals
from hivemind.virtual_clock import run_virtual
from tests.support.dht import dht_swarm

GRID = (64, 64)
UIDS = [f"e.{row}.{column}" for row, column in itertools.product(*map(range, GRID))]
SERVERS = 8


def searcher_of(grid: tuple[int, ...], name: str = "e") -> MoEBeamSearcher:
    """One for nodes of a simulation: the face of a DHT is only for what is stored in the background."""
    face: Any = None
    return MoEBeamSearcher(face, name, grid, negative_caching=False)


def test_all_of_4096_experts_are_found() -> None:
    async def main() -> None:
        async with dht_swarm(8) as swarm:
            owners = {}
            for share, server in enumerate(swarm.nodes[:SERVERS]):
                uids = UIDS[share::SERVERS]
                owners.update(dict.fromkeys(uids, server.peer_id))
                declared = await store_declarations(server, uids, get_dht_time() + 60)
                assert len(declared) == 2 * len(uids)
                assert all(declared.values())

            client = await swarm.node()
            found = await find_experts(client, UIDS)
            assert {info.uid: info.peer_id for info in found if info is not None} == owners

            scores = torch.randn(2, 32, 64, generator=torch.Generator().manual_seed(0))
            samples: Any = list(zip(*scores.tolist(), strict=True))
            experts = await searcher_of(GRID).search(client, samples, 4)
            best = (scores[0][:, :, None] + scores[1][:, None, :]).flatten(1).topk(4, dim=1).indices
            assert [[expert.uid for expert in each] for each in experts] == [
                [UIDS[i] for i in row] for row in best.tolist()
            ]
            assert all(expert.peer_id == owners[expert.uid] for each in experts for expert in each)

    run_virtual(main)


def test_experts_that_were_withdrawn_are_gone_and_may_come_back() -> None:
    async def main() -> None:
        async with dht_swarm(8) as swarm:
            old, new, reader = swarm.nodes[1:4]
            uids = ["e.0.1", "e.0.2", "flat.3"]
            await store_declarations(old, uids, get_dht_time() + 60)
            await store_declarations(new, ["e.0.2"], get_dht_time() + 70)
            assert all((await store_withdrawals(old, uids)).values())

            owners = [info and info.peer_id for info in await find_experts(reader, uids, float("inf"))]
            assert owners == [None, new.peer_id, None]
            search = await searcher_of((1, 3)).search(reader, [[[0.0], [0.0, 2.0, 1.0]]], 3)
            assert [expert.uid for expert in search[0]] == ["e.0.2"]
            assert await searcher_of((4,), "flat").search(swarm.nodes[5], [[[0.0] * 4]], 4) == [[]]

            await store_declarations(old, ["e.0.1", "flat.3"], get_dht_time() + 61)
            back = await find_experts(swarm.nodes[6], ["e.0.1", "flat.3"], float("inf"))
            assert [info and info.peer_id for info in back] == [old.peer_id] * 2

    run_virtual(main)


def test_what_others_say_is_absent_hides_no_expert_of_a_flat_grid() -> None:
    """Searches of hivemind 1.1 store such a record for 300 s where the declaration of an expert has its own."""

    async def main() -> None:
        async with dht_swarm(6) as swarm:
            await swarm.nodes[1].store("flat.3.", None, get_dht_time() + 300, subkey=-1)
            await store_declarations(swarm.nodes[2], ["flat.3"], get_dht_time() + 60)
            found = await searcher_of((8,), "flat").search(swarm.nodes[3], [[[0.0] * 8]], 2)
            assert [expert.uid for expert in found[0]] == ["flat.3"]

    run_virtual(main)
