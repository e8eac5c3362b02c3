"""Clients of hivemind 1.1.12 that call experts; part of ``legacy_commands``."""

from typing import Any

import torch

from hivemind.dht import DHT
from hivemind.moe import RemoteExpert, RemoteMixtureOfExperts, RemoteSwitchMixtureOfExperts, get_experts
from tests.compat.packing import pack_tensor, unpack_tensor

_LOCAL: dict[str, Any] = {"host_maddrs": ["/ip4/127.0.0.1/tcp/0"], "nat_port_map": False, "auto_nat": False}
_clients: dict[str, DHT] = {}


def experts_join(initial_peers: list[str]) -> None:
    """Join the swarm, to call experts from."""
    _clients["dht"] = DHT(initial_peers=initial_peers, start=True, **_LOCAL)


def _expert(uid: str) -> RemoteExpert:
    (expert,) = get_experts(_clients["dht"], [uid])
    if expert is None:
        raise LookupError(f"nobody serves {uid}")
    return expert


def experts_info(uid: str) -> Any:
    """What an expert takes and gives: sizes and dtypes."""
    info = _expert(uid).info
    args, kwargs = info["forward_schema"]
    outputs = info["outputs_schema"]
    outputs = outputs if isinstance(outputs, tuple | list) else [outputs]
    return {
        "args": [[list(leaf.size), str(leaf.dtype)] for leaf in args],
        "kwargs": {name: [list(leaf.size), str(leaf.dtype)] for name, leaf in kwargs.items()},
        "outputs": [[list(leaf.size), str(leaf.dtype)] for leaf in outputs],
        "keyword_names": list(info["keyword_names"]),
    }


def experts_call(uid: str, args: list[Any], kwargs: dict[str, Any], backward: bool) -> Any:
    """Outputs, and the gradients of the sum of their squares for all inputs of floating point."""
    inputs = [unpack_tensor(each) for each in args]
    named = {name: unpack_tensor(each) for name, each in kwargs.items()}
    leaves = [each.requires_grad_() for each in (*inputs, *named.values()) if each.is_floating_point()]
    outputs = _expert(uid)(*inputs, **named)
    flat = list(outputs) if isinstance(outputs, tuple | list) else [outputs]
    gradients = torch.autograd.grad(sum(each.square().sum() for each in flat), leaves) if backward else []
    return {
        "outputs": [pack_tensor(each.detach()) for each in flat],
        "gradients": [pack_tensor(each) for each in gradients],
    }


def experts_mix(x: Any, weight: Any, bias: Any, switch: bool, **options: Any) -> Any:
    """Output of a mixture or switch layer whose gate has these weights, and the gradients of the sum of its squares."""
    layer = (RemoteSwitchMixtureOfExperts if switch else RemoteMixtureOfExperts)(dht=_clients["dht"], **options)
    layer.proj.load_state_dict({"weight": unpack_tensor(weight).detach(), "bias": unpack_tensor(bias).detach()})
    inputs = unpack_tensor(x).detach().requires_grad_()
    outputs = layer(inputs.clone())  # a switch layer changes its input in place
    if switch:
        outputs, _ = outputs
    gradients = torch.autograd.grad(outputs.square().sum(), [inputs, layer.proj.weight])
    return {"outputs": pack_tensor(outputs.detach()), "gradients": [pack_tensor(each) for each in gradients]}
