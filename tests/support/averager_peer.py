"""One averager as a process of its own: ``averager_peer.py <addresses> <value> <elements>``.

Prints ``ready`` once others can reach it, steps again and again, and prints ``exchange`` whenever an exchange begins.
"""

from __future__ import annotations

import sys
import time

import torch

from hivemind.averaging import DecentralizedAverager
from hivemind.dht import DHT
from hivemind.errors import AllreduceException

torch.set_num_threads(1)


def main(addresses: str, value: str, elements: str) -> None:
    dht = DHT(initial_peers=addresses.split(","), start=True, auto_nat=False, nat_port_map=False)
    tensors = [torch.full((int(elements),), float(value))]
    averager = DecentralizedAverager(tensors, dht, start=True, prefix="pre")
    print("ready", flush=True)
    while True:
        control = averager.step(wait=False, timeout=120)
        while not control.began_allreduce and not control.done():
            time.sleep(0.001)
        print("exchange", flush=True)
        try:
            control.result()
        except AllreduceException as error:
            print(f"failed {error}", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
