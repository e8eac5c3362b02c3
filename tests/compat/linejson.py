"""One line of JSON for each message between a test and its peer of hivemind 1.1.12.

JSON has neither bytes nor tuples, and its objects have text keys only; a DHT tells all of them apart. So they travel
as an object with one key: ``{"bytes": base64}``, ``{"tuple": [...]}``, ``{"dict": [[key, value], ...]}``.
"""

from __future__ import annotations

import base64
import json
from typing import Any


def dumps(value: Any) -> bytes:
    """Encode ``value`` as one line, newline included."""
    return json.dumps(_pack(value)).encode() + b"\n"


def loads(line: bytes | str) -> Any:
    """Decode a line made by :func:`dumps`."""
    return _unpack(json.loads(line))


def _pack(value: Any) -> Any:
    if isinstance(value, (bytes, bytearray, memoryview)):
        return {"bytes": base64.b64encode(value).decode()}
    if isinstance(value, tuple):
        return {"tuple": [_pack(item) for item in value]}
    if isinstance(value, list):
        return [_pack(item) for item in value]
    if isinstance(value, dict):
        return {"dict": [[_pack(key), _pack(item)] for key, item in value.items()]}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(f"{type(value).__name__} cannot travel to the other peer: {value!r}")


def _unpack(value: Any) -> Any:
    if isinstance(value, list):
        return [_unpack(item) for item in value]
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    if kind == "bytes":
        return base64.b64decode(content)
    if kind == "tuple":
        return tuple(_unpack(item) for item in content)
    return {_unpack(key): _unpack(item) for key, item in content}
