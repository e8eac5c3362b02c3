"""How long it takes to import the library, to start a first and a second DHT in one process, and to shut both down."""

from __future__ import annotations

import time

from common import LOCAL, emit, parse_arguments


def main() -> None:
    """Measure each step once: a second run in the same process would not be a start."""
    started = time.perf_counter()
    import hivemind

    imported = time.perf_counter()
    for name in ("DHT", "DecentralizedAverager", "Optimizer"):
        getattr(hivemind, name)
    loaded = time.perf_counter()
    first = hivemind.DHT(start=True, **LOCAL)
    first_up = time.perf_counter()
    second = hivemind.DHT(initial_peers=first.get_visible_maddrs(), start=True, **LOCAL)
    second_up = time.perf_counter()
    second.shutdown()
    first.shutdown()
    ended = time.perf_counter()
    emit(
        {
            "import hivemind": (imported - started, "s"),
            "import, and load DHT and Optimizer": (loaded - started, "s"),
            "start the first DHT": (first_up - loaded, "s"),
            "start the second DHT": (second_up - first_up, "s"),
            "shut both DHTs down": (ended - second_up, "s"),
        }
    )


if __name__ == "__main__":
    parse_arguments()
    main()
