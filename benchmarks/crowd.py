"""How long 500 peers take to connect to one, and what each connection costs its daemon in memory.

The peers are light ones of one Go program, the same for both libraries.
"""

from __future__ import annotations

import asyncio
import os

import uvloop
from common import LOCAL, emit, parse_arguments, running
from processes import find_daemon, memory_of

from hivemind.p2p import P2P

PEERS = 500
#: Seconds after which what making the connections took is freed: a daemon looks every 5 s whether it is at rest.
SETTLED = 12.0


async def main(quick: bool) -> None:
    """Connect them all, and compare the daemon's memory before and after."""
    count = PEERS // 5 if quick else PEERS
    loop = asyncio.get_running_loop()
    p2p = await P2P.create(**LOCAL)
    address = str((await p2p.get_visible_maddrs())[0])
    with running([os.environ["HIVEMIND_P2PBENCH"], "crowd", "-addr", address, "-count", str(count)]) as crowd:
        await loop.run_in_executor(None, crowd.receive)  # all are made
        before = memory_of(find_daemon()).private
        crowd.send("go")
        connecting = await loop.run_in_executor(None, crowd.receive)
        await asyncio.sleep(SETTLED)
        connected = len(await p2p.list_peers())
        if connected < count:
            raise RuntimeError(f"{connected} of {count} peers are connected")
        held = memory_of(find_daemon()).private - before
    await p2p.shutdown()
    emit(
        {
            "connect one of a crowd": (connecting["seconds"] / count, "s"),
            "memory of the daemon for each connection": (held / count, "B"),
        }
    )


if __name__ == "__main__":
    uvloop.run(main(parse_arguments().quick))
