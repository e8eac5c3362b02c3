"""Many remote experts in autograd: each sample of a batch goes to its own few, and comes back from those who answer."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.autograd.function import once_differentiable

from hivemind.clock import Deadline
from hivemind.errors import ConfigError, ExpertFailed, HivemindError, NotEnoughExperts, ProtocolViolation
from hivemind.log import RateLimit, get_logger
from hivemind.moe.client.autograd import DUMMY
from hivemind.moe.client.calls import BusyHook
from hivemind.moe.client.config import MixtureOptions
from hivemind.moe.client.quorum import Quorum, ask_all
from hivemind.moe.client.remote import ask_backward, ask_forward
from hivemind.moe.client.schema import flat_schema, is_trained
from hivemind.moe.client.suspects import Suspects
from hivemind.moe.messages import ExpertSchema
from hivemind.moe.uid import ExpertInfo
from hivemind.p2p import P2P
from hivemind.runtime import get_runtime

__all__ = ["Assignment", "call_experts"]

logger = get_logger(__name__)

#: Characters of a text that names what many experts have said.
_MAX_TEXT = 2000
#: one warning in a while: experts fail all the time
_failures = RateLimit()


@dataclass(frozen=True)
class _Share:
    """The samples that one expert is asked for, and which of each sample's experts it is."""

    rows: list[int] = field(default_factory=list)
    slots: list[int] = field(default_factory=list)


class Assignment:
    """Which samples go to which experts. Each expert is asked once, for all its samples."""

    def __init__(self, experts_per_sample: Sequence[Sequence[ExpertInfo]]) -> None:
        self.samples = len(experts_per_sample)
        #: experts of the sample that has most
        self.width = max(map(len, experts_per_sample), default=0)
        self.shares: dict[ExpertInfo, _Share] = {}
        for row, experts in enumerate(experts_per_sample):
            for slot, expert in enumerate(experts):
                share = self.shares.setdefault(expert, _Share())
                share.rows.append(row)
                share.slots.append(slot)


