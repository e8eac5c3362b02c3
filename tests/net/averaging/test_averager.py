"""`DecentralizedAverager` with real daemons on loopback."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import CancelledError
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch

from hivemind.averaging import AveragingMode, AveragingStage, DecentralizedAverager
from hivemind.clock import get_dht_time
from hivemind.compression import Float16Compression, Uniform8BitQuantization
from hivemind.dht import DHT
from hivemind.errors import AllreduceException, ConfigError, HivemindError, P2PDaemonError, RuntimeClosedError
from hivemind.runtime import get_runtime
from tests.support.waiting import PATIENCE, eventually_sync

LOCAL = {"auto_nat": False, "nat_port_map": False}
PEER = Path(__file__).parents[2] / "support" / "averager_peer.py"


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def dhts(stack: ExitStack) -> list[DHT]:
    """Four DHTs; the last is in client mode."""
    first = stack.enter_context(DHT(start=True, **LOCAL))
    address = first.get_visible_maddrs()
    rest = [
        stack.enter_context(DHT(initial_peers=address, start=True, await_ready=False, client_mode=number == 3, **LOCAL))
        for number in (1, 2, 3)
    ]
    for dht in rest:
        dht.wait_until_ready(PATIENCE)
    return [first, *rest]


def make(stack: ExitStack, dht: DHT, value: float, **options: Any) -> DecentralizedAverager:
    tensors = [torch.full((1000,), float(value)), torch.tensor(float(value))]
    return stack.enter_context(DecentralizedAverager(tensors, dht, start=True, prefix="pre", **options))


def values(averager: DecentralizedAverager) -> set[float]:
    with averager.get_tensors() as tensors:
        return {round(value, 3) for tensor in tensors for value in tensor.flatten().tolist()}


def step_all(averagers: Sequence[DecentralizedAverager], **arguments: Any) -> list[Any]:
    controls = [averager.step(wait=False, timeout=90, **arguments) for averager in averagers]
    return [control.result(timeout=100) for control in controls]


def test_four_peers_average(stack: ExitStack, dhts: list[DHT]) -> None:
    averagers = [make(stack, dht, number, compression=Float16Compression()) for number, dht in enumerate(dhts)]
    assert [averager.mode for averager in averagers] == [AveragingMode.NODE] * 3 + [AveragingMode.CLIENT]
    assert averagers[3].client_mode
    assert not averagers[3].allow_state_sharing
    for _ in range(2):
        controls = [
            averager.step(gather={"rank": number}, wait=False, timeout=90, known_peers=4)
            for number, averager in enumerate(averagers)
        ]
        results = [control.result(timeout=100) for control in controls]
        assert results[0] == {averager.peer_id: {"rank": number} for number, averager in enumerate(averagers)}
        assert all(result == results[0] for result in results)
    assert all(values(averager) == {1.5} for averager in averagers)
    report = controls[0].report
    assert report is not None
    assert report.attempts == 1
    assert set(report.members) == set(results[0])
    assert averagers[0].last_updated <= get_dht_time()
    assert all(averager.last_updated > get_dht_time() - 120 for averager in averagers)


def test_a_round_of_8_bits(stack: ExitStack, dhts: list[DHT]) -> None:
    averagers = [make(stack, dht, number, compression=Uniform8BitQuantization()) for number, dht in enumerate(dhts[:2])]
    step_all(averagers, known_peers=2)
    assert all(values(averager) == {0.5} for averager in averagers)  # constants lose nothing


@pytest.mark.parametrize("victim", [0, 1])
def test_a_daemon_is_killed_and_restarted(stack: ExitStack, dhts: list[DHT], victim: int) -> None:
    """A round may fail, with the tensors as they were; then all are together again."""
    averagers = [make(stack, dht, number, target_group_size=3) for number, dht in enumerate(dhts[:3])]
    child = dhts[victim].p2p._child
    assert child is not None
    assert child.pid is not None
    for _ in range(2):
        os.kill(child.pid, signal.SIGKILL)
        eventually_sync(lambda: together(averagers), "all are in one round again", seconds=90)
        assert len({frozenset(values(averager)) for averager in averagers}) == 1


def together(averagers: Sequence[DecentralizedAverager]) -> bool:
    """One step of all, which may fail; whether all were in one round."""
    controls = [averager.step(wait=False, timeout=10) for averager in averagers]
    errors = [control.exception(timeout=30) for control in controls]
    assert all(error is None or isinstance(error, HivemindError) for error in errors), errors
    return all(error is None for error in errors) and len(controls[0].result()) == len(averagers)


def test_weights_bits_and_bandwidths(stack: ExitStack, dhts: list[DHT]) -> None:
    first, second = make(stack, dhts[0], 0.0, target_group_size=2), make(stack, dhts[1], 4.0, target_group_size=2)
    waiting = first.step(weight=3.0, wait=False, timeout=90)
    second.step(weight=1.0, timeout=90)
    waiting.result(timeout=100)
    assert values(first) == values(second) == {1.0}

    for averager in (first, second):
        averager.set_group_bits("01")
        assert averager.get_group_bits() == "01"
        averager.bandwidth = 2.0
    step_all([first, second])
    assert {first.get_group_bits(), second.get_group_bits()} == {"10", "11"}
    assert first.set_group_bits("1", wait=False).result(timeout=PATIENCE) is None
    assert first.get_group_bits(wait=False).result(timeout=PATIENCE) == "1"
    with pytest.raises(ConfigError, match="bits"):
        first.set_group_bits("x")
    with pytest.raises(ConfigError, match="bandwidth"):
        first.bandwidth = -1


def test_the_trigger_and_what_can_be_set_before_it(stack: ExitStack, dhts: list[DHT]) -> None:
    averagers = [make(stack, dht, number) for number, dht in enumerate(dhts[:2])]
    scheduled = get_dht_time() + 3
    controls = [
        averager.step(wait=False, require_trigger=True, scheduled_time=scheduled, timeout=90) for averager in averagers
    ]
    for control in controls:
        eventually_sync(lambda control=control: control.stage is AveragingStage.AWAITING_TRIGGER, "a group")
        control.weight = 0.5
    with averagers[0].get_tensors() as tensors:
        tensors[0].fill_(3.0)
        tensors[1].fill_(3.0)
    assert not controls[0].triggered
    for control in controls:
        control.allow_allreduce()
    for control in controls:
        assert len(control.result(timeout=100)) == 2
        assert control.stage is AveragingStage.FINISHED
    assert all(values(averager) == {2.0} for averager in averagers)
    with pytest.raises(RuntimeError, match="begun"):
        controls[0].weight = 1.0


def test_ends_of_steps(stack: ExitStack, dhts: list[DHT]) -> None:
    averager = make(stack, dhts[0], 1.0)
    began = time.monotonic()
    with pytest.raises(AllreduceException, match="could not find a group"):
        averager.step(timeout=0.5)
    assert time.monotonic() - began < PATIENCE
    control = averager.step(wait=False, timeout=200)
    assert control.cancel()
    with pytest.raises(CancelledError):
        control.result(timeout=PATIENCE)
    for wrong in ({"weight": -1}, {"timeout": -1}, {"require_trigger": True}, {"known_peers": 0}):
        with pytest.raises(ConfigError, match=next(iter(wrong))):
            averager.step(**wrong)  # type: ignore[call-overload]
    with pytest.raises(ConfigError, match="scheduled_time"):
        averager.step(scheduled_time=get_dht_time() + 10, timeout=5)
    with pytest.raises(ConfigError, match="gather"):
        averager.step(gather=object())
    # a shutdown ends the steps that run
    control = averager.step(wait=False, timeout=200)
    began = time.monotonic()
    averager.shutdown()
    averager.shutdown()
    assert time.monotonic() - began < PATIENCE / 3
    with pytest.raises(AllreduceException, match="shut down"):
        control.result(timeout=PATIENCE)
    assert not averager.is_alive()
    with pytest.raises(RuntimeClosedError, match="shut down"):
        averager.step(timeout=1)


def test_a_blocked_lock_holds_up_the_round_but_not_the_network(stack: ExitStack, dhts: list[DHT]) -> None:
    averagers = [make(stack, dht, number) for number, dht in enumerate(dhts[:2])]
    with averagers[0].get_tensors():
        controls = [averager.step(wait=False, timeout=90) for averager in averagers]
        eventually_sync(lambda: controls[0].began_allreduce, "the exchange")
        assert dhts[0].store("still", "alive", get_dht_time() + 60)
        assert not controls[0].done()
    assert all(len(control.result(timeout=100)) == 2 for control in controls)
    assert all(values(averager) == {0.5} for averager in averagers)


class StatefulAverager(DecentralizedAverager):
    """Shares more than it averages, as hivemind 1.1's subclasses do."""

    def get_current_state(self) -> Any:
        with self.get_tensors() as tensors:
            return {"step": 7}, [*tensors, torch.arange(4)], None


