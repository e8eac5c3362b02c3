"""A peer in a process of its own, driven by lines of JSON: ``python -m tests.support.nat_peer '{"tls": true, …}'``.

It writes ``{"id", "addresses"}`` once it is ready. Then each line that it reads is a request, each that it writes the
answer: ``{"call": id}`` gives the seconds of a call, ``{"state": id}`` how it is reached and how it reaches that peer.
It ends with its input.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from typing import Any

from hivemind.errors import HivemindError
from hivemind.identity import PeerID
from hivemind.p2p import P2P
from hivemind.proto.test_pb2 import TestRequest, TestResponse

_CALL_SECONDS = 30.0


async def _square(request: TestRequest, _: object) -> TestResponse:
    return TestResponse(number=request.number**2)


async def _call(p2p: P2P, peer: PeerID) -> dict[str, Any]:
    begun = time.monotonic()
    try:
        await p2p.call_protobuf_handler(peer, "square", TestRequest(number=7), TestResponse, timeout=_CALL_SECONDS)
    except HivemindError as error:
        return {"error": f"{type(error).__name__}: {error}"}
    return {"seconds": time.monotonic() - begun}


async def _state(p2p: P2P, peer: PeerID) -> dict[str, Any]:
    known = await p2p.reachability()
    connections = [str(a) for info in await p2p.list_peers() if info.peer_id == peer for a in info.addrs]
    return {
        "verdict": known.verdict,
        "relays": [str(relay.peer_id) for relay in known.relays],
        "addresses": {str(address): state for address, state in known.addresses.items()},
        "direct": [text for text in connections if "p2p-circuit" not in text],
        "connections": connections,
    }


async def _serve(options: dict[str, Any]) -> None:
    async with await P2P.create(**options) as p2p:
        await p2p.add_protobuf_handler("square", _square, TestRequest)
        addresses = [str(address) for address in await p2p.get_visible_maddrs()]
        _write({"id": str(p2p.peer_id), "addresses": addresses})
        loop = asyncio.get_running_loop()
        while line := await loop.run_in_executor(None, sys.stdin.readline):
            request = json.loads(line)
            for name, answer in (("call", _call), ("state", _state)):
                if name in request:
                    _write(await answer(p2p, PeerID.from_base58(request[name])))


def _write(line: dict[str, Any]) -> None:
    print(json.dumps(line), flush=True)


if __name__ == "__main__":
    asyncio.run(_serve(json.loads(sys.argv[1])))
