"""An expert: a torch module, its optimizer, what it takes and gives, and its two pools."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Final

import torch
from torch import nn

from hivemind.compression import DUMMY_BATCH_SIZE, BatchTensorDescriptor
from hivemind.errors import ConfigError, ExpertFailed, InputMismatch, WrongTypeError
from hivemind.log import get_logger
from hivemind.moe.messages import ExpertSchema
from hivemind.moe.server.task_pool import TaskPool
from hivemind.nested import nested_flatten, nested_map, nested_pack

__all__ = ["ModuleBackend", "check_inputs", "has_nan"]

logger = get_logger(__name__)

Tensors = tuple[torch.Tensor, ...]

#: Bytes of inputs, and gradients of outputs, that are worked on at a time on a processor.
_SPAN_BYTES: Final = 2**22


class ModuleBackend:
    """A module that clients call through a server: `forward` answers, `backward` gives gradients *and* trains it.

    Both take and give flat lists of tensors whose first dimension is the batch. Samples must not depend on each other
    (no batch normalisation): the server puts requests of several clients into one batch, and a large batch is
    computed in parts. Not thread-safe: a server calls it on the thread of the expert's device only.

    :param name: the expert's uid
    :param module: takes tensors, gives a tensor or a nested structure of tensors
    :param optimizer: makes a step after each batch of gradients; None: the module is not trained
    :param scheduler: makes a step after each of the optimizer's
    :param args_schema: a descriptor (or nested structure of them) for each positional input
    :param kwargs_schema: the same for inputs by keyword
    :param outputs_schema: of the outputs; None: found out with a batch of zeros
    :param device: where the module is; None: where its first parameter is
    :param pool_options: options of both `TaskPool`, ``max_batch_size`` among them
    :raises ConfigError: if the module does not take what the schema says
    """

    def __init__(
        self,
        name: str,
        module: nn.Module,
        *,
        optimizer: Any = None,
        scheduler: Any = None,
        args_schema: Sequence[Any] | None = None,
        kwargs_schema: dict[str, Any] | None = None,
        outputs_schema: Any = None,
        device: torch.device | str | None = None,
        **pool_options: Any,
    ) -> None:
        if not isinstance(module, nn.Module):
            raise WrongTypeError("module", type(module).__qualname__, "a torch.nn.Module")
        self.name, self.module, self.optimizer, self.scheduler = name, module, optimizer, scheduler
        self.device = torch.device(device) if device is not None else _device_of(module)
        if str(self.device) == "cuda":  # the current one, so that each device has one name
            self.device = torch.device("cuda", torch.cuda.current_device())
        self.args_schema = tuple(args_schema or ())
        self.kwargs_schema = dict(kwargs_schema or {})
        self.forward_schema = (self.args_schema, self.kwargs_schema)
        self._check_schema(self.forward_schema)
        #: batches of gradients that it was trained on since it was made
        self.updates = 0
        self.outputs_schema = self._find_outputs() if outputs_schema is None else outputs_schema
        self._check_schema(self.outputs_schema)
        pool_options.setdefault("max_batch_size", 4096)
        self.forward_pool = TaskPool(self.forward, name=f"{name}_forward", device=self.device, **pool_options)
        self.backward_pool = TaskPool(self.backward, name=f"{name}_backward", device=self.device, **pool_options)

    def _check_schema(self, schema: Any) -> None:
        for leaf in nested_flatten(schema):
            if not isinstance(leaf, BatchTensorDescriptor):
                raise WrongTypeError(f"schema of {self.name}", type(leaf).__qualname__, "a BatchTensorDescriptor")

    def _find_outputs(self) -> Any:
        dummies = nested_map(
            lambda leaf: leaf.make_zeros(DUMMY_BATCH_SIZE, device=self.device, requires_grad=False),
            self.forward_schema,
        )
        args, kwargs = dummies
        try:
            with torch.no_grad():
                outputs = self.module(*args, **kwargs)
        except Exception as error:
            raise ConfigError(f"args_schema of {self.name}", error, "what the module takes") from error
        for output in nested_flatten(outputs):
            if not isinstance(output, torch.Tensor) or output.ndim < 1 or output.shape[0] != DUMMY_BATCH_SIZE:
                got = tuple(output.shape) if isinstance(output, torch.Tensor) else type(output).__qualname__
                raise ConfigError(f"module of {self.name}", got, "outputs whose first dimension is the batch")
        return nested_map(BatchTensorDescriptor.from_tensor, outputs)

    # -- what clients ask ----------------------------------------------------------------------------------------------

    def forward(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """The outputs for ``inputs``, both flat in the order of their schemas; trains nothing.

        :raises ExpertFailed: if an output is not a number
        :raises InputMismatch: if the module does not take shapes that differ from the schema
        """
        with torch.no_grad():
            outputs = _joined([self._run(span) for span in _spans(inputs, self.device)])
        self._check_numbers("output", outputs)
        return outputs

    def backward(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """The gradients for all inputs, and a step of the optimizer with the gradients of the parameters.

        The outputs are computed again, so that nothing is kept between the two calls of a client (Ryabinin and
        Gusev 2020, "Towards crowdsourced training of large neural networks").

        :param inputs: those of `forward`, then the gradient of each output
        :returns: a gradient for each input of `forward`; zeros for those that are not of floating point
        :raises ExpertFailed: if a gradient is not finite; parameters and optimizer are then as before
        :raises InputMismatch: if a gradient has another shape than its output
        """
        count = sum(1 for _ in nested_flatten(self.forward_schema))
        given, grad_outputs = inputs[:count], inputs[count:]
        try:
            spans = _spans((*given, *grad_outputs), self.device)
            gradients = _joined([self._differentiate(span[:count], span[count:]) for span in spans])
            self._check_numbers("gradient of an input", gradients)
            self._check_parameters()
            self.on_backward(given[0].shape[0])
        finally:
            self.module.zero_grad(set_to_none=True)
        return gradients

    def _differentiate(self, given: Sequence[torch.Tensor], grad_outputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """The gradients for ``given``; those of the parameters are added to what they have."""
        with torch.enable_grad():
            leaves = [each.detach().requires_grad_(each.is_floating_point()) for each in given]
            outputs = self._run(leaves)
            pairs = [pair for pair in zip(outputs, grad_outputs, strict=True) if pair[0].requires_grad]
            if any(output.shape != grad.shape for output, grad in pairs):
                shapes = [(tuple(output.shape), tuple(grad.shape)) for output, grad in pairs]
                raise InputMismatch(f"{self.name}: outputs and gradients differ in shape: {shapes}")
            if pairs:
                grads = [grad.to(output.dtype) for output, grad in pairs]
                _Seed.apply(grads, *(output for output, _ in pairs)).backward()
        return [torch.zeros_like(leaf) if leaf.grad is None else leaf.grad for leaf in leaves]

    def _run(self, inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        args, kwargs = nested_pack(inputs, structure=self.forward_schema)
        try:
            return list(nested_flatten(self.module(*args, **kwargs)))
        except Exception as error:
            expected = [leaf.size for leaf in nested_flatten(self.forward_schema)]
            got = [tuple(each.shape) for each in inputs]
            if all(size[1:] == shape[1:] for size, shape in zip(expected, got, strict=True)):
                raise
            raise InputMismatch(f"{self.name}: expected shapes {expected}, got {got}: {error}") from error

    def on_backward(self, batch_size: int) -> None:
        """Train the module: called when its parameters have the gradients of a batch of ``batch_size`` samples."""
        if self.optimizer is not None:
            self.optimizer.step()
            self.updates += 1
        if self.scheduler is not None:
            self.scheduler.step()

    def _check_numbers(self, what: str, tensors: Sequence[torch.Tensor]) -> None:
        for index, tensor in enumerate(tensors):
            if has_nan(tensor):
                raise ExpertFailed(f"{self.name}: {what} {index} is not a number (NaN)")

    def _check_parameters(self) -> None:
        """A step with a gradient that is not finite would spoil the expert for everybody."""
        if self.optimizer is None:
            return
        gradients = [each.grad for each in self.module.parameters() if each.grad is not None]
        # a sum of finite norms is finite: one look at the result for all
        if gradients and not torch.stack(torch._foreach_norm(gradients)).sum().isfinite():
            raise ExpertFailed(f"{self.name}: the gradient of a parameter is not finite")

    def get_info(self) -> ExpertSchema:
        """What it takes and gives, as clients are told."""
        return {
            "forward_schema": self.forward_schema,
            "outputs_schema": self.outputs_schema,
            "keyword_names": tuple(self.kwargs_schema),
        }

    def get_pools(self) -> tuple[TaskPool, TaskPool]:
        """Of forward and backward calls."""
        return self.forward_pool, self.backward_pool

    # -- state ---------------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """``module``, and where it has them ``optimizer`` and ``scheduler``."""
        parts = {"module": self.module, "optimizer": self.optimizer, "scheduler": self.scheduler}
        return {name: part.state_dict() for name, part in parts.items() if part is not None}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take on what `state_dict` has given.

        :raises ConfigError: if it does not fit; the expert may then have a part of it
        """
        parts = {"module": self.module, "optimizer": self.optimizer, "scheduler": self.scheduler}
        for name, part in parts.items():
            if part is None:
                continue
            if name not in state_dict:
                if name == "module":
                    raise ConfigError(f"state of {self.name}", sorted(state_dict), "a state with 'module'")
                logger.warning("%s: the state has no %s, which begins anew", self.name, name)
                continue
            try:
                part.load_state_dict(state_dict[name])
            except (RuntimeError, ValueError, KeyError, TypeError, AttributeError) as error:
                raise ConfigError(f"state of {self.name}", name, f"one that fits ({error})") from error


