"""Which codec reads which number on the wire. A new codec is one more line here."""

from __future__ import annotations

from hivemind.compression.base import CompressionBase, NoCompression
from hivemind.compression.floating import Float16Compression
from hivemind.errors import SerializationError
from hivemind.proto import runtime_pb2

__all__ = ["codec_for"]

_CODECS: dict[int, CompressionBase] = {
    codec.compression_type: codec for codec in (NoCompression(), Float16Compression())
}


def codec_for(compression_type: int) -> CompressionBase:
    """The codec that writes and reads messages of this ``CompressionType``.

    :raises SerializationError: if there is none
    """
    try:
        return _CODECS[compression_type]
    except KeyError:
        names = ", ".join(runtime_pb2.CompressionType.Name(known) for known in _CODECS)  # type: ignore[arg-type]
        raise SerializationError(f"compression type: got {compression_type}, allowed: {names}") from None
