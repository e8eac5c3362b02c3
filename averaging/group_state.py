"""How a group forms: every decision of matchmaking, free of network, clock and tasks (hivemind 1.1 wire format).

Those who look for a group declare when they will begin. The order of ``(declared expiration, binary id)`` says who
leads: each peer asks those before it, in that order, and is led by the first that accepts. As everybody compares the
same pairs, no two peers lead each other, and a cycle of requests ends with the first answer.

Leader: `check_join` on each request, `begin_decision` on each change. Follower: `on_answer` on each message.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

from hivemind.clock import DHTExpiration
from hivemind.identity import PeerID
from hivemind.proto import averaging_pb2

__all__ = [
    "Action",
    "Answer",
    "Declaration",
    "JoinView",
    "Reason",
    "Refusal",
    "Verdict",
    "begin_decision",
    "check_join",
    "leads",
    "on_answer",
]

Code = averaging_pb2.MessageCode


@dataclass(frozen=True)
class Declaration:
    """One that looks for a group, and when it will begin."""

    peer_id: PeerID
    expiration: DHTExpiration

    @property
    def rank(self) -> tuple[float, bytes]:
        """The lower leads the higher."""
        return self.expiration, self.peer_id.to_bytes()


def leads(candidate: Declaration, follower: Declaration) -> bool:
    """Whether ``candidate`` may lead ``follower``. Client-mode peers are followers with expiration ``inf``."""
    return candidate.rank < follower.rank


class Refusal(enum.Enum):
    """Why a leader refuses a peer; the value is the code that goes over the wire."""

    NOT_LOOKING_FOR_GROUP = Code.NOT_LOOKING_FOR_GROUP
    PROTOCOL_VIOLATION = Code.PROTOCOL_VIOLATION
    BAD_SCHEMA_HASH = Code.BAD_SCHEMA_HASH
    BAD_GROUP_KEY = Code.BAD_GROUP_KEY
    NOT_DECLARED = Code.NOT_DECLARED
    BAD_EXPIRATION_TIME = Code.BAD_EXPIRATION_TIME
    NOT_A_LEADER = Code.NOT_A_LEADER
    DUPLICATE_PEER_ID = Code.DUPLICATE_PEER_ID
    GROUP_IS_FULL = Code.GROUP_IS_FULL


@dataclass(frozen=True)
class JoinView:
    """What a leader knows when a request arrives.

    :param own: this peer's id
    :param looking: whether it looks for a group and has not assembled one
    :param client_mode: whether it cannot be reached, and so cannot lead
    :param schema_hash: of its own tensors
    :param group_key: under which it looks
    :param declared: when it said it would begin; None before it has declared
    :param leader: the peer that has accepted it, if any
    :param followers: those it has accepted
    :param target: size at which the group is full; None = never
    """

    own: PeerID
    looking: bool
    client_mode: bool
    schema_hash: bytes
    group_key: str
    declared: DHTExpiration | None
    leader: PeerID | None
    followers: AbstractSet[PeerID]
    target: int | None


def check_join(view: JoinView, request: averaging_pb2.JoinRequest, sender: PeerID) -> Refusal | None:
    """Whether the leader takes ``sender`` in; the checks stand in the order that the wire format fixes.

    :returns: None = accepted
    """
    expiration = request.expiration or math.inf  # an absent number arrives as 0
    follower = Declaration(sender, math.inf if request.client_mode else expiration)
    # the sender may have read an old declaration of this peer: accepted out of order, requests could go in a circle
    out_of_order = view.declared is not None and (
        view.declared > expiration or not leads(Declaration(view.own, view.declared), follower)
    )
    checks = (
        (not view.looking, Refusal.NOT_LOOKING_FOR_GROUP),
        (
            view.client_mode or not request.schema_hash or not math.isfinite(request.expiration),
            Refusal.PROTOCOL_VIOLATION,
        ),
        (request.schema_hash != view.schema_hash, Refusal.BAD_SCHEMA_HASH),
        (request.group_key != view.group_key, Refusal.BAD_GROUP_KEY),
        (view.declared is None, Refusal.NOT_DECLARED),
        (out_of_order and sender != view.own, Refusal.BAD_EXPIRATION_TIME),
        (view.leader is not None, Refusal.NOT_A_LEADER),
        (sender == view.own or sender in view.followers, Refusal.DUPLICATE_PEER_ID),
        (view.target is not None and len(view.followers) + 1 >= view.target, Refusal.GROUP_IS_FULL),
    )
    return next((refusal for failed, refusal in checks if failed), None)


class Action(enum.Enum):
    """What a peer that has declared itself does with its followers."""

    WAIT = enum.auto()
    BEGIN = enum.auto()
    #: send the followers away and declare anew
    DISBAND = enum.auto()


class Reason(enum.Enum):
    """Why."""

    FOLLOWS_ANOTHER = "another peer leads this one"
    TARGET_REACHED = "the group has its target size"
    EVERYBODY_IS_HERE = "all known peers are in the group"
    WINDOW_ENDED = "the declared time has come"
    NOT_ENOUGH_PEERS = "the declared time has come with fewer peers than the minimum"
    AWAITING_PEERS = "known peers are not in the group yet"
    UNKNOWN_WHO_COMES = "it is not known who else may come"


@dataclass(frozen=True)
class Verdict:
    """A decision and its reason.

    :param missing: expected peers that are not in the group
    """

    action: Action
    reason: Reason
    missing: frozenset[PeerID] = frozenset()


def begin_decision(
    *,
    now: DHTExpiration,
    window_end: DHTExpiration,
    followers: AbstractSet[PeerID],
    follows: PeerID | None,
    expected: AbstractSet[PeerID] | None,
    expected_size: int | None,
    target: int | None,
    minimum: int,
) -> Verdict:
    """Whether a leader begins.

    A group begins when it has its target size, when everybody the swarm knows of is in it, or when the declared time
    comes. A peer that has not declared itself for this round (it still computes) is waited for until then.

    :param window_end: the time up to which peers are waited for, on the clock of ``now``
    :param follows: the peer that has accepted this one as its follower
    :param expected: the peers to wait for; None where it is not known who may come
    :param expected_size: the group is not complete with fewer members, whoever they are
    :param target: the size at which to begin at once
    :param minimum: the least size of a group
    """
    if follows is not None:
        return Verdict(Action.WAIT, Reason.FOLLOWS_ANOTHER)
    size = len(followers) + 1
    missing = frozenset(expected - followers) if expected is not None else frozenset()
    if target is not None and size >= target:
        return Verdict(Action.BEGIN, Reason.TARGET_REACHED, missing)
    complete = expected is not None and not missing and size >= (expected_size or 0)
    if complete and size >= minimum:
        return Verdict(Action.BEGIN, Reason.EVERYBODY_IS_HERE)
    if now >= window_end:
        if size >= minimum:
            return Verdict(Action.BEGIN, Reason.WINDOW_ENDED, missing)
        return Verdict(Action.DISBAND, Reason.NOT_ENOUGH_PEERS, missing)
    return Verdict(Action.WAIT, Reason.AWAITING_PEERS if expected is not None else Reason.UNKNOWN_WHO_COMES, missing)


class Answer(enum.Enum):
    """What a follower does on a message from the one it asked."""

    #: accepted: wait for the group
    STAY = enum.auto()
    #: the group is complete
    JOIN = enum.auto()
    #: refused: ask the next
    NEXT = enum.auto()
    #: refused for a reason that passes soon: ask again later
    RETRY = enum.auto()
    #: ask the suggested leader
    REDIRECT = enum.auto()


#: Refusals that pass: it is about to declare itself, or has not yet seen that an earlier request of ours has ended.
_PASSING = {Code.NOT_DECLARED, Code.DUPLICATE_PEER_ID}
#: Answers that may name another leader. (hivemind 1.1 ignores the one of NOT_A_LEADER and searches on.)
_REDIRECTS = {Code.NOT_A_LEADER, Code.GROUP_DISBANDED, Code.CANCELLED}


def on_answer(message: averaging_pb2.MessageFromLeader, *, accepted: bool, own: PeerID) -> Answer:
    """What a follower does on ``message``.

    :param accepted: whether the sender has accepted this peer before
    """
    if not accepted and message.code == Code.ACCEPTED:
        return Answer.STAY
    if accepted and message.code == Code.BEGIN_ALLREDUCE:
        return Answer.JOIN
    if message.code in _REDIRECTS and message.suggested_leader and message.suggested_leader != own.to_bytes():
        return Answer.REDIRECT
    if not accepted and message.code in _PASSING:
        return Answer.RETRY
    return Answer.NEXT
