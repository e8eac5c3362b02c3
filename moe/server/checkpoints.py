"""Experts on disk: ``<folder>/<uid>/checkpoint_<time>.pt`` and a link ``checkpoint_last.pt``, as in hivemind 1.1.

A checkpoint has its final name when all of it is on disk, so that a server which is killed while it writes has lost
nothing but that. Loading runs no code from the file.
"""

from __future__ import annotations

import asyncio
import os
import pickle
import time
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any, Final

import torch

from hivemind.errors import ConfigError
from hivemind.log import get_logger
from hivemind.moe.server.module_backend import ModuleBackend
from hivemind.moe.uid import ExpertUID, is_valid_uid
from hivemind.runtime import in_pool

__all__ = [
    "CheckpointSaver",
    "check_folder",
    "copy_state",
    "load_experts",
    "saved_uids",
    "store_experts",
    "write_checkpoint",
]

logger = get_logger(__name__)

_LAST: Final = "checkpoint_last.pt"
#: Checkpoints of an expert that a server keeps of those which it has written itself.
_KEPT: Final = 3


def store_experts(experts: Mapping[ExpertUID, ModuleBackend], checkpoint_dir: Path | str) -> None:
    """Write a checkpoint of each expert, while nobody uses them.

    :raises OSError: if one cannot be written; the older ones are as they were
    """
    for uid, backend in experts.items():
        write_checkpoint(Path(checkpoint_dir), uid, backend.state_dict())


def load_experts(experts: Mapping[ExpertUID, ModuleBackend], checkpoint_dir: Path | str) -> None:
    """Load the last checkpoint of each expert that has one.

    :raises ConfigError: if one cannot be read or does not fit its expert; names the file
    """
    for uid, backend in experts.items():
        path = Path(checkpoint_dir) / uid / _LAST
        if not path.exists():
            if path.is_symlink():
                raise ConfigError("checkpoint_dir", str(path), "a link to a checkpoint that is there")
            continue
        try:
            state = torch.load(path, map_location=backend.device, weights_only=True)
        except (OSError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError) as error:
            raise ConfigError("checkpoint_dir", str(path), f"a whole checkpoint ({error})") from error
        if not isinstance(state, dict):
            raise ConfigError("checkpoint_dir", str(path), "a checkpoint of an expert")
        try:
            backend.load_state_dict(state)
        except ConfigError as error:
            raise ConfigError("checkpoint_dir", str(path), f"a checkpoint that fits: {error}") from error
        logger.info("%s: loaded %s", uid, path)


def saved_uids(checkpoint_dir: Path | str) -> list[ExpertUID]:
    """Those that have a checkpoint, in order of their names."""
    return sorted(
        path.parent.name for path in Path(checkpoint_dir).glob(f"*/{_LAST}") if is_valid_uid(path.parent.name)
    )


def check_folder(checkpoint_dir: Path | str) -> Path:
    """The folder, made if it is missing.

    :raises ConfigError: if it cannot be written to
    """
    folder = Path(checkpoint_dir)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError("checkpoint_dir", str(folder), f"a folder ({error})") from error
    if not os.access(folder, os.W_OK):
        raise ConfigError("checkpoint_dir", str(folder), "a folder that can be written to")
    return folder


def write_checkpoint(folder: Path, uid: ExpertUID, state: Any) -> Path:
    """Write one checkpoint, and let the link show to it.

    :raises ConfigError: if the uid is no name of a folder
    :raises OSError: if it cannot be written
    """
    if "/" in uid or "\0" in uid:
        raise ConfigError("expert uid", uid, "with checkpoints, a name without '/'")
    target = folder / uid
    target.mkdir(parents=True, exist_ok=True)
    name = f"checkpoint_{time.strftime('%Y-%m-%d_%H-%M-%S', time.gmtime())}_{time.time_ns() % 10**9:09}.pt"
    draft, link = target / f".{name}.{os.getpid()}", target / f".{_LAST}.{os.getpid()}"
    try:
        with draft.open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        draft.rename(target / name)
        link.unlink(missing_ok=True)
        link.symlink_to(name)
        link.replace(target / _LAST)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise
    return target / name


def copy_state(backend: ModuleBackend) -> Any:
    """A copy of an expert's state on the CPU; on the thread that trains it."""
    return _copy(backend.state_dict())


def _copy(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        return {key: _copy(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_copy(item) for item in value)
    return value


class CheckpointSaver:
    """Writes those experts that were trained since their last checkpoint. Owned by the network loop.

    :param experts: by uid; what is added to it later is written, too
    :param snapshot: gives a copy of an expert's state between two of its batches
    :param period: seconds between two looks
    """

    def __init__(
        self,
        experts: Mapping[ExpertUID, ModuleBackend],
        folder: Path,
        snapshot: Callable[[ModuleBackend], Awaitable[Any]],
        period: float,
    ) -> None:
        self._experts = experts
        self._folder = folder
        self._snapshot = snapshot
        self._period = period
        self._saved: dict[ExpertUID, int] = {uid: expert.updates for uid, expert in experts.items()}
        self._written: dict[ExpertUID, list[Path]] = {}

    def changed(self) -> list[ModuleBackend]:
        """Those that were trained since their last checkpoint, or have none."""
        return [
            expert
            for uid, expert in self._experts.items()
            if self._saved.get(uid) != expert.updates or not (self._folder / uid / _LAST).exists()
        ]

    async def keep(self) -> None:
        """Write what has changed every period, until cancelled."""
        while True:
            await asyncio.sleep(self._period)
            for expert in self.changed():
                await self.save(expert)

    async def save(self, expert: ModuleBackend) -> None:
        """Write one; what goes wrong is logged, as the expert is served all the same."""
        updates = expert.updates
        try:
            await in_pool(self.write, expert.name, await self._snapshot(expert))
        except (OSError, RuntimeError) as error:
            logger.error("%s: no checkpoint was written: %s", expert.name, error)
        else:
            self._saved[expert.name] = updates

    def write(self, uid: ExpertUID, state: Any) -> None:
        """Write a state, and remove the oldest of those that were written here."""
        written = self._written.setdefault(uid, [])
        written.append(write_checkpoint(self._folder, uid, state))
        while len(written) > _KEPT:
            written.pop(0).unlink(missing_ok=True)
