"""A process that has loaded torch and the library, and forks others that begin where they would after loading.

Loading takes seconds of processor time, and a table of many processes that each do little else would take minutes. What
is forked has one thread, as no part of the library runs in the nursery; it ends as any program, by the end of its main
module. The library itself never forks.
"""

from __future__ import annotations

import gc
import json
import os
import select
import socket
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import IO, Any

__all__ = ["Nursery", "Nursling"]

#: Seconds in which the nursery must be ready, and answer.
_PATIENCE = 120.0


class Nursling:
    """A forked process, with what of `subprocess.Popen` the tests use."""

    def __init__(self, nursery: Nursery, pid: int, stdin: IO[bytes], stdout: IO[bytes]) -> None:
        self._nursery = nursery
        self.pid = pid
        self.stdin = stdin
        self.stdout = stdout
        self.returncode: int | None = None

    def send_signal(self, number: int) -> None:
        """If it has not ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def poll(self) -> int | None:
        """Its exit code, negative for a signal; None if it lives."""
        return self._exited(0.0)

    def wait(self, timeout: float) -> int:
        """
        :raises TimeoutError: if it does not end
        """
        code = self._exited(timeout)
        if code is None:
            raise TimeoutError(f"process {self.pid} has not ended in {timeout} s")
        return code

    def _exited(self, seconds: float) -> int | None:
        if self.returncode is None:
            self.returncode = self._nursery.exit_code(self.pid, seconds)
        return self.returncode


class Nursery:
    """The parent of nurslings; a context manager. Thread-safe.

    :param modules: what it loads
    :param environment: of the nursery, in addition to this process's
    """

    def __init__(self, modules: list[str], environment: dict[str, str]) -> None:
        self._ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        command = [sys.executable, "-m", "tests.support.nursery", str(theirs.fileno()), *modules]
        self._process = subprocess.Popen(
            command, pass_fds=[theirs.fileno()], env={**os.environ, **environment}, cwd=Path(__file__).parents[2]
        )
        theirs.close()
        self._sending = threading.Lock()
        self._changed = threading.Condition()
        self._born: list[int] = []
        self._codes: dict[int, int] = {}
        self._gone = False
        self._reader = threading.Thread(target=self._read, name="nursery")

    def __enter__(self) -> Nursery:
        self._reader.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ours.shutdown(socket.SHUT_RDWR)
        self._process.wait(_PATIENCE)
        self._reader.join(_PATIENCE)
        self._ours.close()

    def start(
        self, script: Path, arguments: list[str], environment: dict[str, str], log: IO[str], session: bool
    ) -> Nursling:
        """Fork a process that runs a script as its main module.

        :param log: its standard error
        :param session: it leads a session of its own
        """
        stdin, to_child = os.pipe()
        from_child, stdout = os.pipe()
        order = {"script": str(script), "arguments": arguments, "environment": environment, "session": session}
        try:
            with self._sending:
                socket.send_fds(self._ours, [json.dumps(order).encode()], [stdin, stdout, log.fileno()])
                with self._changed:
                    if not self._changed.wait_for(lambda: self._born or self._gone, _PATIENCE) or not self._born:
                        raise TimeoutError("the nursery gives birth to no process")
                    pid = self._born.pop()
        finally:
            os.close(stdin)
            os.close(stdout)
        return Nursling(self, pid, os.fdopen(to_child, "wb"), os.fdopen(from_child, "rb"))

    def exit_code(self, pid: int, seconds: float) -> int | None:
        """Wait so long for the end of a process."""
        with self._changed:
            self._changed.wait_for(lambda: pid in self._codes or self._gone, seconds)
            return self._codes.get(pid)

    def _read(self) -> None:
        while data := self._ours.recv(1 << 16):
            said = json.loads(data)
            with self._changed:
                if "born" in said:
                    self._born.append(said["born"])
                else:
                    self._codes[said["died"]] = said["code"]
                self._changed.notify_all()
        with self._changed:
            self._gone = True
            self._changed.notify_all()


def _serve(control: socket.socket) -> dict[str, Any] | None:
    """Fork as told until the other side ends.

    :returns: in a forked process, what it is to be; None in the nursery at its end
    """
    children: dict[int, int] = {}  # by descriptor
    while True:
        ready, _, _ = select.select([control, *children], [], [])
        for one in ready:
            if one is control:
                data, passed, _, _ = socket.recv_fds(control, 1 << 16, 3)
                if not data:
                    return None
                pid = os.fork()
                if pid == 0:
                    control.close()
                    for descriptor in children:
                        os.close(descriptor)
                    for number, descriptor in enumerate(passed):
                        os.dup2(descriptor, number)
                        os.close(descriptor)
                    order: dict[str, Any] = json.loads(data)
                    return order
                for descriptor in passed:
                    os.close(descriptor)
                children[os.pidfd_open(pid)] = pid
                control.send(json.dumps({"born": pid}).encode())
            else:
                pid = children.pop(one)
                os.close(one)
                code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
                control.send(json.dumps({"died": pid, "code": code}).encode())


def _main() -> None:
    control = socket.socket(fileno=int(sys.argv[1]))
    control.set_inheritable(False)
    for name in sys.argv[2:]:
        __import__(name)
    if threading.active_count() > 1 or len(os.listdir("/proc/self/task")) > 1:
        print("nursery: threads run, so that nothing may be forked", file=sys.stderr)
        return
    gc.collect()
    gc.freeze()  # a collection in a forked process would copy all of it
    order = _serve(control)
    if order is None:
        os._exit(0)  # nothing of it is wanted, and much would be taken down
    if order["session"]:
        os.setsid()
    os.environ.update(order["environment"])
    tempfile.tempdir = None  # of another environment
    sys.argv = [order["script"], *order["arguments"]]
    namespace = {"__name__": "__main__", "__file__": order["script"]}
    exec(compile(Path(order["script"]).read_text(), order["script"], "exec"), namespace)


if __name__ == "__main__":
    _main()
