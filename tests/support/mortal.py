"""A process that holds one object of the library and ends in a given way: ``mortal.py <kind> <way>``.

It prints JSON lines: ``ready`` once it holds the object (ways with "in flight": once a call or round is under way in
it, in which the main thread then waits), ``interrupted`` when it goes on after a SIGINT, ``shutdown`` with the seconds
that took. Where it ends by itself, it waits for a line first.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Coroutine
from typing import Any, TypeVar

LOCAL = {"auto_nat": False, "nat_port_map": False, "startup_timeout": 60.0}

T = TypeVar("T")


def say(event: str, **facts: Any) -> None:
    print(json.dumps({"event": event, **facts}), flush=True)


def wait() -> None:
    """As a main thread does that has nothing to do."""
    threading.Event().wait(600)


class HeldP2P:
    """A bare peer, on a loop of the main thread."""

    def __init__(self, in_flight: bool) -> None:
        from hivemind.p2p import P2P

        self._loop = asyncio.new_event_loop()
        self.p2p = self._run(P2P.create(**LOCAL))
        self.callee = self._run(self._make_callee()) if in_flight else None

    def _run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return self._loop.run_until_complete(coroutine)

    async def _make_callee(self) -> Any:
        from hivemind.p2p import P2P

        callee = await P2P.create(initial_peers=await self.p2p.get_visible_maddrs(), **LOCAL)
        await callee.transport.listen_unary("hang", hang)
        return callee

    def work(self) -> None:
        from hivemind.clock import Deadline

        self._run(self.p2p.transport.call(self.callee.peer_id, "hang", b"", Deadline.after(600)))

    def idle(self) -> None:
        say("ready")
        self._run(asyncio.sleep(600))

    def check(self) -> None:
        assert len(self._run(self.p2p.list_peers())) == 1

    def shutdown(self) -> None:
        self._run(self.p2p.shutdown())


async def hang(request: object, remote: object) -> bytes:
    say("ready")
    await asyncio.Event().wait()
    return b""


class HeldDHT:
    """A DHT; the call in flight is to a second one."""

    def __init__(self, in_flight: bool) -> None:
        from hivemind.dht import DHT

        self.dht = DHT(start=True, **LOCAL)
        self.other = DHT(self.dht.get_visible_maddrs(), start=True, **LOCAL) if in_flight else None
        if self.other is not None:
            self.other.run_coroutine(listen)

    def work(self) -> None:
        from hivemind.clock import Deadline

        callee = self.other.peer_id

        async def call(dht: Any, node: Any) -> None:
            await node.p2p.transport.call(callee, "hang", b"", Deadline.after(600))

        self.dht.run_coroutine(call)

    def idle(self) -> None:
        say("ready")
        wait()

    def check(self) -> None:
        from hivemind.clock import get_dht_time

        assert self.dht.store("key", 1, get_dht_time() + 60)

    def shutdown(self) -> None:
        self.dht.shutdown()


async def listen(dht: Any, node: Any) -> None:
    await node.p2p.transport.listen_unary("hang", hang)


class HeldAverager(HeldDHT):
    """An averager; in flight is the exchange of large tensors with a second one."""

    def __init__(self, in_flight: bool) -> None:
        import torch

        from hivemind.averaging import DecentralizedAverager

        torch.set_num_threads(1)
        super().__init__(in_flight)
        size = 1 << 24 if in_flight else 1000
        self.averagers = [
            DecentralizedAverager([torch.zeros(size)], dht, start=True, prefix="run", target_group_size=2)
            for dht in (self.dht, self.other)
            if dht is not None
        ]

    def work(self) -> None:
        controls = [averager.step(wait=False, timeout=600) for averager in self.averagers]
        while not all(control.began_allreduce for control in controls):
            time.sleep(0.001)
        say("ready")
        controls[0].result()
        # it was faster than the one who kills it: this process must not end by itself
        wait()

    def check(self) -> None:
        super().check()
        assert self.averagers[0].is_alive()

    def shutdown(self) -> None:
        for averager in self.averagers:
            averager.shutdown()
        super().shutdown()


class HeldOptimizer(HeldDHT):
    """An optimizer; in flight is the step of an epoch, for which another peer is waited for."""

    def __init__(self, in_flight: bool) -> None:
        import torch

        from hivemind.crypto import RSAPrivateKey
        from hivemind.optim import GradientAverager, Optimizer

        class Announcing(GradientAverager):
            def step(self, *args: Any, **kwargs: Any) -> Any:
                control = super().step(*args, **kwargs)
                say("ready")
                return control

        torch.set_num_threads(1)
        super().__init__(in_flight)
        self.optimizers = []
        for dht in (self.dht, self.other):
            if dht is not None:
                parameters = [torch.nn.Parameter(torch.zeros(1000))]
                parameters[0].grad = torch.ones(1000)
                made = Optimizer(
                    dht=dht,
                    run_id="run",
                    target_batch_size=16,
                    batch_size_per_step=1,
                    optimizer=torch.optim.SGD(parameters, lr=0.1),
                    grad_averager_factory=Announcing,
                    matchmaking_time=60.0,
                    averaging_timeout=120.0,
                )
                self.optimizers.append(made)
                # peers tell each other by the keys of their processes
                RSAPrivateKey._process_wide_key = None

    def work(self) -> None:
        first, second = self.optimizers
        second.step()
        while not first.tracker.expected_peers:
            first.tracker.fetch(1.0)
        first.step(batch_size=16)

    def check(self) -> None:
        super().check()
        assert self.optimizers[0].grad_averager.is_alive()

    def shutdown(self) -> None:
        for optimizer in self.optimizers:
            optimizer.shutdown()
        super().shutdown()


KINDS = {"P2P": HeldP2P, "DHT": HeldDHT, "averager": HeldAverager, "optimizer": HeldOptimizer}


def main(kind: str, way: str) -> None:
    in_flight = "in flight" in way or way == "notebook"
    if way == "sys.exit in flight":
        # as many programs react to being asked to end
        signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(4))
    held = KINDS[kind](in_flight)
    if way == "notebook":
        # a kernel runs its cells in one process: an interrupt ends the cell, not the kernel
        with contextlib.suppress(KeyboardInterrupt):
            held.work()
        held.check()
        say("interrupted")
        sys.stdin.read()  # until the notebook server closes it
        wait()
    elif in_flight:
        held.work()
    elif way == "shutdown":
        say("ready")
        sys.stdin.readline()
        began = time.monotonic()
        held.shutdown()
        say("shutdown", seconds=time.monotonic() - began)
        held.shutdown()
    elif way.startswith("SIG"):
        held.idle()
    else:
        say("ready")
        sys.stdin.readline()
        if way == "exception":
            raise RuntimeError("on purpose")
        if way == "sys.exit":
            sys.exit(4)
        if way == "os._exit":
            os._exit(3)


if __name__ == "__main__":
    main(*sys.argv[1:])
