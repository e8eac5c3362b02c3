"""What `Server.create` makes: names for experts, and the experts themselves."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch

from hivemind.compression import DUMMY_BATCH_SIZE, BatchTensorDescriptor, codec_for
from hivemind.config import check_choice, check_count
from hivemind.dht import DHT, DHTNode
from hivemind.errors import ConfigError, SerializationError, WrongTypeError
from hivemind.moe.declare import check_uids, find_experts
from hivemind.moe.server.layers import (
    ClippingWrapper,
    add_custom_models_from_file,
    name_to_block,
    name_to_input,
    schedule_name_to_scheduler,
)
from hivemind.moe.server.module_backend import ModuleBackend
from hivemind.moe.uid import ExpertUID, is_valid_uid
from hivemind.nested import nested_map
from hivemind.proto import runtime_pb2

__all__ = ["ExpertOptions", "check_pattern", "choose_uids", "draw_uids", "make_backends"]

#: Draws per expert that is still without a name before a pattern counts as used up.
ATTEMPTS_PER_EXPERT: Final = 10
#: A part of a pattern in brackets: ``[first:last+1]``, or ``[last+1]``.
_RANGE: Final = re.compile(r"\[(?:(0|[1-9][0-9]*):)?(0|[1-9][0-9]*)\]")


@dataclass(frozen=True, kw_only=True)
class ExpertOptions:
    """Options of `Server.create` that say which experts are made.

    :param num_experts: how many, with names drawn by ``expert_pattern``, or those in the folder of checkpoints
    :param expert_uids: their names, instead
    :param expert_pattern: names to draw from, as ``"ffn.[0:32].[0:8]"``; None: ``expert.`` and a large number
    :param expert_cls: their class, by the name under which it was registered
    :param hidden_dim: their width
    :param optim_cls: makes an optimizer from parameters; None: they are not trained
    :param scheduler: name of a schedule of the learning rate
    :param num_warmup_steps: of the schedule
    :param num_training_steps: of the schedule
    :param clip_grad_norm: norm of gradients to which they are clipped; None: they are not
    :param num_handlers: accepted for hivemind 1.1, which had processes for this
    :param min_batch_size: samples that a batch waits for, a second at most
    :param max_batch_size: samples in a batch, and in a request
    :param device: of the experts, or several of which each gets as many; None: CUDA where there is, else the CPU
    :param compression: of floating point tensors on the wire, a ``CompressionType``
    :param custom_module_path: Python file that registers classes of experts
    """

    num_experts: int | None = None
    expert_uids: Sequence[ExpertUID] | None = None
    expert_pattern: str | None = None
    expert_cls: str = "ffn"
    hidden_dim: int = 1024
    optim_cls: Callable[..., torch.optim.Optimizer] | None = torch.optim.Adam
    scheduler: str = "none"
    num_warmup_steps: int | None = None
    num_training_steps: int | None = None
    clip_grad_norm: float | None = None
    num_handlers: int | None = None
    min_batch_size: int = 1
    max_batch_size: int = 4096
    device: torch.device | str | Sequence[torch.device | str] | None = None
    compression: runtime_pb2.CompressionType.ValueType = runtime_pb2.NONE
    custom_module_path: str | Path | None = None

    def __post_init__(self) -> None:
        if (self.num_experts is None) == (self.expert_uids is None):
            given = {"num_experts": self.num_experts, "expert_uids": self.expert_uids}
            raise ConfigError("num_experts, expert_uids", given, "one of the two")
        check_count("num_experts", self.num_experts, optional=True)
        if self.expert_uids is not None:
            check_uids(self.expert_uids)
            if len(set(self.expert_uids)) != len(self.expert_uids):
                raise ConfigError("expert_uids", list(self.expert_uids), "different names")
        if self.expert_pattern is not None:
            check_pattern(self.expert_pattern)
        for name in ("hidden_dim", "min_batch_size", "max_batch_size"):
            check_count(name, getattr(self, name))
        check_choice("scheduler", self.scheduler, schedule_name_to_scheduler)
        if schedule_name_to_scheduler[self.scheduler] is not None:
            check_count("num_warmup_steps", self.num_warmup_steps, least=0)
            check_count("num_training_steps", self.num_training_steps)
        try:
            codec_for(self.compression)
        except SerializationError as error:
            raise ConfigError("compression", self.compression, str(error)) from None

    @property
    def devices(self) -> list[torch.device]:
        """Those that experts are spread over.

        :raises ConfigError: if one is not there
        """
        given: Any = self.device
        if given is None:
            given = "cuda" if torch.cuda.is_available() else "cpu"
        several = [given] if isinstance(given, str | torch.device) else list(given)
        if not several:
            raise ConfigError("device", given, "one device or more")
        try:
            devices = [torch.device(each) for each in several]
            for device in devices:
                torch.empty(0, device=device)
        except (RuntimeError, TypeError, AssertionError) as error:
            raise ConfigError("device", given, f"devices of this machine ({error})") from error
        return devices


# -- names ---------------------------------------------------------------------------------------------------------


def check_pattern(pattern: str) -> None:
    """
    :raises ConfigError: unless names can be drawn from ``pattern``
    """
    if not isinstance(pattern, str):
        raise WrongTypeError("expert_pattern", pattern, "a text as 'ffn.[0:32].[0:8]'")
    for low, high in _RANGE.findall(pattern):
        if int(low or 0) >= int(high):
            raise ConfigError("expert_pattern", pattern, "ranges [first:end] with first < end")
    if not is_valid_uid(_RANGE.sub(lambda found: found[1] or "0", pattern)):
        raise ConfigError("expert_pattern", pattern, "a name, then numbers and ranges, as 'ffn.[0:32].[0:8]'")


def draw_uids(
    count: int, pattern: str | None, taken: Callable[[list[ExpertUID]], Iterable[ExpertUID]], avoid: Iterable[str] = ()
) -> list[ExpertUID]:
    """Random different names.

    :param taken: which of these names somebody has
    :param avoid: names that are not drawn
    :raises ConfigError: if too few free ones are found
    """
    pattern = pattern if pattern is not None else "expert.[0:1000000000]"
    check_pattern(pattern)
    found: list[ExpertUID] = []
    seen = set(avoid)
    attempts = ATTEMPTS_PER_EXPERT * count
    while len(found) < count and attempts > 0:
        attempts -= 1
        drawn = {
            _RANGE.sub(lambda part: str(random.randrange(int(part[1] or 0), int(part[2]))), pattern)
            for _ in range(count - len(found))
        } - seen
        seen |= drawn
        if drawn:
            found.extend(drawn - set(taken(sorted(drawn))))
    if len(found) < count:
        raise ConfigError(
            "expert_pattern", pattern, f"one with {count} names that no other peer has: {len(found)} found"
        )
    return found


def choose_uids(options: ExpertOptions, dht: DHT, saved: Sequence[ExpertUID]) -> list[ExpertUID]:
    """The names of a server's experts: those that are given, else those that have checkpoints, else drawn ones.

    :param saved: that have checkpoints
    """
    if options.expert_uids is not None:
        return list(options.expert_uids)
    assert options.num_experts is not None

    async def declared(dht: DHT, node: DHTNode, uids: list[ExpertUID]) -> list[ExpertUID]:
        return [info.uid for info in await find_experts(node, uids) if info is not None]

    def taken(uids: list[ExpertUID]) -> list[ExpertUID]:
        return dht.run_coroutine(lambda dht, node: declared(dht, node, uids))

    known = list(saved)[: options.num_experts]
    return known + draw_uids(options.num_experts - len(known), options.expert_pattern, taken, avoid=known)


# -- experts -------------------------------------------------------------------------------------------------------


def make_backends(options: ExpertOptions, uids: Sequence[ExpertUID]) -> dict[ExpertUID, ModuleBackend]:
    """Experts of these names, in turn on each device.

    :raises ConfigError: if an option is wrong
    """
    devices = options.devices
    return {uid: make_backend(options, uid, devices[index % len(devices)]) for index, uid in enumerate(uids)}


def make_backend(options: ExpertOptions, uid: ExpertUID, device: torch.device) -> ModuleBackend:
    """A new expert."""
    if options.custom_module_path is not None:
        add_custom_models_from_file(options.custom_module_path)
    check_choice("expert_cls", options.expert_cls, name_to_block)
    module = name_to_block[options.expert_cls](options.hidden_dim).to(device)
    sample = name_to_input[options.expert_cls](DUMMY_BATCH_SIZE, options.hidden_dim)
    inputs = sample if isinstance(sample, tuple) else (sample,)
    optimizer, scheduler = _make_training(options, module)
    backend = ModuleBackend(
        uid,
        module,
        optimizer=optimizer,
        scheduler=scheduler,
        args_schema=[BatchTensorDescriptor.from_tensor(each, options.compression) for each in inputs],
        device=device,
        min_batch_size=options.min_batch_size,
        max_batch_size=options.max_batch_size,
    )
    backend.outputs_schema = nested_map(lambda leaf: _compressed(leaf, options.compression), backend.outputs_schema)
    return backend


def _make_training(options: ExpertOptions, module: torch.nn.Module) -> tuple[Any, Any]:
    parameters = list(module.parameters())
    if options.optim_cls is None or not parameters:
        return None, None
    optimizer = options.optim_cls(parameters)
    make_schedule = schedule_name_to_scheduler[options.scheduler]
    scheduler = None
    if make_schedule is not None:
        assert options.num_warmup_steps is not None
        assert options.num_training_steps is not None
        scheduler = make_schedule(optimizer, options.num_warmup_steps, options.num_training_steps)
    if options.clip_grad_norm is not None:
        optimizer = ClippingWrapper(optimizer, options.clip_grad_norm)
    return optimizer, scheduler


def _compressed(leaf: BatchTensorDescriptor, compression: Any) -> BatchTensorDescriptor:
    floating = leaf.dtype is not None and leaf.dtype.is_floating_point
    return BatchTensorDescriptor(
        *leaf.instance_size,
        dtype=leaf.dtype,
        device=leaf.device,
        requires_grad=leaf.requires_grad,
        compression=compression if floating else runtime_pb2.NONE,
    )
