"""Samples a second of a server of 16 experts, by batch and number of clients; what its processes take, and what calls
of one client cost in processor time of both sides, which others on the machine do not change much.

The clients are threads of one process, as in both libraries all experts of a process are called on one loop. Each calls
one expert after another, drawn at random. Beside it the same modules in this process, without any network: the
ceiling, of which the share is noted.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import sys
import threading
import time
from typing import Any

from common import LOCAL, child, emit, parse_arguments, percentile
from processes import children_of, cpu_of, memory_of

EXPERTS, HIDDEN = 16, 1024
UIDS = [f"ffn.{number}" for number in range(EXPERTS)]
CLIENTS = (1, 4, 16)
BATCHES = (1, 64, 2048)
#: Seconds in which the clients of one combination begin calls.
SECONDS, QUICK_SECONDS = 6.0, 2.0
#: With --quick, also of the largest batch, of which a call of each of 16 clients takes a minute.
QUICK_CLIENTS, QUICK_LARGE_CLIENTS = (1, 16), (1,)
END_SECONDS = 15.0


def serve() -> None:
    """Serve until standard input ends. As many handlers as clients: 1.1.12 makes 165 processes by default."""
    from hivemind.moe import Server

    os.setsid()  # a group of its own, so that the processes which 1.1.12 leaves behind end with this one
    server = Server.create(
        expert_uids=UIDS,
        expert_cls="ffn",
        hidden_dim=HIDDEN,
        device="cpu",
        num_handlers=max(CLIENTS),
        start=True,
        **LOCAL,
    )
    emit({"pid": os.getpid(), "maddrs": [str(maddr) for maddr in server.dht.get_visible_maddrs()]})
    sys.stdin.read()
    ending = threading.Thread(target=server.shutdown, daemon=True)
    ending.start()
    ending.join(END_SECONDS)
    os.killpg(0, signal.SIGKILL)


class Clients:
    """Threads that call the experts.

    :param backward: each call is followed by its backward call
    """

    def __init__(self, experts: list[Any], batch: int, backward: bool) -> None:
        import torch

        self._experts, self._backward = experts, backward
        self._inputs = torch.randn(batch, HIDDEN)
        self._batch = batch

    def _call(self, number: random.Random) -> None:
        inputs = self._inputs.clone().requires_grad_(self._backward)
        output = number.choice(self._experts)(inputs)
        if self._backward:
            output.sum().backward()

    def measure(self, count: int, seconds: float) -> tuple[float, list[float]]:
        """Samples a second of ``count`` clients, and the seconds of each call."""
        times: list[list[float]] = [[] for _ in range(count)]
        problems: list[BaseException] = []
        ready, begin = threading.Barrier(count + 1), threading.Event()
        ends: list[float] = []

        def client(rank: int) -> None:
            number = random.Random(rank)
            try:
                ready.wait()
                begin.wait()
                end = time.perf_counter() + seconds
                while (started := time.perf_counter()) < end:
                    self._call(number)
                    times[rank].append(time.perf_counter() - started)
                ends.append(time.perf_counter())
            except BaseException as error:  # noqa: BLE001 (it is raised below)
                problems.append(error)
                ready.abort()

        self._call(random.Random(0))
        threads = [threading.Thread(target=client, args=(rank,)) for rank in range(count)]
        for thread in threads:
            thread.start()
        with contextlib.suppress(threading.BrokenBarrierError):
            ready.wait()
        started = time.perf_counter()
        begin.set()
        for thread in threads:
            thread.join()
        if problems:
            raise problems[0]
        calls = [call for each in times for call in each]
        return self._batch * len(calls) / (max(ends) - started), calls


def ceiling(batch: int, backward: bool, seconds: float) -> float:
    """Samples a second of the same modules here: what a server does for these calls, and nothing else."""
    import torch

    from hivemind.moe.server.layers import name_to_block

    modules = [name_to_block["ffn"](HIDDEN) for _ in range(2)]
    optimizers = [torch.optim.Adam(module.parameters()) for module in modules]
    inputs, number, samples = torch.randn(batch, HIDDEN), random.Random(0), 0

    def call() -> None:
        index = number.randrange(len(modules))
        with torch.no_grad():
            modules[index](inputs)
        if backward:
            modules[index](inputs.clone().requires_grad_()).sum().backward()
            optimizers[index].step()
            optimizers[index].zero_grad()

    call()
    started = time.perf_counter()
    while time.perf_counter() < started + seconds:
        call()
        samples += batch
    return samples / (time.perf_counter() - started)


def end_group(leader: int) -> None:
    """End what a server that has failed leaves behind."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(leader, signal.SIGKILL)


def counts_of(batch: int, quick: bool) -> tuple[int, ...]:
    """Numbers of clients."""
    if not quick:
        return CLIENTS
    return QUICK_LARGE_CLIENTS if batch == BATCHES[-1] else QUICK_CLIENTS


def cpu_of_all(server: list[int]) -> float:
    """Processor seconds of the server's processes, and of this one with its daemon, so far."""
    spent = 0.0
    for pid in {*server, os.getpid(), *children_of(os.getpid())}:
        with contextlib.suppress(OSError):  # it has ended
            spent += cpu_of(pid)
    return spent


def main(quick: bool) -> None:
    """All combinations, forward first: backward makes the state of the optimizers."""
    import torch

    from hivemind import DHT
    from hivemind.moe import get_experts

    torch.set_num_threads(1)
    seconds = QUICK_SECONDS if quick else SECONDS
    figures: dict[str, Any] = {}
    notes: list[str] = []
    with child(__file__, "--serve") as server, contextlib.ExitStack() as stack:
        started = server.receive()
        stack.callback(end_group, started["pid"])
        dht = DHT(initial_peers=started["maddrs"], start=True, **LOCAL)
        experts = get_experts(dht, UIDS)
        assert None not in experts, "not all experts are found"
        tree = [started["pid"], *children_of(started["pid"])]
        figures["server of 16 experts, processes"] = (len(tree), "")
        figures["server of 16 experts, memory"] = (sum(memory_of(pid).proportional for pid in tree), "B")
        for backward in (False, True):
            what = "forward + backward" if backward else "forward"
            for batch in BATCHES:
                most = 0.0
                for count in counts_of(batch, quick):
                    spent = cpu_of_all(tree)
                    rate, calls = Clients(experts, batch, backward).measure(count, seconds)
                    spent = cpu_of_all(tree) - spent
                    most = max(most, rate)
                    name = f"{what}, batch {batch}, {count} client{'s' if count > 1 else ''}"
                    figures[name] = (rate, "/s")
                    if count == 1:  # one more call was made before
                        figures[f"{what}, batch {batch}, processor time a call"] = (spent / (len(calls) + 1), "s")
                    if batch == 1 and count != CLIENTS[1]:
                        figures[f"{name}, median"] = percentile(calls, 0.5)
                        figures[f"{name}, p99"] = percentile(calls, 0.99)
                alone = ceiling(batch, backward, seconds)
                notes.append(f"{what}, batch {batch}: {most / alone:.0%} of the modules called in this process")
        figures["server of 16 experts, memory after training"] = (
            sum(memory_of(pid).proportional for pid in tree),
            "B",
        )
        dht.shutdown()
    emit({**figures, "notes": notes})


if __name__ == "__main__":
    options = parse_arguments(("--serve", {"action": "store_true"}))
    if options.serve:
        serve()
    else:
        main(options.quick)
