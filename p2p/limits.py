"""Sizes that peers agree on (hivemind 1.1 wire format, sections 1.3 and 1.4), and those that only bound this side."""

from __future__ import annotations

from typing import Final

from hivemind.errors import MessageTooLarge

__all__ = [
    "CALL_OVERHEAD",
    "DEFAULT_MAX_MSG_SIZE",
    "MAX_STREAM_MESSAGE",
    "MAX_UNARY_PAYLOAD_SIZE",
    "WINDOW",
    "check_message",
    "check_request",
]

#: Bytes of one unary message with its envelope: every peer of hivemind 1.1 refuses more.
DEFAULT_MAX_MSG_SIZE: Final = 4 * 1024 * 1024
#: Bytes above which callers switch from unary calls to streams.
MAX_UNARY_PAYLOAD_SIZE: Final = DEFAULT_MAX_MSG_SIZE // 2
#: Bytes of one message of a stream. Hivemind 1.1 has no such limit; it only bounds what a peer can make us hold.
MAX_STREAM_MESSAGE: Final = 64 * 1024 * 1024
#: Bytes that may wait unread on one stream before its sender has to wait.
WINDOW: Final = 1024 * 1024
#: Bytes of the envelope around a unary message besides peer id and handler name.
CALL_OVERHEAD: Final = 64


def check_request(size: int, peer_bytes: int, name: str, limit: int) -> None:
    """
    :raises MessageTooLarge: if a unary request of ``size`` bytes does not fit ``limit`` with its envelope
    """
    if size + peer_bytes + len(name.encode()) + CALL_OVERHEAD > limit:
        raise MessageTooLarge(f"call of {name}: a request of {size} bytes: message size exceeds set limit {limit}")


def check_message(size: int, limit: int = MAX_STREAM_MESSAGE) -> None:
    """
    :raises MessageTooLarge: if a message of a stream is longer than ``limit``
    """
    if size > limit:
        raise MessageTooLarge(f"a message of {size} bytes exceeds the limit of {limit}")
