"""Calls of experts: one message or a stream, bounded in time and memory, patient with servers that are busy.

All functions are coroutines of the network thread.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from contextlib import aclosing
from typing import Any, Final

import torch

from hivemind.aio import with_deadline
from hivemind.clock import Deadline
from hivemind.compression import TensorView
from hivemind.errors import (
    HivemindError,
    MessageTooLarge,
    P2PHandlerError,
    PeerBusy,
    SerializationError,
    ServerBusy,
    UnknownExpert,
)
from hivemind.moe.client.schema import flat_schema
from hivemind.moe.messages import (
    ExpertSchema,
    decode,
    fits_unary,
    named_error,
    read_responses,
    read_schema,
    split_requests,
)
from hivemind.moe.wire import ExpertRequest
from hivemind.p2p import StubBase
from hivemind.proto import runtime_pb2

__all__ = [
    "DEFAULT_TIMEOUT",
    "MAX_ANSWER_BYTES",
    "BusyHook",
    "exchange",
    "expert_backward",
    "expert_forward",
    "fetch_schema",
]

#: Called with the refusal when a call begins to wait for a busy server, and with None when it is made again.
BusyHook = Callable[[PeerBusy | None], None]

#: Seconds for one call of an expert, its waits included, where nothing else is said.
DEFAULT_TIMEOUT: Final = 120.0
#: Bytes of a streamed answer where its size is not known beforehand.
MAX_ANSWER_BYTES: Final = 2**30
#: Seconds before a call is repeated to a peer that is busy and does not say for how long; doubled each time.
_FIRST_PAUSE: Final = 0.05
#: Seconds between two tries at most, whatever a server says: it can only guess.
_LONGEST_PAUSE: Final = 10.0


async def fetch_schema(uid: str, stub: StubBase, deadline: Deadline) -> ExpertSchema:
    """What the expert takes and gives.

    :raises UnknownExpert: if the server has no such expert
    :raises P2PDaemonError: if the server cannot be reached
    :raises DeadlineExceeded: if it does not answer in time
    :raises SerializationError: if what it answers is no schema
    """
    request = runtime_pb2.ExpertUID(uid=uid)
    try:
        schema = read_schema(await stub.rpc_info(request, timeout=deadline.timeout()))
    except P2PHandlerError as error:
        raise _told(error, uid) from error
    if not flat_schema(schema["forward_schema"]) or not flat_schema(schema["outputs_schema"]):
        raise SerializationError(f"expert {uid}: a schema without inputs, or without outputs")
    return schema


async def expert_forward(
    uid: str,
    inputs: Sequence[torch.Tensor],
    serialized_tensors: Iterable[runtime_pb2.Tensor],
    stub: StubBase,
    *,
    timeout: float | None = DEFAULT_TIMEOUT,
) -> list[torch.Tensor]:
    """Outputs of an expert, flat and unchecked.

    :param inputs: all that it takes, flat: their size says how they travel
    :param serialized_tensors: the same as messages
    :param stub: of its server, see `get_server_stub`
    :param timeout: seconds
    :raises ExpertError: if the expert or its server cannot answer
    :raises P2PHandlerError: if it has failed for another reason
    :raises P2PDaemonError: if the server cannot be reached
    :raises DeadlineExceeded: if it does not answer in time
    :raises SerializationError: if its answer is malformed
    """
    unary = fits_unary(inputs)
    return await exchange(stub, "rpc_forward", uid, _as_views(serialized_tensors), Deadline.after(timeout), unary=unary)


async def expert_backward(
    uid: str,
    inputs_and_grads: Sequence[torch.Tensor],
    serialized_tensors: Iterable[runtime_pb2.Tensor],
    stub: StubBase,
    *,
    timeout: float | None = DEFAULT_TIMEOUT,
) -> list[torch.Tensor]:
    """Gradients of all inputs, flat and unchecked; the expert makes a step of its optimizer. See `expert_forward`.

    :param inputs_and_grads: all inputs, then the gradients of all outputs
    """
    unary = fits_unary(inputs_and_grads)
    return await exchange(
        stub, "rpc_backward", uid, _as_views(serialized_tensors), Deadline.after(timeout), unary=unary
    )


def _as_views(tensors: Iterable[runtime_pb2.Tensor | TensorView]) -> list[TensorView]:
    return [tensor if isinstance(tensor, TensorView) else TensorView.of(tensor) for tensor in tensors]


async def exchange(
    stub: StubBase,
    method: str,
    uid: str,
    tensors: Sequence[TensorView],
    deadline: Deadline,
    *,
    unary: bool,
    max_bytes: float = MAX_ANSWER_BYTES,
    on_busy: BusyHook | None = None,
) -> list[torch.Tensor]:
    """Ask an expert and decode its answer. While its server is busy, wait as long as it says and ask again.

    :param method: ``rpc_forward`` or ``rpc_backward``
    :param unary: one message each way, or streams where that does not fit; else streams
    :param max_bytes: bound on the buffers of a streamed answer; one message is bounded anyway
    :param on_busy: told of waits for the server
    :raises ServerBusy: if it still will be when the deadline passes; other errors as `expert_forward`
    """
    pause = _FIRST_PAUSE
    while True:
        try:
            if unary:
                return await _in_one_message(stub, method, uid, tensors, deadline)
            return await with_deadline(_as_stream(stub, method, uid, tensors, max_bytes), deadline, f"expert {uid}")
        except P2PHandlerError as error:
            told = _told(error, uid)
            # its answer is lost, but nothing else: a second backward would train the expert twice
            if unary and isinstance(told, MessageTooLarge) and method == "rpc_forward":
                unary = False
                continue
            if not isinstance(told, ServerBusy):
                raise told from error
            busy: PeerBusy = told
        except MessageTooLarge:  # some dtypes travel as larger ones; nothing was sent
            if not unary:
                raise
            unary = False
            continue
        except PeerBusy as error:
            busy = error
        wait = min(pause if busy.retry_after is None else busy.retry_after, _LONGEST_PAUSE)
        pause *= 2
        # those that were refused together must not come back together
        wait *= random.uniform(1, 1.5)
        if wait >= deadline.remaining():
            raise busy
        if on_busy is not None:
            on_busy(busy)
        await asyncio.sleep(wait)
        if on_busy is not None:
            on_busy(None)


def _told(error: P2PHandlerError, uid: str) -> HivemindError:
    """What the server says, by its name; hivemind 1.1 says no more of an unknown expert than its uid."""
    told = named_error(error)
    return UnknownExpert(f"the server has no expert {uid}") if isinstance(told, UnknownExpert) else told


async def _in_one_message(
    stub: StubBase, method: str, uid: str, tensors: Sequence[TensorView], deadline: Deadline
) -> list[torch.Tensor]:
    request = ExpertRequest(uid=uid, tensors=tensors)
    response = await getattr(stub, method)(request, timeout=deadline.timeout())
    return await decode(response.tensors)


async def _as_stream(
    stub: StubBase, method: str, uid: str, tensors: Sequence[TensorView], max_bytes: float
) -> list[torch.Tensor]:
    responses: Any = await getattr(stub, f"{method}_stream")(_as_aiter(split_requests(uid, tensors)))
    async with aclosing(responses):
        return await read_responses(responses, max_bytes=max_bytes)


async def _as_aiter(items: Iterator[ExpertRequest]) -> AsyncIterator[ExpertRequest]:
    for item in items:
        yield item
