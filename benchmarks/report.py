"""What a run of the benchmarks found: lines with a figure for each round and side, as a table and as JSON."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

OURS, LEGACY, RAW = "hivemind 2", "1.1.12", "raw libp2p"


def _seconds(value: float) -> str:
    return f"{value:.2f} s" if value >= 1 else f"{value * 1e3:.2f} ms"


def _bytes(value: float) -> str:
    return f"{value / 2**20:.1f} MiB" if value >= 2**20 else f"{value / 2**10:.0f} KiB"


UNITS: dict[str, Callable[[float], str]] = {
    "s": _seconds,
    "B": _bytes,
    "B/s": lambda value: f"{value / 1e6:.0f} MB/s",
    "/s": lambda value: f"{value:.0f} /s" if value >= 10 else f"{value:.2f} /s",
    "copies": lambda value: f"{value:.0%}",
    "error": lambda value: f"{value:.5f}",
    "": lambda value: f"{value:.0f}",
}
#: Those that are better when greater. "copies" is a rate in relation to that of copying memory.
RATES = ("B/s", "/s", "copies")


@dataclass
class Line:
    """One line of the table.

    :param unit: of all figures, one of `UNITS`; those that are none of `RATES` are better when smaller
    :param sides: the figures of each side, one a round
    """

    name: str
    unit: str
    sides: dict[str, list[float]] = field(default_factory=dict)

    def add(self, side: str, value: float) -> None:
        """A round's figure."""
        self.sides.setdefault(side, []).append(value)

    def ratios(self, other: str) -> list[float]:
        """How much better this library is than the other side, by round."""
        pairs = zip(self.sides.get(OURS, ()), self.sides.get(other, ()), strict=False)
        if self.unit in RATES:
            return [ours / theirs for ours, theirs in pairs]
        return [theirs / ours for ours, theirs in pairs]

    def as_json(self) -> dict[str, Any]:
        """Unit, all figures, the ratio to 1.1.12 and the share of what go-libp2p alone reaches."""
        return {
            "unit": self.unit,
            **self.sides,
            "ratio": _median_of(self.ratios(LEGACY)),
            "share": _median_of(self.ratios(RAW)),
        }

    def as_row(self) -> tuple[str, ...]:
        """The cells of the table."""
        ours, legacy, raw = (self._text(side) for side in (OURS, LEGACY, RAW))
        ratios, shares = self.ratios(LEGACY), self.ratios(RAW)
        ratio = f"{statistics.median(ratios):.2f}" if ratios else ""
        spread = f"{min(ratios):.2f} to {max(ratios):.2f}" if len(ratios) > 1 else ""
        return self.name, ours, legacy, ratio, spread, raw, f"{statistics.median(shares):.0%}" if shares else ""

    def _text(self, side: str) -> str:
        values = self.sides.get(side)
        return UNITS[self.unit](statistics.median(values)) if values else ""


def _median_of(values: list[float]) -> float | None:
    return statistics.median(values) if values else None


def table(lines: Iterable[Line]) -> str:
    """A table in Markdown, its columns padded to their widest cell; figures to the right."""
    head = ("median of the rounds", OURS, LEGACY, "ratio", "of the rounds", RAW, "share")
    rows = [head, *(line.as_row() for line in lines)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
    texts = []
    for row in rows:
        cells = [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        texts.append("| " + " | ".join(cells) + " |")
    texts.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(texts)
