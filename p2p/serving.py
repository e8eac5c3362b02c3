"""How a handler's end becomes an answer; the same on every transport."""

from __future__ import annotations

import asyncio

from hivemind.aio import TaskScope, with_deadline
from hivemind.clock import Deadline
from hivemind.errors import DeadlineExceeded
from hivemind.identity import PeerID
from hivemind.log import get_logger
from hivemind.p2p.limits import CALL_OVERHEAD
from hivemind.p2p.transport import Buffer, Stream, StreamHandler, UnaryHandler

__all__ = [
    "MAX_ERROR_TEXT",
    "OVERSIZED_ANSWER",
    "answer",
    "end_handlers",
    "serve_stream",
]

logger = get_logger(__name__)

#: What a caller is told instead of an answer that no peer would read.
OVERSIZED_ANSWER = "response size exceeds message size limit"
#: Bytes of a handler's error text that are sent; the rest is cut off.
MAX_ERROR_TEXT = 16 * 1024
#: Seconds in which cancelled handlers must have ended.
_END_SECONDS = 2.0


async def end_handlers(scope: TaskScope) -> None:
    """Cancel the handlers of ``scope`` and wait for their end, in bounded time: one that does not let itself be
    cancelled is left behind, with a word in the log."""
    try:
        await with_deadline(scope.close(), Deadline.after(_END_SECONDS), "the end of handlers")
    except DeadlineExceeded:
        names = sorted({task.get_name() for task in scope.tasks})
        logger.error("handlers that do not end when they are cancelled: %s", ", ".join(names))


async def answer(
    handler: UnaryHandler, name: str, request: Buffer, remote: PeerID, limit: int
) -> tuple[Buffer | None, str]:
    """Run a unary handler.

    :param limit: bytes of the longest answer that may be sent, envelope included
    :returns: the answer and "", or None and the text of the error
    """
    try:
        result = await handler(request, remote)
    except asyncio.CancelledError:
        raise
    except Exception as error:
        logger.debug("handler %s failed for %s", name, remote, exc_info=True)
        return None, repr(error)[:MAX_ERROR_TEXT]
    size = result.nbytes if isinstance(result, memoryview) else len(result)
    if size + CALL_OVERHEAD > limit:
        return None, OVERSIZED_ANSWER
    return result, ""


async def serve_stream(handler: StreamHandler, name: str, stream: Stream) -> None:
    """Run a handler of streams: reset the stream if it raises or is cancelled, finish it if it returns."""
    done = False
    try:
        await handler(stream)
        await stream.finish()
        done = True
    except asyncio.CancelledError:
        raise
    except Exception:
        logger.debug("handler %s failed for %s", name, stream.remote_id, exc_info=True)
    finally:
        if not done:
            stream.reset()
