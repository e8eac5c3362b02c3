"""Calls with access tokens between this library and hivemind 1.1.12: signatures, and a node of each in one swarm."""

from __future__ import annotations

import base64
import json
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from hivemind.averaging import DecentralizedAverager
from hivemind.clock import get_dht_time
from hivemind.crypto import RSAPrivateKey
from hivemind.dht import DHT
from hivemind.errors import BootstrapError
from hivemind.proto.auth_pb2 import AccessToken
from hivemind.proto.dht_pb2 import NodeInfo, PingRequest, PingResponse
from tests.compat.pairs import LOCAL
from tests.support.authority import AUTHORITY, TokenAuthorizer, issue
from tests.support.legacy import find_legacy_python, legacy_environment
from tests.support.waiting import eventually_sync

SCRIPT = Path(__file__).with_name("legacy_auth.py")


class Legacy:
    """The process of 1.1.12, with a token of the authority's."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        key = base64.b64decode(json.loads(self._line()))
        token = issue("legacy", RSAPrivateKey(), lifetime=600)
        token = AccessToken(username="legacy", public_key=key, expiration_time=token.expiration_time)
        token.signature = AUTHORITY.sign(f"{token.username} {token.public_key!r} {token.expiration_time}".encode())
        self.do("begin", token=pack(token.SerializeToString()), authority=pack(AUTHORITY.get_public_key().to_bytes()))

    def do(self, what: str, **arguments: Any) -> Any:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"do": what, **arguments}) + "\n")
        self._process.stdin.flush()
        return json.loads(self._line())

    def _line(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline()


def pack(data: bytes) -> str:
    return base64.b64encode(data).decode()


@contextmanager
def legacy_process() -> Iterator[Legacy]:
    with subprocess.Popen(
        [str(find_legacy_python()), str(SCRIPT)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=legacy_environment(),
    ) as process:
        assert process.stdin is not None
        try:
            yield Legacy(process)
            process.stdin.close()
            process.wait(30)
        finally:
            process.kill()


@pytest.mark.asyncio
async def test_signatures_both_ways() -> None:
    ours = TokenAuthorizer("ours", lifetime=600)
    with legacy_process() as legacy:
        request = PingRequest.FromString(base64.b64decode(legacy.do("sign_request", node_id=pack(b"x" * 20))))
        assert request.auth.client_access_token.username == "legacy"
        assert await ours.problem_with_request(request) == ""
        response = PingResponse(peer=NodeInfo(node_id=b"y" * 20), dht_time=1.5, available=True)
        await ours.sign_response(response, request)
        assert legacy.do("check_response", response=pack(response.SerializeToString())) is True
        response.available = False
        assert legacy.do("check_response", response=pack(response.SerializeToString())) is False

        for content in (PingRequest(), PingRequest(peer=NodeInfo()), PingRequest(peer=NodeInfo(node_id=b"z" * 20))):
            await ours.sign_request(content, None)
            answer = legacy.do("answer", request=pack(content.SerializeToString()))
            assert answer is not None
            parsed = PingResponse.FromString(base64.b64decode(answer))
            assert await ours.problem_with_response(parsed, content) == ""
            assert legacy.do("answer", request=pack(content.SerializeToString())) is None, "a replay"


def test_one_swarm_with_tokens() -> None:
    with DHT(start=True, authorizer=TokenAuthorizer("ours", lifetime=600), **LOCAL) as dht, legacy_process() as legacy:
        address = [str(each) for each in dht.get_visible_maddrs()]
        assert legacy.do("join", initial_peers=address) is None
        expiration = get_dht_time() + 120
        assert dht.store("from ours", 1, expiration)
        assert legacy.do("get", key="from ours") == 1
        assert legacy.do("store", key="from legacy", value=2, expiration_time=expiration) is True
        assert dht.get("from legacy", latest=True) == (2, expiration)
        with pytest.raises(BootstrapError, match="no access token"):
            DHT(initial_peers=address, start=True, **LOCAL)


@pytest.mark.parametrize("leader", ["ours", "legacy"])
def test_one_run_with_tokens(leader: str) -> None:
    """Averaging is guarded by what the DHT has shown: a peer of 1.1.12, whose averager shows nothing, is let in."""
    options: dict[str, Any] = {"prefix": "closed", "target_group_size": 2, "min_matchmaking_time": 5.0}
    with (
        legacy_process() as legacy,
        DHT(start=True, authorizer=TokenAuthorizer("ours", lifetime=600), **LOCAL) as dht,
        DecentralizedAverager([torch.zeros(4)], dht, start=True, request_timeout=2.0, **options) as averager,
        ThreadPoolExecutor(2) as pool,
    ):
        address = [str(each) for each in dht.get_visible_maddrs()]
        steps: dict[str, Callable[[], Any]] = {
            "ours": lambda: averager.step(timeout=60),
            "legacy": lambda: legacy.do("average", initial_peers=address, value=2.0),
        }
        first = pool.submit(steps[leader])
        eventually_sync(lambda: dht.get("closed.0b", latest=True), "the leader has declared itself")
        second = pool.submit(steps["legacy" if leader == "ours" else "ours"])
        results = {leader: first.result(120), "other": second.result(120)}
        answer = next(each for each in results.values() if "values" in each)
        assert answer["members"] == 2
        assert answer["values"] == [1.0] * 4
        assert answer["state"] in ([0.0] * 4, [1.0] * 4), (
            "of before or after the round here, which may end a little later"
        )
        with averager.get_tensors() as (tensor,):
            assert tensor.tolist() == [1.0] * 4
