"""How a command runs: signals, errors and exit codes."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Callable, Coroutine
from typing import Any, Final

from hivemind.errors import ConfigError, HivemindError

__all__ = ["EXIT_FAILED", "EXIT_OK", "EXIT_USAGE", "guarded", "run_until_stopped"]

EXIT_OK: Final = 0
#: What was asked for has failed; the last line of standard error says why.
EXIT_FAILED: Final = 1
#: The options are wrong, as argparse has it.
EXIT_USAGE: Final = 2

_STOPS: Final = (signal.SIGINT, signal.SIGTERM)


def guarded(name: str, work: Callable[[], int]) -> int:
    """Run a command; what it raises on purpose becomes one line on standard error.

    :param name: the command, for that line
    :returns: the exit code
    """
    try:
        return work()
    except ConfigError as error:
        print(f"{name}: error: {error}", file=sys.stderr)
        return EXIT_USAGE
    except (HivemindError, OSError) as error:
        print(f"{name}: error: {error}", file=sys.stderr)
        return EXIT_FAILED
    except KeyboardInterrupt:
        return EXIT_OK


def run_until_stopped(work: Callable[[], Coroutine[Any, Any, int]]) -> int:
    """Run a coroutine on a loop of the main thread. SIGINT or SIGTERM cancels it, so that it ends in order; a second
    one ends the process at once.

    :returns: its result; `EXIT_OK` if it was stopped
    """

    async def supervise() -> int:
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        assert task is not None
        stopped = False

        def stop() -> None:
            nonlocal stopped
            stopped = True
            for number in _STOPS:
                loop.remove_signal_handler(number)
                signal.signal(number, signal.SIG_DFL)
            task.cancel()

        for number in _STOPS:
            loop.add_signal_handler(number, stop)
        try:
            return await work()
        except asyncio.CancelledError:
            if stopped:
                return EXIT_OK
            raise

    with asyncio.Runner() as runner:
        return runner.run(supervise())
