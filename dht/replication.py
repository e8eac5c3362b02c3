"""Who is to be given a record so that the nodes nearest to its key hold it, as nodes come and go. Pure."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from hivemind.dht.routing import DHTID
from hivemind.identity import PeerID

__all__ = ["heirs", "is_due"]

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
    key: DHTID, own_id: DHTID, gone: Collection[DHTID], others: Sequence[Node], replicas: int
) -> tuple[Node, ...]:
    """The nodes that should hold ``key`` now that some of its holders are gone, and that this node is to give it to: of
    the holders that are left, this node is the nearest to the key.

    :param gone: nodes that were known until now
    :param others: up to ``replicas`` nodes still known that are nearest to the key, nearest first
    """

    def nearest(ids: Collection[DHTID]) -> list[DHTID]:
        return sorted(ids, key=lambda each: each ^ key)[:replicas]

    living = [node_id for node_id, _ in others]
    before = nearest([own_id, *living, *gone])
    left = [holder for holder in before if holder not in gone]
    if len(left) == len(before) or not left or left[0] != own_id:
        return ()
    after = nearest([own_id, *living])
    return tuple(node for node in others if node[0] in after and node[0] not in before)
