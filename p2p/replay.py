"""The guard against replayed requests: which nonces have been seen. Pure; no clock of its own."""

from __future__ import annotations

from collections import Counter
from typing import Final

__all__ = ["MAX_NONCE_BYTES", "ReplayGuard"]

#: Hivemind 1.1 sends 8 bytes.
MAX_NONCE_BYTES: Final = 64


class ReplayGuard:
    """Remembers nonces for ``window`` seconds at least, in bounded memory.

    Nonces are kept in two generations; each lasts one window, so that nothing is searched for what has grown old.
    When there is no room, new requests are refused and none is forgotten before its time: a replay never passes.

    :param window: seconds for which a nonce must be remembered
    :param most_per_caller: nonces of one caller in one window, so that a caller that floods only shuts out itself
    :param most: nonces of all callers in one window
    """

    def __init__(self, window: float, *, most_per_caller: int = 1 << 16, most: int = 1 << 20) -> None:
        self._window = window
        self._most_per_caller = most_per_caller
        self._most = most
        self._began = float("-inf")
        self._young: set[bytes] = set()
        self._old: set[bytes] = set()
        self._counts: Counter[bytes] = Counter()

    def problem_with(self, caller: bytes, nonce: bytes, now: float) -> str:
        """Take note of a nonce.

        :param caller: who has sent it: proven, so that nobody can use up the share of another
        :param now: seconds on a clock that never goes back
        :returns: why the request may not pass; empty if it may
        """
        if not 0 < len(nonce) <= MAX_NONCE_BYTES:
            return f"a nonce of {len(nonce)} bytes, allowed are 1 to {MAX_NONCE_BYTES}"
        self._age(now)
        if nonce in self._young or nonce in self._old:
            return "its nonce was used before: it is a replay"
        if self._counts[caller] >= self._most_per_caller:
            return f"its sender has made more than {self._most_per_caller} requests in {self._window:g} s"
        if len(self._young) >= self._most:
            return f"more than {self._most} requests in {self._window:g} s"
        self._young.add(nonce)
        self._counts[caller] += 1
        return ""

    def _age(self, now: float) -> None:
        if now - self._began < self._window:
            return
        self._old = self._young if now - self._began < 2 * self._window else set()
        self._young = set()
        self._counts.clear()
        self._began = now

    def __len__(self) -> int:
        return len(self._young) + len(self._old)
