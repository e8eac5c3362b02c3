"""Averagers on the in-memory network under the virtual clock: groups form, average, and end by their deadlines."""

from __future__ import annotations

import asyncio
import gc

import pytest

from hivemind.averaging import AveragingMode, GroupKeyManager
from hivemind.clock import get_dht_time, monotonic
from hivemind.errors import AllreduceException
from hivemind.p2p import metrics_text
from hivemind.virtual_clock import run_virtual
from tests.support.averagers import averagers, exactly_when, group_sizes

#: Virtual seconds that a round of present peers may take: far below the window of 5 s.
AT_ONCE = 1.0


def test_all_present_the_round_starts_at_once() -> None:
    async def main() -> None:
        async with averagers(16) as swarm:
            for _ in range(3):
                began = monotonic()
                results = await swarm.step_all(timeout=30)
                assert monotonic() - began < AT_ONCE
                everybody = {member.peer_id: int(member.value) for member in swarm.members}
                assert all(result == everybody for result in results)
                assert all(member.values == {7.5} for member in swarm.members)
                for member in swarm.members:
                    member.reset()

    run_virtual(main)


def counted(suffix: str) -> float:
    """A count of all averagers of this process."""
    lines = (line for line in metrics_text().splitlines() if line.startswith(f"hivemind_averaging_{suffix}{{"))
    return sum(float(line.rpartition(" ")[2]) for line in lines)


def test_steps_are_counted() -> None:
    async def main() -> None:
        async with averagers(4) as swarm:
            names = ("steps_averaged_total", "contributors_total", "steps_failed_total")
            gc.collect()  # averagers of other tests leave with their counts
            before = [counted(name) for name in names]
            await swarm.step_all(timeout=30)
            with pytest.raises(AllreduceException):
                await swarm.members[0].core.step(timeout=1)
            assert [counted(name) - was for name, was in zip(names, before, strict=True)] == [4, 16, 1]

    run_virtual(main)


def test_bit_by_bit_the_same_on_all() -> None:
    async def main() -> None:
        async with averagers(5) as swarm:
            for index, member in enumerate(swarm.members):
                member.core.tensors[0].copy_(0.1 * (index + 1) ** 3)
            await swarm.step_all(timeout=30)
            first = swarm.members[0].core.tensors
            for member in swarm.members[1:]:
                assert all(a.equal(b) for a, b in zip(first, member.core.tensors, strict=True))

    run_virtual(main)


def test_a_peer_that_still_computes_is_waited_for() -> None:
    async def main() -> None:
        async with averagers(4) as swarm:
            early = asyncio.gather(*(member.core.step(timeout=30) for member in swarm.members[:3]))
            await asyncio.sleep(3)
            assert not early.done()
            late = monotonic()
            result = await swarm.members[3].core.step(timeout=30)
            await early
            assert len(result) == 4
            assert monotonic() - late < AT_ONCE
            assert all(member.values == {1.5} for member in swarm.members)

    run_virtual(main)


def test_one_that_stays_away_costs_one_window() -> None:
    async def main() -> None:
        async with averagers(4) as swarm:
            present = swarm.members[:3]
            began = monotonic()
            results = await swarm.step_all(present, timeout=30)
            assert group_sizes(results) == {3}
            assert 4.5 < monotonic() - began < 6
            for _ in range(3):
                began = monotonic()
                await swarm.step_all(present, timeout=30)
                assert monotonic() - began < AT_ONCE
            # it comes back, and is in the group again
            lone = asyncio.ensure_future(swarm.members[3].core.step(timeout=30))
            await asyncio.sleep(1)
            results = await swarm.step_all(present, timeout=30)
            assert group_sizes([*results, await lone]) == {4}

    run_virtual(main)


