"""Experts that this peer serves to others.

* `server`, `background`: what users call; `config`: options; `statistics`: what was done;
* `creation`: new experts by name and class; `layers`: the classes; `checkpoints`: experts on disk;
* `connection_handler`: what clients ask; `presence`: how they find the experts;
* `module_backend`: an expert; `task_pool`: its tasks in batches; `runtime`: the thread of a device;
* `fair_queue`, `schedule`: who is served next, and who is refused (pure, but for the lock).

Names are loaded on first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from hivemind.lazy import lazy_names

if TYPE_CHECKING:
    from hivemind.moe.client.expert import get_experts as get_experts
    from hivemind.moe.declare import declare_experts as declare_experts
    from hivemind.moe.server.background import background_server as background_server
    from hivemind.moe.server.layers.registry import register_expert_class as register_expert_class
    from hivemind.moe.server.module_backend import ModuleBackend as ModuleBackend
    from hivemind.moe.server.server import Server as Server

#: module → names of ``hivemind.moe.server`` that live there; a test holds it equal to the imports above
_HOMES = {
    "hivemind.moe.client.expert": ("get_experts",),
    "hivemind.moe.declare": ("declare_experts",),
    "hivemind.moe.server.background": ("background_server",),
    "hivemind.moe.server.layers.registry": ("register_expert_class",),
    "hivemind.moe.server.module_backend": ("ModuleBackend",),
    "hivemind.moe.server.server": ("Server",),
}

__all__ = [name for names in _HOMES.values() for name in names]

__getattr__, __dir__ = lazy_names(__name__, _HOMES, ["connection_handler", "layers", "runtime", "server", "task_pool"])
