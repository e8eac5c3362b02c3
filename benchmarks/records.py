"""How long one store and one get take in a DHT of six nodes and a client, five of the nodes in another process."""

from __future__ import annotations

import sys
import time

from common import LOCAL, child, emit, median, parse_arguments

OTHERS = 5
VALUE = b"x" * 200
LIFETIME = 600.0


def serve() -> None:
    """Hold the other nodes until standard input ends."""
    from hivemind import DHT

    nodes = [DHT(start=True, **LOCAL)]
    maddrs = [str(maddr) for maddr in nodes[0].get_visible_maddrs()]
    nodes += [DHT(initial_peers=maddrs, start=True, **LOCAL) for _ in range(OTHERS - 1)]
    emit({"maddrs": maddrs})
    sys.stdin.read()
    for node in reversed(nodes):
        node.shutdown()


def main(repeat: int) -> None:
    """Store through a node of our own, read through a client: it holds no records, so each get crosses the network."""
    from hivemind import DHT
    from hivemind.utils import get_dht_time

    with child(__file__, "--serve") as others:
        maddrs = others.receive()["maddrs"]
        writer = DHT(initial_peers=maddrs, start=True, **LOCAL)
        reader = DHT(initial_peers=maddrs, start=True, client_mode=True, **LOCAL)
        store, get = [], []
        for number in range(-3, repeat):
            started = time.perf_counter()
            assert writer.store(f"key {number}", VALUE, get_dht_time() + LIFETIME)
            stored = time.perf_counter()
            found = reader.get(f"key {number}")
            ended = time.perf_counter()
            assert found is not None
            assert found.value == VALUE
            if number >= 0:
                store.append(stored - started)
                get.append(ended - stored)
        reader.shutdown()
        writer.shutdown()
    emit({"DHT store": median(store), "DHT get": median(get)})


if __name__ == "__main__":
    options = parse_arguments(("--serve", {"action": "store_true"}))
    if options.serve:
        serve()
    else:
        main(repeat=20 if options.quick else 200)
