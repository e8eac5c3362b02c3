"""The schema hash."""

from __future__ import annotations

import torch

from hivemind.averaging.schema import compute_schema_hash

GOLDEN = [torch.zeros(3, 4), torch.zeros(5, dtype=torch.bfloat16, requires_grad=True), torch.tensor(0.0)]


def test_golden() -> None:
    assert compute_schema_hash(GOLDEN).hex() == "7943968bc200934252f37e69b6b69352c4e9ea71"


def test_what_it_tells_apart() -> None:
    variants = [
        GOLDEN,
        GOLDEN[:2],
        [GOLDEN[1], GOLDEN[0], GOLDEN[2]],
        [torch.zeros(4, 3), *GOLDEN[1:]],
        [torch.zeros(3, 4).half(), *GOLDEN[1:]],
        [torch.zeros(3, 4, requires_grad=True), *GOLDEN[1:]],
        [],
    ]
    assert len({compute_schema_hash(tensors) for tensors in variants}) == len(variants)
    assert compute_schema_hash([torch.ones(3, 4), *GOLDEN[1:]]) == compute_schema_hash(GOLDEN)


def test_peers_on_other_devices_meet() -> None:
    elsewhere = [tensor.detach().to("meta").requires_grad_(tensor.requires_grad) for tensor in GOLDEN]
    assert compute_schema_hash(elsewhere) == compute_schema_hash(GOLDEN)
