"""Peer ids: forms, order, keys."""

from __future__ import annotations

import contextlib
import copy
import pickle

import base58
import pytest
from hypothesis import given
from hypothesis import strategies as st
from multiaddr import Multiaddr

from hivemind.errors import ConfigError
from hivemind.identity import PeerID, PeerInfo
from hivemind.proto import crypto_pb2

ids = st.binary(min_size=1, max_size=64)

#: Vectors of the libp2p peer-id specification: private key (protobuf, hex), peer id.
ED25519_KEY = (
    "08011240"
    "7e0830617c4a7de83925dfb2694556b12936c477a0e1feb2e148ec9da60fee7d"
    "1ed1e8fae2c4a144b8be8fd4b47bf3d3b34b871c3cacf6010f0e42d474fce27e"
)
ED25519_PUBLIC = "080112201ed1e8fae2c4a144b8be8fd4b47bf3d3b34b871c3cacf6010f0e42d474fce27e"


def test_an_ed25519_id_holds_the_key() -> None:
    peer_id = PeerID.from_identity(bytes.fromhex(ED25519_KEY))
    assert peer_id.to_bytes().hex() == "0024" + ED25519_PUBLIC
    assert str(peer_id).startswith("12D3KooW")


def test_an_rsa_id_hashes_the_key() -> None:
    import hashlib

    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import rsa

    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    der = key.private_bytes(
        serialization.Encoding.DER, serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption()
    )
    spki = key.public_key().public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    # by hand, byte for byte: field 1 = RSA, field 2 = the key, of 294 bytes
    public = b"\x08\x00\x12" + b"\xa6\x02" + spki
    content = crypto_pb2.PrivateKey(key_type=crypto_pb2.RSA, data=der).SerializeToString()
    assert PeerID.from_identity(content).to_bytes() == b"\x12\x20" + hashlib.sha256(public).digest()


@given(ids)
def test_forms_of_an_id(data: bytes) -> None:
    peer_id = PeerID(data)
    text = base58.b58encode(data).decode()
    assert peer_id.to_bytes() == data
    assert text == str(peer_id) == peer_id.to_base58() == peer_id.to_string() == peer_id.pretty()
    assert PeerID.from_base58(text) == peer_id
    assert peer_id == text
    assert peer_id == data
    assert hash(PeerID(data)) == hash(peer_id)
    assert pickle.loads(pickle.dumps(peer_id)) == peer_id == copy.deepcopy(peer_id)
    assert text in repr(peer_id)


@given(ids, ids)
def test_order_is_that_of_the_text(a: bytes, b: bytes) -> None:
    assert (PeerID(a) < PeerID(b)) == (base58.b58encode(a) < base58.b58encode(b))
    assert (PeerID(a) == PeerID(b)) == (a == b)
    assert PeerID(a) != 5


@pytest.mark.parametrize("data", [b"", bytes(65), "text", None])
def test_what_is_no_id(data: bytes) -> None:
    with pytest.raises(ConfigError):
        PeerID(data)


@given(st.text())
def test_any_text_is_an_id_or_an_error(text: str) -> None:
    with contextlib.suppress(ConfigError):
        assert PeerID.from_base58(text).to_bytes()


@given(st.binary(max_size=200))
def test_any_bytes_are_a_key_or_an_error(data: bytes) -> None:
    with contextlib.suppress(ConfigError):
        PeerID.from_identity(data)


def test_peer_info_is_readable() -> None:
    peer_id = PeerID.from_identity(bytes.fromhex(ED25519_KEY))
    assert str(PeerInfo(peer_id, (Multiaddr("/ip4/1.2.3.4/tcp/5"),))) == f"{peer_id} /ip4/1.2.3.4/tcp/5"
