"""Options of `P2P.create`: each wrong one names itself."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from multiaddr import Multiaddr

from hivemind.config import make_options, option_names
from hivemind.errors import ConfigError
from hivemind.p2p import P2P, P2PConfig, RelayLimits, SwarmKey
from hivemind.p2p.daemon import daemon_config

PEER = "12D3KooWPci6KpjAHoo6UrZgu2mxg5JudqfLwifUXsnC2D8isJL6"


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("initial_peers", ["nonsense"]),
        ("initial_peers", ["/ip4/127.0.0.1/tcp/1"]),
        ("initial_peers", [7]),
        ("announce_maddrs", ["/ip4/1.2.3.4/tcp/0"]),
        ("announce_maddrs", ["/ip4/1.2.3.4/udp/0/quic-v1"]),
        ("host_maddrs", []),
        ("host_maddrs", ["/ip4/300.0.0.1/tcp/0"]),
        ("dht_mode", "maybe"),
        ("force_reachability", "sometimes"),
        ("startup_timeout", 0),
        ("startup_timeout", float("nan")),
        ("idle_timeout", -1),
        ("persistent_conn_max_msg_size", 10),
        ("tls", "yes"),
        ("no_listen", None),
        ("relay_service", "yes"),
        # without relay_service they would have no effect
        ("relay_limits", RelayLimits()),
        ("relay_allowlist", [PEER]),
        ("max_peer_calls", 0),
        ("max_peer_streams", 1),
        ("max_peer_bytes", 1000),
        ("flood_limit", -1),
        ("flood_ban_seconds", 0),
        ("slow_handler_seconds", 0),
        ("metrics", 9100),
        ("metrics", "9100"),
        ("metrics", "localhost:9100"),
        ("metrics", "127.0.0.1:99999"),
        ("metrics", "unix:relative"),
        ("metrics", "0.0.0.0:9100"),
        ("metrics_public", True),
        ("pprof", True),
        ("trusted_relays", ["/ip4/1.2.3.4/tcp/1"]),
        # without use_auto_relay they would have no effect
        ("trusted_relays", [f"/ip4/1.2.3.4/tcp/1/p2p/{PEER}"]),
        ("use_ipfs", "yes"),
        ("use_ipfs", None),
        ("use_ipfs", []),
        ("use_ipfs", ["/ip4/1.2.3.4/tcp/1"]),
    ],
)
def test_a_wrong_option_names_itself(option: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=option):
        P2PConfig(**{option: value})


@pytest.mark.parametrize("option", ["use_auto_relay", "relay_service"])
def test_relays_need_relaying(option: str) -> None:
    with pytest.raises(ConfigError, match=option):
        P2PConfig(**{option: True}, use_relay=False)


def test_relay_options_reach_the_daemon() -> None:
    relay = f"/ip4/1.2.3.4/tcp/1/p2p/{PEER}"
    config = P2PConfig(use_auto_relay=True, trusted_relays=[relay], force_reachability="private", relay_service=True)
    content = daemon_config(config)
    names = ("auto_relay", "relay_service", "trusted_relays", "force_reachability")
    assert [content[name] for name in names] == [True, True, [relay], "private"]
    probe = daemon_config(config, ephemeral=True)
    assert [probe[name] for name in names] == [False, False, [], ""]


def test_limits_of_a_relay() -> None:
    limits = RelayLimits(max_reservations=1, max_circuits=2, circuit_bytes=3, circuit_seconds=4.5, buffer_bytes=6)
    content = daemon_config(P2PConfig(relay_service=True, relay_limits=limits, relay_allowlist=[PEER]))
    expected: dict[str, Any] = {
        "relay_reservations": 1,
        "relay_circuits": 2,
        "relay_circuit_bytes": 3,
        "relay_circuit_time": 4.5,
        "relay_buffer": 6,
        "relay_allow": [PEER],
    }
    assert {name: content[name] for name in expected} == expected
    assert daemon_config(P2PConfig(relay_service=True))["relay_allow"] is None
    assert daemon_config(P2PConfig(relay_service=True, relay_allowlist=()))["relay_allow"] == []


def test_ipfs_reaches_the_daemon() -> None:
    content = daemon_config(P2PConfig(use_ipfs=True))
    assert (content["ipfs"], content["ipfs_peers"]) == (True, [])
    peer = f"/ip4/1.2.3.4/tcp/1/p2p/{PEER}"
    content = daemon_config(P2PConfig(use_ipfs=[peer]), ephemeral=True)
    assert (content["ipfs"], content["ipfs_peers"]) == (True, [peer])
    with pytest.raises(ConfigError, match=r"use_ipfs.*swarm_key"):
        P2PConfig(use_ipfs=True, swarm_key=SwarmKey.generate())


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("max_reservations", 0),
        ("max_reservations", 70000),
        ("max_circuits", True),
        ("circuit_bytes", 1.5),
        ("circuit_seconds", 0.5),
        ("circuit_seconds", 90000),
        ("circuit_seconds", float("nan")),
        ("buffer_bytes", 2**21),
    ],
)
def test_a_wrong_limit_names_itself(option: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=option):
        RelayLimits(**{option: value})


@pytest.mark.parametrize("value", [{"max_circuits": 5}, 5])
def test_limits_are_relay_limits(value: Any) -> None:
    with pytest.raises(ConfigError, match="RelayLimits"):
        P2PConfig(relay_service=True, relay_limits=value)


@pytest.mark.parametrize("value", [["nobody"], 7, (each for each in [PEER]), [7]])
def test_an_allowlist_is_of_peer_ids(value: Any) -> None:
    with pytest.raises(ConfigError, match="relay_allowlist"):
        P2PConfig(relay_service=True, relay_allowlist=value)


def test_an_unknown_option_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match="host_maddrs"):
        make_options(P2PConfig, {"host_maddr": []}, where="P2P.create")


@pytest.mark.asyncio
async def test_create_checks_before_anything_starts() -> None:
    with pytest.raises(ConfigError, match="startup_timeout"):
        await P2P.create(start_timeout=3)
    with pytest.raises(ConfigError, match="initial_peers"):
        await P2P.create(["nonsense"])


def test_addresses_are_text_or_multiaddrs_one_or_many() -> None:
    config = P2PConfig(
        initial_peers=[f"/ip4/1.2.3.4/tcp/1/p2p/{PEER}", Multiaddr(f"/p2p/{PEER}")], host_maddrs="/ip4/0.0.0.0/tcp/0"
    )
    assert config.initial_peers == (Multiaddr(f"/ip4/1.2.3.4/tcp/1/p2p/{PEER}"), Multiaddr(f"/p2p/{PEER}"))
    assert config.host_maddrs == (Multiaddr("/ip4/0.0.0.0/tcp/0"),)


@pytest.mark.parametrize(
    ("hosts", "loopback"),
    [
        (["/ip4/127.0.0.1/tcp/0"], True),
        (["/ip6/::1/tcp/0"], True),
        (["/ip4/0.0.0.0/tcp/0"], False),
        (["/ip4/127.0.0.1/tcp/0", "/ip4/10.0.0.1/tcp/0"], False),
    ],
)
def test_what_is_reached_by_other_machines(hosts: list[str], loopback: bool) -> None:
    assert P2PConfig(host_maddrs=hosts).only_loopback is loopback


@pytest.mark.parametrize("option", ["quic", "use_relay_hop", "use_relay_discovery"])
def test_options_that_are_gone_warn(option: str) -> None:
    with pytest.warns(DeprecationWarning, match=option):
        P2PConfig(**{option: True})


def test_the_folder_of_an_identity_must_be_there(tmp_path: Path) -> None:
    P2PConfig(identity_path=tmp_path / "key")
    with pytest.raises(FileNotFoundError, match="nowhere"):
        P2PConfig(identity_path=str(tmp_path / "nowhere" / "key"))


def test_options_reach_the_daemon(tmp_path: Path) -> None:
    content = daemon_config(
        P2PConfig(
            initial_peers=[f"/ip4/1.2.3.4/tcp/1/p2p/{PEER}"],
            announce_maddrs=["/ip4/5.6.7.8/tcp/9"],
            host_maddrs=["/ip4/0.0.0.0/tcp/0", "/ip4/0.0.0.0/udp/0/quic-v1"],
            identity_path=tmp_path / "key",
            dht_mode="client",
            auto_nat=False,
            tls=False,
            conn_manager=False,
            use_relay=False,
            startup_timeout=10,
            persistent_conn_max_msg_size=1_000_000,
            max_peer_calls=7,
            max_peer_streams=77,
            max_peer_bytes=7_777_777,
            flood_limit=777,
            flood_ban_seconds=7.5,
            metrics="[::1]:0",
            pprof=True,
        )
    )
    assert content == {
        "peer_calls": 7,
        "peer_streams": 77,
        "peer_bytes": 7_777_777,
        "flood_limit": 777,
        "flood_ban": 7.5,
        "metrics_listen": "[::1]:0",
        "metrics_public": False,
        "pprof": True,
        "bootstrap": [f"/ip4/1.2.3.4/tcp/1/p2p/{PEER}"],
        "announce": ["/ip4/5.6.7.8/tcp/9"],
        "listen": ["/ip4/0.0.0.0/tcp/0", "/ip4/0.0.0.0/udp/0/quic-v1"],
        "no_listen": False,
        "identity_path": str(tmp_path / "key"),
        "dht_mode": "client",
        "auto_nat": False,
        "nat_port_map": True,
        "tls": False,
        "conn_manager": False,
        "relay": False,
        "auto_relay": False,
        "trusted_relays": [],
        "relay_service": False,
        "relay_reservations": 512,
        "relay_circuits": 64,
        "relay_circuit_bytes": 16 * 2**30,
        "relay_circuit_time": 1800.0,
        "relay_buffer": 65536,
        "relay_allow": None,
        "swarm_key": "",
        "ipfs": False,
        "ipfs_peers": [],
        "force_reachability": "",
        "bootstrap_timeout": 8.5,
        "dial_timeout": 7.5,
        "max_unary": 1_000_000,
        "log_level": content["log_level"],
    }
    assert daemon_config(P2PConfig())["nat_port_map"] is False
    assert daemon_config(P2PConfig(no_listen=True))["listen"] == []


def test_the_page_lists_all_options() -> None:
    page = (Path(__file__).resolve().parents[3] / "docs" / "p2p.md").read_text()
    listed = {
        name for row in re.findall(r"^\| (`[a-z_`, ]+) \|", page, re.MULTILINE) for name in re.findall(r"`(\w+)`", row)
    }
    assert listed == set(option_names(P2PConfig))
