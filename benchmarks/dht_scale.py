"""The DHT at scale: crowds of its nodes on the in-memory network, under the virtual clock. ``make sim-dht``.

Each experiment runs in a process of its own, one after another, and its figures go to ``build/sim-dht/results.json``,
where they stay until the next run of that experiment; the table and the plot are made of all that are there.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import math
import os
import resource
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.dht_scale_report import DOCS_PAGE, DOCS_PLOT, plot, table, with_table
from hivemind.virtual_clock import run_virtual
from tests.support.dht_crowd import Crowd, churn, corrupt

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "build" / "sim-dht" / "results.json"

SIZES = (100, 1000, 10000)
KEYS_PER_NODE = 10
#: Gets that are measured in a quiet swarm, and after each minute of churn.
GETS, CHURN_GETS = 2000, 500
CHURN_SHARE, CHURN_MINUTES = 0.3, 5
#: Seconds for which the halves are cut off from each other, and after which they must have met again.
CUT_SECONDS, MENDING_SECONDS = 100.0, 90.0
LIARS = 0.05

Report = Callable[[dict[str, Any]], None]


async def quiet(nodes: int, report: Report) -> None:
    """A swarm in which nobody comes or goes."""
    crowd = Crowd()
    await crowd.grow(nodes)
    report({"known": sum(len(node.protocol.routing_table) for node in crowd.nodes) / nodes, "joined": _cost(crowd)})
    keys = range(KEYS_PER_NODE * nodes)
    stored = await crowd.store(keys)
    report({"keys": len(keys), "stored": stored, "gets": await _gets(crowd, keys, GETS), "all": _cost(crowd)})


async def churned(nodes: int, report: Report) -> None:
    """Each minute so many of the nodes die, one after another, and as many join; after each minute, at once, keys that
    some node still holds are looked for."""
    crowd = Crowd()
    await crowd.grow(nodes)
    keys = range(KEYS_PER_NODE * nodes)
    await crowd.store(keys)
    for minute in range(1, CHURN_MINUTES + 1):
        await churn(crowd, CHURN_SHARE, 60.0)
        living = crowd.living(keys)
        gets = await _gets(crowd, living, CHURN_GETS)
        report({f"minute {minute}": {"living": len(living) / len(keys), "gets": gets}, "all": _cost(crowd)})


async def parted(nodes: int, report: Report) -> None:
    """Two halves that do not reach each other, then do again."""
    crowd = Crowd()
    await crowd.grow(nodes)
    count = KEYS_PER_NODE * nodes // 2
    before, left_keys, right_keys = range(count), range(count, 2 * count), range(2 * count, 3 * count)
    await crowd.store(before)
    left, right = crowd.nodes[0::2], crowd.nodes[1::2]
    with crowd.net.partition([node.peer_id for node in left], [node.peer_id for node in right]):
        await asyncio.sleep(CUT_SECONDS)
        await crowd.store(left_keys, by=left)
        await crowd.store(right_keys, by=right)
        report({"cut": await _gets(crowd, before, CHURN_GETS)})
    await asyncio.sleep(MENDING_SECONDS)
    for name, keys, by in (("before", before, None), ("left", left_keys, right), ("right", right_keys, left)):
        report({name: await _gets(crowd, keys, CHURN_GETS, by=by), "all": _cost(crowd)})


async def lied_to(nodes: int, report: Report) -> None:
    """Some of the nodes lie: nonsense, nothing, peers that do not exist, values that nobody stored."""
    crowd = Crowd(sealed=True)
    await crowd.grow(nodes)
    await corrupt(crowd, LIARS)
    keys = range(KEYS_PER_NODE * nodes)
    stored = await crowd.store(keys)
    report({"stored": stored, "gets": await _gets(crowd, keys, GETS)})
    latest = await _gets(crowd, keys, CHURN_GETS, latest=True)
    report({"latest": latest, "all": _cost(crowd)})


EXPERIMENTS: dict[str, Callable[[int, Report], Awaitable[None]]] = {
    "quiet": quiet,
    "churn": churned,
    "partition": parted,
    "liars": lied_to,
}


async def _gets(crowd: Crowd, keys: Any, count: int, **options: Any) -> dict[str, float]:
    wanted = crowd.random.sample(keys, min(count, len(keys)))
    return asdict(await crowd.get(wanted, **options))


def _cost(crowd: Crowd) -> dict[str, float]:
    return {
        "cpu_seconds": time.process_time(),
        "megabytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "requests": sum(node.counters.requests for node in crowd.nodes),
    }


def run_one(experiment: str, nodes: int) -> None:
    """Print the figures of one experiment as lines of JSON, each as soon as it is there. Ends the process: to end ten
    thousand nodes one by one would take as long as to start them."""
    # most objects live as long as the run: to walk through them again and again takes time for nothing
    gc.disable()

    def report(figures: dict[str, Any]) -> None:
        print(json.dumps(figures), flush=True)

    async def main() -> None:
        await EXPERIMENTS[experiment](nodes, report)
        os._exit(0)

    run_virtual(main)


def measure(experiment: str, nodes: int) -> dict[str, Any]:
    """The figures of one experiment, from a process of its own."""
    figures: dict[str, Any] = {"experiment": experiment, "nodes": nodes, "log2": math.log2(nodes)}
    began = time.perf_counter()
    command = [sys.executable, "-m", "benchmarks.dht_scale", "--one", experiment, str(nodes)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        for line in child.stdout:
            figures |= json.loads(line)
            print(f"{experiment}, {nodes} nodes: {line.strip()}", flush=True)
    if child.returncode:
        raise SystemExit(f"{experiment} with {nodes} nodes failed")
    figures["wall_seconds"] = time.perf_counter() - began
    return figures


def main() -> None:
    """Run experiments, and show what is known."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="*", choices=EXPERIMENTS, default=list(EXPERIMENTS), help="default: all")
    parser.add_argument("--sizes", nargs="*", type=int, default=SIZES, help="nodes of the quiet swarms")
    parser.add_argument("--nodes", type=int, default=1000, help="nodes in the other experiments")
    parser.add_argument("--docs", action="store_true", help="put table and plot into the documentation")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one is not None:
        run_one(options.one[0], int(options.one[1]))
    results: dict[str, dict[str, Any]] = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    for experiment in options.only:
        for nodes in options.sizes if experiment == "quiet" else [options.nodes]:
            results[f"{experiment} {nodes}"] = measure(experiment, nodes)
            RESULTS.write_text(json.dumps(results, indent=1))
    text = table(list(results.values()))
    print(text)
    RESULTS.with_name("plot.svg").write_text(plot(list(results.values())))
    if options.docs:
        page = ROOT / DOCS_PAGE
        page.write_text(with_table(page.read_text(), text))
        (ROOT / DOCS_PLOT).write_text(plot(list(results.values())))


if __name__ == "__main__":
    main()
