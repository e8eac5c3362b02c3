"""Calls and streams between two peers that only meet at a relay, each in a process of its own.

The relay of 1.1.12 ends a circuit after 128 KiB, so that only small calls could be compared, and its peers take no
relay on loopback at all, whatever they are told; what goes wrong there becomes a note.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from typing import Any

import uvloop
from calls import rate_of as rate_of_calls
from common import KIB, LOCAL, MIB, Figure, child, emit, median, parse_arguments, seconds_of
from service import Bytes
from streams import down, up
from streams import rate_of as rate_of_stream

import hivemind
from hivemind.p2p import P2P, PeerID
from hivemind.proto.runtime_pb2 import Tensor

LEGACY = hivemind.__version__.startswith("1.")
#: Nobody listens there: a peer that announces it is dialled in vain, as behind a NAT.
NOWHERE = "/ip4/127.0.0.1/tcp/1"
#: So many calls of 1 KiB fit into the first circuit of either library.
FIRST_CALLS = 30
#: Seconds until a peer is reached through the relay, and for what may never come.
PATIENCE = 10.0 if LEGACY else 60.0


async def until_input_ends() -> None:
    """Wait for the parent."""
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)


async def relay() -> None:
    """Relay for others."""
    options = {} if LEGACY else {"relay_service": True}
    p2p = await P2P.create(force_reachability="public", use_relay=True, **options, **LOCAL)
    emit({"maddrs": [str(maddr) for maddr in await p2p.get_visible_maddrs()]})
    await until_input_ends()
    await p2p.shutdown()


async def hidden_peer(relays: list[str]) -> P2P:
    """A peer that nobody can connect to directly; what 1.1.12 announces it announces alone, so it names the circuit."""
    return await P2P.create(
        initial_peers=relays,
        trusted_relays=relays,
        announce_maddrs=[f"{relays[0]}/p2p-circuit"] if LEGACY else [NOWHERE],
        use_relay=True,
        use_auto_relay=True,
        force_reachability="private",
        **LOCAL,
    )


async def callee(relays: list[str]) -> None:
    """Serve behind the relay."""
    p2p = await hidden_peer(relays)
    await Bytes().add_p2p_handlers(p2p)
    emit({"peer_id": p2p.peer_id.to_base58()})
    await until_input_ends()
    await p2p.shutdown()


async def reach(stub: Any) -> None:
    """Call until an answer comes: reservations take time.

    :raises Exception: that of the last attempt, after `PATIENCE`
    """
    end = time.monotonic() + PATIENCE
    while True:
        try:
            await asyncio.wait_for(stub.rpc_echo(Tensor(buffer=b"hello")), timeout=5)
        except Exception:
            if time.monotonic() > end:
                raise
            await asyncio.sleep(0.2)
        else:
            return


async def measure(stub: Any, quick: bool) -> tuple[dict[str, Figure], list[str]]:
    """What is comparable first, then what needs a relay without its limits."""
    small, large = Tensor(buffer=bytes(KIB)), Tensor(buffer=bytes(MIB))
    first = await seconds_of(lambda: stub.rpc_echo(small), FIRST_CALLS)
    figures = {"relayed unary 1 KiB, median of the first 30": median(first)}
    try:
        async with asyncio.timeout(PATIENCE):
            seconds = await seconds_of(lambda: stub.rpc_echo(large), 20 if quick else 60)
    except Exception as error:  # noqa: BLE001 (the fault is what is to be told)
        return figures, [f"a call of 1 MiB through the relay: {type(error).__name__}: {error}"]
    total = (32 if quick else 128) * MIB
    figures |= {
        "relayed unary 1 MiB, median": median(seconds),
        "relayed unary 1 KiB, 32 in flight": await rate_of_calls(stub, small, 32, 1000 if quick else 4000),
        "relayed stream to a handler, 256 KiB messages": await rate_of_stream(up, stub, 256 * KIB, total),
        "relayed stream from a handler, 256 KiB messages": await rate_of_stream(down, stub, 256 * KIB, total),
    }
    return figures, []


async def main(quick: bool) -> None:
    """Relay and callee in processes of their own, the caller here."""
    loop = asyncio.get_running_loop()
    with child(__file__, "--part", "relay", "--relays", "[]") as relaying:
        relays = (await loop.run_in_executor(None, relaying.receive))["maddrs"]
        with child(__file__, "--part", "callee", "--relays", json.dumps(relays)) as serving:
            peer_id = (await loop.run_in_executor(None, serving.receive))["peer_id"]
            p2p = await hidden_peer(relays)
            stub = Bytes.get_stub(p2p, PeerID.from_base58(peer_id))
            figures: dict[str, Figure] = {}
            try:
                await reach(stub)
            except Exception as error:
                if not LEGACY:
                    raise
                notes = [f"no call comes through the relay in {PATIENCE:g} s: {' '.join(str(error).split())}"]
            else:
                figures, notes = await measure(stub, quick)
            await p2p.shutdown()
    emit({**figures, "notes": notes})


if __name__ == "__main__":
    options = parse_arguments(("--part", {"choices": ("relay", "callee")}), ("--relays", {"type": json.loads}))
    if options.part == "relay":
        uvloop.run(relay())
    elif options.part == "callee":
        uvloop.run(callee(options.relays))
    else:
        uvloop.run(main(options.quick))