def test_state_downloads(stack: ExitStack, dhts: list[DHT]) -> None:
    donors = [
        stack.enter_context(StatefulAverager([torch.full((70_000,), float(n))], dht, start=True, prefix="pre"))
        for n, dht in enumerate(dhts[:2])
    ]
    donors[1].state_sharing_priority = 5.0
    client = stack.enter_context(StatefulAverager([torch.zeros(70_000)], dhts[3], start=True, prefix="pre"))

    def priority_is_known() -> bool:
        record = dhts[2].get("pre.all_averagers", latest=True)
        return record is not None and any(entry.value == 5.0 for entry in record.value.values())

    eventually_sync(priority_is_known, "the priority is known")
    metadata, tensors = client.load_state_from_peers(timeout=60)
    assert metadata == {"step": 7}
    assert [tensors[0][0].item(), tensors[0].numel(), tensors[1].tolist()] == [1.0, 70_000, [0, 1, 2, 3]]
    donors[1].allow_state_sharing = False
    metadata, tensors = client.load_state_from_peers(wait=False, timeout=60).result(timeout=PATIENCE)
    assert tensors[0][0].item() == 0.0
    with pytest.raises(ConfigError, match="client mode"):
        client.allow_state_sharing = True
    # an averager of another class has other names on the wire
    plain = make(stack, dhts[2], 3.0)
    assert plain.load_state_from_peers(timeout=20) is None


