"""Sizes as people write them."""

from __future__ import annotations

import argparse
import re
from typing import Final

__all__ = ["parse_bytes"]

_SIZE: Final = re.compile(r"([0-9]+(?:\.[0-9]+)?) ?(?:([kKMGT]?)B|([KMGT])iB)?")
_POWERS: Final = {"": 0, "k": 1, "K": 1, "M": 2, "G": 3, "T": 4}


def parse_bytes(text: str) -> int:
    """Bytes in text such as ``65536``, ``500MB`` (powers of 1000) or ``16GiB`` (powers of 1024).

    :raises argparse.ArgumentTypeError: if it is no size
    """
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no size such as 65536, 500MB or 16GiB")
    number, decimal, binary = match.groups()
    return int(float(number) * (1024 ** _POWERS[binary] if binary else 1000 ** _POWERS[decimal or ""]))
