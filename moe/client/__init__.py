"""Experts of other peers as torch modules.

* `calls`: one call, bounded and patient; `schema`: what an expert takes and gives (pure); `remote`: both together;
* `autograd`: calls as part of a graph; `eager`: kept out of the graphs of ``torch.compile``;
* `expert`: `RemoteExpert`, and how to find experts; `remote_expert_worker`: coroutines on the network thread;
* `beam`: which experts suit a sample best (pure); `beam_search`: asks the DHT for them;
* `quorum`: whom of many to wait for; `suspects`: whom not to ask; `mixing`: many experts in one graph;
* `moe`, `switch_moe`: the layers.

Names are loaded on first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from hivemind.lazy import lazy_names

if TYPE_CHECKING:
    from hivemind.moe.client.beam_search import MoEBeamSearcher as MoEBeamSearcher
    from hivemind.moe.client.expert import RemoteExpert as RemoteExpert
    from hivemind.moe.client.expert import batch_create_remote_experts as batch_create_remote_experts
    from hivemind.moe.client.expert import create_remote_experts as create_remote_experts
    from hivemind.moe.client.moe import RemoteMixtureOfExperts as RemoteMixtureOfExperts
    from hivemind.moe.client.remote_expert_worker import RemoteExpertWorker as RemoteExpertWorker
    from hivemind.moe.client.switch_moe import RemoteSwitchMixtureOfExperts as RemoteSwitchMixtureOfExperts

#: module → names of ``hivemind.moe.client`` that live there; a test holds it equal to the imports above
_HOMES = {
    "hivemind.moe.client.beam_search": ("MoEBeamSearcher",),
    "hivemind.moe.client.switch_moe": ("RemoteSwitchMixtureOfExperts",),
    "hivemind.moe.client.moe": ("RemoteMixtureOfExperts",),
    "hivemind.moe.client.expert": ("RemoteExpert", "batch_create_remote_experts", "create_remote_experts"),
    "hivemind.moe.client.remote_expert_worker": ("RemoteExpertWorker",),
}

__all__ = [name for names in _HOMES.values() for name in names]

__getattr__, __dir__ = lazy_names(
    __name__, _HOMES, ["beam_search", "expert", "moe", "remote_expert_worker", "switch_moe"]
)
