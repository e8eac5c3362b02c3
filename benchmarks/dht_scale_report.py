"""What `benchmarks/dht_scale.py` found, as a table in Markdown and as a plot in SVG."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

__all__ = ["DOCS_PAGE", "DOCS_PLOT", "plot", "table", "with_table"]

DOCS_PAGE, DOCS_PLOT = "docs/dht-scale.md", "docs/dht-scale.svg"
_BEGIN, _END = "<!-- begin of what `make sim-dht` found -->\n", "<!-- end of what `make sim-dht` found -->\n"

Figures = dict[str, Any]


def table(results: Sequence[Figures]) -> str:
    """All that is known, in Markdown."""
    parts = []
    quiet = sorted((each for each in results if each["experiment"] == "quiet"), key=lambda each: each["nodes"])
    if quiet:
        parts.append(_rows(_QUIET_HEAD, (_quiet_row(each) for each in quiet)))
    others = [row for each in results for row in _ROWS.get(each["experiment"], lambda _: [])(each)]
    if others:
        parts.append(_rows(_OTHER_HEAD, others))
    parts.append(_rows(_COST_HEAD, (_cost_row(each) for each in results if "all" in each)))
    return "\n".join(parts)


_QUIET_HEAD = (
    "nodes",
    "log2",
    "keys",
    "found",
    "hops, mean",
    "hops, p99",
    "requests per get",
    "ms per get",
    "ms, p99",
    "known nodes",
    "requests per join",
)
_OTHER_HEAD = ("swarm", "nodes", "keys looked for", "found", "wrong", "hops, mean", "hops, p99", "requests per get")
_COST_HEAD = ("run", "nodes", "requests", "CPU-minutes", "GiB")


def _quiet_row(each: Figures) -> Iterable[str]:
    gets = each["gets"]
    yield f"{each['nodes']:,}"
    yield f"{each['log2']:.1f}"
    yield f"{each['keys']:,}"
    yield _share(gets["found"])
    yield f"{gets['hops']:.2f}"
    yield f"{gets['hops_p99']}"
    yield f"{gets['requests']:.2f}"
    yield f"{gets['seconds'] * 1e3:.0f}"
    yield f"{gets['seconds_p99'] * 1e3:.0f}"
    yield f"{each['known']:.0f}"
    yield f"{each['joined']['requests'] / each['nodes']:.0f}"


def _get_row(swarm: str, nodes: int, keys: str, gets: Figures) -> list[str]:
    counts = f"{gets['hops']:.2f}", f"{gets['hops_p99']}", f"{gets['requests']:.2f}"
    return [swarm, f"{nodes:,}", keys, _share(gets["found"]), _share(gets["wrong"]), *counts]


def _churn_rows(each: Figures) -> list[list[str]]:
    minutes = [name for name in each if name.startswith("minute ")]
    return [
        _get_row("30 % churn a minute", each["nodes"], f"living after {name}: {_share(each[name]['living'])}", found)
        for name in minutes
        for found in [each[name]["gets"]]
    ]


def _partition_rows(each: Figures) -> list[list[str]]:
    names = {
        "cut": ("cut in two", "stored before, either half"),
        "before": ("joined again", "stored before"),
        "left": ("joined again", "stored in one half, by the other"),
        "right": ("joined again", "stored in the other half, by the one"),
    }
    return [_get_row(swarm, each["nodes"], keys, each[name]) for name, (swarm, keys) in names.items() if name in each]


def _liar_rows(each: Figures) -> list[list[str]]:
    names = {"gets": "all", "latest": "all, `latest=True`"}
    return [_get_row("5 % liars", each["nodes"], keys, each[name]) for name, keys in names.items() if name in each]


_ROWS = {"churn": _churn_rows, "partition": _partition_rows, "liars": _liar_rows}


def _cost_row(each: Figures) -> list[str]:
    cost = each["all"]
    minutes, size = cost["cpu_seconds"] / 60, cost["megabytes"] / 1024
    return [each["experiment"], f"{each['nodes']:,}", f"{cost['requests']:,}", f"{minutes:.1f}", f"{size:.2f}"]


def _share(value: float) -> str:
    return "100 %" if value == 1 else "0" if value == 0 else f"{100 * value:.2f} %"


def _rows(head: Sequence[str], rows: Iterable[Iterable[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def with_table(page: str, text: str) -> str:
    """``page`` with ``text`` between its two marks.

    :raises ValueError: if it lacks them
    """
    begin, end = page.index(_BEGIN) + len(_BEGIN), page.index(_END)
    return f"{page[:begin]}\n{text}\n{page[end:]}"


#: The plot's two fields: width, height, and the room around each.
_WIDTH, _HEIGHT, _MARGIN = 340, 240, 46


def plot(results: Sequence[Figures]) -> str:
    """Hops and requests of a get in quiet swarms against log2 of their size, as SVG."""
    quiet = sorted((each for each in results if each["experiment"] == "quiet" and "gets" in each), key=_log2)
    hops = {"p99": "hops_p99", "mean": "hops"}
    fields = [
        _field("hops of a get", quiet, hops, slope=0.25),
        _field("requests of a get", quiet, {"mean": "requests"}, slope=0.5),
    ]
    whole_width, whole_height = 2 * (_WIDTH + _MARGIN) + _MARGIN, _HEIGHT + 2 * _MARGIN
    parts = [
        f'<g transform="translate({_MARGIN + n * (_WIDTH + _MARGIN)} {_MARGIN})">{f}</g>' for n, f in enumerate(fields)
    ]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {whole_width} {whole_height}"'
        ' font-family="sans-serif" font-size="12">'
        f'<rect width="{whole_width}" height="{whole_height}" fill="white"/>{"".join(parts)}</svg>\n'
    )


def _log2(each: Figures) -> float:
    return float(each["log2"])


def _field(title: str, quiet: Sequence[Figures], lines: dict[str, str], slope: float) -> str:
    """One field of the plot; a dashed line shows growth by ``slope`` times log2."""
    right = max([14.0, *map(_log2, quiet)])
    highest = max([slope * right, *(each["gets"][name] for each in quiet for name in lines.values())])
    top = float(int(highest) + 1)

    def at(x: float, y: float) -> str:
        return f"{_WIDTH * x / right:.1f},{_HEIGHT * (1 - y / top):.1f}"

    parts = [f'<path d="M0,0 V{_HEIGHT} H{_WIDTH}" fill="none" stroke="black"/>']
    parts.append(f'<text x="{_WIDTH / 2}" y="-14" text-anchor="middle" font-weight="bold">{title}</text>')
    parts.append(f'<text x="{_WIDTH / 2}" y="{_HEIGHT + 34}" text-anchor="middle">log2 of the number of nodes</text>')
    ticks = [(x, at(x, 0).split(",")[0]) for x in range(0, int(right) + 1, 2)]
    parts += [f'<text x="{where}" y="{_HEIGHT + 16}" text-anchor="middle">{x}</text>' for x, where in ticks]
    for y in range(int(top) + 1):
        height = at(0, y).split(",")[1]
        parts.append(f'<text x="-6" y="{float(height) + 4:.1f}" text-anchor="end">{y}</text>')
    parts.append(f'<path d="M{at(0, 0)} L{at(right, slope * right)}" stroke="gray" stroke-dasharray="5 4"/>')
    parts.append(f'<text x="{_WIDTH - 4}" y="12" text-anchor="end" fill="gray">dashed: {slope:g} log2 n</text>')
    for colour, (label, name) in zip(("#c0392b", "#1f618d"), lines.items(), strict=False):
        points = [(_log2(each), each["gets"][name]) for each in quiet]
        parts.append(f'<polyline points="{" ".join(at(*point) for point in points)}" fill="none" stroke="{colour}"/>')
        for point in points:
            x, y = at(*point).split(",")
            parts.append(f'<circle cx="{x}" cy="{y}" r="3.5" fill="{colour}"/>')
        if points:
            x, y = at(*points[0]).split(",")
            parts.append(f'<text x="{x}" y="{float(y) - 8:.1f}" text-anchor="end" fill="{colour}">{label}</text>')
    return "".join(parts)
