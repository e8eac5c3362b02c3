"""Prometheus text of a command's process and of its daemon, at one address."""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final
from urllib.request import urlopen

from hivemind.aio import with_deadline
from hivemind.clock import Deadline
from hivemind.errors import ConfigError, DeadlineExceeded
from hivemind.p2p import metrics_text

__all__ = ["check_address", "serving_metrics"]

#: Bytes and seconds for the head of a request, and seconds for the daemon's part of the answer.
_HEAD_BYTES: Final = 8192
_SECONDS: Final = 5.0


def check_address(address: str, *, public: bool) -> tuple[str, int]:
    """Host and port of ``host:port``.

    :param public: whether others may reach it
    :raises ConfigError: if it is none, or others could reach it and must not
    """
    host, _, port = address.rpartition(":")
    host = host.strip("[]")
    if not host or not port.isdecimal() or int(port) > 65535:
        raise ConfigError("--metrics", address, "an address as 127.0.0.1:9100")
    try:
        is_own = host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        is_own = False
    if not is_own and not public:
        raise ConfigError("--metrics", address, "a loopback address, unless --metrics_public is given")
    return host, int(port)


@asynccontextmanager
async def serving_metrics(address: tuple[str, int], daemon: str | None) -> AsyncIterator[str]:
    """Answer ``GET /metrics`` on this loop until the block ends; gives the URL.

    :param daemon: URL of the daemon's own text, which is added; None: it has none
    :raises OSError: if the address cannot be listened on
    """

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = await with_deadline(reader.readuntil(b"\r\n\r\n"), Deadline.after(_SECONDS), "a request")
            if head.startswith(b"GET /metrics "):
                status, body = b"200 OK", (await asyncio.to_thread(_text, daemon)).encode()
            else:
                status, body = b"404 Not Found", b""
            fields = b"Content-Type: text/plain; version=0.0.4\r\nConnection: close\r\nContent-Length: %d\r\n\r\n"
            writer.write(b"HTTP/1.1 " + status + b"\r\n" + fields % len(body) + body)
            await with_deadline(writer.drain(), Deadline.after(_SECONDS), "an answer")
        except (DeadlineExceeded, OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass  # whoever asks so will ask again
        finally:
            writer.close()

    server = await asyncio.start_server(answer, *address, limit=_HEAD_BYTES)
    async with server:
        host, port = server.sockets[0].getsockname()[:2]
        yield f"http://{f'[{host}]' if ':' in host else host}:{port}/metrics"


def _text(daemon: str | None) -> str:
    if daemon is None:
        return metrics_text()
    with urlopen(daemon, timeout=_SECONDS) as response:
        of_daemon: str = response.read().decode()
    return metrics_text() + of_daemon
