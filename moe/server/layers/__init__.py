"""Classes of experts, and what makes new ones.

* `registry`: classes by name; `common`, `dropout`: the stock ones;
* `optim`, `lr_schedule`: what trains them.
"""

from hivemind.moe.server.layers.common import DelayedNopExpert, FeedforwardBlock, NopExpert, TunedTransformer
from hivemind.moe.server.layers.dropout import DeterministicDropout, DeterministicDropoutNetwork
from hivemind.moe.server.layers.lr_schedule import get_linear_schedule_with_warmup, schedule_name_to_scheduler
from hivemind.moe.server.layers.optim import ClippingWrapper, OptimizerWrapper
from hivemind.moe.server.layers.registry import (
    add_custom_models_from_file,
    name_to_block,
    name_to_input,
    register_expert_class,
)

__all__ = [
    "ClippingWrapper",
    "DelayedNopExpert",
    "DeterministicDropout",
    "DeterministicDropoutNetwork",
    "FeedforwardBlock",
    "NopExpert",
    "OptimizerWrapper",
    "TunedTransformer",
    "add_custom_models_from_file",
    "get_linear_schedule_with_warmup",
    "name_to_block",
    "name_to_input",
    "register_expert_class",
    "schedule_name_to_scheduler",
]