def test_wrong_arguments_name_themselves(dhts: list[DHT]) -> None:
    tensors = [torch.zeros(1, dtype=torch.int64)]
    for arguments, name in (
        ({"prefix": "a.b"}, "prefix"),
        ({"prefix": "a", "target_groupsize": 4}, "target_group_size"),
        ({"prefix": "a", "client_mode": True, "auxiliary": True}, "auxiliary"),
        ({"prefix": "a", "request_timeout": 10.0}, "request_timeout"),
        ({"prefix": "a", "compression": Float16Compression()}, "compression"),
    ):
        with pytest.raises(ConfigError, match=name):
            DecentralizedAverager(tensors, dhts[0], start=True, **arguments)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="averaged_tensors"):
        DecentralizedAverager([], dhts[0], start=True, prefix="a")
    with pytest.raises(ConfigError, match="auxiliary"):
        DecentralizedAverager(tensors, dhts[3], start=True, prefix="a", auxiliary=True)


def test_start_twice_and_not_at_all(stack: ExitStack, dhts: list[DHT]) -> None:
    tensors = [torch.zeros(1000), torch.tensor(0.0)]
    averager = DecentralizedAverager(tensors, dhts[0], start=False, prefix="pre")
    assert not averager.is_alive()
    with pytest.raises(RuntimeClosedError, match="not been started"):
        averager.step(timeout=1)
    with averager:
        averager.run_in_background()
        assert averager.is_alive()
        with pytest.raises(P2PDaemonError):
            make(stack, dhts[0], 1.0)
        # the one that was refused has not taken the names with it
        other = make(stack, dhts[1], 2.0)
        assert all(len(result) == 2 for result in step_all([averager, other]))
    # the names are free again
    assert all(len(result) == 2 for result in step_all([make(stack, dhts[0], 1.0), other]))


def test_the_dht_may_end_first(dhts: list[DHT]) -> None:
    averager = DecentralizedAverager([torch.zeros(1)], dhts[1], start=True, prefix="pre")
    control = averager.step(wait=False, timeout=60)
    dhts[1].shutdown()
    began = time.monotonic()
    averager.shutdown()
    assert time.monotonic() - began < PATIENCE / 3
    with pytest.raises(HivemindError):
        control.result(timeout=PATIENCE)
    assert get_runtime().running


def test_many_threads_step_and_read_at_once(stack: ExitStack, dhts: list[DHT]) -> None:
    averagers = [make(stack, dht, number) for number, dht in enumerate(dhts[:3])]
    stop, torn = threading.Event(), []

    def read(averager: DecentralizedAverager) -> None:
        while not stop.is_set():
            if len(seen := values(averager)) > 1:
                torn.append(seen)

    readers = [threading.Thread(target=read, args=(averager,)) for averager in averagers]
    for reader in readers:
        reader.start()
    try:
        for _ in range(5):
            assert all(len(result) == 3 for result in step_all(averagers))
    finally:
        stop.set()
        for reader in readers:
            reader.join()
    assert torn == []
    assert all(values(averager) == {1.0} for averager in averagers)


def test_kill_9_in_mid_round_the_others_finish(stack: ExitStack, dhts: list[DHT]) -> None:
    elements = 8_000_000
    averagers = [
        stack.enter_context(
            DecentralizedAverager(
                [torch.full((elements,), float(n))], dht, start=True, prefix="pre", sender_timeout=5.0
            )
        )
        for n, dht in enumerate(dhts[:3])
    ]
    address = ",".join(map(str, dhts[0].get_visible_maddrs()))
    command = [sys.executable, str(PEER), address, "9", str(elements)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as victim:
        try:
            assert victim.stdout is not None
            assert victim.stdout.readline() == "ready\n"
            controls = [averager.step(wait=False, timeout=100) for averager in averagers]
            assert victim.stdout.readline() == "exchange\n"
        finally:
            victim.kill()
    results = [control.result(timeout=110) for control in controls]
    assert all(len(result) >= 3 for result in results)
    for averager in averagers:
        with averager.get_tensors() as (tensor,):
            assert bool((tensor == tensor[0]).all()), "torn"
            assert tensor[0].item() in (1.0, 3.0)
    # those that have finished the round before the kill hold its average; all others the average of the three
    began = time.monotonic()
    assert all(len(result) == 3 for result in step_all(averagers))
    assert time.monotonic() - began < PATIENCE
