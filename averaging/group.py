"""A group of peers that average together."""

from __future__ import annotations

from dataclasses import dataclass

from hivemind.identity import PeerID

__all__ = ["GroupInfo"]


@dataclass(frozen=True)
class GroupInfo:
    """A group as its leader announced it; the same for every member.

    :param group_id: random bytes that name this one round
    :param peer_ids: all members, in the order that fixes who reduces what
    :param gathered: what each member told the others, in the same order, as serialized by that member
    """

    group_id: bytes
    peer_ids: tuple[PeerID, ...]
    gathered: tuple[bytes, ...]

    @property
    def group_size(self) -> int:
        """Number of members."""
        return len(self.peer_ids)

    def __contains__(self, peer_id: PeerID) -> bool:
        return peer_id in self.peer_ids
