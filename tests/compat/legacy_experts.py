"""Servers of experts of hivemind 1.1.12; part of ``legacy_commands``."""

from typing import Any

import torch

from hivemind.dht import DHT
from hivemind.moe import ModuleBackend, Server
from hivemind.utils.tensor_descr import BatchTensorDescriptor
from tests.compat.expert_modules import Mixer, Several
from tests.compat.packing import pack_tensor

_LOCAL: dict[str, Any] = {"host_maddrs": ["/ip4/127.0.0.1/tcp/0"], "nat_port_map": False, "auto_nat": False}
_servers: dict[str, Server] = {}


def experts_serve(name: str, initial_peers: list[str], uids: dict[str, str], hidden_dim: int, lr: float) -> Any:
    """Serve an expert for each uid, ``"mixer"`` or ``"several"``, trained by plain gradient descent.

    :returns: ``{"peer_id", "maddrs", "weights": {uid: {name: tensor}}}``, the weights before any training
    """
    torch.manual_seed(len(uids))
    dht = DHT(initial_peers=initial_peers, start=True, **_LOCAL)
    experts = {uid: _backend(uid, kind, hidden_dim, lr) for uid, kind in uids.items()}
    weights = {
        uid: {key: pack_tensor(tensor) for key, tensor in expert.module.state_dict().items()}
        for uid, expert in experts.items()
    }
    server = _servers[name] = Server(dht, experts, num_connection_handlers=1, update_period=2, start=True)
    server.ready.wait()
    maddrs = [str(maddr) for maddr in dht.get_visible_maddrs()]
    return {"peer_id": dht.peer_id.to_base58(), "maddrs": maddrs, "weights": weights}


def _backend(uid: str, kind: str, hidden_dim: int, lr: float) -> ModuleBackend:
    module = Mixer(hidden_dim) if kind == "mixer" else Several(hidden_dim)
    vector = BatchTensorDescriptor(hidden_dim, dtype=torch.float32, requires_grad=True)
    several = {"kwargs_schema": {"row": BatchTensorDescriptor(dtype=torch.int64)}} if kind == "several" else {}
    return ModuleBackend(
        uid,
        module,
        optimizer=torch.optim.SGD(module.parameters(), lr=lr),
        args_schema=(vector,) if kind == "mixer" else (vector, vector),
        max_batch_size=16384,
        **several,
    )


def experts_stop(name: str) -> None:
    """End a server in order."""
    _servers.pop(name).shutdown()