def call_experts(
    assignment: Assignment,
    inputs: Sequence[torch.Tensor],
    *,
    p2p: P2P,
    schema: ExpertSchema,
    options: MixtureOptions,
    suspects: Suspects,
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Outputs of all experts for all samples; gradients flow back to them and to ``inputs``. Blocks.

    :param inputs: flat, as `check_inputs` gives them; dimension 0 is the samples
    :returns: who answered, a bool tensor of shape ``[samples, width]``, and each output of the experts, of shape
        ``[samples, width, ...]``, with zeros where nobody did
    :raises NotEnoughExperts: if a sample has fewer than ``k_min`` answers, unless that is allowed
    """
    call = _Call(assignment, p2p, schema, options, suspects)
    answered, *outputs = _RemoteCallMany.apply(DUMMY, call, *inputs)
    return answered, outputs


@dataclass(frozen=True)
class _Call:
    assignment: Assignment
    p2p: P2P
    schema: ExpertSchema
    options: MixtureOptions
    suspects: Suspects


class _RemoteCallMany(torch.autograd.Function):
    """Inputs to the outputs of many experts. The graph may be used several times: each backward asks anew."""

    @staticmethod
    def forward(ctx: Any, dummy: torch.Tensor, call: _Call, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        assignment, options = call.assignment, call.options
        if options.detect_anomalies and not _are_finite(inputs):
            raise ConfigError("inputs", "values that are not finite", "finite values, with detect_anomalies=True")
        answers = _ask(
            call, "forward", {expert: _rows(inputs, share.rows) for expert, share in assignment.shares.items()}
        )
        device, size = inputs[0].device, (assignment.samples, assignment.width)
        answered = torch.zeros(size, dtype=torch.bool, device=device)
        descriptors = flat_schema(call.schema["outputs_schema"])
        shapes = _common_shapes(answers) or [descriptor.instance_size for descriptor in descriptors]
        outputs = [
            torch.zeros((*size, *shape), dtype=descriptor.dtype, device=device)
            for shape, descriptor in zip(shapes, descriptors, strict=True)
        ]
        for expert, answer in answers.items():
            share = assignment.shares[expert]
            answered[share.rows, share.slots] = True
            for output, part in zip(outputs, answer, strict=True):
                output[share.rows, share.slots] = part.to(device, output.dtype)
        ctx.call = call
        ctx.answered = list(answers)
        ctx.save_for_backward(*inputs)
        ctx.mark_non_differentiable(answered, *(output for output in outputs if not is_trained(output)))
        return answered, *outputs

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, _: torch.Tensor, *grad_outputs: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        call, inputs = ctx.call, ctx.saved_tensors
        grads = [torch.zeros_like(tensor) if is_trained(tensor) else None for tensor in inputs]
        questions = {}
        for expert in ctx.answered:
            share = call.assignment.shares[expert]
            of_outputs = [grad[share.rows, share.slots] for grad in grad_outputs]
            if call.options.detect_anomalies and not _are_finite(of_outputs):
                _add(grads, share.rows, [torch.full_like(part, torch.nan) for part in _rows(inputs, share.rows)])
                continue  # its gradient would spoil the expert for all; here a scaler of gradients sees what came
            questions[expert] = [*_rows(inputs, share.rows), *of_outputs]
        for expert, answer in _ask(call, "backward", questions).items():
            _add(grads, call.assignment.shares[expert].rows, answer)
        needed = zip(grads, ctx.needs_input_grad[2:], strict=True)
        return None, None, *(grad if is_needed else None for grad, is_needed in needed)


def _ask(
    call: _Call, direction: str, questions: dict[ExpertInfo, list[torch.Tensor]]
) -> dict[ExpertInfo, list[torch.Tensor]]:
    """Ask experts at once.

    :returns: the answers that came in time
    :raises NotEnoughExperts: if they are too few
    """
    assignment, options = call.assignment, call.options
    is_forward = direction == "forward"
    shares = [assignment.shares[expert].rows for expert in questions]
    quorum = Quorum(shares, assignment.samples, options.least(forward=is_forward))
    outputs = len(flat_schema(call.schema["outputs_schema"]))

    async def ask(
        expert: ExpertInfo, tensors: list[torch.Tensor], deadline: Deadline, on_busy: BusyHook
    ) -> list[torch.Tensor]:
        if is_forward:
            answer = await ask_forward(expert, call.p2p, call.schema, tensors, deadline, on_busy)
        else:
            inputs, grads = tensors[:-outputs], tensors[-outputs:]
            answer = await ask_backward(expert, call.p2p, call.schema, inputs, grads, deadline)
        if options.detect_anomalies and not _are_finite(answer):
            raise ExpertFailed(f"expert {expert.uid}: its answer has values that are not finite")
        return answer

    async def ask_them() -> list[list[torch.Tensor] | HivemindError | None]:
        deadline = Deadline.after(options.seconds(forward=is_forward))
        calls = [functools.partial(ask, expert, tensors, deadline) for expert, tensors in questions.items()]
        # in backward nobody can stand in for an expert that has answered in forward
        return await ask_all(calls, quorum, deadline, options.timeout_after_k_min, spare_busy=is_forward)

    outcomes = dict(zip(questions, get_runtime().call(ask_them), strict=True))
    answers = {expert: outcome for expert, outcome in outcomes.items() if isinstance(outcome, list)}
    failures = {expert: outcome for expert, outcome in outcomes.items() if isinstance(outcome, HivemindError)}
    call.suspects.note(answers, failures)
    _judge(direction, quorum, failures, strict=bool(questions) if not is_forward else not options.allow_zero_outputs)
    return answers


def _judge(direction: str, quorum: Quorum, failures: dict[ExpertInfo, HivemindError], *, strict: bool) -> None:
    """
    :raises NotEnoughExperts: in forward if a sample has too few answers, in backward, where such a sample passes less
        gradient on or none, if all have
    """
    short, samples = len(quorum.short), len(quorum.answers)
    reasons = "; ".join(f"{expert.uid} at {expert.peer_id}: {_first_line(error)}" for expert, error in failures.items())
    text = f"{direction}: {short} of {samples} samples have fewer than {quorum.least} answers of experts"
    if strict and short and (direction == "forward" or short == samples):
        raise NotEnoughExperts(f"{text} ({reasons or 'none were found'})"[:_MAX_TEXT])
    if failures and _failures.allow():
        logger.warning("%s: %d experts have failed (%s)", direction, len(failures), reasons[:_MAX_TEXT])


def _common_shapes(answers: dict[ExpertInfo, list[torch.Tensor]]) -> list[torch.Size]:
    """The shapes of outputs without the batch; empty where there are no answers.

    :raises ProtocolViolation: if experts of one grid differ
    """
    found = {tuple(output.shape[1:] for output in answer) for answer in answers.values()}
    if len(found) > 1:
        raise ProtocolViolation(f"experts of one grid gave outputs of different shapes: {sorted(found)}")
    return list(*found)


def _first_line(error: HivemindError) -> str:
    return f"{type(error).__name__} {error}".partition("\n")[0][:200]


def _rows(tensors: Sequence[torch.Tensor], rows: Sequence[int]) -> list[torch.Tensor]:
    """The rows of each tensor, without its history."""
    return [tensor.detach()[list(rows)] for tensor in tensors]


def _add(grads: Sequence[torch.Tensor | None], rows: Sequence[int], parts: Sequence[torch.Tensor]) -> None:
    """Add parts to the rows of gradients, where there are any."""
    for grad, part in zip(grads, parts, strict=True):
        if grad is not None:
            grad.index_add_(0, torch.tensor(rows, device=grad.device), part.to(grad.device, grad.dtype))


def _are_finite(tensors: Sequence[torch.Tensor]) -> bool:
    return all(bool(tensor.isfinite().all()) for tensor in tensors if is_trained(tensor))
