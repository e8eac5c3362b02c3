"""Mixture of experts: layers larger than any machine, whose parts are served by whoever is there.

* `uid`: names of experts; `declare`: their records in the DHT; `messages`: what is asked and answered;
* `client`: experts of others as torch modules; * `server`: experts for others.

Names are loaded on first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from hivemind.lazy import lazy_names

if TYPE_CHECKING:
    from hivemind.moe.client.expert import RemoteExpert as RemoteExpert
    from hivemind.moe.client.expert import get_experts as get_experts
    from hivemind.moe.client.moe import RemoteMixtureOfExperts as RemoteMixtureOfExperts
    from hivemind.moe.client.switch_moe import RemoteSwitchMixtureOfExperts as RemoteSwitchMixtureOfExperts
    from hivemind.moe.declare import declare_experts as declare_experts
    from hivemind.moe.declare import undeclare_experts as undeclare_experts
    from hivemind.moe.server.background import background_server as background_server
    from hivemind.moe.server.layers.registry import register_expert_class as register_expert_class
    from hivemind.moe.server.module_backend import ModuleBackend as ModuleBackend
    from hivemind.moe.server.server import Server as Server
    from hivemind.moe.uid import ExpertInfo as ExpertInfo
    from hivemind.moe.uid import ExpertUID as ExpertUID

#: module → names of ``hivemind.moe`` that live there; a test holds it equal to the imports above
_HOMES = {
    "hivemind.moe.client.switch_moe": ("RemoteSwitchMixtureOfExperts",),
    "hivemind.moe.client.moe": ("RemoteMixtureOfExperts",),
    "hivemind.moe.client.expert": ("RemoteExpert", "get_experts"),
    "hivemind.moe.declare": ("declare_experts", "undeclare_experts"),
    "hivemind.moe.server.background": ("background_server",),
    "hivemind.moe.server.layers.registry": ("register_expert_class",),
    "hivemind.moe.server.module_backend": ("ModuleBackend",),
    "hivemind.moe.server.server": ("Server",),
    "hivemind.moe.uid": ("ExpertInfo", "ExpertUID"),
}

__all__ = [name for names in _HOMES.values() for name in names]

__getattr__, __dir__ = lazy_names(__name__, _HOMES, ["client", "expert_uid", "server"])