def test_only_what_would_go_on_is_retracted(monkeypatch: pytest.MonkeyPatch) -> None:
    """The DHT would warn of a value that has expired."""
    seconds_left: list[float] = []
    retract = GroupKeyManager.retract_averager

    async def noted(keys: GroupKeyManager, group_key: str, expiration_time: float) -> bool:
        seconds_left.append(expiration_time - get_dht_time())
        return await retract(keys, group_key, expiration_time)

    monkeypatch.setattr(GroupKeyManager, "retract_averager", noted)

    async def main() -> None:
        async with averagers(3) as swarm:
            await swarm.step_all(timeout=30)
            assert len(seconds_left) == 3
            assert min(seconds_left) > 4, "of a window of 5 s"
            seconds_left.clear()
            await swarm.step_all(swarm.members[:2], timeout=30)
            # both waited for the third to the end; one may have declared itself anew
            assert all(left > 4 for left in seconds_left)

    run_virtual(main)


def test_one_that_says_goodbye_is_not_waited_for() -> None:
    async def main() -> None:
        async with averagers(4) as swarm:
            await swarm.step_all(timeout=30)
            await swarm.leave(swarm.members[3])
            began = monotonic()
            results = await swarm.step_all(timeout=30)
            assert group_sizes(results) == {3}
            assert monotonic() - began < AT_ONCE

    run_virtual(main)


def test_groups_of_the_target_size() -> None:
    async def main() -> None:
        async with averagers(16, target_group_size=4) as swarm:
            began = monotonic()
            results = await swarm.step_all(timeout=60)
            assert group_sizes(results) == {4}
            assert monotonic() - began < 5
            for member, result in zip(swarm.members, results, strict=True):
                assert member.values == {sum(result.values()) / 4}  # type: ignore[union-attr]

    run_virtual(main)


def test_a_target_that_is_never_reached_costs_one_window() -> None:
    async def main() -> None:
        async with averagers(4, target_group_size=256) as swarm:
            for seconds in (6.0, AT_ONCE, AT_ONCE):
                began = monotonic()
                results = await swarm.step_all(timeout=60)
                assert group_sizes(results) == {4}
                assert monotonic() - began < seconds

    run_virtual(main)


def test_a_target_counts_peers_that_nobody_has_heard_of() -> None:
    async def main() -> None:
        async with averagers(2, target_group_size=3) as swarm:
            client = await swarm.join(client_mode=True)
            early = asyncio.ensure_future(swarm.step_all(swarm.members[:2], timeout=60))
            await asyncio.sleep(2)
            assert len(await client.core.step(timeout=60)) == 3
            assert group_sizes(await early) == {3}

    run_virtual(main)


