"""How long an averaging round takes, ``step()`` to its return, by four peers: processes with 64 MB of tensors each."""

from __future__ import annotations

import contextlib
import json
import sys
import time

from common import LOCAL, child, emit, median, parse_arguments

PEERS = 4
TENSORS = 16
ELEMENTS = 1 << 20  # of each tensor: 4 MiB of float32
STEP_SECONDS = 60.0


def work(rank: int, maddrs: list[str]) -> None:
    """One peer: a round for each line that comes in."""
    import torch

    from hivemind import DHT, DecentralizedAverager

    torch.set_num_threads(1)
    dht = DHT(initial_peers=maddrs, start=True, **LOCAL)
    averager = DecentralizedAverager(
        [torch.zeros(ELEMENTS) for _ in range(TENSORS)],
        dht,
        prefix="bench",
        target_group_size=PEERS,
        min_matchmaking_time=5.0,
        request_timeout=2.0,
        next_chunk_timeout=STEP_SECONDS,
        start=True,
    )
    emit({"maddrs": [str(maddr) for maddr in dht.get_visible_maddrs()]})
    for line in sys.stdin:
        number = float(line)
        with averager.get_tensors() as tensors:
            for tensor in tensors:
                tensor.fill_(number + rank)
        started = time.perf_counter()
        try:
            averager.step(timeout=STEP_SECONDS)
        except Exception as error:  # noqa: BLE001 (a failed round is a figure too)
            emit({"seconds": time.perf_counter() - started, "problem": f"{type(error).__name__}: {error}"})
            continue
        seconds = time.perf_counter() - started
        with averager.get_tensors() as tensors:
            wrong = sum(int((tensor - (number + (PEERS - 1) / 2)).abs().max() > 1e-3) for tensor in tensors)
        emit({"seconds": seconds, "problem": f"{wrong} tensors are not the mean" if wrong else ""})
    averager.shutdown()
    dht.shutdown()


def main(repeat: int) -> None:
    """Rounds of all peers at once; a round lasts as long as its slowest member's step."""
    with contextlib.ExitStack() as stack:
        peers = [stack.enter_context(child(__file__, "--rank", "0", "--maddrs", "[]"))]
        maddrs = json.dumps(peers[0].receive()["maddrs"])
        others = [child(__file__, "--rank", str(rank), "--maddrs", maddrs) for rank in range(1, PEERS)]
        peers += [stack.enter_context(other) for other in others]
        for peer in peers[1:]:
            peer.receive()  # it is up
        times, problems = [], []
        for number in range(-1, repeat):
            for peer in peers:
                peer.send(str(number))
            results = [peer.receive() for peer in peers]
            failed = [result["problem"] for result in results if result["problem"]]
            if failed:
                problems.append(failed[0])
            elif number >= 0:
                times.append(max(result["seconds"] for result in results))
    figures: dict[str, object] = {"averaging round, 4 peers, 64 MB": median(times)} if times else {}
    emit({**figures, "problems": problems})


if __name__ == "__main__":
    options = parse_arguments(("--rank", {"type": int}), ("--maddrs", {"type": json.loads}))
    if options.rank is None:
        main(repeat=1 if options.quick else 6)
    else:
        work(options.rank, options.maddrs)