def _spans(tensors: Sequence[torch.Tensor], device: torch.device) -> list[Tensors]:
    """The samples of a batch that are computed at a time, in order.

    On a processor they are so few that what is between inputs and outputs stays near it, in memory that was used for
    the last ones: fresh memory of a large batch costs a page fault for every 4 KiB.
    """
    batches = {tensor.shape[:1].numel() for tensor in tensors}
    size = sum(tensor.nbytes for tensor in tensors)
    if device.type != "cpu" or size <= _SPAN_BYTES or len(batches) > 1:
        return [tuple(tensors)]
    (batch,) = batches
    step = -(-batch // min(batch, -(-size // _SPAN_BYTES)))
    return [tuple(tensor[start : start + step] for tensor in tensors) for start in range(0, batch, step)]


def _joined(spans: Sequence[Sequence[torch.Tensor]]) -> Tensors:
    """The results of all samples."""
    return tuple(spans[0]) if len(spans) == 1 else tuple(torch.cat(column) for column in zip(*spans, strict=True))


class _Seed(torch.autograd.Function):
    """Outputs to a scalar whose backward pass begins with given gradients of the outputs. ``torch.autograd.backward``
    would load a library for symbolic mathematics to compare shapes: seconds on a busy machine, and 35 MB."""

    @staticmethod
    def forward(ctx: Any, grads: Sequence[torch.Tensor], *outputs: torch.Tensor) -> torch.Tensor:
        ctx.grads = grads
        return outputs[0].new_zeros(())

    @staticmethod
    def backward(ctx: Any, *_: torch.Tensor) -> Any:
        return None, *ctx.grads


def _device_of(module: nn.Module) -> torch.device:
    return next((tensor.device for tensor in (*module.parameters(), *module.buffers())), torch.device("cpu"))


def has_nan(tensor: torch.Tensor) -> bool:
    """Whether an element is not a number. The least of all elements is none if one is: that is found in one go, of
    which torch makes no tensor, and takes a twentieth of the time of ``isnan``."""
    return tensor.is_floating_point() and tensor.numel() > 0 and math.isnan(tensor.amin().item())


def check_inputs(name: str, tensors: Sequence[torch.Tensor], schema: Any) -> None:
    """
    :param schema: nested structure of descriptors. Sizes other than the batch may differ from it, as lengths of
        sequences do: the module itself has the last word on them
    :raises InputMismatch: if tensors are not as many as the descriptors, or of other dtypes or dimensions, or not of
        one batch, or not numbers
    """
    leaves = list(nested_flatten(schema))
    if len(tensors) != len(leaves):
        raise InputMismatch(f"{name}: expected {len(leaves)} tensors, got {len(tensors)}")
    for index, (tensor, leaf) in enumerate(zip(tensors, leaves, strict=True)):
        dtype = leaf.dtype if leaf.dtype is not None else torch.get_default_dtype()
        if tensor.dtype != dtype or tensor.ndim != len(leaf.size):
            raise InputMismatch(
                f"{name}: tensor {index}: expected {dtype} of shape {leaf.size} (None: the batch), "
                f"got {tensor.dtype} of shape {tuple(tensor.shape)}"
            )
        if tensor.shape[0] != tensors[0].shape[0]:
            raise InputMismatch(f"{name}: batches of {tensors[0].shape[0]} and {tensor.shape[0]} samples in one call")
        if has_nan(tensor):
            raise InputMismatch(f"{name}: tensor {index} is not a number (NaN)")
