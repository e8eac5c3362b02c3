"""A server under load, and how it ends: batches across clients, refusals, clients that go, hot changes, the drain."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import cast

import pytest
import torch

from hivemind.clock import get_dht_time
from hivemind.dht import DHT
from hivemind.errors import ConfigError, RuntimeClosedError, ServerBusy, UnknownExpert
from hivemind.moe import Server
from hivemind.moe.declare import find_experts
from hivemind.moe.server.checkpoints import load_experts
from hivemind.p2p import metrics_text
from tests.support.experts import Caller, Gated, make_expert
from tests.support.waiting import PATIENCE, eventually_sync

ONE = torch.ones(1, 8)


@contextmanager
def serving(*uids: str, clients: int = 1, **options: object) -> Iterator[tuple[Server, list[Caller]]]:
    with ExitStack() as stack:
        dht = stack.enter_context(DHT(start=True))
        experts = {uid: make_expert(uid) for uid in uids}
        server = stack.enter_context(Server(dht, experts, start=True, **options))  # type: ignore[arg-type]
        peers = dht.get_visible_maddrs()
        callers = [
            Caller(stack.enter_context(DHT(initial_peers=peers, start=True)), dht.peer_id) for _ in range(clients)
        ]
        yield server, callers


def module_of(server: Server, uid: str) -> Gated:
    return cast("Gated", server.experts[uid].module)


def owner(client: Caller, uid: str) -> object:
    """Who serves ``uid`` by the latest record that any node has: on a loaded machine, a replica may be behind."""

    async def find(dht: DHT, node: object) -> object:
        (info,) = await find_experts(node, [uid], math.inf)  # type: ignore[arg-type]
        return None if info is None else info.peer_id

    return client.dht.run_coroutine(find)


def test_requests_of_several_clients_are_one_batch() -> None:
    with serving("e.0", clients=3) as (server, clients):
        module = module_of(server, "e.0")
        module.gate.clear()
        futures = [clients[0].call("rpc_forward", "e.0", [ONE * 0])]
        assert module.entered.wait(PATIENCE)
        futures += [client.call("rpc_forward", "e.0", [ONE * n]) for n, client in enumerate(clients, 1)]
        eventually_sync(lambda: server.experts["e.0"].forward_pool.queue.samples == 3, "all wait")
        module.gate.set()
        for n, future in enumerate(futures):
            assert torch.allclose(future.result(PATIENCE)[0], module(ONE * n), atol=1e-6)
        stats = server.stats()
        assert (stats.forward.batches, stats.forward.requests, stats.forward.samples) == (2, 4, 4)
        assert stats.calls == 0
        assert 0 < stats.forward.waited < stats.forward.answered
        text = metrics_text()
        for line in (
            '_requests_total{expert="e.0",call="forward"} 4',
            '_batches_total{expert="e.0",call="forward"} 2',
            '_samples_total{expert="e.0",call="backward"} 0',
            '_queue{expert="e.0",call="forward"} 0',
            '_request_seconds_bucket{call="forward",le="+Inf"} 4',
            '_request_seconds_count{call="forward"} 4',
        ):
            assert f"hivemind_expert{line}\n" in text
    assert "hivemind_expert" not in metrics_text()


def test_a_flood_is_refused_and_leaves_room_for_others() -> None:
    with serving("e.0", clients=2, max_waiting=8) as (server, (flood, guest)):
        module = module_of(server, "e.0")
        module.gate.clear()
        first = flood.call("rpc_forward", "e.0", [ONE])
        assert module.entered.wait(PATIENCE)
        futures = [flood.call("rpc_forward", "e.0", [ONE]) for _ in range(6)]
        eventually_sync(lambda: sum(future.done() for future in futures) == 2, "what is too much is refused")
        for future in futures:
            if future.done():
                with pytest.raises(ServerBusy, match=r"try again in"):
                    future.result()
        welcome = guest.call("rpc_forward", "e.0", [ONE])
        eventually_sync(lambda: server.experts["e.0"].forward_pool.queue.samples == 5, "the guest waits")
        module.gate.set()
        assert welcome.result(PATIENCE)
        assert first.result(PATIENCE)
        assert server.stats().forward.refused == 2


def test_requests_of_clients_that_give_up_leave_the_queue() -> None:
    with serving("e.0", clients=2) as (server, (leaver, stayer)):
        module, pool = module_of(server, "e.0"), server.experts["e.0"].forward_pool
        module.gate.clear()
        first = stayer.call("rpc_forward", "e.0", [ONE])
        assert module.entered.wait(PATIENCE)
        gone = [leaver.call("rpc_forward", "e.0", [ONE], stream=stream) for stream in (False, True)]
        eventually_sync(lambda: pool.queue.samples == 2, "they wait")
        gone[0].cancel()
        eventually_sync(lambda: pool.queue.samples == 1, "a cancelled call has left")
        leaver.dht.shutdown()
        eventually_sync(lambda: pool.queue.samples == 0, "those of a client that is gone have left")
        module.gate.set()
        first.result(PATIENCE)
        assert module.batches == [1]
        eventually_sync(lambda: server.stats().calls == 0, "nothing runs")


def test_each_device_has_its_thread() -> None:
    """An expert that takes its time does not hold up those of another device."""
    first, second = make_expert("e.0"), make_expert("e.1", device="cpu:0")
    with (
        DHT(start=True) as dht,
        Server(dht, {"e.0": first, "e.1": second}, start=True),
        DHT(initial_peers=dht.get_visible_maddrs(), start=True) as own,
    ):
        client, module = Caller(own, dht.peer_id), cast("Gated", first.module)
        module.gate.clear()
        blocked = client.call("rpc_forward", "e.0", [ONE])
        assert module.entered.wait(PATIENCE)
        assert client.forward("e.1", [ONE])
        assert not blocked.done()
        module.gate.set()
        assert blocked.result(PATIENCE)


def test_experts_come_and_go_while_others_are_called() -> None:
    with serving("e.0") as (server, (client,)):
        server.add_expert(make_expert("e.1"))
        assert owner(client, "e.1") == server.dht.peer_id
        assert client.forward("e.1", [ONE])
        with pytest.raises(ConfigError, match=r"e\.1"):
            server.add_expert(make_expert("e.1"))
        module = module_of(server, "e.1")
        module.gate.clear()
        module.entered.clear()
        last = client.call("rpc_forward", "e.1", [ONE])
        assert module.entered.wait(PATIENCE)
        threading.Timer(0.1, module.gate.set).start()
        removed = server.remove_expert("e.1")
        assert last.result(PATIENCE)
        assert removed.module is module
        with pytest.raises(UnknownExpert):
            client.forward("e.1", [ONE])
        assert owner(client, "e.1") is None
        with pytest.raises(UnknownExpert):
            server.remove_expert("e.1")
        server.add_expert(make_expert("e.1"))
        assert client.forward("e.1", [ONE])
        assert client.forward("e.0", [ONE])
    with pytest.raises(RuntimeClosedError):
        server.add_expert(make_expert("e.2"))


def test_the_end_serves_what_waits_withdraws_and_saves(tmp_path: Path) -> None:
    with serving("e.0", checkpoint_dir=tmp_path) as (server, (client,)):
        module = module_of(server, "e.0")
        assert owner(client, "e.0") == server.dht.peer_id
        module.gate.clear()
        module.entered.clear()
        futures = [client.call("rpc_backward", "e.0", [ONE, ONE])]
        assert module.entered.wait(PATIENCE)  # the first alone; the others would be in one batch with it
        futures += [client.call("rpc_backward", "e.0", [ONE, ONE]) for _ in range(2)]
        eventually_sync(lambda: server.experts["e.0"].backward_pool.queue.samples == 2, "the others wait")
        ending = threading.Thread(target=server.shutdown)
        ending.start()
        eventually_sync(lambda: owner(client, "e.0") is None, "nobody finds it any more")
        with pytest.raises(UnknownExpert, match="about to end"):
            client.forward("e.0", [ONE])
        module.gate.set()
        assert all(future.result(PATIENCE) for future in futures)
        ending.join(PATIENCE)
        assert not server.is_alive()
        twin = make_expert("e.0")
        load_experts({"e.0": twin}, tmp_path)
        assert torch.equal(cast("Gated", twin.module).weight, module.weight)


def test_the_end_is_bounded() -> None:
    with serving("e.0", drain_timeout=0.2) as (server, (client,)):
        module = module_of(server, "e.0")
        module.gate.clear()
        runs = client.call("rpc_forward", "e.0", [ONE])
        assert module.entered.wait(PATIENCE)
        waits = client.call("rpc_backward", "e.0", [ONE, ONE])
        eventually_sync(lambda: server.experts["e.0"].backward_pool.queue.samples == 1, "it waits")
        threading.Timer(0.5, module.gate.set).start()
        server.shutdown()
        with pytest.raises(UnknownExpert, match="ends"):
            waits.result(PATIENCE)
        runs.exception(PATIENCE)  # either way, it is told


def test_a_uid_that_another_peer_serves() -> None:
    with serving("e.0") as (server, (client,)):
        rival = Server(client.dht, {"e.0": make_expert("e.0"), "e.1": make_expert("e.1")})
        with pytest.raises(ConfigError, match=rf"e\.0.*{server.dht.peer_id}"):
            rival.run_in_background()
        assert not rival.is_alive()


def test_a_uid_of_a_peer_that_is_gone_is_free() -> None:
    with serving("e.0") as (server, (client,)):

        async def declare(dht: DHT, node: object) -> None:
            await node.store("e.0", str(server.dht.peer_id), get_dht_time() + 60)  # type: ignore[attr-defined]

        server.shutdown()
        client.dht.run_coroutine(declare)
        with Server(client.dht, {"e.0": make_expert("e.0")}, start=True) as heir:
            assert owner_of(heir) == client.dht.peer_id


def owner_of(server: Server) -> object:
    return owner(Caller(server.dht, server.dht.peer_id), "e.0")
