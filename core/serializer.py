"""Values as bytes: the strict msgpack profile of hivemind 1.1.

Text is ``str`` and bytes are ``bin``; a subclass of a plain type is refused rather than silently flattened; a tuple
stays a tuple (ext 0x40); a class registered with `MSGPackSerializer.ext_serializable` has an ext code of its own
(0x50: a dictionary of the DHT, 0x51: a batch tensor descriptor). The same value always gives the same bytes.

What decodes may come from a peer: its cost is bounded by its length before anything is allocated.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar, Protocol, TypeVar

import msgpack

from hivemind.errors import SerializationError
from hivemind.log import RateLimit, get_logger

__all__ = ["MSGPackSerializer", "SerializerBase"]

logger = get_logger(__name__)

#: Levels of ext inside ext (tuples in tuples). Each level holds some 40 KiB of the C stack while it is decoded.
MAX_EXT_DEPTH = 16
#: From this many bytes on, data is walked once without allocating before it is decoded: headers of nested arrays
#: that claim millions of items are then known to be lies.
_WALK_BYTES = 256


class _ExtType(Protocol):
    def packb(self) -> bytes: ...

    @classmethod
    def unpackb(cls, raw: bytes) -> Any: ...


Ext = TypeVar("Ext", bound=type)


class SerializerBase(ABC):
    """Turns values into bytes and back."""

    @staticmethod
    @abstractmethod
    def dumps(obj: object) -> bytes:
        """The bytes of ``obj``."""

    @staticmethod
    @abstractmethod
    def loads(buf: bytes) -> Any:
        """The value that ``buf`` holds."""


class MSGPackSerializer(SerializerBase):
    """msgpack as hivemind 1.1 writes it. Thread-safe."""

    _TUPLE: ClassVar[int] = 0x40
    _codes: ClassVar[dict[type, int]] = {}
    _types: ClassVar[dict[int, type[_ExtType]]] = {}
    _nesting: ClassVar[threading.local] = threading.local()
    _unknown: ClassVar[RateLimit] = RateLimit()

    @classmethod
    def ext_serializable(cls, code: int) -> Callable[[Ext], Ext]:
        """A decorator: values of the class travel as ext ``code``.

        :param code: 0 to 127, not 0x40; the class has ``packb()`` and a class method ``unpackb(raw)``
        """
        if not 0 <= code <= 127 or code == cls._TUPLE:
            raise SerializationError(f"ext code: got {code!r}, allowed: 0 to 127 except 0x40, which is the tuple's")

        def register(kind: Ext) -> Ext:
            known = cls._types.get(code)
            if known is not None and known.__qualname__ != kind.__qualname__:
                raise SerializationError(f"ext code {code:#x} belongs to {known.__qualname__} already")
            cls._codes[kind] = code
            cls._types[code] = kind
            return kind

        return register

    @staticmethod
    def dumps(obj: object) -> bytes:
        """The bytes of ``obj``: None, bool, int of 64 bits, float, str, bytes, list, tuple, dict, registered classes.

        :raises SerializationError: on any other value; names its type
        """
        try:
            packed: bytes = msgpack.packb(obj, use_bin_type=True, strict_types=True, default=_encode_ext)
        except SerializationError:
            raise
        except (TypeError, ValueError, OverflowError, RecursionError) as error:
            raise SerializationError(f"cannot serialize a value of type {type(obj).__qualname__}: {error}") from error
        return packed

    @classmethod
    def loads(cls, buf: bytes) -> Any:
        """The value that ``buf`` holds. An unknown ext code gives its raw payload, and one warning.

        :raises SerializationError: unless ``buf`` is exactly one well-formed value
        """
        depth = getattr(cls._nesting, "depth", 0)
        if depth > MAX_EXT_DEPTH:
            raise SerializationError(f"more than {MAX_EXT_DEPTH} levels of ext inside ext")
        cls._nesting.depth = depth + 1
        try:
            if len(buf) > _WALK_BYTES:
                walker = msgpack.Unpacker(max_buffer_size=len(buf))
                walker.feed(buf)
                walker.skip()
            return msgpack.unpackb(buf, raw=False, strict_map_key=True, ext_hook=_decode_ext)
        except SerializationError:
            raise
        except (msgpack.UnpackException, ValueError, TypeError) as error:
            raise SerializationError(f"{len(buf)} bytes are no value: {type(error).__name__} {error}") from error
        finally:
            cls._nesting.depth = depth


def _encode_ext(obj: object) -> msgpack.ExtType:
    """What msgpack asks for each object that is no plain type."""
    code = MSGPackSerializer._codes.get(type(obj))
    if code is not None:
        return msgpack.ExtType(code, obj.packb())  # type: ignore[attr-defined]
    if isinstance(obj, tuple):
        return msgpack.ExtType(MSGPackSerializer._TUPLE, MSGPackSerializer.dumps(list(obj)))
    raise TypeError(f"no form on the wire for {type(obj).__qualname__}")


def _decode_ext(code: int, payload: bytes) -> Any:
    """What msgpack asks for each ext it meets."""
    if code == MSGPackSerializer._TUPLE:
        items = MSGPackSerializer.loads(payload)
        if not isinstance(items, list):
            raise SerializationError("a tuple's payload is no array")
        return tuple(items)
    kind = MSGPackSerializer._types.get(code)
    if kind is not None:
        return kind.unpackb(payload)
    if MSGPackSerializer._unknown.allow():
        logger.warning("unknown ext code %#x in a serialized value: its raw payload is returned", code)
    return payload
