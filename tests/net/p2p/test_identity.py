"""Peers with an identity of their own."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from hivemind.errors import ConfigError, P2PDaemonError
from hivemind.identity import PeerID
from hivemind.p2p import P2P


@pytest.mark.asyncio
async def test_an_identity_is_made_and_kept(tmp_path: Path) -> None:
    path = tmp_path / "peer.key"
    async with await P2P.create(identity_path=str(path)) as first:
        known = first.peer_id
    assert stat.S_IMODE(path.stat().st_mode) == 0o400
    assert PeerID.from_identity(path.read_bytes()) == known
    assert str(known).startswith("Qm")
    async with await P2P.create(identity_path=path) as second:
        assert second.peer_id == known
    assert os.listdir(tmp_path) == ["peer.key"]


@pytest.mark.asyncio
async def test_without_a_path_each_peer_is_new() -> None:
    async with await P2P.create() as first, await P2P.create() as second:
        assert first.peer_id != second.peer_id


@pytest.mark.asyncio
async def test_an_identity_in_use_is_refused(tmp_path: Path) -> None:
    path, other = tmp_path / "peer.key", tmp_path / "other.key"
    async with await P2P.create() as hub:
        addresses = await hub.get_visible_maddrs()
        async with await P2P.create(addresses, identity_path=path):
            with pytest.raises(P2PDaemonError, match="already taken by another peer"):
                await P2P.create(addresses, identity_path=path)
            async with await P2P.create(addresses, identity_path=other) as another:
                known = another.peer_id
            # its owner has left, so it is free again
            async with await P2P.create(addresses, identity_path=other) as another:
                assert another.peer_id == known


@pytest.mark.asyncio
async def test_the_check_can_be_left_out(tmp_path: Path) -> None:
    path = tmp_path / "peer.key"
    async with await P2P.create() as hub:
        addresses = await hub.get_visible_maddrs()
        async with await P2P.create(addresses, identity_path=path) as first:
            twin = await P2P.create(addresses, identity_path=path, check_if_identity_free=False)
            async with twin:
                assert twin.peer_id == first.peer_id


@pytest.mark.asyncio
async def test_a_missing_folder_and_a_broken_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere"):
        await P2P.create(identity_path=tmp_path / "nowhere" / "peer.key")
    broken = tmp_path / "broken.key"
    broken.write_bytes(b"no key")
    with pytest.raises(ConfigError, match=r"broken\.key"):
        await P2P.create(identity_path=broken)
