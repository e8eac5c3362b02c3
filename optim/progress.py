"""Progress reports in the DHT: one signed record per peer under the run's key (hivemind 1.1 wire format).

Key ``<run_id>_progress``, subkey the owner marker of the peer's RSA key, value a map of exactly six fields, or nil as
goodbye. Anything else under the key is refused, here and by every peer that validates.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from hivemind.clock import MAX_DHT_TIME_DISCREPANCY_SECONDS, DHTExpiration
from hivemind.dht import DHTID, DHTRecord, RecordValidatorBase
from hivemind.errors import SerializationError
from hivemind.optim.epoch import LocalTrainingProgress
from hivemind.serializer import MSGPackSerializer

__all__ = ["ProgressValidator", "Report", "parse_record", "progress_key", "read_reports", "record_value"]

#: Order of the fields when packed.
_FIELDS = ("peer_id", "epoch", "samples_accumulated", "samples_per_second", "time", "client_mode")
_OWNER = re.compile(rb".*\[owner:(.+?)\].*", re.DOTALL)
#: Counts beyond these are no training run's; a bound keeps sums exact.
_MAX_EPOCH = 2**40
_MAX_SAMPLES = 2**48
_MAX_PEER_ID_BYTES = 64


class Report(NamedTuple):
    """A peer's progress and the network time up to which it is valid."""

    progress: LocalTrainingProgress
    expiration_time: DHTExpiration


def progress_key(run_id: str) -> str:
    """The DHT key under which the peers of a run report."""
    return f"{run_id}_progress"


def record_value(progress: LocalTrainingProgress) -> dict[str, Any]:
    """The map that is stored for ``progress``."""
    return {name: getattr(progress, name) for name in _FIELDS}


def parse_record(value: object) -> LocalTrainingProgress | None:
    """
    :param value: the decoded value of a record
    :returns: None for a goodbye
    :raises SerializationError: unless it has exactly the fields and types of a report
    """
    if value is None:
        return None
    if not isinstance(value, dict) or value.keys() != set(_FIELDS):
        raise SerializationError("a progress report has exactly the fields " + ", ".join(_FIELDS))
    peer_id, epoch, samples, speed, time, client_mode = (value[name] for name in _FIELDS)
    # type(), not isinstance: True is an int to Python, and a float where an int belongs is refused by all peers
    if type(peer_id) is not bytes or not 0 < len(peer_id) <= _MAX_PEER_ID_BYTES:
        raise SerializationError("peer_id: not the bytes of a peer id")
    if type(epoch) is not int or not 0 <= epoch <= _MAX_EPOCH:
        raise SerializationError(f"epoch: not an int from 0 to {_MAX_EPOCH}")
    if type(samples) is not int or not 0 <= samples <= _MAX_SAMPLES:
        raise SerializationError(f"samples_accumulated: not an int from 0 to {_MAX_SAMPLES}")
    if type(speed) is not float or not 0 <= speed < math.inf:
        raise SerializationError("samples_per_second: not a finite float >= 0")
    if type(time) is not float or not math.isfinite(time):
        raise SerializationError("time: not a finite float")
    if type(client_mode) is not bool:
        raise SerializationError("client_mode: not a bool")
    return LocalTrainingProgress(peer_id, epoch, samples, speed, time, client_mode)


def read_reports(entries: Mapping[Any, Any], *, now: DHTExpiration) -> tuple[dict[bytes, Report | None], int]:
    """The reports among the entries of the progress record.

    :param entries: subkey to an object with ``value`` and ``expiration_time``
    :param now: reports from the future are refused beyond the clock difference that peers may have
    :returns: subkey to report, None where the peer said goodbye; and how many entries were refused
    """
    reports: dict[bytes, Report | None] = {}
    refused = 0
    for subkey, entry in entries.items():
        try:
            progress = parse_record(entry.value)
        except SerializationError:
            refused += 1
            continue
        if not isinstance(subkey, bytes) or (
            progress is not None and progress.time > now + MAX_DHT_TIME_DISCREPANCY_SECONDS
        ):
            refused += 1
        else:
            reports[subkey] = None if progress is None else Report(progress, entry.expiration_time)
    return reports, refused


class ProgressValidator(RecordValidatorBase):
    """Refuses whatever is no progress report under a run's progress key; other keys are not its business.

    Runs after the signature has been checked and stripped.

    :param run_id: the run whose key it guards
    """

    def __init__(self, run_id: str) -> None:
        self._keys = frozenset({DHTID.generate(source=progress_key(run_id)).to_bytes()})

    @property
    def priority(self) -> int:
        return 0

    def validate(self, record: DHTRecord) -> bool:
        if record.key not in self._keys:
            return True
        try:
            subkey = MSGPackSerializer.loads(record.subkey)
            if not isinstance(subkey, bytes) or _OWNER.fullmatch(subkey) is None:
                return False
            parse_record(MSGPackSerializer.loads(record.value))
        except SerializationError:
            return False
        return True

    def sign_value(self, record: DHTRecord) -> bytes:
        return record.value

    def strip_value(self, record: DHTRecord) -> bytes:
        return record.value

    def merge_with(self, other: RecordValidatorBase) -> bool:
        if not isinstance(other, ProgressValidator):
            return False
        self._keys = self._keys | other._keys
        return True
