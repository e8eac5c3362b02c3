"""``hivemind-relay`` as a process: a peer behind it is reached."""

from __future__ import annotations

import signal
import urllib.request
from pathlib import Path

import pytest
from multiaddr import Multiaddr

from hivemind.dht import DHT, DHTNode
from hivemind.networking import is_relayed
from hivemind.p2p import P2P, P2PContext, Reachability, ServicerBase, SwarmKey, ensure_identity
from hivemind.proto import test_pb2
from tests.support.commands import STARTED, command
from tests.support.waiting import PATIENCE, eventually

HOST = ["--host_maddrs", "/ip4/127.0.0.1/tcp/0", "--refresh_period", "0.5"]


class Square(ServicerBase):
    async def rpc_square(self, request: test_pb2.TestRequest, context: P2PContext) -> test_pb2.TestResponse:
        return test_pb2.TestResponse(number=request.number**2)


@pytest.mark.asyncio
async def test_a_peer_behind_the_relay_is_reached() -> None:
    with command("relay", *HOST) as relay:
        started = STARTED.search(relay.line())
        assert started
        option, *addresses = started.group(1).split(" ")
        assert option == "--initial_peers"
        relay.line()
        assert "1 DHT nodes (including this one)" in relay.line()
        assert "Local storage contains 0 keys" in relay.line()
        assert "0 peers are connected" in relay.line()
        hidden = {"use_auto_relay": True, "force_reachability": "private", "nat_port_map": False}
        async with await P2P.create(initial_peers=addresses, **hidden) as behind:
            ways: list[Multiaddr] = []

            async def is_reserved() -> bool:
                ways[:] = [each for each in await behind.get_visible_maddrs(latest=True) if is_relayed(each)]
                return bool(ways)

            await eventually(is_reserved, "the relay takes calls for it")
            await Square().add_p2p_handlers(behind)
            async with await P2P.create(initial_peers=addresses, nat_port_map=False) as caller:
                await caller.connect(behind.peer_id, ways, timeout=PATIENCE)
                stub = Square.get_stub(caller, behind.peer_id)
                assert (await stub.rpc_square(test_pb2.TestRequest(number=9), timeout=PATIENCE)).number == 81
                relay.until("2 peers are connected")
        assert relay.end(signal.SIGTERM) == 0


def test_its_limits_its_allowlist_and_its_status(tmp_path: Path) -> None:
    identity, members = tmp_path / "member.key", tmp_path / "members"
    ensure_identity(identity)
    members.write_text("# nobody yet\n")
    limits = ["--max_reservations", "3", "--circuit_bytes", "1GiB", "--circuit_seconds", "90"]
    with command("relay", *HOST, *limits, "--allowlist", str(members)) as relay:
        addresses = STARTED.search(relay.line()).group(1).split(" ")[1:]  # type: ignore[union-attr]
        assert "0 connections go through it; 0.0 MB relayed since the start" in relay.until(
            "are reached through this relay"
        )
        hidden = {"use_auto_relay": True, "auto_nat": False, "identity_path": identity}
        with DHT(addresses, start=True, **hidden) as behind:
            relay.until("1 requests refused")
            members.write_text(f"{behind.peer_id}\n")
            relay.until("1 peers may use this relay from now on")
            # the peer asks again by itself
            relay.until("1 peers are reached through this relay")

            async def known(dht: DHT, node: DHTNode) -> Reachability:
                return await node.p2p.reachability()

            (way,) = behind.run_coroutine(known).relays
            assert (way.bytes, way.seconds) == (2**30, 90)
        assert relay.end(signal.SIGTERM) == 0


def test_metrics() -> None:
    with command("relay", *HOST, "--metrics", "127.0.0.1:0") as relay:
        address = relay.until("Prometheus text is served at ").split()[-1]
        with urllib.request.urlopen(address, timeout=PATIENCE) as answer:
            text = answer.read().decode()
        assert "libp2p_relaysvc_status 1" in text
        assert "hivemind_p2p_peers{" in text
        assert relay.end(signal.SIGTERM) == 0
    with command("dht", *HOST, "--metrics", "0.0.0.0:0") as refused:
        assert "metrics_public" in refused.until("error")
        assert refused.process.wait(PATIENCE) == 2


def test_a_private_relay(tmp_path: Path) -> None:
    path = tmp_path / "swarm.key"
    SwarmKey.generate().write(path)
    with command("relay", *HOST, "--swarm_key_path", str(path)) as relay:
        addresses = STARTED.search(relay.line()).group(1).split(" ")[1:]  # type: ignore[union-attr]
        with DHT(addresses, start=True, swarm_key_path=path, auto_nat=False):
            relay.until("2 DHT nodes")
        assert relay.end(signal.SIGTERM) == 0
