"""The progress tracker: knows when the swarm is ready for the next epoch."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager
from typing import Any

from hivemind.clock import Deadline, DHTExpiration
from hivemind.config import check_count, make_options
from hivemind.dht import DHT, DHTNode, RSAPrivateKey, RSASignatureValidator
from hivemind.errors import DeadlineExceeded, HivemindError
from hivemind.identity import PeerID
from hivemind.log import get_logger
from hivemind.optim.config import TrackerOptions
from hivemind.optim.epoch import GlobalTrainingProgress, LocalTrainingProgress, Readiness
from hivemind.optim.performance import PerformanceEMA
from hivemind.optim.progress import ProgressValidator
from hivemind.optim.reporting import ProgressReporting
from hivemind.optim.signers import Signer
from hivemind.optim.swarm_view import SwarmView
from hivemind.runtime import HivemindFuture, get_runtime, wait_for

__all__ = ["ProgressTracker"]

logger = get_logger(__name__)

#: Seconds for the goodbye at shutdown.
_GOODBYE_SECONDS = 0.8


class ProgressTracker:
    """Tells the swarm how far this peer is, and this peer how far the swarm is.

    Reports and fetches run on the network thread; reading is immediate and from any thread. The training loop (one
    thread) reports its progress and decides by `ready_to_update_epoch`.

    :param dht: a running DHT; gets the validators of progress records
    :param prefix: the run: reports stand under ``<prefix>_progress``
    :param target_batch_size: samples of the whole swarm that end an epoch; all peers of a run must use the same
    :param client_mode: whether this peer accepts no connections; None: as ``dht``
    :param private_key: signs the reports; None: the key of this process, or one of its own where another tracker of
        this run in this process has that
    :param daemon: accepted for code written for hivemind 1.1; there is no thread to be one
    :param start: start at once; otherwise call `start`
    :param options: see `TrackerOptions`
    :raises ConfigError: on a wrong argument or an unknown option
    """

    def __init__(
        self,
        dht: DHT,
        prefix: str,
        target_batch_size: int,
        *,
        client_mode: bool | None = None,
        private_key: RSAPrivateKey | None = None,
        daemon: bool = True,
        start: bool,
        **options: Any,
    ) -> None:
        check_count("target_batch_size", target_batch_size)
        self.dht = dht
        self.prefix = prefix
        self.target_batch_size = target_batch_size
        self.client_mode = dht.client_mode if client_mode is None else client_mode
        settings = make_options(TrackerOptions, options, where="ProgressTracker")
        self.status_loglevel = settings.status_loglevel
        self._signer = Signer(prefix, private_key)
        signatures = RSASignatureValidator(self._signer.key)
        self._own_subkey = signatures.local_public_key
        dht.add_validators([ProgressValidator(prefix), signatures])
        self._view = SwarmView(
            dht.peer_id.to_bytes(), target_batch_size, settings, client_mode=self.client_mode, on_change=self._changed
        )
        # set on the network thread once it runs; read from any
        self._reporting: ProgressReporting | None = None
        self._running: HivemindFuture[None] | None = None
        self._closed = False
        if start:
            self.start()

    def start(self) -> None:
        """Begin to report and to fetch; idempotent.

        :raises RuntimeError: after `shutdown`
        """
        if self._closed:
            raise RuntimeError("the progress tracker has been shut down")
        if self._running is None:
            self._running = self.dht.run_coroutine(self._run, return_future=True)

    @property
    def global_epoch(self) -> int:
        """The newest epoch of the swarm."""
        return self._view.global_epoch

    @property
    def global_progress(self) -> GlobalTrainingProgress:
        """The swarm as of now."""
        return self._view.swarm

    @property
    def local_progress(self) -> LocalTrainingProgress:
        """This peer as of its last report."""
        return self._view.own

    @property
    def performance_ema(self) -> PerformanceEMA:
        """How fast this peer is."""
        return self._view.performance

    @property
    def readiness(self) -> Readiness:
        """Whether the epoch should end now, and why; true when it should."""
        return self._view.readiness

    @property
    def ready_to_update_epoch(self) -> bool:
        """Whether the epoch should end now."""
        return bool(self._view.readiness)

    @property
    def estimated_next_update_time(self) -> DHTExpiration:
        """Network time at which the epoch is expected to end; now, if it should end now."""
        return self._view.swarm.eta_next_epoch

    @property
    def fetched_global_progress_this_epoch(self) -> bool:
        """Whether the others' reports were fetched since this peer entered its epoch."""
        return self._view.fetched_this_epoch

    @property
    def expected_peers(self) -> frozenset[PeerID]:
        """The others that are likely to come to the next round."""
        return frozenset(PeerID(peer.peer_id) for peer in self._view.others)

    @property
    def others_share_state(self) -> bool:
        """Whether any other peer is known that newcomers could download from."""
        return any(not peer.client_mode for peer in self._view.others)

    def report_local_progress(self, local_epoch: int, samples_accumulated: int) -> None:
        """This peer is in ``local_epoch`` and has gathered ``samples_accumulated`` in it so far. Returns at once.

        :raises ConfigError: unless both are ints >= 0
        """
        check_count("local_epoch", local_epoch, least=0)
        check_count("samples_accumulated", samples_accumulated, least=0)
        self._view.set_progress(local_epoch, samples_accumulated)

    def update_epoch(self, new_epoch: int | None = None) -> int:
        """This peer enters ``new_epoch`` (None: the next one) with no samples; returns it."""
        if new_epoch is None:
            new_epoch = self._view.own.epoch + 1
        check_count("new_epoch", new_epoch, least=0)
        self._view.enter_epoch(new_epoch)
        return new_epoch

    def pause_updates(self) -> AbstractContextManager[None]:
        """A context for rounds and downloads: the time within does not count against this peer's speed."""
        return self._view.pause()

    def mark_met(self, peers: Iterable[PeerID], epoch: int) -> None:
        """``peers`` were in the round with which this peer enters ``epoch``: they enter it too."""
        self._view.mark_met((peer.to_bytes() for peer in peers), epoch)

    def mark_missed(self, peers: Iterable[PeerID]) -> None:
        """``peers`` were expected in a round and did not come, or broke off: they do not count until they report."""
        self._view.mark_missed(peer.to_bytes() for peer in peers)

    def wait_until_fetched(self, timeout: float) -> bool:
        """Wait for the first view on the swarm; False if there is none after ``timeout`` seconds."""
        return self._view.fetched.wait(timeout)

    def fetch(self, timeout: float) -> bool:
        """Ask for the others' reports now and wait for the answer; False if there is none after ``timeout`` seconds."""
        reporting = self._reporting
        if reporting is None or not self.is_alive:
            return self.wait_until_fetched(timeout)
        asked = get_runtime().submit(reporting.fetch)
        try:
            wait_for(asked, Deadline.after(timeout), "the progress of the swarm")
        except HivemindError as error:
            asked.cancel()
            logger.debug("no progress of the swarm: %s", error)
            return False
        return True

    @property
    def is_alive(self) -> bool:
        """Whether it reports and fetches."""
        return self._running is not None and not self._running.done()

    def shutdown(self, timeout: float | None = None) -> None:
        """Withdraw the report and stop; idempotent. Takes a second at the most, or ``timeout`` if that is less."""
        self._closed = True
        self._signer.release()
        running, reporting = self._running, self._reporting
        if running is None or running.done():
            return
        if reporting is None:
            running.cancel()
            return
        reporting.stop()
        bound = _GOODBYE_SECONDS + 0.2
        try:
            wait_for(running, Deadline.after(bound if timeout is None else min(timeout, bound)), "the goodbye")
        except DeadlineExceeded:
            running.cancel()
        except HivemindError as error:
            logger.debug("while the progress tracker stopped: %s", error)

    def __enter__(self) -> ProgressTracker:
        self.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.shutdown()

    async def _run(self, _: DHT, node: DHTNode) -> None:
        self._reporting = ProgressReporting(node, self._view, self.prefix, self._own_subkey)
        await self._reporting.run(_GOODBYE_SECONDS)

    def _changed(self, new_epoch: bool) -> None:
        reporting = self._reporting
        if reporting is not None:
            reporting.progressed(new_epoch)
