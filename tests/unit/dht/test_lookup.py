"""The beam search, against brute force on networks drawn at random, and against liars."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hivemind.dht.lookup import MAX_CONTACTS_PER_BEAM, Lookup, LookupPlan, NodeState
from hivemind.dht.routing import DHTID
from hivemind.identity import PeerID

ids = st.integers(0, DHTID.MAX - 1).map(DHTID)


def node(node_id: DHTID) -> tuple[DHTID, PeerID]:
    return node_id, PeerID(node_id.to_bytes())


@settings(max_examples=80, deadline=None)
@given(
    st.lists(ids, min_size=2, max_size=60, unique=True),
    st.lists(ids, min_size=1, max_size=4, unique=True),
    st.integers(1, 12),
    st.integers(1, 5),
    st.sets(st.integers(0, 59), max_size=15),
    st.randoms(use_true_random=False),
)
def test_finds_the_nearest_live_nodes(
    network: list[DHTID], targets: list[DHTID], beam: int, chunk: int, dead: set[int], random: object
) -> None:
    """Every node knows all others, some are dead, answers come in any order: the beam is what brute force finds."""
    own, *others = network
    alive = [each for number, each in enumerate(others) if number not in dead]
    lookups = [Lookup(target, beam, own_id=own) for target in targets]
    for lookup in lookups:
        lookup.hear([node(others[0])])
    plan = LookupPlan(lookups, chunk)
    finished = []
    under_way = []
    while not plan.finished:
        while len(under_way) < 3 and (request := plan.next_request()) is not None:
            assert len(request.targets) <= chunk
            assert request.node_id != own
            under_way.append(request)
        if under_way:
            request = under_way.pop(random.randrange(len(under_way)))  # type: ignore[attr-defined]
            if request.node_id in alive:
                near = {t: [node(n) for n in sorted(network, key=lambda n: n ^ t)[: beam + 5]] for t in request.targets}
                plan.answer(request, near)
            else:
                plan.fail(request)
        finished += plan.take_finished()
    assert {lookup.target for lookup in finished} == set(targets)
    if others[0] not in alive:
        return
    for lookup in finished:
        expected = sorted(alive, key=lambda each: each ^ lookup.target)[:beam]
        # a node names only the nearest, dead ones among them: that many may hide others
        hidden = len(others) - len(alive)
        found = [node_id for node_id, _ in lookup.nearest(beam)]
        assert found[: max(0, beam - hidden)] == expected[: max(0, beam - hidden)]
        if not hidden:
            assert found == expected


def test_nodes_are_asked_nearest_first_and_once() -> None:
    lookup = Lookup(DHTID(0), beam_size=3)
    lookup.hear(node(DHTID(n)) for n in (5, 1, 9, 3))
    asked = []
    while (candidate := lookup.candidate()) is not None:
        lookup.ask(candidate)
        asked.append(candidate)
    assert asked == [1, 3, 5]
    assert not lookup.finished
    lookup.fail(DHTID(3))
    assert lookup.candidate() == 9, "the beam reaches one farther"
    lookup.answer(DHTID(1), [])
    lookup.answer(DHTID(5), [node(DHTID(2))])
    assert lookup.candidate() == 2, "what is nearer comes first"
    lookup.ask(DHTID(2))
    lookup.answer(DHTID(2), [])
    assert lookup.finished
    assert lookup.states[DHTID(9)] is NodeState.HEARD
    assert [node_id for node_id, _ in lookup.nearest(3)] == [1, 2, 5]


def test_stop_ends_at_once() -> None:
    lookup = Lookup(DHTID(0), beam_size=3)
    lookup.hear([node(DHTID(1))])
    assert not lookup.finished
    lookup.stop()
    assert lookup.finished
    assert lookup.candidate() is None
    assert not lookup.wants(DHTID(1))


def test_empty_lookup_is_finished() -> None:
    plan = LookupPlan([Lookup(DHTID(0), 20)], 16)
    assert plan.next_request() is None
    assert [lookup.nearest(5) for lookup in plan.take_finished()] == [[]]


def test_liars_cannot_keep_a_search_alive() -> None:
    """Each answer names nodes that are nearer still and do not exist."""
    lookup = Lookup(DHTID(0), beam_size=4)
    lookup.hear([node(DHTID(1 << 150))])
    plan = LookupPlan([lookup], 16)
    requests = 0
    while not plan.finished:
        request = plan.next_request()
        assert request is not None
        requests += 1
        plan.answer(request, {lookup.target: [node(DHTID(max(1, request.node_id - n))) for n in range(1, 5)]})
        plan.take_finished()
    assert requests <= MAX_CONTACTS_PER_BEAM * 4


def test_one_request_serves_several_lookups() -> None:
    lookups = [Lookup(DHTID(target), beam_size=5) for target in range(40)]
    for lookup in lookups:
        lookup.hear(node(DHTID(n << 100)) for n in range(1, 6))
    plan = LookupPlan(lookups, 16)
    first = plan.next_request()
    second = plan.next_request()
    assert first is not None
    assert second is not None
    assert len(first.targets) == len(second.targets) == 16
    assert not set(first.targets) & set(second.targets), "all advance at the same pace"


@pytest.mark.parametrize(
    ("versions", "expected"),
    [
        ([7, 7, 7, 7, 7], 5),  # they agree
        ([7, 7, 7, 7, 8], 10),  # one is behind
        ([7, 7, None, 7, 7], 10),  # one has nothing
        ([None, None, None, None, None], 20),  # nobody has anything
        ([None] * 12 + [7], 13),  # somebody far has it, when more than twice as many were asked
    ],
)
def test_a_quorum_saves_requests_where_the_nearest_agree(versions: list[object], expected: int) -> None:
    lookup = Lookup(DHTID(0), 20, quorum=5)
    lookup.hear(node(DHTID(number)) for number in range(1, 31))
    asked = 0
    while (node_id := lookup.candidate()) is not None:
        lookup.ask(node_id)
        lookup.note_version(node_id, dict(enumerate(versions, start=1)).get(node_id))
        lookup.answer(node_id, [])
        asked += 1
    assert lookup.finished
    assert asked == expected


def test_fewer_are_enough_while_all_answer() -> None:
    for failing, expected in ((None, 10), (4, 21)):
        lookup = Lookup(DHTID(0), 20, enough=10)
        lookup.hear(node(DHTID(number)) for number in range(1, 31))
        asked = 0
        while (node_id := lookup.candidate()) is not None:
            lookup.ask(node_id)
            asked += 1
            if asked == failing:
                lookup.fail(node_id)
            else:
                lookup.answer(node_id, [])
        assert lookup.finished
        assert asked == expected


def test_while_nodes_are_slow_others_are_asked() -> None:
    lookup = Lookup(DHTID(0), 2)
    lookup.hear(node(DHTID(number)) for number in range(1, 6))
    for expected in (1, 2):
        assert lookup.candidate() == expected
        lookup.ask(DHTID(expected))
    assert lookup.candidate() is None
    lookup.doubt(DHTID(1))
    lookup.doubt(DHTID(1))
    assert lookup.candidate() == 3
    lookup.ask(DHTID(3))
    lookup.answer(DHTID(3), [])
    lookup.answer(DHTID(2), [])
    assert lookup.candidate() is None
    assert not lookup.finished, "the slow one may still answer"
    lookup.answer(DHTID(1), [])
    assert lookup.finished
    assert [node_id for node_id, _ in lookup.nearest(2)] == [1, 2]


def test_the_silent_are_those_that_would_be_among_the_nearest() -> None:
    lookup = Lookup(DHTID(0), beam_size=4)
    lookup.hear(node(DHTID(number)) for number in range(1, 10))
    for number in range(1, 8):
        lookup.ask(DHTID(number))
    for number in (1, 4, 6):
        lookup.fail(DHTID(number))
    # the others are 2, 3, 5, 7, 8, 9
    assert lookup.silent(2) == [PeerID(DHTID(1).to_bytes())]
    assert set(lookup.silent(4)) == {PeerID(DHTID(number).to_bytes()) for number in (1, 4, 6)}
    assert set(lookup.silent(20)) == set(lookup.silent(4))
