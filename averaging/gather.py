"""What members tell each other when they form a group: bandwidth, mode and the user's data (hivemind 1.1 wire format).

``JoinRequest.gather`` is the msgpack list ``[bandwidth, mode, user]``; ``user`` is itself a msgpack value as bytes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from hivemind.averaging.modes import AveragingMode
from hivemind.errors import ConfigError, ProtocolViolation, SerializationError
from hivemind.serializer import MSGPackSerializer

__all__ = ["MAX_GATHER_BYTES", "Gathered", "pack_gather", "unpack_gather"]

#: Of one member; the leader sends those of all members to each.
MAX_GATHER_BYTES = 256 * 1024


@dataclass(frozen=True)
class Gathered:
    """What one member told.

    :param bandwidth: relative, >= 0; 0 = cannot reduce; None = not specified
    :param mode: its part in the exchange
    :param user: the user's data
    """

    bandwidth: float | None
    mode: AveragingMode
    user: Any


def pack_gather(bandwidth: float | None, mode: AveragingMode, user: Any) -> bytes:
    """The bytes of one member.

    :raises ConfigError: if the user's data cannot be serialized, or exceed `MAX_GATHER_BYTES`
    """
    try:
        data = MSGPackSerializer.dumps(user)
    except (SerializationError, TypeError, ValueError, OverflowError) as error:
        raise ConfigError("gather", type(user).__name__, "a value that msgpack can serialize") from error
    blob = MSGPackSerializer.dumps([None if bandwidth is None else float(bandwidth), int(mode), data])
    if len(blob) > MAX_GATHER_BYTES:
        raise ConfigError("gather", f"{len(blob)} bytes", f"at most {MAX_GATHER_BYTES} bytes when serialized")
    return bytes(blob)


def unpack_gather(blob: bytes) -> Gathered:
    """
    :raises ProtocolViolation: unless ``blob`` is what `pack_gather` makes
    """
    if len(blob) > MAX_GATHER_BYTES:
        raise ProtocolViolation(f"data to gather of {len(blob)} bytes, allowed: {MAX_GATHER_BYTES}")
    try:
        fields = MSGPackSerializer.loads(blob)
        bandwidth, mode, data = fields
        user = MSGPackSerializer.loads(data)
        mode = AveragingMode(mode)
    except (SerializationError, TypeError, ValueError) as error:
        raise ProtocolViolation(f"malformed data to gather ({len(blob)} bytes)") from error
    if bandwidth is not None:
        is_number = isinstance(bandwidth, int | float) and not isinstance(bandwidth, bool)
        if not is_number or not 0 <= bandwidth < math.inf:
            raise ProtocolViolation("a bandwidth that is not a number >= 0")
        bandwidth = float(bandwidth)
    return Gathered(bandwidth, mode, user)
