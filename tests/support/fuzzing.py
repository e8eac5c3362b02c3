"""Properties that are tried for as long as there is time: ``HIVEMIND_FUZZ_SECONDS`` for all tests of a file."""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Callable
from typing import Any

__all__ = ["for_seconds"]


def for_seconds(share: float) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Repeat a test of hypothesis with other examples for ``share`` of the seconds; run it once without any set."""
    seconds = float(os.environ.get("HIVEMIND_FUZZ_SECONDS", "0")) * share

    def wrap(test: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(test)
        def repeat(*args: Any, **kwargs: Any) -> None:
            end = time.monotonic() + seconds
            while True:
                test(*args, **kwargs)
                if time.monotonic() >= end:
                    return

        return repeat

    return wrap
