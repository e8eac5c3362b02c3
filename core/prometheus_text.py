"""The text format of Prometheus, as far as it is used here.

https://prometheus.io/docs/instrumenting/exposition_formats
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence

__all__ = ["escaped", "head", "histogram"]


def head(family: str, kind: str, text: str) -> Iterator[str]:
    """The lines before those of a family.

    :param kind: "counter", "gauge" or "histogram"
    :param text: what it means, in one line
    """
    yield f"# HELP {family} {text}"
    yield f"# TYPE {family} {kind}"


def escaped(label: str) -> str:
    """A label's value, as it may stand between quotes."""
    return label.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")


def histogram(family: str, label: str, bounds: Sequence[float], counts: Iterable[int], total: float) -> Iterator[str]:
    """The lines of a histogram, without `head`.

    :param label: as ``name="value"``, escaped
    :param bounds: upper bounds of all buckets but the last
    :param counts: of each bucket, one more than bounds
    :param total: the sum of all that was observed
    """
    below = list(itertools.accumulate(counts))
    for bound, count in zip((*bounds, "+Inf"), below, strict=True):
        yield f'{family}_bucket{{{label},le="{bound}"}} {count}'
    yield f"{family}_sum{{{label}}} {total:.6f}"
    yield f"{family}_count{{{label}}} {below[-1]}"
