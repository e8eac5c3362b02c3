"""Schedules of the learning rate, by the name that ``hivemind-server --scheduler`` has for them."""

from __future__ import annotations

from collections.abc import Callable

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from hivemind.config import check_count

__all__ = ["get_linear_schedule_with_warmup", "schedule_name_to_scheduler"]


def get_linear_schedule_with_warmup(optimizer: Optimizer, num_warmup_steps: int, num_training_steps: int) -> LambdaLR:
    """The learning rate rises from 0 to that of the optimizer in ``num_warmup_steps`` steps, and then falls to 0, which
    it reaches after ``num_training_steps`` steps in all.

    :raises ConfigError: if a number of steps is none
    """
    check_count("num_warmup_steps", num_warmup_steps, least=0)
    check_count("num_training_steps", num_training_steps)

    def factor(step: int) -> float:
        if step < num_warmup_steps:
            return step / num_warmup_steps
        return max(0.0, (num_training_steps - step) / max(1, num_training_steps - num_warmup_steps))

    return LambdaLR(optimizer, factor)


#: None: the learning rate stays.
schedule_name_to_scheduler: dict[str, Callable[[Optimizer, int, int], LambdaLR] | None] = {
    "linear": get_linear_schedule_with_warmup,
    "none": None,
}
