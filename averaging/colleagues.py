"""The other averagers of a run, as this one calls them."""

from __future__ import annotations

from hivemind.aio import with_deadline
from hivemind.clock import Deadline
from hivemind.identity import PeerID
from hivemind.p2p import P2P, Membership, ServicerBase, StubBase

__all__ = ["Colleagues"]


class Colleagues:
    """Owned by the network loop.

    :param servicer_type: peers whose class has another name do not meet
    :param prefix: nor do those with another prefix
    :param membership: who may take part
    """

    def __init__(self, p2p: P2P, servicer_type: type[ServicerBase], prefix: str, membership: Membership) -> None:
        self.membership = membership
        self._p2p = p2p
        self._servicer_type = servicer_type
        self._prefix = prefix

    @property
    def own(self) -> PeerID:
        """This peer."""
        return self._p2p.peer_id

    async def meet(self, peer: PeerID, deadline: Deadline) -> StubBase:
        """A stub of ``peer``, which is a member, and can know that this one is.

        :raises AuthorizationError: if it is none
        :raises DeadlineExceeded: if it does not say so in time
        """
        await with_deadline(self.membership.meet(peer), deadline, f"meeting {peer}")
        return self._servicer_type.get_stub(self._p2p, peer, namespace=self._prefix)
