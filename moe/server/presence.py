"""A server's experts as others find them: declared in the DHT while it lives."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from typing import Any, Final

from hivemind.aio import with_deadline
from hivemind.clock import Deadline, get_dht_time, monotonic
from hivemind.dht import DHTNode
from hivemind.errors import ConfigError, HivemindError
from hivemind.log import get_logger
from hivemind.moe.declare import find_experts, store_declarations, store_withdrawals
from hivemind.moe.service import get_server_stub
from hivemind.moe.uid import ExpertInfo
from hivemind.proto import runtime_pb2

__all__ = ["Presence", "check_free"]

logger = get_logger(__name__)

#: Seconds for a store, where the period is not longer, and for the answer of a peer that is said to serve an expert of
#: the same name.
_STORE_SECONDS: Final = 10.0
_ANSWER_SECONDS: Final = 3.0
#: Seconds after which a declaration that has failed is made again, where the period is not shorter.
_RETRY_SECONDS: Final = 2.0


async def check_free(node: DHTNode, uids: Iterable[str]) -> None:
    """
    :raises ConfigError: if another peer serves one of ``uids``, and answers
    """
    found = await find_experts(node, list(uids))
    others = [info for info in found if info is not None and info.peer_id != node.peer_id]
    answers = await asyncio.gather(*(_answers(node, info) for info in others))
    for info, alive in zip(others, answers, strict=True):
        if alive:
            raise ConfigError("expert uid", info.uid, f"a uid that no other peer serves: {info.peer_id} does")


async def _answers(node: DHTNode, info: ExpertInfo) -> bool:
    stub: Any = get_server_stub(node.p2p, info.peer_id)
    try:
        await stub.rpc_info(runtime_pb2.ExpertUID(uid=info.uid), timeout=_ANSWER_SECONDS)
    except HivemindError:  # it is gone, or does not serve it any more
        return False
    return True


class Presence:
    """Declares experts, and again and again while they are served. Owned by the network loop.

    :param experts: by uid; what is added to it later is declared by `declare` or the next renewal
    :param period: seconds between two declarations
    :param expiration: seconds for which one holds
    """

    def __init__(self, node: DHTNode, experts: Mapping[str, Any], *, period: float, expiration: float) -> None:
        self._node = node
        self._experts = experts
        self._period = period
        self._expiration = expiration

    async def declare(self, uids: Iterable[str]) -> bool:
        """Tell the swarm that this peer serves ``uids``; what goes wrong is logged, as it is told again later.

        :returns: whether it was told of all
        """
        uids = list(uids)
        if not uids:
            return True
        try:
            wait = Deadline.after(max(_STORE_SECONDS, self._period))
            stored = await with_deadline(
                store_declarations(self._node, uids, get_dht_time() + self._expiration), wait, "declaring experts"
            )
        except HivemindError as error:
            logger.warning("experts were not declared: %s", error)
            return False
        if refused := [uid for uid in uids if not stored[uid]]:
            logger.warning("experts that no node of the DHT has taken: %s", ", ".join(refused[:8]))
        return not refused

    async def keep(self) -> None:
        """Declare all experts every period, until cancelled; sooner where that has failed, as records expire. A
        declaration may take long: it begins a period after the one before has begun."""
        pause = self._period
        while True:
            await asyncio.sleep(pause)
            begin = monotonic()
            told = await self.declare(self._experts)
            pause = begin + self._period - monotonic() if told else min(self._period, _RETRY_SECONDS)

    async def withdraw(self, uids: Iterable[str]) -> None:
        """Tell the swarm that this peer does not serve ``uids`` any more; a failure is logged: records expire."""
        try:
            wait = Deadline.after(_STORE_SECONDS)
            await with_deadline(store_withdrawals(self._node, list(uids)), wait, "withdrawing experts")
        except HivemindError as error:
            logger.warning("experts were not withdrawn: %s", error)
