"""One expert of another peer, as coroutines of the network thread use it: tensors in, checked tensors out."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from hivemind.clock import Deadline
from hivemind.compression import BatchTensorDescriptor
from hivemind.errors import ProtocolViolation
from hivemind.moe.client.calls import BusyHook, exchange, fetch_schema
from hivemind.moe.client.schema import AnswerBounds, check_answer, flat_schema
from hivemind.moe.messages import ExpertSchema, encode, fits_unary
from hivemind.moe.service import get_server_stub
from hivemind.moe.uid import ExpertInfo
from hivemind.p2p import P2P, StubBase

__all__ = ["ask_backward", "ask_forward", "ask_schema", "stub_of"]


def stub_of(expert: ExpertInfo, p2p: P2P) -> StubBase:
    """The server of ``expert``."""
    return get_server_stub(p2p, expert.peer_id)


async def ask_schema(expert: ExpertInfo, p2p: P2P, deadline: Deadline) -> ExpertSchema:
    """What it takes and gives; errors as `fetch_schema`."""
    return await fetch_schema(expert.uid, stub_of(expert, p2p), deadline)


async def ask_forward(
    expert: ExpertInfo,
    p2p: P2P,
    schema: ExpertSchema,
    inputs: Sequence[torch.Tensor],
    deadline: Deadline,
    on_busy: BusyHook | None = None,
) -> list[torch.Tensor]:
    """Its outputs, flat, on the CPU.

    :param inputs: flat, as `check_inputs` gives them
    :param on_busy: told of waits for a busy server
    :raises ProtocolViolation: if what comes is no such output; other errors as `expert_forward`
    """
    takes, gives = flat_schema(schema["forward_schema"]), flat_schema(schema["outputs_schema"])
    return await _ask(expert, p2p, "rpc_forward", inputs, takes, gives, deadline, on_busy)


async def ask_backward(
    expert: ExpertInfo,
    p2p: P2P,
    schema: ExpertSchema,
    inputs: Sequence[torch.Tensor],
    grad_outputs: Sequence[torch.Tensor],
    deadline: Deadline,
) -> list[torch.Tensor]:
    """Gradients of all inputs, flat, on the CPU; ones of inputs that have none mean nothing. The expert makes a step.

    :param inputs: as for `ask_forward`
    :param grad_outputs: one for each output
    """
    takes, gives = flat_schema(schema["forward_schema"]), flat_schema(schema["outputs_schema"])
    question, described = [*inputs, *grad_outputs], [*takes, *gives]
    grads = await _ask(expert, p2p, "rpc_backward", question, described, takes, deadline)
    if any(grad.shape != tensor.shape for grad, tensor in zip(grads, inputs, strict=True)):
        raise ProtocolViolation(f"expert {expert.uid} at {expert.peer_id}: gradients of other shapes than the inputs")
    return grads


async def _ask(
    expert: ExpertInfo,
    p2p: P2P,
    method: str,
    tensors: Sequence[torch.Tensor],
    takes: Sequence[BatchTensorDescriptor],
    gives: Sequence[BatchTensorDescriptor],
    deadline: Deadline,
    on_busy: BusyHook | None = None,
) -> list[torch.Tensor]:
    bounds = AnswerBounds.of(tensors, takes, gives)
    answer = await exchange(
        stub_of(expert, p2p),
        method,
        expert.uid,
        await encode(tensors, takes),
        deadline,
        unary=bounds.unary and fits_unary(tensors),
        max_bytes=bounds.max_bytes,
        on_busy=on_busy,
    )
    what = f"{method} of expert {expert.uid} at {expert.peer_id}"
    return check_answer(what, answer, gives, len(tensors[0]), exact=bounds.exact)
