"""Checks of records: who may write what. A validator signs own records, checks those of others, strips signatures."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass, replace

from hivemind.clock import DHTExpiration

__all__ = ["CompositeValidator", "DHTRecord", "RecordValidatorBase"]


@dataclass(frozen=True, slots=True)
class DHTRecord:
    """One plain value, or one entry of a dictionary, as it stands on the wire.

    :param key: the 20 bytes of the key's id
    :param subkey: msgpack of the subkey; of nil for a plain value
    :param value: the serialized value, with the tails of its validators
    :param expiration_time: DHT time
    """

    key: bytes
    subkey: bytes
    value: bytes
    expiration_time: DHTExpiration


class RecordValidatorBase(ABC):
    """Decides whether a record is acceptable. Called on the network thread and in its pool: it must not block and must
    be safe to call from several threads at once. `validate` is given bytes of strangers and must not raise."""

    @abstractmethod
    def validate(self, record: DHTRecord) -> bool:
        """Whether the record is acceptable."""

    def sign_value(self, record: DHTRecord) -> bytes:
        """The value of an own record with what makes it acceptable to others, for instance a signature."""
        return record.value

    def strip_value(self, record: DHTRecord) -> bytes:
        """The value without what `sign_value` has added."""
        return record.value

    @property
    def priority(self) -> int:
        """Values are signed in ascending order of it; checked and stripped in descending order."""
        return 0

    def merge_with(self, other: RecordValidatorBase) -> bool:
        """Take over what ``other`` does, if one validator can do both.

        :returns: whether it did, so that ``other`` is not needed any more
        """
        return False


class CompositeValidator(RecordValidatorBase):
    """Several validators as one: a record is acceptable if it is to each of them."""

    def __init__(self, validators: Iterable[RecordValidatorBase] = ()) -> None:
        # replaced, never changed: another thread may be walking through it
        self._validators: tuple[RecordValidatorBase, ...] = ()
        self.extend(validators)

    def extend(self, validators: Iterable[RecordValidatorBase]) -> None:
        """Add validators; those that an earlier one can stand for are merged into it."""
        own = list(self._validators)
        for validator in validators:
            if not any(known.merge_with(validator) for known in own):
                own.append(validator)
        self._validators = tuple(sorted(own, key=lambda each: each.priority))

    def __bool__(self) -> bool:
        return bool(self._validators)

    def validate(self, record: DHTRecord) -> bool:
        for validator in reversed(self._validators):
            if not validator.validate(record):
                return False
            record = replace(record, value=validator.strip_value(record))
        return True

    def sign_value(self, record: DHTRecord) -> bytes:
        for validator in self._validators:
            record = replace(record, value=validator.sign_value(record))
        return record.value

    def strip_value(self, record: DHTRecord) -> bytes:
        for validator in reversed(self._validators):
            record = replace(record, value=validator.strip_value(record))
        return record.value
