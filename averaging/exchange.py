"""The exchange of one group: a copy of the tensors goes in, the average comes back, whole or not at all."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet

import torch

from hivemind.averaging.allreduce import AllReduceResult, AllReduceRunner
from hivemind.averaging.config import AveragerOptions, Timeouts
from hivemind.averaging.gather import Gathered
from hivemind.averaging.group import GroupInfo
from hivemind.averaging.load_balancing import load_balance_peers
from hivemind.averaging.modes import AveragingMode
from hivemind.averaging.rounds import Rounds
from hivemind.averaging.tensors import TensorLock, commit_average, copy_tensors
from hivemind.clock import Deadline
from hivemind.identity import PeerID
from hivemind.p2p import P2P, ServicerBase
from hivemind.runtime import in_pool

__all__ = ["Exchange"]


class Exchange:
    """Averages the tensors with the members of a group. Owned by the network loop.

    :param tensors: changed in place, under ``lock``
    :param rounds: brings the other members' calls to the exchange
    :param on_failed: called with members that broke off
    """

    def __init__(
        self,
        tensors: Sequence[torch.Tensor],
        lock: TensorLock,
        options: AveragerOptions,
        *,
        p2p: P2P,
        servicer_type: type[ServicerBase],
        prefix: str,
        rounds: Rounds,
        on_failed: Callable[[AbstractSet[PeerID]], None],
    ) -> None:
        self._tensors = tensors
        self._lock = lock
        self._options = options
        self._p2p = p2p
        self._servicer_type = servicer_type
        self._prefix = prefix
        self._rounds = rounds
        self._on_failed = on_failed
        self._elements = sum(tensor.numel() for tensor in tensors)
        self._bytes = sum(tensor.nbytes for tensor in tensors)

    async def average(
        self, group: GroupInfo, members: Mapping[PeerID, Gathered], weight: float, deadline: Deadline
    ) -> AllReduceResult:
        """Exchange a copy of the tensors, and put the average into the tensors if it is complete.

        :raises AllreduceException: if it is not; the tensors are as they were
        """
        before = await self._lock.run(copy_tensors, self._tensors)
        result = await self._run(before, group, members, weight, deadline)
        alpha = self._options.averaging_alpha
        await self._lock.run(commit_average, self._tensors, before, result.averaged, alpha=alpha)
        return result

    async def _run(
        self,
        tensors: Sequence[torch.Tensor],
        group: GroupInfo,
        members: Mapping[PeerID, Gathered],
        weight: float,
        deadline: Deadline,
    ) -> AllReduceResult:
        """Average ``tensors``, which nobody changes meanwhile, with the group.

        :raises AllreduceException: if the average is not complete
        """
        modes = tuple(told.mode for told in members.values())
        # nobody can send parts to a client
        bandwidths = [0.0 if told.mode is AveragingMode.CLIENT else told.bandwidth for told in members.values()]
        counts = await in_pool(load_balance_peers, self._elements, bandwidths, self._options.min_vector_size)
        waits = Timeouts.of_round(self._options, group_size=group.group_size, total_bytes=self._bytes)
        runner = AllReduceRunner(
            p2p=self._p2p,
            servicer_type=self._servicer_type,
            prefix=self._prefix,
            group_id=group.group_id,
            tensors=tensors,
            ordered_peer_ids=group.peer_ids,
            peer_counts=counts,
            modes=modes,
            weight=weight,
            compression=self._options.compression,
            tensor_infos=self._options.tensor_infos,
            part_size_bytes=self._options.part_size_bytes,
            sender_timeout=waits.sender,
            reducer_timeout=waits.reducer,
            deadline=Deadline.after(waits.allreduce).earlier(deadline),
        )
        self._rounds.run(group.group_id, runner)
        try:
            return await runner.run()
        finally:
            await runner.close()
            failed = (set(runner.failed_senders) | set(runner.failed_reducers)) - {self._p2p.peer_id}
            self._on_failed(failed)
