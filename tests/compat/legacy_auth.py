"""Runs under the Python of hivemind 1.1.12: one node of its DHT whose calls bear access tokens.

Speaks lines of JSON, bytes in base64: answers ``{"do": …}`` from standard input on standard output, and ends with the
input. ``begin`` comes first and takes a token for the key that this script prints.
"""

import asyncio
import base64
import json
import sys

import torch

import hivemind
from hivemind.dht import DHTNode
from hivemind.proto import auth_pb2, dht_pb2
from hivemind.utils.auth import TokenAuthorizerBase
from hivemind.utils.crypto import RSAPrivateKey, RSAPublicKey


def pack(data):
    return base64.b64encode(data).decode()


class Authorizer(TokenAuthorizerBase):
    def __init__(self, key, token, authority):
        super().__init__(key)
        self.token = token
        self.authority = RSAPublicKey.from_bytes(authority)

    async def get_token(self):
        return self.token

    def is_token_valid(self, token):
        text = f"{token.username} {token.public_key!r} {token.expiration_time}".encode()
        return self.authority.verify(text, token.signature)

    def does_token_need_refreshing(self, token):
        return False


class Session:
    def __init__(self, key):
        self.key = key
        self.authorizer = self.node = self.request = None

    async def begin(self, token, authority):
        token = auth_pb2.AccessToken.FromString(base64.b64decode(token))
        self.authorizer = Authorizer(self.key, token, base64.b64decode(authority))

    async def sign_request(self, node_id):
        self.request = dht_pb2.PingRequest(peer=dht_pb2.NodeInfo(node_id=base64.b64decode(node_id)), validate=True)
        await self.authorizer.sign_request(self.request, None)
        return pack(self.request.SerializeToString())

    async def check_response(self, response):
        return await self.authorizer.validate_response(
            dht_pb2.PingResponse.FromString(base64.b64decode(response)), self.request
        )

    async def answer(self, request):
        request = dht_pb2.PingRequest.FromString(base64.b64decode(request))
        if not await self.authorizer.validate_request(request):
            return None
        response = dht_pb2.PingResponse(peer=request.peer, dht_time=1234.5, available=True)
        await self.authorizer.sign_response(response, request)
        return pack(response.SerializeToString())

    async def join(self, initial_peers):
        self.node = await DHTNode.create(
            initial_peers=initial_peers,
            authorizer=self.authorizer,
            host_maddrs=["/ip4/127.0.0.1/tcp/0"],
            nat_port_map=False,
            auto_nat=False,
        )

    async def store(self, key, value, expiration_time):
        return await self.node.store(key, value, expiration_time)

    async def get(self, key):
        found = await self.node.get(key, latest=True)
        return None if found is None else found.value

    async def average(self, initial_peers, value):
        # holds the loop: 1.1.12 starts averagers in the main thread only
        dht = hivemind.DHT(
            initial_peers=initial_peers,
            start=True,
            authorizer=self.authorizer,
            host_maddrs=["/ip4/127.0.0.1/tcp/0"],
            nat_port_map=False,
            auto_nat=False,
        )
        averager = hivemind.DecentralizedAverager(
            [torch.full((4,), value)],
            dht,
            start=True,
            prefix="closed",
            target_group_size=2,
            min_matchmaking_time=5,
            request_timeout=2,
        )
        try:
            group = averager.step(timeout=60)
            state = averager.load_state_from_peers(timeout=30)
            with averager.get_tensors() as (tensor,):
                return {"members": len(group), "values": tensor.tolist(), "state": state[1][0].tolist()}
        finally:
            averager.shutdown()
            dht.shutdown()


async def main():
    key = RSAPrivateKey()
    session = Session(key)
    print(json.dumps(pack(key.get_public_key().to_bytes())), flush=True)
    loop = asyncio.get_running_loop()
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        command = json.loads(line)
        result = await getattr(session, command.pop("do"))(**command)
        print(json.dumps(result), flush=True)
    if session.node is not None:
        await session.node.shutdown()


if __name__ == "__main__":
    asyncio.run(main())
