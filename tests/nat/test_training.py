"""Four processes behind routers of several kinds train digits together, while relays die and addresses change."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path

import pytest

from tests.support.commands import STARTED, Command, command
from tests.support.nat_lab import PUBLIC, NatLab, Site
from tests.support.nat_peer import BEHIND_NAT
from tests.support.training_swarm import TrainingSwarm, finish_alike, preload
from tests.support.waiting import eventually_sync

#: Seconds for a run of some seconds on an idle machine.
BOUND = 120.0
#: Epochs with all four that show that a run goes on.
ROW = 6
KINDS = ["none", "port-restricted", "port-restricted", "symmetric"]

_UNTIL_TOLD = 10**6


@pytest.fixture(scope="module", autouse=True)
def _preloaded() -> None:
    preload()


class Run:
    """Four peers that join through two relays, each of these a command in a process of its own."""

    def __init__(self, lab: NatLab, folder: Path, stack: ExitStack) -> None:
        self.relays: list[Command] = []
        addresses: list[str] = []
        for _ in range(2):
            host = lab.add_public_host()
            hosts = ["--host_maddrs", f"/ip4/{host}/tcp/4001", f"/ip4/{host}/udp/4001/quic-v1"]
            known = ["--initial_peers", *addresses] if addresses else []
            relay = stack.enter_context(command("relay", *hosts, *known, inside=lab.inside(PUBLIC)))
            started = STARTED.search(relay.line())
            assert started
            addresses += started.group(1).split()[1:]
            self.relays.append(relay)
        options = {"matchmaking_time": 3.0, "averaging_timeout": 15.0, "next_chunk_timeout": 5.0}
        self.sites: list[Site] = [lab.add_site(f"train{each}", kind) for each, kind in enumerate(KINDS)]
        swarm = TrainingSwarm(folder, addresses, network=BEHIND_NAT, options=options, epochs=_UNTIL_TOLD)
        stack.enter_context(swarm)
        self.peers = [swarm.join(namespace=lab.namespace(site.peers[0])) for site in self.sites]
        swarm.train(*self.peers)

    def await_row(self, since: float) -> float:
        """Wait until a peer has ended `ROW` epochs in a row with all four after the time ``since``.

        :returns: when the first of the row ended
        """
        first: list[float] = []

        def row() -> bool:
            first.clear()
            for each in self.peers[0].epochs:
                if each["gradients"] != len(KINDS):
                    first.clear()
                elif each["time"] > since:
                    first.append(each["time"])
            return len(first) >= ROW

        eventually_sync(row, "all average again", seconds=BOUND)
        return first[0]

    def finish(self) -> None:
        """Let all train for some more epochs, to the same one, and end."""
        now = max(each["epoch"] for peer in self.peers for each in peer.epochs)
        for peer in self.peers:
            peer.tell(now + ROW)
        finish_alike(*self.peers, seconds=BOUND)


def _move(run: Run) -> None:
    run.sites[1].change_address(0)
    run.sites[2].change_public_address()


FAULTS: dict[str, Callable[[Run], object]] = {
    "a relay dies": lambda run: run.relays[0].end(signal.SIGKILL),
    "a peer and a router get other addresses": _move,
}


@pytest.mark.timeout(480)
def test_four_peers_learn_together(lab: NatLab, tmp_path: Path, say: Callable[[str], None]) -> None:
    with ExitStack() as stack:
        run = Run(lab, tmp_path, stack)
        begun = run.peers[0].wait_for("training")["time"]
        run.await_row(begun)
        say(f"training of {', '.join(KINDS)}: {ROW} epochs of all four after {time.time() - begun:.1f} s")
        for fault, strike in FAULTS.items():
            struck = time.time()
            strike(run)
            again = run.await_row(struck)
            ends = [struck, *(each["time"] for each in run.peers[0].epochs if each["time"] > struck)]
            longest = max(later - earlier for earlier, later in pairwise(ends))
            say(f"{fault}: all four average again after {again - struck:.1f} s, longest epoch {longest:.1f} s")
        run.finish()
