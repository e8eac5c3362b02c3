"""`RemoteMixtureOfExperts`: a layer whose experts are those of the swarm that suit each sample best."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, ClassVar, Protocol, Unpack

import torch
from torch import nn

from hivemind.clock import Deadline
from hivemind.config import check_count, make_options, split_options
from hivemind.dht import DHT, DHTNode
from hivemind.errors import ConfigError, HivemindError, InputMismatch, NotEnoughExperts, WrongTypeError
from hivemind.moe.client.beam_search import MoEBeamSearcher
from hivemind.moe.client.config import MixtureKeywords, MixtureOptions, SearchOptions
from hivemind.moe.client.eager import outside_of_graphs
from hivemind.moe.client.mixing import Assignment, call_experts
from hivemind.moe.client.remote import ask_schema
from hivemind.moe.client.schema import check_inputs, flat_schema, is_trained
from hivemind.moe.client.suspects import Suspects
from hivemind.moe.messages import ExpertSchema
from hivemind.moe.uid import UID_DELIMITER, ExpertInfo, ExpertUID
from hivemind.nested import nested_pack
from hivemind.runtime import get_runtime

__all__ = ["RemoteMixtureOfExperts"]


class _Named(Protocol):
    """A `RemoteExpert` or an `ExpertInfo`."""

    @property
    def uid(self) -> ExpertUID: ...


class RemoteMixtureOfExperts(nn.Module):
    """A mixture of experts of other peers (Ryabinin and Gusev, "Towards Crowdsourced Training of Large Neural Networks
    using Decentralized Mixture-of-Experts", 2020). A linear layer gives each coordinate of the grid a score; for each
    sample the ``k_best`` experts with the highest sums of scores are called at once, and the outputs of those who
    answer are averaged, weighted by the softmax of their scores. Thread-safe.

    Experts of one grid must all take and give the same. One that fails is passed over for a while, one that is busy is
    asked again in time. ``forward`` and ``backward`` raise

    * `WrongTypeError` (a ``TypeError``) or `InputMismatch` (a ``ValueError``) if the arguments do not fit;
    * `NotEnoughExperts` (a ``TimeoutError`` and ``RuntimeError``) if too few have answered.

    :param in_features: size of the last dimension of ``input``
    :param grid_size: number of coordinates on each axis of the grid
    :param uid_prefix: name of the grid, as ``"ffn."``
    :param options: those of `MixtureOptions`, of which ``k_best`` must be given, and of `SearchOptions`
    :raises ConfigError: if an argument is wrong
    """

    #: The options of the layer, beside those of the search.
    options_type: ClassVar[type[MixtureOptions]] = MixtureOptions

    def __init__(
        self,
        *,
        in_features: int,
        grid_size: tuple[int, ...],
        dht: DHT,
        uid_prefix: str,
        **options: Unpack[MixtureKeywords],
    ) -> None:
        super().__init__()
        check_count("in_features", in_features)
        where = type(self).__name__
        of_layer, of_search = split_options(options, self.options_type, SearchOptions, where=where)
        if "k_best" not in of_layer and self.options_type is MixtureOptions:
            raise ConfigError("k_best", "nothing", "how many experts each sample goes to")
        self.options = make_options(self.options_type, of_layer, where=where)
        self.dht = dht
        self.beam_search = MoEBeamSearcher(dht, uid_prefix, grid_size, **of_search)
        self.proj = nn.Linear(in_features, sum(self.grid_size))
        self._suspects = Suspects()
        # written once, by whichever thread is first
        self._info: ExpertSchema | None = None

    @property
    def grid_size(self) -> tuple[int, ...]:
        """Number of coordinates on each axis."""
        return self.beam_search.grid_size

    @outside_of_graphs
    def forward(self, input: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        """Averaged outputs of the experts, structured as their ``outputs_schema`` says.

        :param input: what experts are chosen by, and their first argument; ``[batch, ..., in_features]``, of which the
            mean over what is between counts
        :param args: further arguments of the experts, tensors or nested structures of them, batch first
        """
        grid_scores = [scores.float() for scores in self._grid_scores(input)]
        experts = self._find(grid_scores)
        answered, outputs = self._call(experts, (input, *args), kwargs)
        scores = self.compute_expert_scores(grid_scores, experts).masked_fill(~answered, float("-inf"))
        # a sample without any answer has no softmax
        scores = torch.where(answered.any(dim=-1, keepdim=True), scores, torch.zeros_like(scores))
        return self._average(torch.softmax(scores, dim=-1) * answered, outputs)

    def _grid_scores(self, input: torch.Tensor) -> Sequence[torch.Tensor]:
        """Scores of shape ``[batch, coordinates]`` for each axis."""
        if not isinstance(input, torch.Tensor):
            raise WrongTypeError("input", input, "a tensor")
        if input.ndim < 2 or input.shape[-1] != self.proj.in_features:
            raise InputMismatch(
                f"input: got shape {tuple(input.shape)}, allowed: (batch, ..., {self.proj.in_features})"
            )
        seen = input.mean(dim=tuple(range(1, input.ndim - 1))) if input.ndim > 2 else input
        projected: torch.Tensor = self.proj(seen.to(self.proj.weight.dtype))
        return projected.split_with_sizes(list(self.grid_size), dim=-1)

    def _find(self, grid_scores: Sequence[torch.Tensor]) -> list[list[ExpertInfo]]:
        """The best experts for each sample. Those that have just failed are chosen only where there are no others."""
        samples = list(zip(*(scores.detach().tolist() for scores in grid_scores), strict=True))

        async def find(dht: DHT, node: DHTNode) -> list[list[ExpertInfo]]:
            found = await self.beam_search.search(node, samples, self.options.k_best, self._suspects.usable)
            if all(found):
                return found
            of_all = await self.beam_search.search(node, samples, self.options.k_best)
            return [experts or others for experts, others in zip(found, of_all, strict=True)]

        return self.dht.run_coroutine(find)

    def _call(
        self, experts: Sequence[Sequence[ExpertInfo]], args: Sequence[Any], kwargs: dict[str, Any]
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Who answered, ``[batch, experts]``, and each output of the experts, ``[batch, experts, ...]``."""
        schema = self._schema(experts)
        return call_experts(
            Assignment(experts),
            check_inputs(schema, args, kwargs),
            p2p=self.dht.p2p,
            schema=schema,
            options=self.options,
            suspects=self._suspects,
        )

    def compute_expert_scores(
        self, grid_scores: Sequence[torch.Tensor], batch_experts: Sequence[Sequence[_Named]]
    ) -> torch.Tensor:
        """The sum of the scores of each expert's coordinates.

        :param grid_scores: for each axis scores of shape ``[batch, coordinates]``
        :param batch_experts: experts for each sample
        :returns: shape ``[batch, most experts of a sample]``, minus infinity where a sample has fewer
        """
        width = max(map(len, batch_experts), default=0)
        nowhere = [0] * len(grid_scores)
        known = {expert.uid: self.places_of(expert.uid) for experts in batch_experts for expert in experts}
        rows = [[known[expert.uid] for expert in experts] for experts in batch_experts]
        size = (len(rows), width, len(grid_scores))
        places = torch.tensor([row + [nowhere] * (width - len(row)) for row in rows]).reshape(size).long()
        is_there = torch.tensor([[slot < len(row) for slot in range(width)] for row in rows]).reshape(size[:2]).bool()
        device = grid_scores[0].device
        places, is_there = places.to(device), is_there.to(device)
        each = [scores.gather(1, places[:, :, axis]) for axis, scores in enumerate(grid_scores)]
        return torch.stack(each).sum(dim=0).masked_fill(~is_there, float("-inf"))

    def places_of(self, uid: ExpertUID) -> list[int]:
        """The coordinates in the name of an expert of this grid."""
        return [int(place) for place in uid.removeprefix(self.beam_search.uid_prefix).split(UID_DELIMITER)]

    def _average(self, weights: torch.Tensor, outputs: Sequence[torch.Tensor]) -> Any:
        """Sums over experts, packed as the experts' outputs are.

        :param weights: shape ``[batch, experts]``
        :param outputs: each of shape ``[batch, experts, ...]``
        """
        assert self._info is not None
        flat = []
        for output in outputs:
            shaped = weights.to(output.dtype).reshape(*weights.shape, *[1] * (output.ndim - 2))
            flat.append((shaped * output).sum(dim=1))
        return nested_pack(flat, self._info["outputs_schema"])

    @property
    def info(self) -> ExpertSchema:
        """What the experts of this grid take and give, as the first one of them that was asked has said. Blocks.

        :raises NotEnoughExperts: if there is none, or none answers
        """
        if self._info is not None:
            return self._info
        nothing_known = [torch.zeros(1, size) for size in self.grid_size]
        return self._schema(self._find(nothing_known))

    def _schema(self, found: Sequence[Sequence[ExpertInfo]]) -> ExpertSchema:
        if self._info is None:
            self._info = get_runtime().call(self._ask_schema, list(dict.fromkeys(itertools.chain(*found))))
        return self._info

    async def _ask_schema(self, experts: Sequence[ExpertInfo]) -> ExpertSchema:
        deadline = Deadline.after(self.options.seconds(forward=True))
        reasons = []
        for number, expert in enumerate(experts):
            # one that is silent must not take the time of all
            patience = Deadline.after(deadline.remaining() / min(4, len(experts) - number)).earlier(deadline)
            try:
                schema = await ask_schema(expert, self.dht.p2p, patience)
                if not all(map(is_trained, flat_schema(schema["outputs_schema"]))):
                    raise ConfigError("outputs of the experts", "integers", "floating point, as they are averaged")
            except HivemindError as error:
                if isinstance(error, ConfigError):
                    raise
                self._suspects.note((), {expert: error})
                reasons.append(f"{expert.uid} at {expert.peer_id}: {type(error).__name__} {error}")
            else:
                return schema
        grid = f"{self.beam_search.uid_prefix}, {' x '.join(map(str, self.grid_size))}"
        raise NotEnoughExperts(f"no expert of the grid {grid} was found that answers ({'; '.join(reasons)[:2000]})")
