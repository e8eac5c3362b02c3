"""The steps of codecs that have kernels."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import hivemind.compression
from hivemind.compression.fused import Step

__all__ = ["MODULES", "STEPS"]

#: Where they are.
MODULES: list[ModuleType] = [
    module for name, module in sorted(sys.modules.items()) if name.startswith(f"{hivemind.compression.__name__}.")
]
STEPS: dict[str, Step[Any]] = {
    step.name: step for module in MODULES for step in vars(module).values() if isinstance(step, Step)
}
