"""A peer of the soak in a process of its own, driven by lines of JSON: ``python -m tests.soak.peer '{…}'``.

Its argument has ``initial_peers``, or ``daemon``: the address of the daemon that it is a guest of. It writes
``{"id", "addresses", "daemon"}`` once it is ready, then an answer to each line that it reads. It ends with its input.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections import Counter
from typing import Any

import uvloop
from multiaddr import Multiaddr

from hivemind.errors import HivemindError
from hivemind.identity import PeerID
from hivemind.p2p import P2P
from tests.soak import sample
from tests.soak.load import Load
from tests.soak.service import Soaked
from tests.support.waiting import eventually

#: Nobody asks anybody else how this machine is seen from outside.
LOCAL: dict[str, Any] = {"nat_port_map": False, "auto_nat": False}


class Peer:
    """What the lines are about."""

    def __init__(self, p2p: P2P, service: Soaked) -> None:
        self._p2p = p2p
        self._service = service
        self._counts: Counter[str] = Counter()
        self._loads: list[Load] = []
        self._guests = 0

    async def load(self, peer: str, namespace: str | None, share: float, *, fragile: bool) -> dict[str, Any]:
        """Begin calls to a peer."""
        stub = Soaked.get_stub(self._p2p, PeerID.from_base58(peer), namespace=namespace)
        load = Load(stub, self._counts)
        load.start(share, fragile=fragile)
        self._loads.append(load)
        return {}

    async def guest(self) -> dict[str, Any]:
        """A guest of the daemon in this process comes, serves, calls nobody, and goes."""
        self._guests += 1
        async with await P2P.replicate(self._p2p.daemon_listen_maddr) as guest:
            await Soaked().add_p2p_handlers(guest, namespace=f"guest {self._guests}")
        return {}

    async def stop(self) -> dict[str, Any]:
        """End all calls, and wait until none is served either."""
        loads, self._loads = self._loads, []
        await asyncio.gather(*(load.stop() for load in loads))
        return {}

    async def rest(self) -> dict[str, Any]:
        """Wait until nothing is in flight."""

        async def idle() -> bool:
            return (await self._p2p.stats())["in_flight"] == 0 and self._service.running == 0

        await eventually(idle, "nothing is in flight")
        return {}

    async def sample(self) -> dict[str, Any]:
        """What the processes hold, and what was counted."""
        return {"sample": await sample.take(self._p2p), "counts": self._counts}


async def main(options: dict[str, Any]) -> None:
    """Serve the lines."""
    if "daemon" in options:
        p2p = await P2P.replicate(Multiaddr(options["daemon"]))
    else:
        p2p = await P2P.create(options["initial_peers"] or None, startup_timeout=60.0, **LOCAL)
    service = Soaked()
    await service.add_p2p_handlers(p2p, namespace=options.get("namespace"))
    peer = Peer(p2p, service)
    addresses = [str(address) for address in await p2p.get_visible_maddrs()]
    write({"id": str(p2p.peer_id), "addresses": addresses, "daemon": str(p2p.daemon_listen_maddr)})
    loop = asyncio.get_running_loop()
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        request = json.loads(line)
        try:
            write(await getattr(peer, request.pop("op"))(**request))
        except (HivemindError, AssertionError) as error:
            write({"error": f"{type(error).__name__}: {error}"})
    await p2p.shutdown()


def write(line: dict[str, Any]) -> None:
    """One line to the one who drives this peer."""
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    uvloop.run(main(json.loads(sys.argv[1])))
