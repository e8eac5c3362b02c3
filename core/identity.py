"""Peer ids and the private keys behind them (libp2p peer-id specification; hivemind 1.1 identity files)."""

from __future__ import annotations

import functools
import hashlib
from dataclasses import dataclass
from typing import Any

import base58
from multiaddr import Multiaddr

from hivemind.errors import ConfigError

__all__ = ["PeerID", "PeerInfo"]

#: Multihash prefixes of the two kinds of id: sha2-256 of the public key, or the key itself.
_SHA256 = b"\x12\x20"
_IDENTITY = b"\x00"
_MAX_BYTES = 64


@functools.total_ordering
class PeerID:
    """The id of a libp2p peer: a multihash of its public key. Immutable, hashable, picklable.

    Equal to another id of the same bytes, to those bytes, and to their base58 text, as in hivemind 1.1; ordered by
    base58 text. (Matchmaking orders by raw bytes: use `to_bytes` there.)

    :param peer_id_bytes: the binary id, 1 to 64 bytes
    :raises ConfigError: on anything else
    """

    __slots__ = ("_bytes", "_text")

    def __init__(self, peer_id_bytes: bytes) -> None:
        if not isinstance(peer_id_bytes, bytes | bytearray | memoryview) or not 0 < len(peer_id_bytes) <= _MAX_BYTES:
            raise ConfigError("peer_id_bytes", peer_id_bytes, f"1 to {_MAX_BYTES} bytes of a libp2p peer id")
        self._bytes = bytes(peer_id_bytes)
        self._text = ""

    @classmethod
    def from_base58(cls, text: str) -> PeerID:
        """
        :raises ConfigError: unless ``text`` is base58 of a peer id
        """
        try:
            return cls(base58.b58decode(text))
        except ValueError as error:
            raise ConfigError("peer id", text, "base58 text such as 12D3Koo… or Qm…") from error

    @classmethod
    def from_identity(cls, data: bytes) -> PeerID:
        """The id that belongs to the content of an identity file (a libp2p ``PrivateKey`` protobuf; RSA or Ed25519).

        :raises ConfigError: if it is no such key
        """
        return _id_of_private_key(data)

    def to_bytes(self) -> bytes:
        """The binary id."""
        return self._bytes

    def to_base58(self) -> str:
        """The usual text form."""
        if not self._text:
            self._text = base58.b58encode(self._bytes).decode()
        return self._text

    to_string = pretty = to_base58

    def __str__(self) -> str:
        return self.to_base58()

    def __repr__(self) -> str:
        return f"<libp2p.peer.id.ID ({self.to_base58()})>"

    def __hash__(self) -> int:
        return hash(self._bytes)

    def __eq__(self, other: object) -> bool:
        if isinstance(other, PeerID):
            return self._bytes == other._bytes
        if isinstance(other, bytes):
            return self._bytes == other
        if isinstance(other, str):
            return self.to_base58() == other
        return NotImplemented

    def __lt__(self, other: object) -> bool:
        if not isinstance(other, PeerID):
            return NotImplemented
        return self.to_base58() < other.to_base58()

    def __reduce__(self) -> tuple[Any, ...]:
        return (PeerID, (self._bytes,))


@dataclass(frozen=True)
class PeerInfo:
    """A peer and the addresses known for it."""

    peer_id: PeerID
    addrs: tuple[Multiaddr, ...]

    def __str__(self) -> str:
        return f"{self.peer_id} {','.join(map(str, self.addrs))}"


def _id_of_private_key(data: bytes) -> PeerID:
    """libp2p: RSA ids are the sha2-256 multihash of the serialized public key, Ed25519 ids hold the key itself."""
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives import serialization
    from google.protobuf.message import DecodeError

    from hivemind.proto import crypto_pb2

    try:
        private = crypto_pb2.PrivateKey.FromString(data)
        if private.key_type == crypto_pb2.RSA:
            key = serialization.load_der_private_key(private.data, password=None)
            spki = key.public_key().public_bytes(
                serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
            )
            public = crypto_pb2.PublicKey(key_type=crypto_pb2.RSA, data=spki).SerializeToString()
            return PeerID(_SHA256 + hashlib.sha256(public).digest())
        if private.key_type == crypto_pb2.Ed25519 and len(private.data) == 64:
            # private.data is seed and public key, 32 bytes each
            public = crypto_pb2.PublicKey(key_type=crypto_pb2.Ed25519, data=private.data[32:]).SerializeToString()
            return PeerID(_IDENTITY + bytes([len(public)]) + public)
    except (DecodeError, ValueError, UnsupportedAlgorithm) as error:
        raise ConfigError("identity", f"{len(data)} bytes", "a libp2p PrivateKey protobuf") from error
    raise ConfigError("identity", f"key type {private.key_type}", "an RSA or Ed25519 private key")
