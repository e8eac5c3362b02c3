"""Averagers of either kind, with the same actions on both, and the judge of a round among them."""

from __future__ import annotations

import concurrent.futures
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import torch

from hivemind.averaging import DecentralizedAverager
from hivemind.compression import BlockwiseQuantization, Float16Compression, NoCompression
from hivemind.utils import get_dht_time
from tests.compat.nodes import LegacyNode, OurNode
from tests.compat.packing import pack_tensor, unpack_tensor
from tests.compat.pairs import Kind
from tests.support.legacy import LegacyFault

STEP_SECONDS = 60.0  # the deadline that every round gets; typical is below 1
GRACE_SECONDS = 30.0  # a member that is this late after its own deadline hangs

COMPRESSIONS = {"NONE": NoCompression, "FLOAT16": Float16Compression, "BLOCKWISE_8BIT": BlockwiseQuantization}


class Averager(Protocol):
    """An averager with a step that runs while others' do."""

    kind: Kind
    peer_id: str

    def begin_step(self, schedule_in: float | None = None, **options: Any) -> None:
        """Start one round, declared for ``schedule_in`` seconds from now; ``options`` are those of ``step``."""

    def end_step(self) -> dict[str, Any]:
        """How it ended: ``gathered`` by peer id, or ``raised`` and ``text``; and ``tensors`` as they are now.

        :raises LegacyFault: a member of 1.1.12 is far past its own deadline, or dead
        """

    def load_state(self) -> Any:
        """``metadata`` and ``tensors`` downloaded from another peer, or None."""


class OurAverager:
    """:class:`Averager` on this library."""

    kind: Kind = "ours"

    def __init__(self, node: OurNode, averager: DecentralizedAverager) -> None:
        self.averager = averager
        self.peer_id = node.peer_id
        self._pool = concurrent.futures.ThreadPoolExecutor(1)
        self._step: concurrent.futures.Future[Any] | None = None

    def begin_step(self, schedule_in: float | None = None, **options: Any) -> None:
        scheduled = None if schedule_in is None else get_dht_time() + schedule_in
        timing: dict[str, Any] = {"scheduled_time": scheduled, "timeout": STEP_SECONDS, "allow_retries": False}
        self._step = self._pool.submit(lambda: self.averager.step(**timing, **options))

    def end_step(self) -> dict[str, Any]:
        assert self._step is not None
        result: dict[str, Any]
        try:
            gathered = self._step.result(STEP_SECONDS + GRACE_SECONDS)
            result = {"gathered": {peer_id.to_base58(): data for peer_id, data in gathered.items()}}
        except Exception as error:  # noqa: BLE001 (the test judges it)
            result = {"raised": type(error).__name__, "text": str(error)}
        with self.averager.get_tensors() as tensors:
            return {**result, "tensors": [tensor.detach().clone() for tensor in tensors]}

    def load_state(self) -> Any:
        state = self.averager.load_state_from_peers(timeout=STEP_SECONDS)
        if state is None:
            return None
        metadata, tensors = state
        return {"metadata": metadata, "tensors": list(tensors)}

    def close(self) -> None:
        self.averager.shutdown()
        self._pool.shutdown()


class LegacyAverager:
    """:class:`Averager` on hivemind 1.1.12."""

    kind: Kind = "legacy"

    def __init__(self, node: LegacyNode) -> None:
        self.process = node.process
        self.peer_id = node.peer_id
        self._step: concurrent.futures.Future[Any] | None = None

    def begin_step(self, schedule_in: float | None = None, **options: Any) -> None:
        timing = {"schedule_in": schedule_in, "timeout": STEP_SECONDS, "allow_retries": False}
        self._step = self.process.submit("averager_step", name="a", **timing, **options)

    def end_step(self) -> dict[str, Any]:
        assert self._step is not None
        result: dict[str, Any] = self.process.result(self._step, STEP_SECONDS + GRACE_SECONDS, "averager_step")
        return {**result, "tensors": [unpack_tensor(tensor) for tensor in result["tensors"]]}

    def load_state(self) -> Any:
        state = self.process.call("averager_load_state", name="a", timeout=STEP_SECONDS)
        if state is None:
            return None
        return {**state, "tensors": [unpack_tensor(tensor) for tensor in state["tensors"]]}


