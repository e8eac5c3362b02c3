"""Remote experts in autograd: forward is a call, backward is another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.autograd.function import once_differentiable

from hivemind.clock import Deadline
from hivemind.moe.client.remote import ask_backward, ask_forward
from hivemind.moe.client.schema import is_trained
from hivemind.moe.messages import ExpertSchema
from hivemind.moe.uid import ExpertInfo
from hivemind.p2p import P2P
from hivemind.runtime import get_runtime

__all__ = ["DUMMY", "RemoteCall", "call_expert"]

#: An input that requires a gradient, so that experts are trained also where none of their inputs does.
DUMMY = torch.empty(0, requires_grad=True)


@dataclass(frozen=True)
class RemoteCall:
    """Which expert is called, and how.

    :param timeout: seconds for each of forward and backward; None = wait for ever
    """

    expert: ExpertInfo
    p2p: P2P
    schema: ExpertSchema
    timeout: float | None


def call_expert(call: RemoteCall, inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Outputs of an expert, flat; gradients flow back to it and to ``inputs``. Blocks; any thread but the network's.

    :param inputs: as `check_inputs` gives them
    :returns: tensors on the device of the first input
    """
    return list(_RemoteModuleCall.apply(DUMMY, call, *inputs))


class _RemoteModuleCall(torch.autograd.Function):
    """Inputs to outputs of one expert. The graph may be used several times: each backward asks the expert anew."""

    @staticmethod
    def forward(ctx: Any, dummy: torch.Tensor, call: RemoteCall, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        ctx.call = call
        ctx.save_for_backward(*inputs)
        outputs = get_runtime().call(
            ask_forward, call.expert, call.p2p, call.schema, _detached(inputs), Deadline.after(call.timeout)
        )
        outputs = [output.to(inputs[0].device) for output in outputs]
        ctx.mark_non_differentiable(*(output for output in outputs if not is_trained(output)))
        return tuple(outputs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        call, inputs = ctx.call, ctx.saved_tensors
        grads = get_runtime().call(
            ask_backward,
            call.expert,
            call.p2p,
            call.schema,
            _detached(inputs),
            _detached(grad_outputs),
            Deadline.after(call.timeout),
        )
        wanted = zip(inputs, grads, ctx.needs_input_grad[2:], strict=True)
        return None, None, *(grad.to(given.device) if needed else None for given, grad, needed in wanted)


def _detached(tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    return [tensor.detach() for tensor in tensors]
