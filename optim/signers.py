"""Which key signs the progress reports of this process.

A report stands under the marker of its signer's key, so two trackers of one run must not sign with the same: each would
overwrite the other's report, and the swarm would count one peer.
"""

from __future__ import annotations

import threading

from hivemind.dht import RSAPrivateKey

__all__ = ["Signer"]

_lock = threading.Lock()
#: Runs in which a tracker of this process signs with the process-wide key.
_runs: set[str] = set()


class Signer:
    """The key of one tracker: the process-wide one for the first of a run, as hivemind 1.1 has it; one of its own for
    every further. Thread-safe.

    :param run_id: the run
    :param key: the key that the user chose, if any
    """

    def __init__(self, run_id: str, key: RSAPrivateKey | None = None) -> None:
        self._run_id = run_id
        self._is_process_wide = False
        if key is None:
            with _lock:
                self._is_process_wide = run_id not in _runs
                _runs.add(run_id)
            key = RSAPrivateKey.process_wide() if self._is_process_wide else RSAPrivateKey()
        self.key = key

    def release(self) -> None:
        """The tracker reports no more; idempotent."""
        with _lock:
            if self._is_process_wide:
                self._is_process_wide = False
                _runs.discard(self._run_id)
