"""A swarm that trains: peers with their model on a GPU, and one with it on its processor."""

from __future__ import annotations

from pathlib import Path

import pytest

from hivemind.compression import Float16Compression, Uniform8BitQuantization
from tests.support.emulated_gpu import GPU
from tests.support.training_swarm import TrainingSwarm, finish_alike, preload


@pytest.fixture(scope="module", autouse=True)
def _preloaded() -> None:
    preload()


@pytest.mark.timeout(300)
def test_gpus_and_processors_train_one_model(tmp_path: Path) -> None:
    options = {"grad_compression": Uniform8BitQuantization(), "load_state_compression": Float16Compression()}
    with TrainingSwarm(tmp_path, epochs=15, options=options) as swarm:
        peers = [swarm.join(device=device) for device in (str(GPU), str(GPU), "cpu")]
        swarm.train(*peers)
        peers[0].wait_for("epoch", epoch=5)
        newcomer = swarm.join(device=str(GPU))
        swarm.train(newcomer)
        finish_alike(*peers, newcomer)
        assert max(epoch["gradients"] for epoch in peers[0].epochs) >= 3, peers[0].report()
