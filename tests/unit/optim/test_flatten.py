"""The optimizer's state on its way to a newcomer."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hivemind.errors import SerializationError
from hivemind.optim.flatten import flatten_optimizer_state, tensor_leaves, unflatten_optimizer_state
from hivemind.serializer import MSGPackSerializer


def trained(kind: type[torch.optim.Optimizer] = torch.optim.Adam, **options: Any) -> torch.optim.Optimizer:
    torch.manual_seed(0)
    parameters = [torch.nn.Parameter(torch.randn(3, 2)), torch.nn.Parameter(torch.randn(4))]
    optimizer = kind(parameters, lr=0.1, **options)  # type: ignore[call-arg]
    for parameter in parameters:
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    return optimizer


def test_golden_metadata():
    metadata, tensors = flatten_optimizer_state({"b": [0.5], "a": torch.zeros(1)})
    state = {"epoch": 3, "group_bits": "", "optimizer_metadata": metadata}
    assert MSGPackSerializer.dumps(state).hex() == (
        "83a565706f636803aa67726f75705f62697473a0b26f7074696d697a65725f6d657461646174619282"
        "a474797065a674656e736f72a5696e6465780082a474797065a576616c7565a576616c7565cb3fe0000000000000"
    )
    assert len(tensors) == 1


def test_order_is_depth_first_by_sorted_key():
    optimizer = trained()
    metadata, tensors = flatten_optimizer_state(optimizer.state_dict())
    first, second = (optimizer.state[p] for p in optimizer.param_groups[0]["params"])
    expected = [s[name] for s in (first, second) for name in ("exp_avg", "exp_avg_sq", "step")]
    assert all(a is b for a, b in zip(tensors, expected, strict=True))
    # options of the group come before the state, by name: the first is "amsgrad"
    assert metadata[0] == {"type": "value", "value": False}
    assert [entry["type"] for entry in metadata[-6:]] == ["tensor"] * 6
    assert tensor_leaves(optimizer.state_dict()) == tensors


@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.SGD, torch.optim.RMSprop, torch.optim.Adagrad])
def test_round_trip(kind: type[torch.optim.Optimizer]):
    donor = trained(kind)
    state = donor.state_dict()
    metadata, tensors = flatten_optimizer_state(state)
    received = MSGPackSerializer.loads(MSGPackSerializer.dumps(metadata))
    newcomer = trained(kind)
    newcomer.load_state_dict(unflatten_optimizer_state(newcomer.state_dict(), received, tensors))
    again = newcomer.state_dict()
    assert again["param_groups"] == state["param_groups"]
    assert all(torch.equal(a, b) for a, b in zip(tensor_leaves(again), tensor_leaves(state), strict=True))


def test_other_options_than_ours_are_left_ours():
    donor = trained(betas=(0.5, 0.6)).state_dict()
    donor["param_groups"][0]["an option of another version"] = True
    metadata, tensors = flatten_optimizer_state(donor)
    own = trained().state_dict()
    loaded = unflatten_optimizer_state(own, metadata, tensors)
    assert loaded["param_groups"] == own["param_groups"]
    assert torch.equal(loaded["state"][0]["exp_avg"], donor["state"][0]["exp_avg"])


def test_structure_is_not_changed():
    own = trained().state_dict()
    before = copy.deepcopy(own)
    metadata, tensors = flatten_optimizer_state(trained().state_dict())
    unflatten_optimizer_state(own, metadata, [tensor + 1 for tensor in tensors])
    assert own["param_groups"] == before["param_groups"]
    assert all(torch.equal(a, b) for a, b in zip(tensor_leaves(own), tensor_leaves(before), strict=True))


@pytest.mark.parametrize(
    "spoil",
    [
        lambda metadata, tensors: (None, tensors),
        lambda metadata, tensors: ({"type": "value"}, tensors),
        lambda metadata, tensors: ([*metadata[:-1], 7], tensors),
        lambda metadata, tensors: ([*metadata[:-1], {"type": "pickle", "value": b""}], tensors),
        lambda metadata, tensors: ([*metadata[:-1], {"type": "tensor", "index": 0}], tensors),
        lambda metadata, tensors: ([*metadata[:-1], {"type": "tensor", "index": True}], tensors),
        lambda metadata, tensors: ([*metadata[:-1], {"type": "tensor", "index": 10**9}], tensors),
        lambda metadata, tensors: (metadata, tensors[:-1]),
        lambda metadata, tensors: (metadata, [*tensors, torch.zeros(1)]),
        lambda metadata, tensors: (metadata[:-1], tensors[:-1]),
        lambda metadata, tensors: (metadata, [torch.zeros(7), *tensors[1:]]),
    ],
)
def test_what_does_not_fit_is_refused(spoil: Any):
    optimizer = trained()
    metadata, tensors = spoil(*flatten_optimizer_state(optimizer.state_dict()))
    with pytest.raises(SerializationError):
        unflatten_optimizer_state(optimizer.state_dict(), metadata, tensors)


def test_value_that_cannot_be_sent_is_named():
    with pytest.raises(SerializationError, match=r"\['param_groups'\]\[0\]\['hook'\]: function"):
        flatten_optimizer_state({"param_groups": [{"hook": test_round_trip}]})


leaves = st.one_of(st.none(), st.booleans(), st.integers(-9, 9), st.floats(-1, 1), st.text(max_size=3))
trees = st.recursive(
    leaves | st.builds(lambda n: torch.full((n,), float(n)), st.integers(0, 3)),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=2), inner, max_size=3),
    max_leaves=12,
)


@settings(deadline=None, max_examples=50)
@given(st.dictionaries(st.text(max_size=2), trees, max_size=4))
def test_any_tree_comes_back(tree: dict[str, Any]):
    metadata, tensors = flatten_optimizer_state(tree)
    again, again_tensors = flatten_optimizer_state(unflatten_optimizer_state(tree, metadata, tensors))
    assert again == metadata
    assert all(a is b for a, b in zip(again_tensors, tensors, strict=True))


@settings(deadline=None, max_examples=50)
@given(st.recursive(leaves, lambda i: st.lists(i, max_size=4) | st.dictionaries(st.text(max_size=5), i, max_size=4)))
def test_strange_metadata_never_breaks_the_reader(metadata: Any):
    optimizer = trained()
    with pytest.raises(SerializationError):
        unflatten_optimizer_state(optimizer.state_dict(), metadata, tensor_leaves(optimizer.state_dict()))
