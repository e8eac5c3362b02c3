"""Swarms with a secret (libp2p private networks): who has it is in, over TCP and through relays; who has not is out."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from hivemind.errors import HivemindError, P2PDaemonError
from hivemind.p2p import P2P, SwarmKey
from tests.support.conformance import echo, soon
from tests.support.waiting import eventually

pytestmark = pytest.mark.timeout(120)

NOWHERE = "/ip4/127.0.0.1/tcp/1"


@pytest.mark.asyncio
async def test_peers_with_the_key_meet_and_others_are_told_why_not(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "swarm.key"
    key = SwarmKey.generate()
    key.write(path)
    hosts = ["/ip4/127.0.0.1/tcp/0", "/ip4/127.0.0.1/udp/0/quic-v1"]
    async with await P2P.create(swarm_key=key, host_maddrs=hosts, identity_path=tmp_path / "hub") as hub:
        assert "/udp/0/quic-v1: QUIC cannot be used in a private swarm" in caplog.text
        addresses = await hub.get_visible_maddrs()
        assert all("/tcp/" in str(each) for each in addresses)
        await hub.transport.listen_unary("echo", echo)
        # with a file; its identity is looked up in the swarm by a peer that needs the key as well
        options = {"swarm_key_path": path, "identity_path": tmp_path / "identity"}
        for _ in range(2):
            async with await P2P.create(addresses, **options) as inside:
                assert await inside.transport.call(hub.peer_id, "echo", b"1", soon()) == b"1"
                with pytest.raises(P2PDaemonError, match="already taken"):
                    await P2P.create(addresses, **options)
        with pytest.raises(P2PDaemonError, match="may be in a private swarm, for which a swarm key is needed"):
            await P2P.create(addresses, startup_timeout=5)
        with pytest.raises(P2PDaemonError, match="connects only to peers that have the same one"):
            await P2P.create(addresses, startup_timeout=5, swarm_key=SwarmKey.generate())
    secret = key.reveal().split()[-1]
    assert secret not in caplog.text


@pytest.mark.asyncio
async def test_relays_serve_a_private_swarm() -> None:
    key = SwarmKey.generate()
    async with await P2P.create(relay_service=True, swarm_key=key) as relay:
        addresses = await relay.get_visible_maddrs()
        hidden = {"announce_maddrs": [NOWHERE], "use_auto_relay": True, "force_reachability": "private"}
        async with (
            await P2P.create(addresses, swarm_key=key, **hidden) as behind,
            await P2P.create(addresses, swarm_key=key) as caller,
        ):
            await behind.transport.listen_unary("echo", echo)
            assert await caller.transport.call(behind.peer_id, "echo", bytes(100_000), soon()) == bytes(100_000)
            assert (await caller.reachability()).relayed_peers == 1


@pytest.mark.asyncio
async def test_a_private_relay_is_the_same_after_a_restart(caplog: pytest.LogCaptureFixture) -> None:
    """Its key, and whom it was told to serve while it ran."""
    key = SwarmKey.generate()
    async with await P2P.create(relay_service=True, relay_allowlist=[], swarm_key=key, restart=True) as relay:
        addresses = await relay.get_visible_maddrs()
        # at first nobody is served
        hidden = {"announce_maddrs": [NOWHERE], "use_auto_relay": True, "auto_nat": False}
        async with await P2P.create(addresses, swarm_key=key, **hidden) as member:
            await relay.set_relay_allowlist([member.peer_id])
            child = relay._child
            assert child is not None
            assert child.pid is not None
            os.kill(child.pid, signal.SIGKILL)

            async def is_served() -> bool:
                try:
                    return (await relay.stats())["relay_reservations"] == 1
                except HivemindError:
                    return False

            await eventually(is_served, "the member is served by the relay's new daemon")
            assert await relay.get_visible_maddrs(latest=True) == addresses
    assert "died" in caplog.text
    assert key.reveal().split()[-1] not in caplog.text


@pytest.mark.asyncio
async def test_the_key_is_on_no_command_line_and_in_no_file() -> None:
    key = SwarmKey.generate()
    secret = key.reveal().split()[-1].encode()
    async with await P2P.create(swarm_key=key) as p2p:
        child = p2p._child
        assert child is not None
        process = Path(f"/proc/{child.pid}")
        assert secret not in (process / "cmdline").read_bytes()
        assert secret not in (process / "environ").read_bytes()
        assert not [file for file in child.control_path.parent.iterdir() if file.is_file()]
