"""Options of servers and of the experts that they make."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch

from hivemind.clock import MAX_DHT_TIME_DISCREPANCY_SECONDS
from hivemind.compression import codec_for
from hivemind.config import check_choice, check_count, check_seconds
from hivemind.errors import ConfigError, SerializationError, WrongTypeError
from hivemind.moe.declare import check_uids
from hivemind.moe.server.layers import schedule_name_to_scheduler
from hivemind.moe.server.schedule import QueueLimits
from hivemind.moe.uid import ExpertUID, is_valid_uid
from hivemind.proto import runtime_pb2

__all__ = ["RANGE", "ExpertOptions", "ServerOptions", "check_pattern"]

#: A part of a pattern in brackets: ``[first:last+1]``, or ``[last+1]``.
RANGE: Final = re.compile(r"\[(?:(0|[1-9][0-9]*):)?(0|[1-9][0-9]*)\]")


@dataclass(frozen=True, kw_only=True)
class ServerOptions:
    """Options of `Server`.

    :param update_period: seconds between two declarations in the DHT, and between two checkpoints
    :param expiration: seconds for which a declaration holds; None: two periods, at least 3 s
    :param checkpoint_dir: folder of checkpoints; None: none are written
    :param stats_report_interval: seconds between two lines of statistics in the log; None: none
    :param max_waiting: requests that may wait for one device
    :param max_wait: seconds of work that may wait for one device; see `QueueLimits`
    :param max_bytes: of requests that are held at the same time
    :param drain_timeout: seconds within which `shutdown` serves what waits
    :param device: accepted, as ``prefetch_batches`` and ``sender_threads``, for hivemind 1.1: experts run where their
        modules are
    """

    update_period: float = 30.0
    expiration: float | None = None
    checkpoint_dir: Path | str | None = None
    stats_report_interval: float | None = None
    max_waiting: int = 4096
    max_wait: float = 30.0
    max_bytes: int = 2**31
    drain_timeout: float = 30.0
    device: torch.device | str | None = None
    prefetch_batches: int = 64
    sender_threads: int = 1

    def __post_init__(self) -> None:
        check_seconds("update_period", self.update_period)
        check_seconds("expiration", self.expiration, optional=True)
        check_seconds("stats_report_interval", self.stats_report_interval, optional=True)
        check_seconds("drain_timeout", self.drain_timeout, zero=True)
        check_count("max_bytes", self.max_bytes)
        QueueLimits(self.max_waiting, self.max_wait)

    @property
    def declared_for(self) -> float:
        """Seconds for which a declaration holds."""
        if self.expiration is not None:
            return self.expiration
        return max(2 * self.update_period, MAX_DHT_TIME_DISCREPANCY_SECONDS)


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
            allowed = f"a number of runtime_pb2.CompressionType or of a registered codec ({error})"
            raise ConfigError("compression", self.compression, allowed) from None

    @property
    def devices(self) -> list[torch.device]:
        """Those that experts are spread over.

        :raises ConfigError: if one is not there
        """
        given: Any = self.device
        if given is None:
            given = "cuda" if torch.cuda.is_available() else "cpu"
        several = list(given) if isinstance(given, list | tuple) else [given]
        if not several:
            raise ConfigError("device", given, "one device or more")
        try:
            devices = [torch.device(each) for each in several]
            for device in devices:
                torch.empty(0, device=device)
        except (RuntimeError, TypeError, AssertionError) as error:
            raise ConfigError("device", given, f"devices of this machine ({error})") from error
        return devices


def check_pattern(pattern: str) -> None:
    """
    :raises ConfigError: unless names can be drawn from ``pattern``
    """
    if not isinstance(pattern, str):
        raise WrongTypeError("expert_pattern", pattern, "a text as 'ffn.[0:32].[0:8]'")
    for low, high in RANGE.findall(pattern):
        if int(low or 0) >= int(high):
            raise ConfigError("expert_pattern", pattern, "ranges [first:end] with first < end")
    if not is_valid_uid(RANGE.sub(lambda found: found[1] or "0", pattern)):
        raise ConfigError("expert_pattern", pattern, "a name, then numbers and ranges, as 'ffn.[0:32].[0:8]'")
