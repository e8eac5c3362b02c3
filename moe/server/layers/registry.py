"""The classes of experts that a server can make, by name."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from hivemind.errors import ConfigError, NameTakenError

__all__ = ["add_custom_models_from_file", "name_to_block", "name_to_input", "register_expert_class"]

#: Name of a class of experts → what makes one for a width.
name_to_block: dict[str, Callable[[int], nn.Module]] = {}
#: Name of a class of experts → what makes a batch for it: ``sample_input(batch_size, hidden_dim)``.
name_to_input: dict[str, Callable[[int, int], Any]] = {}

Block = TypeVar("Block", bound=Callable[..., nn.Module])


def register_expert_class(
    name: str, sample_input: Callable[[int, int], torch.Tensor | tuple[torch.Tensor, ...]]
) -> Callable[[Block], Block]:
    """A decorator: `Server.create` and ``hivemind-server`` can make experts of this class.

    :param name: the value of ``expert_cls``
    :param sample_input: ``sample_input(batch_size, hidden_dim)`` gives the tensor, or the tuple of tensors, that an
        expert takes; values do not matter, shapes and dtypes do
    :raises NameTakenError: (a RuntimeError) if the name is taken
    """

    def register(block: Block) -> Block:
        if name in name_to_block:
            raise NameTakenError("expert class", name, "a name that is not registered yet")
        name_to_block[name], name_to_input[name] = block, sample_input
        return block

    return register


def add_custom_models_from_file(path: str | Path) -> None:
    """Run a Python file that registers classes of experts; a file that was run before is not run again.

    :raises ConfigError: if there is no such file, or running it raises
    """
    file = Path(path).resolve()
    name = f"hivemind_custom_{abs(hash(str(file))):x}"
    if name in sys.modules:
        return
    spec = importlib.util.spec_from_file_location(name, file)
    if not file.is_file() or spec is None or spec.loader is None:
        raise ConfigError("custom_module_path", str(path), "a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        raise ConfigError(
            "custom_module_path", str(path), f"a file that runs: {type(error).__name__}: {error}"
        ) from error
