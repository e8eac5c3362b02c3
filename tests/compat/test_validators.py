"""Validators of 1.1.12 and of this library in one DHT: signed records, schemas, owners that 1.1.12 does not know."""

from __future__ import annotations

import contextlib
from typing import Any

import pydantic
import pytest

from hivemind.crypto import Ed25519PrivateKey, RSAPrivateKey
from hivemind.dht import DHT, Ed25519SignatureValidator, RecordValidatorBase, RSASignatureValidator, SchemaValidator
from tests.compat.nodes import LegacyNode, OurNode, start_node
from tests.compat.pairs import LOCAL
from tests.support.legacy_repeat import LegacyPeers, repeat_on_legacy_fault

LIFETIME = 300.0


class Schema(pydantic.BaseModel):
    losses: dict[bytes, pydantic.StrictFloat]


def ours(stack: contextlib.ExitStack, maddrs: list[str], *validators: RecordValidatorBase, **options: Any) -> OurNode:
    dht = DHT(initial_peers=maddrs, start=True, record_validators=validators, **LOCAL, **options)
    return OurNode(stack.enter_context(dht))


@repeat_on_legacy_fault
def test_signed_and_schema_checked_records_both_ways(legacy: LegacyPeers) -> None:
    """Each kind takes the other's signed entries that fit the schema, and refuses those that do not, or are forged."""
    with contextlib.ExitStack() as stack:
        theirs = stack.enter_context(start_node("legacy", legacy, []))
        assert isinstance(theirs, LegacyNode)
        their_mark = theirs.process.call("dht_validate", name="d").encode()
        signer = RSASignatureValidator(RSAPrivateKey())
        mine = ours(stack, theirs.maddrs, signer, SchemaValidator(Schema, prefix="run"))
        assert theirs.store("run_losses", 0.5, LIFETIME, subkey=their_mark)
        assert mine.store("run_losses", 0.25, LIFETIME, subkey=signer.local_public_key)
        both = {their_mark: 0.5, signer.local_public_key: 0.25}
        assert mine.get("run_losses") == both
        assert theirs.get("run_losses") == both
        # a peer without validators signs nothing and knows no schema
        stranger = ours(stack, theirs.maddrs, client_mode=True)
        assert not stranger.store("run_losses", 9.0, 2 * LIFETIME, subkey=their_mark)
        assert not stranger.store("run_losses", 9.0, 2 * LIFETIME, subkey=signer.local_public_key)
        assert not stranger.store("run_losses", "text", 2 * LIFETIME, subkey=b"free")
        assert mine.get("run_losses") == theirs.get("run_losses") == both


@repeat_on_legacy_fault
@pytest.mark.parametrize("validates", [False, True])
def test_records_owned_by_ed25519_keys_are_kept_by_1_1(legacy: LegacyPeers, validates: bool) -> None:
    """A node of 1.1.12, also one that checks RSA signatures, keeps and passes on what it does not know, unharmed."""
    with contextlib.ExitStack() as stack:
        keeper = stack.enter_context(start_node("legacy", legacy, []))
        assert isinstance(keeper, LegacyNode)
        if validates:
            keeper.process.call("dht_validate", name="d")
        owner = Ed25519SignatureValidator(Ed25519PrivateKey())
        writer = ours(stack, keeper.maddrs, owner, client_mode=True)
        reader = ours(stack, keeper.maddrs, Ed25519SignatureValidator(Ed25519PrivateKey()), client_mode=True)
        assert writer.store("scores", [1, "a"], LIFETIME, subkey=owner.local_public_key)
        assert reader.get("scores") == {owner.local_public_key: [1, "a"]}
        # the keeper cannot tell a forgery, but the reader can
        forger = ours(stack, keeper.maddrs, client_mode=True)
        assert forger.store("forged", 9, LIFETIME, subkey=owner.local_public_key)
        assert reader.get("forged") is None
