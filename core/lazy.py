"""Public names that are loaded on first use (PEP 562), so that importing a package costs nothing by itself."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Any

__all__ = ["lazy_names"]


def lazy_names(
    package: str, homes: Mapping[str, Iterable[str]], submodules: Iterable[str] = ()
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """The functions ``__getattr__`` and ``__dir__`` of a package.

    A name that was loaded becomes an ordinary attribute, so that the next access does not come here.

    :param package: the package's ``__name__``
    :param homes: module → names of the package that live there
    :param submodules: modules of the package that are attributes without an import of their own
    """
    home_of = {name: module for module, names in homes.items() for name in names}
    modules = frozenset(submodules)

    def load(name: str) -> Any:
        if name in home_of:
            value = getattr(importlib.import_module(home_of[name]), name)
        elif name in modules:
            value = importlib.import_module(f"{package}.{name}")
        else:
            raise AttributeError(f"module {package!r} has no attribute {name!r}", name=name, obj=sys.modules[package])
        setattr(sys.modules[package], name, value)
        return value

    def names() -> list[str]:
        return sorted({*vars(sys.modules[package]), *home_of, *modules})

    return load, names
