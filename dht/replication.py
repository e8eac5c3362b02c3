"""Who is to be given a record so that the nodes nearest to its key hold it, as nodes come and go. Pure."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Final

from hivemind.dht.routing import DHTID
from hivemind.identity import PeerID

__all__ = ["heirs", "is_due"]

#: Seconds before a node was heard of last in which it may have met newcomers without giving them what they should hold:
#: it left that to a nearer one that was dead, and it takes about as long until a node is noticed to be dead.
NEGLECT_SECONDS: Final = 60.0

Node = tuple[DHTID, PeerID]


def is_due(key: DHTID, newcomer: DHTID, own_id: DHTID, others: Sequence[Node], replicas: int) -> bool:
    """Whether ``newcomer`` should hold ``key`` now and this node is the one to give it: of those it knows, this node is
    the nearest to the key, and the newcomer is among the nearest ``replicas``.

    :param others: up to ``replicas`` known nodes nearest to the key, nearest first, without the newcomer
    """
    if not others:
        return True
    if others[0][0] ^ key < own_id ^ key:
        return False
    return len(others) < replicas or newcomer ^ key < others[-1][0] ^ key


def heirs(
    key: DHTID,
    own_id: DHTID,
    gone: Mapping[DHTID, float],
    others: Sequence[Node],
    met: Mapping[DHTID, float],
    replicas: int,
) -> tuple[Node, ...]:
    """The nodes that should hold ``key`` now that some of its holders are gone, and that this node is to give it to: of
    the holders that are left, this node is the nearest to the key.

    A node that was first met while a gone one was nearest to the key is no holder, however near it is: the gone one was
    to give it the key, and was dead or about to be.

    :param gone: nodes that were known until now, and when each was last heard of, in seconds of some clock
    :param others: nodes still known that are nearest to the key, nearest first: up to ``replicas``, and as many more
        as may be no holders
    :param met: when each node still known was first heard of, by the same clock
    """

    def nearest(ids: Collection[DHTID]) -> list[DHTID]:
        return sorted(ids, key=lambda each: each ^ key)[:replicas]

    distance = own_id ^ key
    alone_since = min((heard for node_id, heard in gone.items() if node_id ^ key < distance), default=math.inf)
    living = [node_id for node_id, _ in others]
    provided = [node_id for node_id in living if met.get(node_id, -math.inf) < alone_since - NEGLECT_SECONDS]
    before = nearest([own_id, *provided, *gone])
    left = [holder for holder in before if holder not in gone]
    if len(left) == len(before) or not left or left[0] != own_id:
        return ()
    after = nearest([own_id, *living])
    return tuple(node for node in others if node[0] in after and node[0] not in before)
