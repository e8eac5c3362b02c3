"""Turns, batches and bounds of the requests that wait for an expert: decisions without clock or thread."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from hivemind.moe.server.fair_queue import FairClock, FairQueue, Request, Share


def ask(client: str, size: int = 1, **fields: object) -> Request:
    return Request(client=client, size=size, cost=float(size), **fields)  # type: ignore[arg-type]


def queue_of(*requests: Request, max_batch_size: int = 4, **options: float) -> tuple[FairQueue, FairClock]:
    queue, clock = FairQueue(max_batch_size, **options), FairClock()  # type: ignore[arg-type]
    for request in requests:
        queue.push(request, clock)
    return queue, clock


def test_a_batch_is_filled_in_order_of_arrival() -> None:
    first, second, third = ask("a", 2), ask("a", 1), ask("a", 3)
    queue, clock = queue_of(first, second, third)
    assert queue.take(clock) == [first, second]
    assert queue.take(clock) == [third]
    assert queue.take(clock) == []


def test_a_request_that_does_not_fit_is_the_first_of_the_next_batch() -> None:
    small, large, tiny = ask("a", 3), ask("a", 4), ask("a", 1)
    queue, clock = queue_of(small, large, tiny)
    assert queue.take(clock) == [small, tiny]
    assert queue.take(clock) == [large]


def test_only_one_kind_in_a_batch() -> None:
    long, short, other = ask("a", kind="long"), ask("b", kind="short"), ask("c", kind="long")
    queue, clock = queue_of(long, short, other)
    assert queue.take(clock) == [long, other]
    assert queue.take(clock) == [short]


def test_a_client_that_asks_for_much_does_not_hold_up_another() -> None:
    flood = [ask("flood", 4) for _ in range(10)]
    queue, clock = queue_of(*flood)
    assert queue.take(clock) == flood[:1]
    guest = ask("guest", 4)
    queue.push(guest, clock)
    assert guest in queue.take(clock) + queue.take(clock)


def test_one_clock_for_several_queues() -> None:
    """A client that floods one expert of a device has no turn before the others at another."""
    clock, left, right = FairClock(), FairQueue(1), FairQueue(1)
    for _ in range(3):
        left.push(ask("flood"), clock)
    left.take(clock)
    right.push(ask("flood"), clock)
    right.push(ask("guest"), clock)
    assert right.take(clock)[0].client == "guest"


def test_priority_comes_before_shares() -> None:
    usual, urgent = ask("a"), ask("b", priority=-1.0)
    queue, clock = queue_of(usual, urgent, max_batch_size=1)
    assert queue.take(clock) == [urgent]


def test_what_is_cancelled_is_not_served_and_costs_nothing() -> None:
    gone, kept, other = ask("a", 4), ask("a", 4), ask("b", 4)
    queue, clock = queue_of(gone)
    assert queue.discard(gone, clock)
    assert not queue.discard(gone, clock)
    assert (len(queue), queue.samples, queue.head()) == (0, 0, None)
    queue.push(kept, clock)
    queue.push(other, clock)
    assert queue.take(clock) == [kept]


def test_a_batch_waits_for_samples_or_for_time() -> None:
    queue, clock = queue_of(ask("a", since=10.0), min_batch_size=3, patience=2.0)
    assert queue.ready_at() == 12.0
    queue.push(ask("a", 2, since=11.0), clock)
    assert queue.ready_at() == -math.inf
    queue.take(clock)
    assert queue.ready_at() == math.inf


def test_the_patience_is_that_of_the_oldest_that_still_waits() -> None:
    old = ask("a", since=10.0)
    queue, clock = queue_of(old, ask("a", since=11.0), min_batch_size=3, patience=2.0)
    queue.discard(old, clock)
    assert queue.ready_at() == 13.0


def test_a_share_leaves_room_for_newcomers() -> None:
    share = Share(8)
    while share.admits("flood"):
        share.take("flood", 1)
    assert share.held == 4
    assert share.admits("guest")
    share.take("guest", 1)
    assert not share.admits("flood")
    share.give_back("flood", 1)
    share.give_back("guest", 1)
    assert share.admits("flood")


clients = st.sampled_from("abcde")
sizes = st.integers(1, 8)


@given(st.lists(st.tuples(clients, sizes, st.booleans()), max_size=60), st.integers(8, 20))
def test_every_request_is_served_once_or_cancelled(asked: list[tuple[str, int, bool]], most: int) -> None:
    queue, clock = FairQueue(most), FairClock()
    requests = [ask(client, size, kind=size % 2) for client, size, _ in asked]
    for request in requests:
        queue.push(request, clock)
    cancelled = [request for request, (_, _, gone) in zip(requests, asked, strict=True) if gone]
    for request in cancelled:
        assert queue.discard(request, clock)
    served: list[Request] = []
    while batch := queue.take(clock):
        assert sum(request.size for request in batch) <= most
        assert len({request.kind for request in batch}) == 1
        served += batch
    assert len(served) == len(set(served))
    assert set(served) == set(requests) - set(cancelled)
    assert (len(queue), queue.samples) == (0, 0)


@given(st.lists(sizes, min_size=1, max_size=8), st.integers(2, 12))
def test_busy_clients_get_the_same(costs: list[int], rounds: int) -> None:
    """Of two clients that always wait, none is ahead by more than a request of each (Goyal et al., theorem 1)."""
    queue, clock = FairQueue(1), FairClock()
    sums = {"even": 0.0, "odd": 0.0}
    for number in range(rounds * len(costs)):
        queue.push(Request("even", 1, cost=costs[number % len(costs)]), clock)
        queue.push(Request("odd", 1, cost=8.0), clock)
    for _ in range(rounds):
        (request,) = queue.take(clock)
        sums[str(request.client)] += request.cost
        assert abs(sums["even"] - sums["odd"]) <= max(costs) + 8
