"""Servers in processes of their own: the background server, the command, and how each ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from multiprocessing import resource_tracker
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import urlopen

import pytest
import torch

from hivemind.dht import DHT
from hivemind.errors import ServerStartError
from hivemind.identity import PeerID
from hivemind.moe.server import background_server
from hivemind.moe.server.checkpoints import saved_uids
from tests.support.commands import command
from tests.support.experts import Caller
from tests.support.processes import children_of, is_alive
from tests.support.waiting import PATIENCE, eventually_sync

pytestmark = pytest.mark.timeout(300)

#: Seconds in which a process has loaded torch, on a loaded machine.
START = 100.0
HOST = "/ip4/127.0.0.1/tcp/0"
ONE = torch.ones(1, 8)


@pytest.fixture(scope="module", autouse=True)
def _resource_tracker() -> None:
    """Python's own helper process and its pipe: once started, they stay to the end of the program."""
    resource_tracker.ensure_running()


#: A process that has a server in the background, says who both are, and waits.
OWNER = """
import multiprocessing, sys
from hivemind.identity import PeerID
from hivemind.moe.server import background_server
if __name__ == "__main__":
    with background_server(expert_uids=["nop.0"], expert_cls="nop", hidden_dim=8, optim_cls=None) as peer:
        print(multiprocessing.active_children()[0].pid, flush=True)
        sys.stdin.read()
"""


def test_a_background_server_ends_with_its_block() -> None:
    with background_server(expert_uids=["nop.0"], expert_cls="nop", hidden_dim=8, optim_cls=None) as peer:
        (process,) = [pid for pid in children_of(os.getpid()) if children_of(pid)]
        (daemon,) = children_of(process)
        with DHT(initial_peers=peer.addrs, start=True) as dht:
            assert torch.equal(Caller(dht, peer.peer_id).forward("nop.0", [ONE])[0], ONE)
    assert not is_alive(process)
    eventually_sync(lambda: not is_alive(daemon), "its daemon has ended")


def test_a_background_server_that_does_not_start() -> None:
    with (
        pytest.raises(ServerStartError, match=r"expert_cls.*one of .*'ffn'") as raised,
        background_server(expert_uids=["e.0"], expert_cls="no-such-class", device="cpu"),
    ):
        pass
    assert isinstance(raised.value, RuntimeError)


def test_a_background_server_ends_with_its_owner() -> None:
    owner = subprocess.Popen([sys.executable, "-c", OWNER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    with owner:
        assert owner.stdout is not None
        process = int(owner.stdout.readline())
        children = [process, *children_of(process)]
        assert len(children) == 2
        owner.kill()
    eventually_sync(lambda: not any(map(is_alive, children)), "the server and its daemon have ended")


def test_the_command(tmp_path: Path) -> None:
    """It is killed and loses nothing that was saved; it continues from there; it ends in order."""
    saved = tmp_path / "saved"
    (tmp_path / "config.yml").write_text(
        f"expert_pattern: 'ffn.[0:2].[0:2]'\nnum_experts: 4\nhidden_dim: 8\ndevice: cpu\nhost_maddrs: [{HOST}]\n"
        f"checkpoint_dir: {saved}\nstats_report_interval: 0.2\nupdate_period: 0.2\n"
    )
    options = ["-c", str(tmp_path / "config.yml"), "--identity_path", str(tmp_path / "key")]
    everything = ["ffn.0.0", "ffn.0.1", "ffn.1.0", "ffn.1.1"]
    with command("server", *options) as running:
        running.until("Generating new identity", seconds=START)
        running.until("Serving 4 experts", seconds=START)
        eventually_sync(lambda: saved_uids(saved) == everything, "all are saved")
        assert running.end(signal.SIGKILL) == -signal.SIGKILL
    before = (saved / "ffn.1.0" / "checkpoint_last.pt").readlink()
    with command("server", *options, "--metrics", "127.0.0.1:0") as running:
        running.until("ffn.1.0: loaded", seconds=START)
        address = running.until("Running DHT node on", seconds=START).split("['")[1].split("']")[0]
        url = running.until("Prometheus text is served at", seconds=START).rpartition(" ")[2].strip()
        with DHT(initial_peers=[address], start=True) as dht:
            client = Caller(dht, PeerID.from_base58(address.rpartition("/p2p/")[2]))
            assert client.backward("ffn.1.0", [ONE, ONE])[0].shape == (1, 8)
            running.until("backward: ")
        with urlopen(url, timeout=PATIENCE) as response:
            text = response.read().decode()
        assert 'hivemind_expert_requests_total{expert="ffn.1.0",call="backward"} 1\n' in text
        assert "hivemind_p2p_" in text, "the daemon's text is there, too"
        with pytest.raises(HTTPError, match="404"):
            urlopen(url.removesuffix("metrics"), timeout=PATIENCE)
        assert running.end(signal.SIGTERM) == 0
    assert (saved / "ffn.1.0" / "checkpoint_last.pt").readlink() != before, "it was trained in between"


def test_a_command_that_cannot_start(tmp_path: Path) -> None:
    with command("server", "--num_experts", "1", "--optimizer", "magic", "--host_maddrs", HOST) as running:
        running.until("adam, sgd, none", seconds=START)
        assert running.process.wait(PATIENCE) == 2
