"""Path of hivemind 1.1 for `hivemind.moe.declare` and `hivemind.moe.client.expert`."""

from hivemind.moe.client.expert import get_experts
from hivemind.moe.declare import declare_experts

__all__ = ["declare_experts", "get_experts"]
