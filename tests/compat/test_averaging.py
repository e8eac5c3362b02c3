"""Averagers of hivemind 1.1.12 and this library form one group, and every member ends with the mean."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
import torch

from tests.compat.averagers import LegacyAverager, OurAverager, check_round, start_averager
from tests.compat.nodes import eventually, start_node
from tests.compat.pairs import KINDS, Kind, other
from tests.support.legacy_repeat import LegacyPeers, repeat_on_legacy_fault

#: The leader declares the earlier time, so the other joins it; a full group starts at once.
LEADER_TIMES: dict[str, Any] = {"min_matchmaking_time": 5.0, "request_timeout": 2.0}
FOLLOWER_SCHEDULE = 20.0

#: Fixed data for every member of a round, of types that the gather blob has to keep.
GATHER: list[Any] = [{"k": (1, b"x")}, None, "third", [4.0]]


def tensors(member: int) -> list[torch.Tensor]:
    """Values of one member: several parts of 512 KiB over tensors of all ranks, one of them empty."""
    generator = torch.Generator().manual_seed(member)
    shapes = [(400, 500), (3,), (), (0, 4), (70_001,)]
    return [torch.randn(shape, generator=generator) + member for shape in shapes]


def run_round(
    legacy: LegacyPeers,
    kinds: list[Kind],
    weights: list[float],
    rounds: int = 1,
    tolerance: float = 1e-5,
    clients: tuple[int, ...] = (),
    scheduled: bool = True,
    per_member: list[dict[str, Any]] | None = None,
    **options: Any,
) -> None:
    """``rounds`` rounds among members of these kinds; the first is the leader and everybody's bootstrap peer."""
    extra: list[dict[str, Any]] = per_member or [{} for _ in kinds]
    with contextlib.ExitStack() as stack:
        members: list[OurAverager | LegacyAverager] = []
        maddrs: list[str] = []
        for index, kind in enumerate(kinds):
            node = stack.enter_context(start_node(kind, legacy, maddrs, client_mode=index in clients))
            maddrs = maddrs or node.maddrs
            shared = {"prefix": "mixed", "target_group_size": len(kinds), **LEADER_TIMES, **options}
            members.append(stack.enter_context(start_averager(node, tensors(index), **shared, **extra[index])))
        before = [tensors(index) for index in range(len(kinds))]
        for _ in range(rounds):
            for index, member in enumerate(members):
                schedule = FOLLOWER_SCHEDULE if scheduled and index > 0 else None
                member.begin_step(schedule, gather=GATHER[index], weight=weights[index])
            before = check_round(members, before, weights, GATHER[: len(members)], tolerance)


@pytest.mark.parametrize("leader", KINDS)
@repeat_on_legacy_fault
def test_two_peers(legacy: LegacyPeers, leader: Kind) -> None:
    """Weights 1 and 3, data gathered from both, and a second round by the same averagers."""
    run_round(legacy, [leader, other(leader)], [1.0, 3.0], rounds=2)


@pytest.mark.parametrize("leader", KINDS)
@repeat_on_legacy_fault
def test_two_peers_with_float16(legacy: LegacyPeers, leader: Kind) -> None:
    """Parts and deltas travel as 16-bit floats."""
    run_round(legacy, [leader, other(leader)], [1.0, 1.0], compression="FLOAT16", tolerance=4e-3)


@repeat_on_legacy_fault
def test_two_peers_with_8_bits(legacy: LegacyPeers) -> None:
    """The codec of 8 bits with which 1.1.12 carries the empty tensor as well; a percent of the largest value of 5."""
    run_round(legacy, ["ours", "legacy"], [1.0, 1.0], compression="BLOCKWISE_8BIT", tolerance=0.1)


@pytest.mark.parametrize("kinds", [["ours", "legacy", "ours"], ["legacy", "ours", "legacy"]], ids="-".join)
@repeat_on_legacy_fault
def test_three_peers(legacy: LegacyPeers, kinds: list[Kind]) -> None:
    """Either kind in the majority, weights that differ, one of them zero."""
    run_round(legacy, kinds, [0.5, 2.0, 0.0])


@pytest.mark.parametrize("leader", KINDS)
@repeat_on_legacy_fault
def test_a_client(legacy: LegacyPeers, leader: Kind) -> None:
    """A member that cannot be called: it reduces nothing and only a peer of the other kind can have led."""
    run_round(legacy, [leader, other(leader)], [1.0, 1.0], clients=(1,), scheduled=False)


@pytest.mark.parametrize("leader", KINDS)
@repeat_on_legacy_fault
def test_bandwidths(legacy: LegacyPeers, leader: Kind) -> None:
    """Shares of three members by their bandwidths, one of which cannot reduce at all: all members split alike."""
    per_member = [{"bandwidth": 1.0}, {"bandwidth": 4.0}, {"bandwidth": 0.0}]
    run_round(legacy, [leader, other(leader), leader], [1.0, 1.0, 1.0], per_member=per_member)


@pytest.mark.parametrize("leader", KINDS)
@repeat_on_legacy_fault
def test_an_auxiliary_peer(legacy: LegacyPeers, leader: Kind) -> None:
    """An auxiliary member helps to reduce, adds nothing, and ends with the mean of the others."""
    run_round(legacy, [leader, other(leader), other(leader)], [1.0, 1.0, 0.0], per_member=[{}, {}, {"auxiliary": True}])


@pytest.mark.parametrize("leader", KINDS)
@repeat_on_legacy_fault
def test_a_group_of_unknown_size(legacy: LegacyPeers, leader: Kind) -> None:
    """No target size: the leader starts when its time is up, or earlier if it knows that all are there."""
    run_round(legacy, [leader, other(leader)], [1.0, 1.0], target_group_size=None)


@pytest.mark.parametrize("leader", KINDS)
@repeat_on_legacy_fault
def test_group_bits(legacy: LegacyPeers, leader: Kind) -> None:
    """Peers whose group key has the same bits meet."""
    run_round(legacy, [leader, other(leader)], [1.0, 2.0], initial_group_bits="0110")


@pytest.mark.parametrize("donor", KINDS)
@pytest.mark.parametrize("compression", ["NONE", "FLOAT16"])
@repeat_on_legacy_fault
def test_state_download(legacy: LegacyPeers, donor: Kind, compression: str) -> None:
    """A newcomer of either kind downloads metadata and tensors from a donor of the other."""
    with contextlib.ExitStack() as stack:
        holder = stack.enter_context(start_node(donor, legacy, []))
        newcomer = stack.enter_context(start_node(other(donor), legacy, holder.maddrs))
        options: dict[str, Any] = {"prefix": "state", "state_compression": compression, **LEADER_TIMES}
        stack.enter_context(start_averager(holder, tensors(1), **options))
        averager = stack.enter_context(start_averager(newcomer, tensors(2), **options, allow_state_sharing=False))
        assert eventually(lambda: newcomer.get("state.all_averagers") is not None), "the donor does not declare itself"
        state = averager.load_state()
        assert state is not None
        assert state["metadata"] == {"group_key": ""}
        assert [tensor.shape for tensor in state["tensors"]] == [tensor.shape for tensor in tensors(1)]
        for loaded, held in zip(state["tensors"], tensors(1), strict=True):
            torch.testing.assert_close(loaded, held.half().float() if compression == "FLOAT16" else held)
