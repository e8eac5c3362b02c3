"""Path of hivemind 1.1 for `hivemind.moe.server.layers.registry`."""

from hivemind.moe.server.layers.registry import add_custom_models_from_file, register_expert_class

__all__ = ["add_custom_models_from_file", "register_expert_class"]
