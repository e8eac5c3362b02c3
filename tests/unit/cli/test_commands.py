"""The command lines themselves: options, errors, exit codes, and that they start without torch."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

import pytest

from hivemind.cli import dht, main, relay
from hivemind.cli.allowlist import AllowlistFile
from hivemind.cli.running import guarded
from hivemind.cli.serving import peer_options
from hivemind.cli.sizes import parse_bytes
from hivemind.errors import BootstrapError, ConfigError
from hivemind.identity import PeerID
from hivemind.p2p import SwarmKey

PEERS = [
    PeerID.from_base58("12D3KooWDLXAnf92spivnVheW2jr1DtRKfd5AGGgDT3XTG3BRnqi"),
    PeerID.from_base58("QmdfEoUBnf8kvDCYZWDUUSr8pLGkQiAWY7pxpvqxA8hPMY"),
]


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main.main(arguments)
    code = ended.value.code
    assert isinstance(code, int)
    return code


@pytest.mark.parametrize("module", ["main", "dht", "relay", "doctor", "identity", "server", "swarm_key"])
def test_no_command_loads_torch(module: str) -> None:
    code = f"import sys, hivemind.cli.{module}; print('torch' in sys.modules, 'numpy' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.split() == ["False", "False"]


@pytest.mark.parametrize("command", ["dht", "relay", "doctor", "identity", "server", "swarm-key", "version"])
def test_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(command, "--help") == 0
    assert f"usage: hivemind {command}" in capsys.readouterr().out


def test_help_names_all_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--help") == 0
    shown = capsys.readouterr().out
    assert all(f"\n  {command} " in shown for command in ("dht", "relay", "doctor", "identity", "swarm-key", "version"))
    assert run("--version") == 0
    assert capsys.readouterr().out.startswith("hivemind 2.")
    assert run("no-such-command") == 2


def test_versions(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("version") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[:3]] == ["hivemind", "Python", "torch"]
    assert lines[-1].startswith("p2pd 2.0, go1.")


def test_versions_without_a_daemon(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HIVEMIND_P2PD", str(tmp_path / "missing"))
    assert run("version") == 0
    assert "p2pd (HIVEMIND_P2PD names no p2p daemon" in capsys.readouterr().out
    impostor = tmp_path / "p2pd"
    impostor.write_text("#!/bin/sh\necho nonsense\n")
    impostor.chmod(0o700)
    monkeypatch.setenv("HIVEMIND_P2PD", str(impostor))
    assert run("version") == 0
    assert "does not say its version" in capsys.readouterr().out


def test_options_of_hivemind_1(capsys: pytest.CaptureFixture[str]) -> None:
    """`hivemind-dht --help` lists what 1.1 has."""
    with pytest.raises(SystemExit) as ended:
        dht.main(["--help"])
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    options = "initial_peers host_maddrs announce_maddrs use_ipfs identity_path no_relay use_auto_relay refresh_period"
    for option in options.split():
        assert f"--{option}" in shown


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--initial_peers", "nonsense"], "initial_peers"),
        (["--initial_peers", "/ip4/127.0.0.1/tcp/1"], "/p2p/"),
        (["--host_maddrs", "/ip4/999.0.0.1/tcp/0"], "host_maddrs"),
        (["--announce_maddrs", "/ip4/93.184.216.34/tcp/0"], "port other than 0"),
        (["--refresh_period", "0"], "--refresh_period"),
    ],
)
def test_wrong_options(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        dht.main(arguments)
    assert ended.value.code == 2
    told = capsys.readouterr().err
    assert told.startswith("hivemind-dht: error: ")
    assert words in told
    assert "Traceback" not in told


def test_errors_become_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    def fail(error: BaseException) -> int:
        raise error

    assert guarded("tool", lambda: 7) == 7
    assert guarded("tool", lambda: fail(BootstrapError({"/ip4/…": "refused"}))) == 1
    assert guarded("tool", lambda: fail(FileNotFoundError("no such folder"))) == 1
    assert guarded("tool", lambda: fail(ConfigError("option", 1, "2"))) == 2
    assert guarded("tool", lambda: fail(KeyboardInterrupt())) == 0
    assert capsys.readouterr().err.splitlines() == [
        "tool: error: failed to connect to bootstrap peers: /ip4/…: refused",
        "tool: error: no such folder",
        "tool: error: option: got 1, allowed: 2",
    ]
    with pytest.raises(ZeroDivisionError):
        guarded("tool", lambda: fail(ZeroDivisionError()))


@pytest.mark.parametrize(
    ("text", "size"),
    [("65536", 65536), ("500MB", 500_000_000), ("1.5 GB", 1_500_000_000), ("16GiB", 16 * 2**30), ("2KiB", 2048)],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_bytes(text) == size


@pytest.mark.parametrize("text", ["", "GiB", "-1", "1e3", "16 gigs", "16Gi", "1B2"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="16GiB"):
        parse_bytes(text)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--max_reservations", "0"], "max_reservations"),
        (["--max_circuits", "many"], "max_circuits"),
        (["--circuit_bytes", "16 gigs"], "circuit_bytes"),
        (["--circuit_seconds", "0"], "circuit_seconds"),
        (["--buffer_bytes", "2MiB"], "buffer_bytes"),
    ],
)
def test_wrong_limits_of_a_relay(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        relay.main(arguments)
    assert ended.value.code == 2
    assert words in capsys.readouterr().err


def test_allowlists(tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "members"
    path.write_text(f"# the laboratory\n{PEERS[0]}  # ann\n\n")
    allowlist = AllowlistFile(path)
    assert allowlist.read() == (PEERS[0],)
    assert allowlist.read_if_changed() is None
    path.write_text(f"{PEERS[0]}\n{PEERS[1]}\n")
    assert allowlist.read_if_changed() == (PEERS[0], PEERS[1])
    assert allowlist.read_if_changed() is None
    path.write_text(f"{PEERS[0]}\nnobody\n")
    assert allowlist.read_if_changed() is None
    assert "members line 2" in caplog.text
    path.unlink()
    assert allowlist.read_if_changed() is None
    for content, code, words in ((None, 1, "members"), ("nobody", 2, "members line 1")):
        if content is not None:
            path.write_text(content)
        assert run("relay", "--allowlist", str(path)) == code
        assert words in capsys.readouterr().err


def test_swarm_keys(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "swarm.key"
    assert run("swarm-key", "make", str(path)) == 0
    made = capsys.readouterr()
    assert made.err == ""
    key = SwarmKey.read(path)
    assert made.out == f"{key.fingerprint}\n"
    assert path.stat().st_mode & 0o777 == 0o400
    assert run("swarm-key", "make", str(path)) == 2
    assert run("swarm-key", "show", str(path)) == 0
    assert made.out in capsys.readouterr().out
    os.chmod(path, 0o644)
    assert run("swarm-key", "show", str(path)) == 0
    assert "chmod 400" in capsys.readouterr().err
    assert run("swarm-key", "make", str(tmp_path / "missing" / "swarm.key")) == 1
    (tmp_path / "text").write_text("no key")
    assert run("swarm-key", "show", str(tmp_path / "text")) == 2
    for command in ("dht", "relay"):
        assert run(command, "--swarm_key_path", str(tmp_path / "text")) == 2
        assert "swarm_key_path" in capsys.readouterr().err


def test_a_private_relay_does_not_ask_for_quic(tmp_path: Path) -> None:
    parser = argparse.ArgumentParser()
    relay.add_options(parser)
    assert len(peer_options(parser.parse_args([]))["host_maddrs"]) == 2
    arguments = ["--swarm_key_path", "swarm.key"]
    assert peer_options(parser.parse_args(arguments))["host_maddrs"] == ["/ip4/0.0.0.0/tcp/0"]
    hosts = ["/ip4/0.0.0.0/tcp/1", "/ip4/0.0.0.0/udp/1/quic-v1"]
    assert peer_options(parser.parse_args([*arguments, "--host_maddrs", *hosts]))["host_maddrs"] == hosts


def test_identity(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "peer.key"
    assert run("identity", "make", str(path)) == 0
    made = capsys.readouterr()
    assert made.err == ""
    assert PeerID.from_base58(made.out.strip()) == PeerID.from_identity(path.read_bytes())
    assert path.stat().st_mode & 0o777 == 0o400
    assert run("identity", "show", str(path)) == 0
    assert capsys.readouterr().out == made.out
    assert run("identity", "make", str(path)) == 2
    assert made.out.strip() in capsys.readouterr().err
    os.chmod(path, 0o644)
    assert run("identity", "show", str(path)) == 0
    shown = capsys.readouterr()
    assert shown.out == made.out
    assert "chmod 400" in shown.err


def test_identity_files_that_are_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("identity", "make", str(tmp_path / "missing" / "peer.key")) == 1
    assert "create it first" in capsys.readouterr().err
    assert run("identity", "show", str(tmp_path / "missing.key")) == 1
    assert "missing.key" in capsys.readouterr().err
    (tmp_path / "text").write_text("no key")
    assert run("identity", "show", str(tmp_path / "text")) == 2
    assert run("identity") == 2
