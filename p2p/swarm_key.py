"""The secret of a private swarm: libp2p's pre-shared key and its files, ``/key/swarm/psk/1.0.0/`` (libp2p specification
"Private Networks")."""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
import secrets
from pathlib import Path
from typing import Any, Final, Self

from hivemind.errors import ConfigError
from hivemind.p2p.identity_file import write_identity

__all__ = ["SwarmKey"]

_HEADER: Final = b"/key/swarm/psk/1.0.0/"
_KEY_BYTES: Final = 32
#: No key file is longer.
_MAX_BYTES: Final = 4096
_ALLOWED: Final = "the content of a swarm key file, as `hivemind swarm-key make` writes it: /key/swarm/psk/1.0.0/ …"


class SwarmKey:
    """A key of 256 bits that all peers of a private swarm have. Immutable; shows its fingerprint, never itself.

    :param key: 32 bytes
    :raises ConfigError: on anything else
    """

    __slots__ = ("_key",)

    def __init__(self, key: bytes) -> None:
        if not isinstance(key, bytes) or len(key) != _KEY_BYTES:
            raise ConfigError("swarm_key", "(not shown)", f"{_KEY_BYTES} bytes")
        self._key = key

    @classmethod
    def generate(cls) -> Self:
        """A new key, of the system's randomness."""
        return cls(secrets.token_bytes(_KEY_BYTES))

    @classmethod
    def parse(cls, content: bytes | str) -> Self:
        """The key in the content of a file, in any of the three encodings: base16, base64, bin.

        :raises ConfigError: if it is none; the text does not show what came
        """
        data = content.encode() if isinstance(content, str) else content
        header, _, rest = data[:_MAX_BYTES].partition(b"\n")
        encoding, _, body = rest.partition(b"\n")
        try:
            if header.rstrip(b"\r") != _HEADER:
                raise ValueError
            return cls(_decode(encoding.rstrip(b"\r"), body))
        except ValueError:
            raise ConfigError("swarm_key", "(not shown)", _ALLOWED) from None

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> Self:
        """The key in a file.

        :raises ConfigError: if there is none in it
        :raises OSError: if it cannot be read
        """
        with Path(path).open("rb") as file:
            content = file.read(_MAX_BYTES + 1)
        try:
            return cls.parse(content)
        except ConfigError:
            raise ConfigError("swarm_key_path", str(path), f"a file with {_ALLOWED}") from None

    def write(self, path: str | os.PathLike[str]) -> bool:
        """Make a file with mode 0400, whole or not at all.

        :returns: False if there is a file already, which stays
        :raises FileNotFoundError: if the folder is missing
        """
        return write_identity(Path(path), self.reveal().encode())

    def reveal(self) -> str:
        """The content of a file: for the daemon and for files only."""
        return f"{_HEADER.decode()}\n/base16/\n{self._key.hex()}\n"

    @property
    def fingerprint(self) -> str:
        """Text by which people compare keys; nothing follows from it about the key."""
        return hashlib.sha256(b"fingerprint of " + _HEADER + self._key).hexdigest()[:16]

    def __repr__(self) -> str:
        return f"<SwarmKey with fingerprint {self.fingerprint}>"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, SwarmKey) and secrets.compare_digest(self._key, other._key)

    def __hash__(self) -> int:
        return hash(self.fingerprint)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self._key,)


def _decode(encoding: bytes, body: bytes) -> bytes:
    """
    :raises ValueError: unless it is a key
    """
    if encoding == b"/bin/":
        return body[:_KEY_BYTES]
    text = body.strip()
    if encoding == b"/base16/":
        return binascii.unhexlify(text)
    if encoding == b"/base64/":
        return base64.b64decode(text, validate=True)
    raise ValueError
