"""What `Server.create` makes: names for experts, and the experts themselves."""

from __future__ import annotations

import functools
import itertools
import math
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Final

import torch

from hivemind.compression import DUMMY_BATCH_SIZE, BatchTensorDescriptor
from hivemind.config import check_choice
from hivemind.dht import DHT, DHTNode
from hivemind.errors import ConfigError
from hivemind.moe.declare import find_experts
from hivemind.moe.server.config import RANGE, ExpertOptions, check_pattern
from hivemind.moe.server.large_pages import move_to_large_pages
from hivemind.moe.server.layers import (
    ClippingWrapper,
    add_custom_models_from_file,
    name_to_block,
    name_to_input,
    schedule_name_to_scheduler,
)
from hivemind.moe.server.module_backend import ModuleBackend
from hivemind.moe.uid import ExpertUID
from hivemind.nested import nested_map
from hivemind.proto import runtime_pb2

__all__ = ["choose_uids", "draw_uids", "generate_uids", "make_backend", "make_backends"]

#: A pattern with so many names, or fewer, is used up to the last one.
_ALL_NAMES: Final = 4096
#: Optimizers that have a step in one kernel, and the devices that have it in all versions of torch allowed here.
_FUSED: Final = (torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD)
_FUSED_ON: Final = ("cpu", "cuda")


def draw_uids(
    count: int,
    pattern: str | None,
    taken: Callable[[list[ExpertUID]], Iterable[ExpertUID]],
    *,
    attempts_per_expert: int = 10,
    avoid: Iterable[ExpertUID] = (),
) -> list[ExpertUID]:
    """Random different names.

    :param taken: which of these names somebody has
    :param attempts_per_expert: draws per expert before a pattern with very many names counts as used up
    :param avoid: names that are not drawn
    :raises ConfigError: if too few free ones are found
    """
    pattern = pattern if pattern is not None else "expert.[0:1000000000]"
    check_pattern(pattern)
    found: list[ExpertUID] = []
    seen = set(avoid)
    names = _names(pattern)
    for _ in range(max(attempts_per_expert * count, _ALL_NAMES)):
        if len(found) == count:
            break
        drawn = set(itertools.islice(names, count - len(found))) - seen
        seen |= drawn
        if drawn:
            found.extend(drawn - set(taken(sorted(drawn))))
    if len(found) < count:
        raise ConfigError(
            "expert_pattern", pattern, f"one with {count} names that no other peer has: {len(found)} found"
        )
    return found


def _names(pattern: str) -> Iterator[ExpertUID]:
    """Names of a pattern in random order: all of them once where they are few, else drawn without end."""
    ranges = [range(int(low or 0), int(high)) for low, high in RANGE.findall(pattern)]

    def name(coordinates: Iterable[int]) -> ExpertUID:
        rest = iter(coordinates)
        return RANGE.sub(lambda _: str(next(rest)), pattern)

    if math.prod(map(len, ranges)) <= _ALL_NAMES:
        every = list(itertools.product(*ranges))
        random.shuffle(every)
        yield from map(name, every)
        return
    while True:
        yield name(random.choice(each) for each in ranges)


def generate_uids(
    num_experts: int,
    expert_pattern: str | None,
    dht: DHT | None = None,
    attempts_per_expert: int = 10,
    *,
    avoid: Iterable[ExpertUID] = (),
) -> list[ExpertUID]:
    """Random different names that no peer of ``dht`` has declared; see `draw_uids`."""

    async def declared(dht: DHT, node: DHTNode, uids: list[ExpertUID]) -> list[ExpertUID]:
        return [info.uid for info in await find_experts(node, uids) if info is not None]

    def taken(uids: list[ExpertUID]) -> list[ExpertUID]:
        return [] if dht is None else dht.run_coroutine(lambda dht, node: declared(dht, node, uids))

    return draw_uids(num_experts, expert_pattern, taken, attempts_per_expert=attempts_per_expert, avoid=avoid)


def choose_uids(options: ExpertOptions, dht: DHT, saved: Sequence[ExpertUID]) -> list[ExpertUID]:
    """The names of a server's experts: those that are given, else those that have checkpoints, else drawn ones.

    :param saved: that have checkpoints
    """
    if options.expert_uids is not None:
        return list(options.expert_uids)
    assert options.num_experts is not None
    known = list(saved)[: options.num_experts]
    return known + generate_uids(options.num_experts - len(known), options.expert_pattern, dht, avoid=known)


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
    move_to_large_pages(module)
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
    optimizer = _make_optimizer(options.optim_cls, parameters)
    make_schedule = schedule_name_to_scheduler[options.scheduler]
    scheduler = None
    if make_schedule is not None:
        assert options.num_warmup_steps is not None
        assert options.num_training_steps is not None
        scheduler = make_schedule(optimizer, options.num_warmup_steps, options.num_training_steps)
    if options.clip_grad_norm is not None:
        optimizer = ClippingWrapper(optimizer, options.clip_grad_norm)
    return optimizer, scheduler


def _make_optimizer(
    make: Callable[..., torch.optim.Optimizer], parameters: list[torch.nn.Parameter]
) -> torch.optim.Optimizer:
    """The optimizer; with a step in one kernel where torch has one: on a CPU, Adam's takes a quarter of the time."""
    kind = make.func if isinstance(make, functools.partial) else make
    given = make.keywords if isinstance(make, functools.partial) else {}
    able = kind in _FUSED and all(each.is_floating_point() and each.device.type in _FUSED_ON for each in parameters)
    return make(parameters, fused=True) if able and not given.keys() & {"fused", "foreach"} else make(parameters)


def _compressed(leaf: BatchTensorDescriptor, compression: Any) -> BatchTensorDescriptor:
    floating = leaf.dtype is not None and leaf.dtype.is_floating_point
    return BatchTensorDescriptor(
        *leaf.instance_size,
        dtype=leaf.dtype,
        device=leaf.device,
        requires_grad=leaf.requires_grad,
        compression=compression if floating else runtime_pb2.NONE,
    )
