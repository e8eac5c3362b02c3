"""The file of options: what it may hold, and that all else is refused by line."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from hivemind.cli import server
from hivemind.cli.config_file import read_options
from hivemind.errors import ConfigError

TEXT = """---
# experts of this machine
expert_pattern: "ffn.[0:32].[0:8]"  # quoted, as it has brackets
num-experts: 4
device: 'cpu'

increase_file_limit: true
no_relay: false
clip_grad_norm:
initial_peers:
  - /ip4/127.0.0.1/tcp/1/p2p/A
  - "/ip4/127.0.0.1/tcp/2/p2p/B"  # the second
host_maddrs: [/ip4/127.0.0.1/tcp/0, '/ip4/127.0.0.1/udp/0/quic-v1']
"""


def test_what_a_file_may_hold(tmp_path: Path) -> None:
    path = tmp_path / "config.yml"
    path.write_text(TEXT)
    assert read_options(path) == {
        "expert_pattern": "ffn.[0:32].[0:8]",
        "num_experts": "4",
        "device": "cpu",
        "increase_file_limit": True,
        "no_relay": False,
        "clip_grad_norm": None,
        "initial_peers": ["/ip4/127.0.0.1/tcp/1/p2p/A", "/ip4/127.0.0.1/tcp/2/p2p/B"],
        "host_maddrs": ["/ip4/127.0.0.1/tcp/0", "/ip4/127.0.0.1/udp/0/quic-v1"],
    }


@pytest.mark.parametrize(
    "text",
    ["a:\n  b: 1", "a: {b: 1}", "a: &x 1", "a: |", "a: [1", "- 1", "a: 1\na: 2", "a: 1\n- 2", "just words", 'a: "x'],
)
def test_other_yaml_is_refused_by_line(tmp_path: Path, text: str) -> None:
    path = tmp_path / "config.yml"
    path.write_text(f"first: 1\n{text}\n")
    with pytest.raises(ConfigError, match=r"config.yml, line [23]"):
        read_options(path)


def options(*arguments: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="hivemind-server")
    server.add_options(parser)
    return server.parse(parser, arguments)


def test_what_is_typed_comes_before_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "config.yml").write_text(TEXT)
    monkeypatch.chdir(tmp_path)
    given = options("--num_experts", "7", "--initial_peers", "/ip4/127.0.0.1/tcp/3/p2p/C")
    assert (given.num_experts, given.expert_pattern, given.device) == (7, "ffn.[0:32].[0:8]", ["cpu"])
    assert given.initial_peers == ["/ip4/127.0.0.1/tcp/3/p2p/C"]
    assert given.host_maddrs == ["/ip4/127.0.0.1/tcp/0", "/ip4/127.0.0.1/udp/0/quic-v1"]
    assert (given.increase_file_limit, given.use_relay, given.clip_grad_norm) == (True, True, None)


@pytest.mark.parametrize(
    "line", ["num_expert: 4", "num_experts: true", "num_experts: [1]", "no_relay: 1", "help: true"]
)
def test_a_file_that_does_not_fit_the_command(tmp_path: Path, line: str, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "own.yml"
    path.write_text(line)
    with pytest.raises(SystemExit) as ended:
        options("-c", str(path))
    assert ended.value.code == 2
    assert "--config" in capsys.readouterr().err


def test_a_file_that_is_named_must_be_there(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        options("--config", "/nowhere/own.yml")
    assert "a file that can be read" in capsys.readouterr().err
