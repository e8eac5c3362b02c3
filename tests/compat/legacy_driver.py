"""Runs under the Python of hivemind 1.1.12: loads it, then forks a process for each peer that a test asks for.

Started as ``legacy_driver.py <fd>`` by ``tests/support/legacy.py``, with one end of a socket pair:

* ``!`` goes out once 1.1.12 is loaded;
* a byte comes in with three descriptors (standard input, output and error of a new peer), and the peer's pid goes
  out, 4 bytes.

A peer reads commands from its standard input, ``{"number", "command", "arguments"}`` a line, and answers ``{"number",
"result"}`` or ``{"number", "error"}``. Commands are the public functions of ``legacy_commands``: plain ones run one
after another in the main thread, where 1.1.12 may fork; those marked ``in_background`` in a thread of their own;
coroutines in one event loop. End of input ends the peer at once.
"""

import asyncio
import concurrent.futures
import os
import queue
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, NoReturn

sys.path.append(str(Path(__file__).resolve().parents[2]))  # last, so that the checkout hides none of what 1.1.12 uses

from tests.compat import legacy_commands, linejson, workload


class Driver:
    """The command loop of one peer."""

    def __init__(self, commands: int, replies: int) -> None:
        self._commands = commands
        self._replies = replies
        self._reply_lock = threading.Lock()
        self._main: queue.Queue[Callable[[], None]] = queue.Queue()
        self._loop = asyncio.new_event_loop()
        self._tasks: set[asyncio.Task[Any]] = set()  # owned by the loop's thread

    def run(self) -> NoReturn:
        """Serve commands until the input ends."""
        threading.Thread(target=self._run_loop, daemon=True).start()
        threading.Thread(target=self._read, daemon=True).start()
        while True:
            self._main.get()()

    def _run_loop(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_forever()

    def _read(self) -> None:
        with os.fdopen(self._commands, "rb") as lines:
            for line in lines:
                message = linejson.loads(line)
                self._dispatch(message["number"], getattr(legacy_commands, message["command"]), message["arguments"])
        os.killpg(0, signal.SIGKILL)  # the test is gone, or wants this peer gone

    def _dispatch(self, number: int, command: Callable[..., Any], arguments: dict[str, Any]) -> None:
        if asyncio.iscoroutinefunction(command):
            self._loop.call_soon_threadsafe(self._start_task, number, command(**arguments))
        elif getattr(command, "in_background", False):
            threading.Thread(target=self._answer, args=(number, lambda: command(**arguments)), daemon=True).start()
        else:
            self._main.put(lambda: self._answer(number, lambda: command(**arguments)))

    def _start_task(self, number: int, coroutine: Coroutine[Any, Any, Any]) -> None:
        task = self._loop.create_task(coroutine)
        self._tasks.add(task)  # the loop itself holds it weakly, and 1.1.12 lets go of what it waits for
        task.add_done_callback(lambda done: self._answer(number, done.result))
        task.add_done_callback(self._tasks.discard)

    def _answer(self, number: int, run: Callable[[], Any]) -> None:
        try:
            reply = linejson.dumps({"number": number, "result": run()})
        except (Exception, concurrent.futures.CancelledError) as error:  # noqa: BLE001 (a test gets it)
            traceback.print_exc()
            reply = linejson.dumps({"number": number, "error": f"{type(error).__name__}: {error}"})
        with self._reply_lock:
            while reply:
                reply = reply[os.write(self._replies, reply) :]


def become_peer(stdin: int, stdout: int, stderr: int) -> NoReturn:
    """Turn this freshly forked process into a peer: a session of its own, and nothing but replies on ``stdout``."""
    os.setsid()
    os.dup2(stderr, 1)
    os.dup2(stderr, 2)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # 1.1.12 waits for its own children
    Driver(stdin, stdout).run()


def serve(control: socket.socket) -> None:
    """Fork a peer for each request, until the other side closes."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the system reaps the peers
    workload.warm_up()
    control.sendall(b"!")
    while True:
        request, descriptors, _, _ = socket.recv_fds(control, 1, 3)
        if not request:
            return
        pid = os.fork()
        if pid == 0:
            control.close()
            become_peer(*descriptors)
        for descriptor in descriptors:
            os.close(descriptor)
        control.sendall(pid.to_bytes(4, "little"))


if __name__ == "__main__":
    serve(socket.socket(fileno=int(sys.argv[1])))
