"""Identity files: a peer's private key on disk, as hivemind 1.1 writes it (wire format, 1.2)."""

from __future__ import annotations

import contextlib
import os
import secrets
from pathlib import Path

from hivemind.errors import ConfigError
from hivemind.identity import PeerID
from hivemind.proto import crypto_pb2

__all__ = ["ensure_identity", "generate_identity", "read_peer_id", "write_identity"]

_KEY_BITS = 2048
_PUBLIC_EXPONENT = 65537
#: No private key file is longer.
_MAX_BYTES = 64 * 1024


def generate_identity() -> bytes:
    """The content of a new file: a libp2p ``PrivateKey`` with an RSA key of 2048 bits in PKCS#1 DER."""
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import rsa

    key = rsa.generate_private_key(public_exponent=_PUBLIC_EXPONENT, key_size=_KEY_BITS)
    der = key.private_bytes(
        serialization.Encoding.DER, serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption()
    )
    return crypto_pb2.PrivateKey(key_type=crypto_pb2.RSA, data=der).SerializeToString()


def write_identity(path: Path, content: bytes) -> bool:
    """Make ``path`` with mode 0400, whole or not at all.

    :returns: False if another process was first; its file stays
    :raises FileNotFoundError: if the folder is missing
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o400)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(temporary, path)
        except FileExistsError:
            return False
        return True
    finally:
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()


def ensure_identity(path: Path) -> bool:
    """Make the file if it is missing.

    :returns: whether it was made now
    """
    return not path.exists() and write_identity(path, generate_identity())


def read_peer_id(path: Path) -> PeerID:
    """The peer id that belongs to the file.

    :raises ConfigError: if it is no private key
    :raises OSError: if it cannot be read
    """
    with path.open("rb") as file:
        content = file.read(_MAX_BYTES + 1)
    try:
        return PeerID.from_identity(content)
    except ConfigError as error:
        raise ConfigError("identity_path", str(path), f"a file with a libp2p private key ({error.allowed})") from error
