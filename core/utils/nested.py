"""Path of hivemind 1.1 for `hivemind.nested`."""

from hivemind.nested import is_namedtuple, nested_compare, nested_flatten, nested_map, nested_pack

__all__ = ["is_namedtuple", "nested_compare", "nested_flatten", "nested_map", "nested_pack"]
