"""What other peers may ask of experts: the service ``ConnectionHandler`` of hivemind 1.1."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final

import torch

from hivemind.aio import with_deadline
from hivemind.clock import Deadline
from hivemind.compression import TensorView
from hivemind.errors import (
    DeadlineExceeded,
    ExpertError,
    ExpertFailed,
    HivemindError,
    MessageTooLarge,
    ProtocolViolation,
    SerializationError,
    ServerBusy,
    UnknownExpert,
)
from hivemind.identity import PeerID
from hivemind.moe.messages import as_told, decode, encode, pack_schema, read_requests, split_responses
from hivemind.moe.server.fair_queue import Share
from hivemind.moe.server.module_backend import ModuleBackend, check_inputs
from hivemind.moe.server.task_pool import TaskPool
from hivemind.moe.service import ConnectionHandler as Service
from hivemind.moe.wire import ExpertRequest, ExpertResponse
from hivemind.nested import nested_flatten
from hivemind.p2p import DEFAULT_MAX_MSG_SIZE, P2PContext
from hivemind.proto import runtime_pb2
from hivemind.runtime import in_pool

__all__ = ["ConnectionHandler"]

Requests = AsyncIterator[ExpertRequest]
Responses = AsyncIterator[ExpertResponse]

#: Bytes that a unary answer needs besides its tensors.
_ENVELOPE: Final = 4096
#: Bytes of tensors from which on they are looked at off the network thread: so many take 0.1 ms.
_INLINE_BYTES: Final = 2**21
#: Bytes that a request may always have, whatever the expert's schema says.
_LEAST_MAX_BYTES: Final = 64 * 2**20
#: Seconds between two messages of a streamed request.
_MESSAGE_SECONDS: Final = 60.0
#: Seconds after which a client is asked to come back when the memory for requests is used up.
_MEMORY_RETRY: Final = 1.0

#: Errors that a client is told by name.
_TOLD = (ExpertError, SerializationError, ProtocolViolation, MessageTooLarge, DeadlineExceeded)


class ConnectionHandler(Service):
    """Brings each call to its expert. Owned by the network loop.

    :param experts: by uid; what is added to it or removed from it is known at once
    :param max_bytes: of requests that are held at the same time; a client gets as much as is still free
    """

    def __init__(self, experts: Mapping[str, ModuleBackend], max_bytes: int = 2**31) -> None:
        self._experts = experts
        self._held = Share(max_bytes)
        #: calls that run, and whether there are none
        self.active = 0
        self.idle = asyncio.Event()
        self.idle.set()
        #: whether new calls are refused, as the server is about to end
        self.draining = False

    async def rpc_info(self, request: runtime_pb2.ExpertUID, context: P2PContext) -> runtime_pb2.ExpertInfo:
        """What an expert takes and gives.

        :raises UnknownExpert: if there is none of this uid
        """
        return pack_schema(self._expert(request.uid).get_info())

    async def rpc_forward(self, request: ExpertRequest, context: P2PContext) -> ExpertResponse:
        """The outputs for a batch.

        :raises ExpertError: if there are none; its name says why
        :raises MessageTooLarge: if they do not fit a unary answer
        """
        return await self._unary(_Forward(self._expert(request.uid)), request, context.remote_id)

    async def rpc_backward(self, request: ExpertRequest, context: P2PContext) -> ExpertResponse:
        """Gradients for the inputs of a batch, on which the expert is trained; raises as `rpc_forward`."""
        return await self._unary(_Backward(self._expert(request.uid)), request, context.remote_id)

    async def rpc_forward_stream(self, requests: Requests, context: P2PContext) -> Responses:
        """`rpc_forward` for batches of any size."""
        async for response in self._stream(_Forward, requests, context.remote_id):
            yield response

    async def rpc_backward_stream(self, requests: Requests, context: P2PContext) -> Responses:
        """`rpc_backward` for batches of any size."""
        async for response in self._stream(_Backward, requests, context.remote_id):
            yield response

    # -- one call ------------------------------------------------------------------------------------------------------

    def _expert(self, uid: str) -> ModuleBackend:
        expert = self._experts.get(uid)
        if expert is None or self.draining:
            why = "is about to end" if self.draining else f"has no expert {uid[:100]!r}"
            raise UnknownExpert(f"this server {why}")
        return expert

    async def _unary(self, call: _Call, request: ExpertRequest, client: PeerID) -> ExpertResponse:
        with self._holding(client) as hold:
            hold(sum(len(tensor.buffer) for tensor in request.tensors))
            answer = await call.run(await decode(request.tensors), client)
            size = sum(len(tensor.buffer) for tensor in answer)
            if size > DEFAULT_MAX_MSG_SIZE - _ENVELOPE:
                raise MessageTooLarge(f"an answer of {size} bytes does not fit a unary call: ask by a stream")
            return ExpertResponse(tensors=answer)

    async def _stream(self, kind: Callable[[ModuleBackend], _Call], requests: Requests, client: PeerID) -> Responses:
        try:
            with self._holding(client) as hold:
                first = await _next_message(requests)
                if first is None:
                    raise ProtocolViolation("a request without a single message")
                call = kind(self._expert(first.uid))
                _, tensors = await read_requests(_held(first, requests, hold), max_bytes=call.max_bytes)
                answer = await call.run(tensors, client)
                for response in split_responses(answer):
                    yield response
        except _TOLD as error:
            raise HivemindError(as_told(error)) from error

    @contextmanager
    def _holding(self, client: PeerID) -> Iterator[Callable[[int], None]]:
        """Counts a call, and the bytes that it holds."""
        held = 0

        def hold(amount: int) -> None:
            nonlocal held
            if not self._held.admits(client):
                raise ServerBusy("the server holds as many requests of this client as it can", _MEMORY_RETRY)
            self._held.take(client, amount)
            held += amount

        self.active += 1
        self.idle.clear()
        try:
            yield hold
        finally:
            self.active -= 1
            if not self.active:
                self.idle.set()
            self._held.give_back(client, held)


class _Call:
    """A call of one function of an expert.

    :param takes: schema of what it takes
    :param gives: schema of what it gives
    """

    def __init__(self, name: str, pool: TaskPool, takes: Any, gives: Any) -> None:
        self._name, self._pool, self._takes = name, pool, takes
        self._gives = list(nested_flatten(gives))
        per_sample = sum(8 * leaf.numel() for leaf in nested_flatten(takes))
        #: of a request; sequences may be longer than the schema says
        self.max_bytes = max(_LEAST_MAX_BYTES, 2 * per_sample * pool.max_batch_size)

    async def run(self, tensors: Sequence[torch.Tensor], client: PeerID) -> list[TensorView]:
        """The answer to a request, once its turn has come."""
        inputs = [tensor.detach() for tensor in tensors]
        if sum(tensor.nbytes for tensor in inputs) > _INLINE_BYTES:
            await in_pool(check_inputs, self._name, inputs, self._takes)
        else:
            check_inputs(self._name, inputs, self._takes)
        future = self._pool.submit_task(*inputs, client=client)
        outputs = await asyncio.wrap_future(future)
        if len(outputs) != len(self._gives):
            raise ExpertFailed(f"{self._name}: expected {len(self._gives)} outputs, got {len(outputs)}")
        return await encode(outputs, self._gives)


class _Forward(_Call):
    def __init__(self, expert: ModuleBackend) -> None:
        super().__init__(expert.name, expert.forward_pool, expert.forward_schema, expert.outputs_schema)


class _Backward(_Call):
    def __init__(self, expert: ModuleBackend) -> None:
        takes = (expert.forward_schema, expert.outputs_schema)
        super().__init__(expert.name, expert.backward_pool, takes, expert.forward_schema)


async def _next_message(requests: Requests) -> ExpertRequest | None:
    try:
        return await with_deadline(anext(requests), Deadline.after(_MESSAGE_SECONDS), "the next part of the request")
    except StopAsyncIteration:
        return None


async def _held(first: ExpertRequest, rest: Requests, hold: Callable[[int], None]) -> Requests:
    message: ExpertRequest | None = first
    while message is not None:
        hold(sum(len(tensor.buffer) for tensor in message.tensors))
        yield message
        message = await _next_message(rest)
