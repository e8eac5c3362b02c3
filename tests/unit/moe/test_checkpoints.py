"""Experts on disk: whole or not at all, and refused where they do not fit."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from hivemind.compression import BatchTensorDescriptor
from hivemind.errors import ConfigError
from hivemind.moe.server.checkpoints import (
    CheckpointSaver,
    check_folder,
    copy_state,
    load_experts,
    saved_uids,
    store_experts,
    write_checkpoint,
)
from hivemind.moe.server.module_backend import ModuleBackend


def make_expert(name: str = "e.1", width: int = 4) -> ModuleBackend:
    linear = nn.Linear(width, width)
    schema = [BatchTensorDescriptor(width, dtype=torch.float32)]
    return ModuleBackend(name, linear, optimizer=torch.optim.Adam(linear.parameters()), args_schema=schema)


def train(expert: ModuleBackend) -> None:
    expert.backward(torch.randn(2, 4), torch.randn(2, 4))


def test_an_expert_continues_where_it_was(tmp_path: Path) -> None:
    expert, twin = make_expert(), make_expert()
    train(expert)
    store_experts({"e.1": expert}, tmp_path)
    load_experts({"e.1": twin, "e.2": make_expert("e.2")}, tmp_path)
    assert saved_uids(tmp_path) == ["e.1"]
    for _ in range(2):
        assert all(torch.equal(a, b) for a, b in zip(expert.module.parameters(), twin.module.parameters(), strict=True))
        torch.manual_seed(1)
        train(expert)
        torch.manual_seed(1)
        train(twin)


def test_a_write_that_fails_leaves_the_last_one(tmp_path: Path) -> None:
    expert = make_expert()
    store_experts({"e.1": expert}, tmp_path)
    files = {path.name for path in (tmp_path / "e.1").iterdir()}
    with pytest.raises((AttributeError, TypeError, RuntimeError)):
        write_checkpoint(tmp_path, "e.1", {"module": lambda: None})
    assert {path.name for path in (tmp_path / "e.1").iterdir()} == files
    load_experts({"e.1": expert}, tmp_path)


def test_the_link_shows_to_the_last(tmp_path: Path) -> None:
    for number in range(2):
        last = write_checkpoint(tmp_path, "e.1", number)
    assert (tmp_path / "e.1" / "checkpoint_last.pt").readlink() == Path(last.name)
    assert len(list((tmp_path / "e.1").glob("checkpoint_2*.pt"))) == 2


def spoil(path: Path, kind: str) -> None:
    last = path / "e.1" / "checkpoint_last.pt"
    match kind:
        case "cut":
            content = last.read_bytes()
            last.resolve().write_bytes(content[: len(content) // 2])
        case "gone":
            last.resolve().unlink()
        case "code":
            torch.save(print, last.resolve())
        case "width":
            store_experts({"e.1": make_expert(width=5)}, path)
        case "other":
            write_checkpoint(path, "e.1", {"something": "else"})
        case "text":
            write_checkpoint(path, "e.1", "text")


@pytest.mark.parametrize("kind", ["cut", "gone", "code", "width", "other", "text"])
def test_what_does_not_fit_is_named(tmp_path: Path, kind: str) -> None:
    store_experts({"e.1": make_expert()}, tmp_path)
    spoil(tmp_path, kind)
    with pytest.raises(ConfigError, match=r"e\.1.checkpoint_last\.pt"):
        load_experts({"e.1": make_expert()}, tmp_path)


def test_only_what_was_trained_is_written_and_old_ones_go(tmp_path: Path) -> None:
    experts = {"e.1": make_expert("e.1"), "e.2": make_expert("e.2")}

    async def snapshot(expert: ModuleBackend) -> Any:
        return copy_state(expert)

    saver = CheckpointSaver(experts, tmp_path, snapshot, period=1)

    async def save() -> int:
        changed = saver.changed()
        for expert in changed:
            await saver.save(expert)
        return len(changed)

    assert asyncio.run(save()) == 2
    assert asyncio.run(save()) == 0
    for _ in range(5):
        train(experts["e.1"])
        assert asyncio.run(save()) == 1
    assert len(list((tmp_path / "e.1").glob("checkpoint_2*.pt"))) == 3
    assert len(list((tmp_path / "e.2").glob("checkpoint_2*.pt"))) == 1


def test_a_copy_is_of_its_moment() -> None:
    expert = make_expert()
    train(expert)
    state = copy_state(expert)
    before = state["module"]["weight"].clone()
    train(expert)
    assert torch.equal(state["module"]["weight"], before)
    assert state["optimizer"]["param_groups"] == expert.state_dict()["optimizer"]["param_groups"]


def test_names_and_folders_that_cannot_be(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="uid"):
        write_checkpoint(tmp_path, "../e.1", {})
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="checkpoint_dir"):
        check_folder(tmp_path / "file")
