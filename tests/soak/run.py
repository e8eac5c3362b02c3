"""Two peers with 200 calls in flight for minutes, while others come and die: nothing may grow, no answer be wrong.

``make soak SECONDS=600``. Prints a line every 10 s; the exit code says whether all was well.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import signal
import sys
import time
from collections import deque
from contextlib import suppress
from typing import Any

from tests.soak.sample import Sample, growth, leftovers
from tests.support.waiting import eventually

#: Seconds that a peer may take for a request, on a machine under load.
PATIENCE = 120.0
SAMPLE_SECONDS, LINE_SECONDS, CHURN_SECONDS = 2.5, 10.0, 4.0
#: Peers that call and are called, until they are killed.
MAYFLIES = 3


class Process:
    """A `tests.soak.peer`."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self.ready: dict[str, Any] = {}

    @classmethod
    async def start(cls, **options: Any) -> Process:
        command = [sys.executable, "-W", "ignore", "-m", "tests.soak.peer", json.dumps(options)]
        pipe = asyncio.subprocess.PIPE
        peer = cls(await asyncio.create_subprocess_exec(*command, stdin=pipe, stdout=pipe, limit=1 << 20))
        try:
            peer.ready = await peer._read()
        except BaseException:  # nobody has it yet to end it
            await peer.kill()
            raise
        return peer

    async def ask(self, op: str, **fields: Any) -> dict[str, Any]:
        """A request and its answer.

        :raises RuntimeError: it failed, or the process ended
        """
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"op": op, **fields}).encode() + b"\n")
        answer = await self._read()
        if "error" in answer:
            raise RuntimeError(f"{op}: {answer['error']}")
        return answer

    async def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        async with asyncio.timeout(PATIENCE):
            line = await self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"a peer ended with {await self._process.wait()}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    async def sample(self) -> tuple[Sample, dict[str, int]]:
        answer = await self.ask("sample")
        return Sample(**answer["sample"]), answer["counts"]

    async def kill(self) -> None:
        """As the kernel would, without a word."""
        with suppress(ProcessLookupError):
            self._process.send_signal(signal.SIGKILL)
        await self._process.wait()

    async def end(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            async with asyncio.timeout(PATIENCE):
                await self._process.wait()
        except TimeoutError:
            await self.kill()


class Soak:
    """The run."""

    def __init__(self, server: Process, caller: Process) -> None:
        self.server, self.caller = server, caller
        self.samples: dict[str, list[Sample]] = {"server": [], "caller": []}
        self.counts: dict[str, dict[str, int]] = {}
        self.killed = self.guests = 0
        # requests to a peer go one at a time
        self._turn = asyncio.Lock()

    async def look(self) -> None:
        """Take a sample of both."""
        for name, peer in (("server", self.server), ("caller", self.caller)):
            async with self._turn:
                sample, self.counts[name] = await peer.sample()
            self.samples[name].append(sample)

    async def churn(self) -> None:
        """Peers come, call and are called, and are killed; so do guests of the server's daemon."""
        mayflies: deque[Process] = deque()
        try:
            while True:
                started = time.monotonic()
                mayfly = await Process.start(initial_peers=self.server.ready["addresses"])
                mayflies.append(mayfly)
                await mayfly.ask("load", peer=self.server.ready["id"], namespace=None, share=0.05, fragile=True)
                await self._call_fragile(self.caller, mayfly.ready["id"], None)
                self.guests += 1
                namespace = f"guest to be killed {self.guests}"
                guest = await Process.start(daemon=self.server.ready["daemon"], namespace=namespace)
                mayflies.append(guest)
                await self._call_fragile(self.caller, self.server.ready["id"], namespace)
                async with self._turn:
                    await self.server.ask("guest")
                while len(mayflies) > MAYFLIES:
                    mayflies.rotate(random.randrange(len(mayflies)))
                    await mayflies.popleft().kill()
                    self.killed += 1
                await asyncio.sleep(max(0.0, CHURN_SECONDS - (time.monotonic() - started)))
        finally:
            for mayfly in mayflies:
                await mayfly.kill()

    async def _call_fragile(self, peer: Process, target: str, namespace: str | None) -> None:
        async with self._turn:
            await peer.ask("load", peer=target, namespace=namespace, share=0.02, fragile=True)

    async def load(self, seconds: float, *, churning: bool) -> None:
        """Keep 200 calls in flight for so long, then come to rest."""
        await self.caller.ask("load", peer=self.server.ready["id"], namespace=None, share=1.0, fragile=False)
        started, said = time.monotonic(), 0.0
        async with asyncio.TaskGroup() as group:
            churn = group.create_task(self.churn()) if churning else None
            while (passed := time.monotonic() - started) < seconds:
                await asyncio.sleep(min(SAMPLE_SECONDS, seconds - passed + 0.01))
                if churning:
                    await self.look()
                    if passed - said >= LINE_SECONDS:
                        said = passed
                        self.report(passed)
            if churn is not None:
                churn.cancel()
        for peer in (self.caller, self.server):
            await peer.ask("stop")
        for peer in (self.caller, self.server):
            await peer.ask("rest")

    def report(self, seconds: float) -> None:
        """One line."""
        done = sum(count for name, count in self.counts["caller"].items() if not name.isupper())
        sides = "; ".join(f"{name}: {samples[-1].line()}" for name, samples in self.samples.items())
        print(f"{seconds:4.0f} s  {done} calls, {self.killed} peers killed; {sides}", flush=True)

    async def verdict(self, before: dict[str, Sample]) -> list[str]:
        """What was wrong."""
        found = [f"{name}: {text}" for name, samples in self.samples.items() for text in growth(samples)]
        for side, counts in self.counts.items():
            found += [
                f"{side}: {count} times {name}" for name, count in counts.items() if name[:5] in ("WRONG", "FAILE")
            ]
        for name, peer in (("server", self.server), ("caller", self.caller)):
            with suppress(AssertionError):
                await eventually(lambda name=name, peer=peer: self._rests(before[name], peer), f"{name} is at rest")
            found += [f"{name}: {text}" for text in leftovers(before[name], (await peer.sample())[0])]
        return found

    async def _rests(self, before: Sample, peer: Process) -> bool:
        return not leftovers(before, (await peer.sample())[0])


async def main(seconds: float) -> int:
    """Warm up, rest, soak, rest, compare."""
    server = await Process.start(initial_peers=[])
    caller = await Process.start(initial_peers=server.ready["addresses"])
    soak = Soak(server, caller)
    try:
        await soak.load(max(5.0, seconds / 10), churning=False)
        before = {"server": (await server.sample())[0], "caller": (await caller.sample())[0]}
        print("at rest", "; ".join(f"{name}: {sample.line()}" for name, sample in before.items()), flush=True)
        await soak.load(seconds, churning=True)
        found = await soak.verdict(before)
        await soak.look()
        soak.report(seconds)
    finally:
        await caller.end()
        await server.end()
    print(json.dumps({name: counts for name, counts in soak.counts.items() if counts}))
    for text in found:
        print("FOUND", text)
    print("FAILED" if found else "nothing grew, and every answer was right")
    return 1 if found else 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--seconds", type=float, default=60.0)
    sys.exit(asyncio.run(main(parser.parse_args().seconds)))
