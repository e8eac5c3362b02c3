"""The state of one search for a group."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field

from hivemind.averaging.changes import Changes
from hivemind.averaging.config import AveragerOptions
from hivemind.averaging.control import StepControl
from hivemind.averaging.group import GroupInfo
from hivemind.averaging.group_state import Verdict
from hivemind.averaging.leaders import PotentialLeaders
from hivemind.clock import Deadline, DHTExpiration, get_dht_time
from hivemind.identity import PeerID
from hivemind.proto import averaging_pb2

__all__ = ["Follower", "Search"]


@dataclass
class Follower:
    """One that this peer has accepted; ``outcome`` is the last message to it."""

    gather: bytes
    outcome: asyncio.Future[averaging_pb2.MessageFromLeader]


@dataclass
class Search:
    """The state of one search for a group. Owned by the network loop."""

    control: StepControl
    deadline: Deadline
    leaders: PotentialLeaders
    group: asyncio.Future[GroupInfo]
    key: str
    changes: Changes = field(default_factory=Changes)
    #: up to when peers are waited for; `declared` is the same unless the DHT wants a later time than before
    window_end: DHTExpiration = 0.0
    declared: DHTExpiration | None = None
    #: whether the DHT has taken (or refused) the declaration
    stored: bool = False
    followers: dict[PeerID, Follower] = field(default_factory=dict)
    #: the peer that has accepted this one
    leader: PeerID | None = None
    looking: Mapping[PeerID, DHTExpiration] = field(default_factory=dict)
    #: None before the DHT has been asked
    alive: Mapping[PeerID, DHTExpiration] | None = None
    last_verdict: Verdict | None = None

    def disband(self, suggested: PeerID | None) -> None:
        """Send all followers away."""
        message = averaging_pb2.MessageFromLeader(code=averaging_pb2.GROUP_DISBANDED)
        if suggested is not None:
            message.suggested_leader = suggested.to_bytes()
        followers, self.followers = self.followers, {}
        for follower in followers.values():
            if not follower.outcome.done():
                follower.outcome.set_result(message)

    def next_window(self, options: AveragerOptions) -> DHTExpiration:
        """Up to when peers are waited for, if this peer declares itself now."""
        earliest = get_dht_time() + options.min_matchmaking_time
        return min(max(self.control.scheduled_time, earliest), self.control.deadline)
