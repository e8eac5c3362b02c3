"""Swarm keys: the three encodings of their files, and that none is ever shown."""

from __future__ import annotations

import base64
import pickle
import stat
from pathlib import Path
from typing import Any

import pytest

from hivemind.dht import DHT
from hivemind.errors import ConfigError
from hivemind.p2p import P2P, P2PConfig, SwarmKey
from hivemind.p2p.daemon import daemon_config

RAW = bytes(range(32))
HEADER = b"/key/swarm/psk/1.0.0/\n"
PEER = "12D3KooWPci6KpjAHoo6UrZgu2mxg5JudqfLwifUXsnC2D8isJL6"


@pytest.mark.parametrize(
    "content",
    [
        HEADER + b"/base16/\n" + RAW.hex().encode(),
        HEADER + b"/base16/\n" + RAW.hex().encode() + b"\n",
        HEADER.replace(b"\n", b"\r\n") + b"/base16/\r\n" + RAW.hex().upper().encode() + b"\r\n",
        HEADER + b"/base64/\n" + base64.b64encode(RAW) + b"\n",
        HEADER + b"/bin/\n" + RAW,
    ],
)
def test_encodings(content: bytes) -> None:
    assert SwarmKey.parse(content) == SwarmKey(RAW)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"secret",
        b"/key/swarm/psk/2.0.0/\n/base16/\n" + RAW.hex().encode(),
        HEADER + b"/base32/\n" + RAW.hex().encode(),
        HEADER + b"/base16/\n" + RAW.hex().encode()[1:],
        HEADER + b"/base16/\n" + RAW[1:].hex().encode(),
        HEADER + b"/base64/\n" + b"*" * 44,
        HEADER + b"/bin/\n" + RAW[1:],
        HEADER + RAW.hex().encode(),
    ],
)
def test_what_is_no_key_is_refused_and_not_shown(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "key").write_bytes(content)
    with pytest.raises(ConfigError) as refused:
        SwarmKey.parse(content)
    assert "secret" not in str(refused.value)
    assert RAW[1:8].hex() not in str(refused.value)
    with pytest.raises(ConfigError, match="swarm_key_path") as refused:
        SwarmKey.read(tmp_path / "key")
    assert RAW[1:8].hex() not in str(refused.value)


def test_a_file_is_made_once_and_for_its_owner(tmp_path: Path) -> None:
    path = tmp_path / "swarm.key"
    key = SwarmKey.generate()
    assert key != SwarmKey.generate()
    assert key.write(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o400
    assert not SwarmKey.generate().write(path)
    assert SwarmKey.read(path) == key == pickle.loads(pickle.dumps(key))
    assert path.read_text().splitlines()[:2] == ["/key/swarm/psk/1.0.0/", "/base16/"]


def test_no_text_shows_it() -> None:
    key = SwarmKey(RAW)
    config = P2PConfig(swarm_key=key)
    dht = DHT(start=False, swarm_key=key.reveal())
    for text in (repr(key), str(key), repr(config), repr(dht._recipe)):
        assert RAW.hex()[:8] not in text
    assert key.fingerprint in repr(key)
    assert key.fingerprint == SwarmKey(RAW).fingerprint != SwarmKey(RAW[::-1]).fingerprint
    wrong: list[Any] = [RAW.hex(), 7, RAW, key.reveal()[:-2]]
    for value in wrong:
        with pytest.raises(ConfigError, match="swarm_key") as refused:
            P2PConfig(swarm_key=value)
        assert RAW.hex()[:8] not in str(refused.value)
        assert repr(RAW[:4]) not in str(refused.value)


def test_it_reaches_the_daemon(tmp_path: Path) -> None:
    path = tmp_path / "swarm.key"
    SwarmKey(RAW).write(path)
    for options in ({"swarm_key": SwarmKey(RAW)}, {"swarm_key": path.read_text()}, {"swarm_key_path": str(path)}):
        config = P2PConfig(**options)
        assert daemon_config(config)["swarm_key"] == path.read_text()
        assert daemon_config(config, ephemeral=True)["swarm_key"] == path.read_text()
    assert daemon_config(P2PConfig())["swarm_key"] == ""
    with pytest.raises(ConfigError, match="swarm_key_path"):
        P2PConfig(swarm_key=SwarmKey(RAW), swarm_key_path=path)
    with pytest.raises(FileNotFoundError):
        P2PConfig(swarm_key_path=tmp_path / "missing")


def test_only_tcp_in_a_private_swarm() -> None:
    tcp, quic = "/ip4/0.0.0.0/tcp/0", "/ip4/0.0.0.0/udp/0/quic-v1"
    config = P2PConfig(
        swarm_key=SwarmKey(RAW),
        host_maddrs=[tcp, quic],
        initial_peers=[f"/ip4/1.2.3.4/udp/1/quic-v1/p2p/{PEER}", f"/ip4/1.2.3.4/tcp/1/p2p/{PEER}", f"/p2p/{PEER}"],
    )
    content = daemon_config(config)
    assert content["listen"] == [tcp]
    assert content["bootstrap"] == [f"/ip4/1.2.3.4/tcp/1/p2p/{PEER}", f"/p2p/{PEER}"]
    assert config.dropped_maddrs == (quic, f"/ip4/1.2.3.4/udp/1/quic-v1/p2p/{PEER}")
    for name, value in {"host_maddrs": quic, "initial_peers": f"/ip4/1.2.3.4/udp/1/quic-v1/p2p/{PEER}"}.items():
        with pytest.raises(ConfigError, match=f"{name}.*QUIC"):
            P2PConfig(swarm_key=SwarmKey(RAW), **{name: [value]})


@pytest.mark.asyncio
async def test_the_name_of_the_note_is_no_option() -> None:
    with pytest.raises(ConfigError, match="dropped_maddrs"):
        await P2P.create(dropped_maddrs=())
