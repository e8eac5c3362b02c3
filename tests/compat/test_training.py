"""A ``hivemind.Optimizer`` of 1.1.12 and one of this library train a network on digits together."""

from __future__ import annotations

import concurrent.futures
import contextlib
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from tests.compat.nodes import LegacyNode, OurNode, start_node
from tests.compat.packing import unpack_tensor
from tests.compat.pairs import KINDS, Kind, other
from tests.compat.workload import Trainer
from tests.support.legacy import LegacyFault
from tests.support.legacy_repeat import LegacyPeers, repeat_on_legacy_fault

EPOCHS = 5
RUN_SECONDS = 100.0
GRACE_SECONDS = 60.0

#: 1.1.12 does not see that all are there: an epoch lasts its matchmaking time, at least a request's timeout of 3 s.
OPTIONS: dict[str, Any] = {
    "run_id": "digits",
    "verbose": True,
    "target_batch_size": 512,
    "matchmaking_time": 4.0,
    "averaging_timeout": 30.0,
    "delay_state_averaging": False,
    "averager_opts": {"target_group_size": 2, "request_timeout": 2.0},
    "tracker_opts": {"min_refresh_period": 0.2, "default_refresh_period": 0.3, "max_refresh_period": 0.6},
}


class OurTrainer:
    """The trainer on this library, in a thread."""

    kind: Kind = "ours"

    def __init__(self, node: OurNode, **options: Any) -> None:
        self._trainer = Trainer(node.dht, **options)
        self._pool = concurrent.futures.ThreadPoolExecutor(1)

    def begin(self, epochs: int) -> None:
        self._run = self._pool.submit(self._trainer.run, epochs, RUN_SECONDS)

    def end(self) -> dict[str, Any]:
        return self._run.result(RUN_SECONDS + GRACE_SECONDS)

    def load_state(self) -> None:
        self._trainer.optimizer.load_state_from_peers()

    def report(self) -> dict[str, Any]:
        return self._trainer.report()

    def close(self) -> None:
        self._trainer.optimizer.shutdown()
        self._pool.shutdown()


class LegacyTrainer:
    """The trainer on hivemind 1.1.12."""

    kind: Kind = "legacy"

    def __init__(self, node: LegacyNode, **options: Any) -> None:
        self._process = node.process
        self._process.call("trainer_start", name="t", dht="d", **options)

    def begin(self, epochs: int) -> None:
        self._run = self._process.submit("trainer_run", name="t", epochs=epochs, deadline=RUN_SECONDS)

    def end(self) -> dict[str, Any]:
        report: dict[str, Any] = self._process.result(self._run, RUN_SECONDS + GRACE_SECONDS, "trainer_run")
        return report

    def load_state(self) -> None:
        self._process.call("trainer_load_state", name="t")

    def report(self) -> dict[str, Any]:
        report: dict[str, Any] = self._process.call("trainer_report", name="t")
        return report

    def count_in_log(self, text: str) -> int:
        """How often 1.1.12 has logged ``text``."""
        return self._process.log().count(text)


@contextlib.contextmanager
def start_trainer(node: OurNode | LegacyNode, share: int, seed: int) -> Iterator[OurTrainer | LegacyTrainer]:
    """A trainer on its share of the images, with initial parameters of its own."""
    options: dict[str, Any] = {**OPTIONS, "share": share, "shares": 2, "seed": seed}
    if isinstance(node, LegacyNode):
        yield LegacyTrainer(node, **options)
        return
    trainer = OurTrainer(node, **options)
    try:
        yield trainer
    finally:
        trainer.close()


@pytest.mark.timeout(900)
@pytest.mark.parametrize("first", KINDS)
@repeat_on_legacy_fault
def test_train_together(legacy: LegacyPeers, first: Kind) -> None:
    """Both reach the last epoch with equal parameters and a loss that fell; then a newcomer of each kind downloads
    exactly that state."""
    with contextlib.ExitStack() as stack:
        trainers = []
        maddrs: list[str] = []
        for share, kind in enumerate((first, other(first))):
            node = stack.enter_context(start_node(kind, legacy, maddrs))
            maddrs = maddrs or node.maddrs
            trainers.append(stack.enter_context(start_trainer(node, share, seed=share)))
        initial_loss = max(trainer.report()["loss"] for trainer in trainers)
        for trainer in trainers:
            trainer.begin(EPOCHS)
        reports = [trainer.end() for trainer in trainers]
        check_run(trainers, reports, initial_loss)

        for kind in KINDS:
            node = stack.enter_context(start_node(kind, legacy, maddrs))
            newcomer = stack.enter_context(start_trainer(node, 0, seed=7))
            newcomer.load_state()
            loaded = newcomer.report()
            assert loaded["epoch"] == EPOCHS
            assert spread([reports[0], loaded]) < 1e-5


def check_run(trainers: list[OurTrainer | LegacyTrainer], reports: list[dict[str, Any]], initial_loss: float) -> None:
    """Assert that all ended at the last epoch, alike, and better than they began.

    :raises LegacyFault: ours is at the last epoch and the one of 1.1.12 is not
    """
    epochs = {trainer.kind: report["epoch"] for trainer, report in zip(trainers, reports, strict=True)}
    if epochs["ours"] == EPOCHS != epochs["legacy"]:
        raise LegacyFault(f"1.1.12 stayed at epoch {epochs['legacy']} of {EPOCHS} within {RUN_SECONDS:g} s")
    assert set(epochs.values()) == {EPOCHS}
    assert spread(reports) < 1e-4
    for trainer in trainers:
        if isinstance(trainer, LegacyTrainer):
            # the first epochs may pass before each knows of the other
            assert trainer.count_in_log("Averaged gradients with 2 peers") >= EPOCHS - 2
            assert trainer.count_in_log("Averaged parameters with 2 peers") >= EPOCHS - 2
    for report in reports:
        assert report["loss"] < 0.8 * initial_loss


def spread(reports: list[dict[str, Any]]) -> float:
    """The largest difference between any two peers' parameters."""
    unpacked = [[unpack_tensor(parameter).detach() for parameter in report["parameters"]] for report in reports]
    columns = [torch.stack(column) for column in zip(*unpacked, strict=True)]
    return max(float((column.amax(0) - column.amin(0)).max()) for column in columns)
