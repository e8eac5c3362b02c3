"""What a relay gives to the peers that are reached through it."""

from __future__ import annotations

from dataclasses import dataclass

from hivemind.config import check_count
from hivemind.errors import ConfigError

__all__ = ["RelayLimits"]

_MOST = {
    "max_reservations": 1 << 16,
    "max_circuits": 1 << 12,
    "circuit_bytes": 1 << 50,
    "buffer_bytes": 1 << 20,
}
_LONGEST_SECONDS = 86400.0


@dataclass(frozen=True, kw_only=True)
class RelayLimits:
    """Limits of a relay (libp2p circuit relay v2). The defaults carry training: libp2p's own are 128 KiB and 2 minutes
    a circuit, which no exchange of tensors fits in.

    :raises ConfigError: if one is wrong
    """

    #: peers that are reached through this one at a time; each costs a connection, which is idle most of the time
    max_reservations: int = 512
    #: connections ("circuits") to and from one such peer at a time; its group in a round has to fit
    max_circuits: int = 64
    #: bytes after which a circuit ends, each way; its two peers make another with the next call
    circuit_bytes: int = 16 * 2**30
    #: seconds after which a circuit ends
    circuit_seconds: float = 1800.0
    #: bytes of each of a circuit's two buffers: memory for speed
    buffer_bytes: int = 65536

    def __post_init__(self) -> None:
        for name, most in _MOST.items():
            value = getattr(self, name)
            check_count(name, value)
            if value > most:
                raise ConfigError(name, value, f"an integer from 1 to {most}")
        seconds = self.circuit_seconds
        if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 1 <= seconds <= _LONGEST_SECONDS:
            raise ConfigError("circuit_seconds", seconds, f"seconds from 1 to {_LONGEST_SECONDS:.0f}")
