"""Who belongs to a swarm with an authorizer, for services whose own messages carry no authorization.

Averaging is such a service: its messages have no field for a token (hivemind 1.1 wire format, section 8). A member is
known by its peer id, which its connection proves, and by calls of the DHT, which do carry tokens: a peer that has
shown a valid one there, or shows it when it is asked by a ping, may take part for a while.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Awaitable, Callable
from typing import Final

from hivemind.clock import monotonic
from hivemind.errors import AuthorizationError, HivemindError
from hivemind.identity import PeerID
from hivemind.log import RateLimit, get_logger
from hivemind.p2p.auth import AuthorizerBase

__all__ = ["Membership"]

logger = get_logger(__name__)

#: Seconds for which a token that was shown counts; then it must be shown again.
_KNOWN_SECONDS: Final = 300.0
#: Seconds for which a peer that has shown none is not asked again: it cannot make this peer send pings.
_REFUSED_SECONDS: Final = 5.0
#: Peers that are remembered.
_MOST: Final = 4096


class _Times:
    """When peers were heard of last; those longest ago make room."""

    def __init__(self) -> None:
        self._times: OrderedDict[PeerID, float] = OrderedDict()

    def note(self, peer: PeerID) -> None:
        self._times[peer] = monotonic()
        self._times.move_to_end(peer)
        if len(self._times) > _MOST:
            self._times.popitem(last=False)

    def within(self, peer: PeerID, seconds: float) -> bool:
        return monotonic() - self._times.get(peer, float("-inf")) < seconds


class Membership:
    """What is known of the members. Owned by one event loop.

    :param authorizer: decides; None: everybody is a member
    :param ping: makes a call that bears this peer's token, and whose answer bears that of the other; it reports to
        `note_callee`
    """

    def __init__(
        self,
        authorizer: AuthorizerBase | None = None,
        ping: Callable[[PeerID], Awaitable[object]] | None = None,
    ) -> None:
        self._authorizer = authorizer
        self._ping = ping
        # valid authorization of theirs that was seen here; of ours that they have answered
        self._seen, self._shown, self._refused = _Times(), _Times(), _Times()
        self._complaints = RateLimit()

    def note_caller(self, peer: PeerID) -> None:
        """A call of ``peer`` was authorized."""
        self._seen.note(peer)

    def note_callee(self, peer: PeerID) -> None:
        """``peer`` has answered a call of this one, and the answer was authorized."""
        self._seen.note(peer)
        self._shown.note(peer)

    def problem_with(self, peer: PeerID) -> str:
        """Why ``peer``, by its id alone, is no member; empty if it may be one."""
        return "" if self._authorizer is None else self._authorizer.problem_with_peer(peer)

    async def check(self, peer: PeerID) -> None:
        """Let a caller in.

        :raises AuthorizationError: if it is no member
        """
        try:
            await self._check(peer, self._seen, _KNOWN_SECONDS)
        except AuthorizationError as error:
            if self._complaints.allow():
                logger.info("a call of %s was refused: %s", peer, error)
            raise

    async def meet(self, peer: PeerID) -> None:
        """Before calling ``peer``: see that it is a member, and that it can know that this peer is one.

        :raises AuthorizationError: if it is no member
        """
        # sooner than it forgets this one
        await self._check(peer, self._shown, _KNOWN_SECONDS / 2)

    async def _check(self, peer: PeerID, known: _Times, seconds: float) -> None:
        if problem := self.problem_with(peer):
            raise AuthorizationError(problem)
        if self._authorizer is None or not self._authorizer.checks_messages or known.within(peer, seconds):
            return
        problem = f"{peer} has shown no valid authorization"
        if self._ping is None or self._refused.within(peer, _REFUSED_SECONDS):
            raise AuthorizationError(problem)
        try:
            await self._ping(peer)
        except HivemindError as error:
            self._refused.note(peer)
            raise AuthorizationError(f"{problem}: {error}") from error
