"""Swarms of the DHT whose calls are authorized."""

from __future__ import annotations

import asyncio

import pytest

from hivemind.clock import get_dht_time
from hivemind.crypto import RSAPrivateKey
from hivemind.dht import DHTNode
from hivemind.errors import BootstrapError
from hivemind.p2p import AllowlistAuthorizer
from hivemind.virtual_clock import run_virtual
from tests.support.authority import TokenAuthorizer
from tests.support.dht import dht_swarm


def test_a_swarm_with_tokens() -> None:
    async def main() -> None:
        async with dht_swarm() as swarm:
            keys = [RSAPrivateKey(), RSAPrivateKey()]
            for number in range(5):
                await swarm.node(authorizer=TokenAuthorizer(f"member {number}", key=keys[number % 2]))
            client = await swarm.node(client_mode=True, authorizer=TokenAuthorizer("client", key=keys[0]))
            expiration = get_dht_time() + 60
            assert await client.store("key", "value", expiration)
            for node in swarm.nodes:
                assert await node.get("key", latest=True) == ("value", expiration)
            members = [str(address) for address in await swarm.nodes[0].get_visible_maddrs()]
            async with await swarm.net.create_p2p() as p2p:
                with pytest.raises(BootstrapError, match=r"AuthorizationError.*no access token"):
                    await DHTNode.create(p2p, initial_peers=members)
            async with await swarm.net.create_p2p() as p2p:
                forger = TokenAuthorizer("forger", authority=RSAPrivateKey(), key=keys[0])
                with pytest.raises(BootstrapError, match=r"TokenUnavailable.*was not signed by the authority"):
                    await DHTNode.create(p2p, initial_peers=members, authorizer=forger)
            async with await swarm.net.create_p2p() as p2p:
                shut_out = TokenAuthorizer("shut out", key=keys[0])
                shut_out.fault = OSError("you are banned")
                with pytest.raises(BootstrapError, match=r"TokenUnavailable.*you are banned"):
                    await DHTNode.create(p2p, initial_peers=members, authorizer=shut_out)

    run_virtual(main)


def test_without_a_token_others_are_not_taken_for_dead() -> None:
    """The fault is this node's own: it keeps whom it knows, and is back as soon as it has a token."""

    async def main() -> None:
        async with dht_swarm() as swarm:
            keys = [RSAPrivateKey(), RSAPrivateKey()]
            one = await swarm.node(authorizer=TokenAuthorizer("one", key=keys[0]))
            authorizer = TokenAuthorizer("two", key=keys[1])
            two = await swarm.node(authorizer=authorizer)
            await asyncio.sleep(authorizer.lifetime)
            authorizer.fault = OSError("the authority is down")
            assert await two.protocol.call_ping(one.peer_id) is None
            assert one.node_id in two.protocol.routing_table
            await asyncio.sleep(10)
            authorizer.fault = None
            assert await two.protocol.call_ping(one.peer_id) == one.node_id

    run_virtual(main)


def test_members_do_not_take_a_stranger_for_a_node() -> None:
    """A node without tokens in the swarm's tables gets no records."""

    async def main() -> None:
        async with dht_swarm() as swarm:
            key = RSAPrivateKey()
            one = await swarm.node(authorizer=TokenAuthorizer("one", key=key))
            stranger = await swarm.node(joins=[])
            one.protocol.routing_table.add_or_update_node(stranger.node_id, stranger.peer_id)
            assert await one.store("key", 1, get_dht_time() + 60), "it keeps it itself"
            assert not stranger.protocol.storage
            assert stranger.node_id not in one.protocol.routing_table

    run_virtual(main)


def test_a_closed_swarm() -> None:
    async def main() -> None:
        async with dht_swarm() as swarm:
            members = AllowlistAuthorizer([])
            peers = [await swarm.net.create_p2p() for _ in range(4)]
            members.allow(*(p2p.peer_id for p2p in peers[:3]))
            first = await DHTNode.create(peers[0], authorizer=members)
            addresses = await first.get_visible_maddrs()
            joined = [await DHTNode.create(p2p, initial_peers=addresses, authorizer=members) for p2p in peers[1:3]]
            nodes = [first, *joined]
            expiration = get_dht_time() + 60
            assert await nodes[1].store("key", 1, expiration)
            assert await nodes[2].get("key", latest=True) == (1, expiration)
            with pytest.raises(BootstrapError, match=f"{peers[3].peer_id} is not on the allowlist"):
                await DHTNode.create(peers[3], initial_peers=addresses)
            lone = await DHTNode.create(peers[3], initial_peers=addresses, ensure_bootstrap_success=False)
            members.allow(peers[3].peer_id)
            nodes.append(await DHTNode.create(peers[3], initial_peers=addresses, client_mode=True))
            assert await nodes[3].get("key", latest=True) == (1, expiration)
            members.forbid(peers[1].peer_id)
            assert await nodes[1].protocol.call_ping(first.peer_id) is None
            await lone.shutdown()
            for node in nodes:
                await node.shutdown()
            for p2p in peers:
                await p2p.shutdown()

    run_virtual(main)
