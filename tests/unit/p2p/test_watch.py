"""Handlers that harm are named in the log, rarely; all are counted."""

from __future__ import annotations

import asyncio
import time

import pytest

from hivemind.p2p import watch as module
from hivemind.p2p.transport import Mode
from hivemind.p2p.watch import HandlerWatch
from tests.support.conformance import STRANGER, Hanging, echo
from tests.support.waiting import eventually


def hold(seconds: float) -> None:
    """Hold the event loop, as a handler should not."""
    time.sleep(seconds)


@pytest.mark.asyncio
async def test_a_slow_handler_is_named_once(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_LOOK_SECONDS", 0.01)
    watch, hanging = HandlerWatch(slow_seconds=0.05), Hanging()
    handler = watch.watch("Slow.rpc_x", Mode.UNARY, hanging.unary)
    quick = watch.watch("Quick.rpc_x", Mode.UNARY, echo)
    running = [asyncio.ensure_future(handler(b"", STRANGER)) for _ in range(5)]  # type: ignore[call-arg, arg-type]
    await eventually(lambda: "Slow.rpc_x" in caplog.text, "the slow handler is named")
    for _ in range(20):
        await quick(b"", STRANGER)  # type: ignore[call-arg, arg-type]
        await asyncio.sleep(0.01)
    # five of them, many looks, one line: a peer cannot fill the log
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert str(STRANGER) in caplog.text
    assert "slow_handler_seconds" in caplog.text
    assert watch.stats["Slow.rpc_x"].running == 5
    for task in running:
        task.cancel()
    await asyncio.wait(running)
    assert watch.stats["Slow.rpc_x"].running == 0
    assert watch.stats["Slow.rpc_x"].errors == 0
    assert watch.stats["Quick.rpc_x"].calls == 20
    # nothing runs: the timer ends
    await eventually(lambda: watch._looking is None, "no timer is left")


@pytest.mark.asyncio
async def test_streams_may_run_long(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_LOOK_SECONDS", 0.01)
    watch, hanging = HandlerWatch(slow_seconds=0.01), Hanging()

    class Stream:
        remote_id = STRANGER

    task = asyncio.ensure_future(watch.watch("S", Mode.MESSAGES, hanging.stream)(Stream()))  # type: ignore[call-arg, arg-type]
    await hanging.entered.wait()
    await asyncio.sleep(0.1)
    task.cancel()
    await asyncio.wait([task])
    assert caplog.records == []
    assert watch.stats["S"].calls == 1


@pytest.mark.asyncio
@pytest.mark.parametrize("place", ["at first", "after a wait", "when cancelled"])
async def test_a_handler_that_holds_the_loop_is_named(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    monkeypatch.setattr(module, "BLOCK_SECONDS", 0.05)
    watch, entered = HandlerWatch(), asyncio.Event()

    async def holds(request: object, remote: object) -> bytes:
        if place == "at first":
            hold(0.06)
        await asyncio.sleep(0)
        if place == "after a wait":
            hold(0.06)
        entered.set()
        try:
            await asyncio.sleep(0 if place != "when cancelled" else 100)
        finally:
            if place == "when cancelled":
                hold(0.06)
        return b"answer"

    handler = watch.watch("Holds.rpc_x", Mode.UNARY, holds)
    task = asyncio.ensure_future(handler(b"", STRANGER))  # type: ignore[call-arg, arg-type]
    await entered.wait()
    if place == "when cancelled":
        task.cancel()
    await asyncio.wait([task])
    assert task.cancelled() if place == "when cancelled" else task.result() == b"answer"
    assert watch.stats["Holds.rpc_x"].blocked == 1
    assert "Holds.rpc_x" in caplog.text
    assert "asyncio.to_thread" in caplog.text
    watch.close()


@pytest.mark.asyncio
async def test_what_waits_long_holds_nothing(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BLOCK_SECONDS", 0.05)
    watch = HandlerWatch()

    async def wait(request: object, remote: object) -> bytes:
        await asyncio.sleep(0.1)
        return b""

    await watch.watch("Waits.rpc_x", Mode.UNARY, wait)(b"", STRANGER)  # type: ignore[call-arg, arg-type]
    assert watch.stats["Waits.rpc_x"].blocked == 0
    assert caplog.records == []
    watch.close()
