"""Identity files in the format of hivemind 1.1."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from hivemind.errors import ConfigError
from hivemind.identity import PeerID
from hivemind.p2p.identity_file import ensure_identity, generate_identity, read_peer_id, write_identity
from hivemind.proto import crypto_pb2

FIXED = generate_identity()


def test_the_file_is_a_private_key_of_libp2p() -> None:
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
    from cryptography.hazmat.primitives.serialization import load_der_private_key

    assert FIXED[:3] == b"\x08\x00\x12"
    key = crypto_pb2.PrivateKey.FromString(FIXED)
    assert key.key_type == crypto_pb2.RSA
    rsa = load_der_private_key(key.data, password=None)
    assert isinstance(rsa, RSAPrivateKey)
    assert (rsa.key_size, rsa.private_numbers().public_numbers.e) == (2048, 65537)
    # PKCS#1: a sequence of version 0 and the modulus, with no algorithm around it
    assert key.data[4:7] == b"\x02\x01\x00"
    assert key.data[7:9] == b"\x02\x82"


def test_the_id_is_a_multihash_of_the_public_key() -> None:
    peer_id = PeerID.from_identity(FIXED)
    assert peer_id.to_bytes()[:2] == b"\x12\x20"
    assert len(peer_id.to_bytes()) == 34
    assert str(peer_id).startswith("Qm")


def test_a_file_is_private_whole_and_written_once(tmp_path: Path) -> None:
    path = tmp_path / "key"
    assert ensure_identity(path)
    content = path.read_bytes()
    assert stat.S_IMODE(path.stat().st_mode) == 0o400
    assert not ensure_identity(path)
    assert not write_identity(path, b"another process is late")
    assert path.read_bytes() == content
    assert [each.name for each in tmp_path.iterdir()] == ["key"]
    assert read_peer_id(path) == PeerID.from_identity(content)


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        write_identity(tmp_path / "nowhere" / "key", b"")
    for content in (b"", b"\x00", FIXED[:50], b"\x08\x01\x12\x02ab", bytes(100_000)):
        path = tmp_path / "wrong"
        path.write_bytes(content)
        with pytest.raises(ConfigError, match="wrong"):
            read_peer_id(path)