@contextmanager
def start_averager(
    node: OurNode | LegacyNode,
    tensors: list[torch.Tensor],
    compression: str = "NONE",
    state_compression: str = "NONE",
    **options: Any,
) -> Iterator[OurAverager | LegacyAverager]:
    """An averager on ``node`` with copies of ``tensors``; ``options`` are those of ``DecentralizedAverager``."""
    if isinstance(node, LegacyNode):
        node.process.call(
            "averager_start",
            name="a",
            dht="d",
            tensors=[pack_tensor(tensor) for tensor in tensors],
            compression=compression,
            state_compression=state_compression,
            **options,
        )
        yield LegacyAverager(node)
        return
    options["compression"] = COMPRESSIONS[compression]()
    options["state_compression"] = COMPRESSIONS[state_compression]()
    averager = OurAverager(
        node, DecentralizedAverager([tensor.clone() for tensor in tensors], node.dht, start=True, **options)
    )
    try:
        yield averager
    finally:
        averager.close()


def check_round(
    members: list[OurAverager | LegacyAverager],
    before: list[list[torch.Tensor]],
    weights: list[float],
    gathered: list[Any],
    tolerance: float = 1e-5,
) -> list[list[torch.Tensor]]:
    """Assert that a round ended with all members, everybody's data, and the weighted mean at every one.

    :returns: everybody's tensors after the round

    :raises LegacyFault: all members of ours are right and one of 1.1.12 is not; or the round ended consistently for our
        members without one that is of 1.1.12: what is left out was told to nobody but it
    """
    results = [member.end_step() for member in members]
    everybody = {member.peer_id: data for member, data in zip(members, gathered, strict=True)}
    mean = weighted_mean(before, weights)
    problems = {
        index: problem
        for index, result in enumerate(results)
        if (problem := _problem(result, everybody, mean, tolerance))
    }
    ours = [problem for index, problem in problems.items() if members[index].kind == "ours"]
    if problems and not ours:
        raise LegacyFault(f"a member of 1.1.12 ended wrong while ours are right: {list(problems.values())}")
    if ours and (missing := _left_out(members, results, before, weights, tolerance)) is not None:
        raise LegacyFault(f"the round ended without member {missing}, of 1.1.12")
    assert not problems, f"{problems}; all: {[_summary(result) for result in results]}"
    return [result["tensors"] for result in results]


def weighted_mean(tensors: list[list[torch.Tensor]], weights: list[float]) -> list[torch.Tensor]:
    """Mean over the first index, in float64, as the dtype of the input."""
    total = sum(weights)
    return [
        sum((t.double() * (weight / total) for t, weight in zip(column, weights, strict=True)), torch.zeros(())).to(
            column[0].dtype
        )
        for column in zip(*tensors, strict=True)
    ]


def _problem(result: dict[str, Any], gathered: dict[str, Any], mean: list[torch.Tensor], tolerance: float) -> str:
    """What is wrong with a member's result; empty if nothing is."""
    if "raised" in result:
        return f"{result['raised']}: {result['text']}"
    if result["gathered"] != gathered:
        return f"gathered {result['gathered']} instead of {gathered}"
    return "" if _are_close(result["tensors"], mean, tolerance) else _difference(result["tensors"], mean, tolerance)


def _left_out(
    members: list[OurAverager | LegacyAverager],
    results: list[dict[str, Any]],
    before: list[list[torch.Tensor]],
    weights: list[float],
    tolerance: float,
) -> int | None:
    """The one member of 1.1.12, in a group of at least three, without which all members of ours have the mean."""
    if len(members) < 3:
        return None
    ours = [result["tensors"] for member, result in zip(members, results, strict=True) if member.kind == "ours"]
    for index, member in enumerate(members):
        if member.kind == "ours":
            continue
        rest = [other for other in range(len(members)) if other != index]
        mean = weighted_mean([before[other] for other in rest], [weights[other] for other in rest])
        if all(_are_close(tensors, mean, tolerance) for tensors in ours):
            return index
    return None


def _are_close(left: list[torch.Tensor], right: list[torch.Tensor], tolerance: float) -> bool:
    return all(torch.allclose(a, b, rtol=tolerance, atol=tolerance) for a, b in zip(left, right, strict=True))


def _difference(left: list[torch.Tensor], right: list[torch.Tensor], tolerance: float) -> str:
    """How many elements of which tensors are off, and by how much."""
    texts = []
    for index, (a, b) in enumerate(zip(left, right, strict=True)):
        off = ~torch.isclose(a, b, rtol=tolerance, atol=tolerance)
        if off.any():
            worst = float((a - b).abs().max())
            texts.append(f"{int(off.sum())} of {a.numel()} elements of tensor {index} are off by up to {worst:.3g}")
    return f"not the mean: {'; '.join(texts)}"


def _summary(result: dict[str, Any]) -> str:
    ending = result.get("raised") or sorted(result["gathered"])
    return f"{ending} {[round(tensor.double().mean().item(), 4) for tensor in result['tensors']]}"