def test_a_grid_of_groups_averages_everybody() -> None:
    """Moshpit: 16 peers in a 4 x 4 grid; after two rounds all hold the mean of all."""

    async def main() -> None:
        async with averagers(16, target_group_size=4) as swarm:
            for index, member in enumerate(swarm.members):
                await member.core.set_group_bits(format(index // 4, "02b"))
            results = await swarm.step_all(timeout=60)
            assert group_sizes(results) == {4}
            cells = [await member.core.get_group_bits() for member in swarm.members]
            assert sorted(cells) == sorted(["00", "01", "10", "11"] * 4)
            results = await swarm.step_all(timeout=60)
            assert group_sizes(results) == {4}
            assert all(member.values == {7.5} for member in swarm.members)

    run_virtual(main)


def test_client_mode_peers_and_auxiliary_peers() -> None:
    async def main() -> None:
        async with averagers(3) as swarm:
            client = await swarm.join(client_mode=True)
            helper = await swarm.join(auxiliary=True)
            assert client.core.mode is AveragingMode.CLIENT
            assert helper.core.mode is AveragingMode.AUX
            for _ in range(2):
                for member in swarm.members:
                    member.reset()
                results = await swarm.step_all(timeout=60, known_peers=5)
                assert group_sizes(results) == {5}
                # 0, 1, 2 and the client's 3; the auxiliary peer's 4 has no weight
                assert all(member.values == {1.5} for member in swarm.members)
            # neither declares itself, but by now the others know them
            began = monotonic()
            results = await swarm.step_all(timeout=60)
            assert group_sizes(results) == {5}
            assert monotonic() - began < AT_ONCE

    run_virtual(main)


def test_weights_and_changes_made_during_the_round() -> None:
    async def main() -> None:
        async with averagers(2) as swarm:
            first, second = swarm.members
            control = first.core.make_step(weight=3.0, timeout=30)
            first.core.start_step(control)
            other = asyncio.ensure_future(second.core.step(timeout=30))
            await asyncio.sleep(2)
            assert control.stage.name == "AWAITING_TRIGGER"
            assert first.values == {0.0}
            control.weight = 1.0
            first.core.tensors[0].fill_(4.0)  # before the exchange begins: it counts
            control.allow_allreduce()
            # after it has begun: it is kept on top of the average
            await exactly_when(lambda: control.began_allreduce, "the exchange has begun")
            await asyncio.sleep(0.005)
            first.core.tensors[1].add_(100.0)
            await control
            await other
            assert first.core.tensors[0].tolist() == [2.5] * 5
            assert first.core.tensors[1].tolist() == [100.5] * 3
            assert second.core.tensors[1].tolist() == [0.5] * 3
            assert control.report is not None
            assert set(control.report.members) == {first.peer_id, second.peer_id}
            assert control.report.failed == ()

    run_virtual(main)


def test_scheduled_steps_begin_when_all_are_there() -> None:
    async def main() -> None:
        async with averagers(4) as swarm:
            began = monotonic()
            results = await swarm.step_all(timeout=60, scheduled_time=get_dht_time() + 20)
            assert group_sizes(results) == {4}
            assert monotonic() - began < AT_ONCE
            # the next declaration must be later than the one for 20 s ahead, but the window is not
            began = monotonic()
            results = await swarm.step_all(swarm.members[:3], timeout=60)
            assert group_sizes(results) == {3}
            assert monotonic() - began < 7

    run_virtual(main)


def test_alone_the_step_ends_by_its_deadline_and_changes_nothing() -> None:
    async def main() -> None:
        async with averagers(1) as swarm:
            began = monotonic()
            (error,) = await swarm.step_all(timeout=12)
            assert isinstance(error, AllreduceException)
            assert "could not find a group" in str(error)
            assert 11.9 < monotonic() - began < 13
            assert swarm.members[0].values == {0.0}

    run_virtual(main)


def test_cancelled_and_never_triggered_steps() -> None:
    async def main() -> None:
        async with averagers(3) as swarm:
            control = swarm.members[0].core.make_step(timeout=20)
            swarm.members[0].core.start_step(control)
            others = asyncio.ensure_future(swarm.step_all(swarm.members[1:], timeout=60))
            await asyncio.sleep(1)
            assert control.stage.name == "AWAITING_TRIGGER"
            assert control.cancel()
            results = await others
            assert group_sizes(results) == {2}
            assert swarm.members[0].values == {0.0}
            # the averager is as good as before
            results = await swarm.step_all(timeout=60)
            assert group_sizes(results) == {3}

            control = swarm.members[0].core.make_step(timeout=10)
            swarm.members[0].core.start_step(control)
            others = asyncio.ensure_future(swarm.step_all(swarm.members[1:], timeout=60))
            began = monotonic()
            (error,) = await asyncio.gather(control, return_exceptions=True)
            assert isinstance(error, AllreduceException)
            assert "allow_allreduce" in str(error)
            assert monotonic() - began < 11
            assert group_sizes(await others) == {2}

    run_virtual(main)


def test_peers_with_other_tensors_or_another_class_do_not_meet() -> None:
    async def main() -> None:
        async with averagers(2) as swarm:
            swarm.name = "OtherAverager"
            await swarm.join()
            swarm.name = "DecentralizedAverager"
            await swarm.join(sizes=(4, 4))
            results = await swarm.step_all(timeout=20)
            assert group_sizes(results[:2]) == {2}
            assert all(isinstance(result, AllreduceException) for result in results[2:])
            assert [member.values for member in swarm.members] == [{0.5}, {0.5}, {2.0}, {3.0}]

    run_virtual(main)
