"""Options of `P2P.create` do in the network what they say."""

from __future__ import annotations

import pytest

from hivemind.errors import MessageTooLarge
from hivemind.p2p import P2P
from hivemind.proto import test_pb2
from tests.support.conformance import echo, soon
from tests.support.service_contract import Numbers


@pytest.mark.asyncio
async def test_a_peer_that_does_not_listen_calls_and_is_called_back() -> None:
    async with await P2P.create() as alice:
        silent = await P2P.create(await alice.get_visible_maddrs(), no_listen=True, dht_mode="client", tls=False)
        async with silent:
            with pytest.raises(ValueError, match="visible addresses"):
                await silent.get_visible_maddrs()
            await silent.transport.listen_unary("echo", echo)
            await alice.transport.listen_unary("echo", echo)
            assert await silent.transport.call(alice.peer_id, "echo", b"1", soon()) == b"1"
            # by the connection that it made
            assert await alice.transport.call(silent.peer_id, "echo", b"2", soon()) == b"2"


@pytest.mark.asyncio
async def test_announced_addresses_replace_those_listened_on() -> None:
    async with await P2P.create(announce_maddrs=["/ip4/192.0.2.7/tcp/4321"], use_relay=False, auto_nat=False) as p2p:
        assert [str(each) for each in await p2p.get_visible_maddrs()] == [f"/ip4/192.0.2.7/tcp/4321/p2p/{p2p.peer_id}"]


@pytest.mark.asyncio
async def test_peers_find_each_other_by_id_through_a_third() -> None:
    async with await P2P.create() as hub:
        addresses = await hub.get_visible_maddrs()
        async with await P2P.create(addresses) as alice, await P2P.create(addresses) as bob:
            await alice.transport.listen_unary("echo", echo)
            assert await bob.transport.call(alice.peer_id, "echo", b"1", soon()) == b"1"


@pytest.mark.asyncio
async def test_quic() -> None:
    async with await P2P.create(host_maddrs=["/ip4/127.0.0.1/udp/0/quic-v1"]) as alice:
        addresses = await alice.get_visible_maddrs()
        assert all("quic-v1" in str(address) for address in addresses)
        async with await P2P.create(addresses, host_maddrs=["/ip4/127.0.0.1/udp/0/quic-v1"]) as bob:
            await Numbers().add_p2p_handlers(alice)
            stub = Numbers.get_stub(bob, alice.peer_id)
            # the end of a stream is not lost with its connection's
            for _ in range(20):
                responses = await stub.rpc_count(test_pb2.TestRequest(number=10))
                assert [response.number async for response in responses] == list(range(10))


@pytest.mark.asyncio
async def test_a_smaller_limit_for_unary_messages() -> None:
    async with (
        await P2P.create(persistent_conn_max_msg_size=100_000) as alice,
        await P2P.create(await alice.get_visible_maddrs(), persistent_conn_max_msg_size=100_000) as bob,
    ):
        await alice.transport.listen_unary("echo", echo)
        with pytest.raises(MessageTooLarge, match="100000"):
            await bob.transport.call(alice.peer_id, "echo", bytes(100_000), soon())
        assert len(await bob.transport.call(alice.peer_id, "echo", bytes(90_000), soon())) == 90_000
