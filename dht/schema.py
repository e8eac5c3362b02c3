"""Records that must fit a schema: a pydantic model whose fields are keys of the DHT (hivemind 1.1 wire format, 3.6).

Models of pydantic 2 and of its ``pydantic.v1`` are taken alike. Pydantic itself is loaded by whoever writes a model: it
is no dependency of this package.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any, ClassVar, Final

from hivemind.dht.records import IS_REGULAR_VALUE
from hivemind.dht.routing import DHTID
from hivemind.dht.signing import OWNED_SUBKEY
from hivemind.dht.validation import DHTRecord, RecordValidatorBase
from hivemind.errors import ConfigError, SerializationError
from hivemind.log import get_logger
from hivemind.serializer import MSGPackSerializer

__all__ = ["BytesWithPublicKey", "SchemaValidator", "conbytes"]

logger = get_logger(__name__)


class SchemaValidator(RecordValidatorBase):
    """Refuses records that do not fit a pydantic model.

    A field of the model stands for the key of its name. A field of type ``dict[K, V]`` is a dictionary of the DHT: its
    entries are checked one by one. A value must be of the field's type as it stands: what pydantic would convert, as an
    int to a float, is refused. Validators of fields are run; those of the whole model see one field at a time, and are
    not.

    Several such validators in one DHT become one: a record is acceptable if it fits one of their schemas.

    :param schema: a subclass of ``pydantic.BaseModel``, of either version
    :param allow_extra_keys: accept records under keys that are no fields
    :param prefix: keys are ``{prefix}_{field}``
    :raises ConfigError: if ``schema`` is no model
    """

    def __init__(self, schema: type[Any], allow_extra_keys: bool = True, prefix: str | None = None) -> None:
        names = _field_names(schema)
        keys = {DHTID.generate(source=f"{prefix}_{name}" if prefix is not None else name): name for name in names}
        # replaced, never changed: another thread may be walking through it
        self._fields: dict[bytes, tuple[tuple[type[Any], str], ...]] = {
            key.to_bytes(): ((schema, name),) for key, name in keys.items()
        }
        self._allow_extra_keys = allow_extra_keys

    def validate(self, record: DHTRecord) -> bool:
        fields = self._fields.get(record.key)
        if fields is None:
            return self._allow_extra_keys
        try:
            value: Any = MSGPackSerializer.loads(record.value)
            if record.subkey != IS_REGULAR_VALUE:
                value = {MSGPackSerializer.loads(record.subkey): value}
        except (SerializationError, TypeError):  # TypeError: a subkey that cannot be hashed
            return False
        return any(_fits(schema, name, value) for schema, name in fields)

    def merge_with(self, other: RecordValidatorBase) -> bool:
        """Take over the schemas of another validator of this kind."""
        if not isinstance(other, SchemaValidator):
            return False
        self._fields = {
            key: self._fields.get(key, ()) + other._fields.get(key, ()) for key in {**self._fields, **other._fields}
        }
        self._allow_extra_keys = self._allow_extra_keys or other._allow_extra_keys
        return True


def _field_names(schema: Any) -> list[str]:
    names = None
    if isinstance(schema, type):
        names = getattr(schema, "model_fields" if hasattr(schema, "__pydantic_validator__") else "__fields__", None)
    if not names or not isinstance(names, dict):
        raise ConfigError("schema", schema, "a subclass of pydantic.BaseModel with at least one field")
    return list(names)


def _fits(schema: type[Any], name: str, value: Any) -> bool:
    """Whether ``value`` is one of field ``name``, as it stands. Models are the user's code: what they raise is a no."""
    check = _check_v2 if hasattr(schema, "__pydantic_validator__") else _check_v1
    try:
        return _identical(check(schema, name, value), value)
    except Exception as error:  # noqa: BLE001 - a fault of the user's model must not end the node
        logger.debug("%s.%s: %s", schema.__name__, name, error)
        return False


def _check_v2(schema: Any, name: str, value: Any) -> Any:
    draft = schema.model_construct()
    schema.__pydantic_validator__.validate_assignment(draft, name, value)
    return getattr(draft, name)


def _check_v1(schema: Any, name: str, value: Any) -> Any:
    parsed, errors = schema.__fields__[name].validate(value, {}, loc=name, cls=schema)
    if errors:
        raise ValueError(str(errors))
    return parsed


def _identical(a: Any, b: Any) -> bool:
    """Equal, and of the same types throughout: ``1``, ``1.0`` and ``True`` are three things."""
    if type(a) is not type(b):
        return False
    if isinstance(a, dict):
        return len(a) == len(b) and all(
            _identical(*keys) and _identical(a[keys[0]], b[keys[1]]) for keys in zip(a, b, strict=True)
        )
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(_identical, a, b))
    return bool(a == b) or (a != a and b != b)


class _ConstrainedBytes(bytes):
    """Base of the types that `conbytes` makes: pydantic, of either version, takes bytes that fit, and leaves them."""

    pattern: ClassVar[re.Pattern[bytes] | None] = None
    bounds: ClassVar[tuple[int, float]] = (0, float("inf"))

    @classmethod
    def check(cls, value: Any) -> bytes:
        """
        :raises ValueError: unless it fits
        """
        if type(value) is not bytes:
            raise ValueError(f"{type(value).__name__}, allowed: bytes")
        if not cls.bounds[0] <= len(value) <= cls.bounds[1]:
            raise ValueError(f"{len(value)} bytes, allowed: {cls.bounds[0]} to {cls.bounds[1]}")
        if cls.pattern is not None and cls.pattern.match(value) is None:
            raise ValueError(f"bytes that do not match {cls.pattern.pattern!r}")
        return value

    @classmethod
    def __get_validators__(cls) -> Iterator[Callable[[Any], bytes]]:  # of pydantic 1
        yield cls.check

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: Any) -> Any:  # of pydantic 2
        from pydantic_core import core_schema

        return core_schema.no_info_plain_validator_function(cls.check)


def conbytes(
    *, regex: bytes | str | None = None, min_length: int = 0, max_length: float = float("inf")
) -> type[_ConstrainedBytes]:
    """A type for fields of a schema, and for subkeys of one: bytes within bounds.

    :param regex: they begin with a match of this
    :param min_length: in bytes, as ``max_length``
    :raises ConfigError: if ``regex`` is none
    """
    try:
        pattern = None if regex is None else re.compile(regex.encode() if isinstance(regex, str) else regex)
    except re.error as error:
        raise ConfigError("regex", regex, f"a regular expression ({error})") from error
    return type("ConstrainedBytesValue", (_ConstrainedBytes,), {"pattern": pattern, "bounds": (min_length, max_length)})


#: Bytes that name their owner, whose signature a signature validator then asks for: for subkeys of a schema.
BytesWithPublicKey: Final = conbytes(regex=OWNED_SUBKEY)
