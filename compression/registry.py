"""Which codec reads which number on the wire, those of other packages among them."""

from __future__ import annotations

import threading
from importlib.metadata import entry_points

from hivemind.compression.base import BufferCodec, NoCompression
from hivemind.compression.blockwise import BlockwiseQuantization
from hivemind.compression.floating import Float16Compression, ScaledFloat16Compression
from hivemind.compression.quantile import Quantile8BitQuantization
from hivemind.compression.uniform import Uniform8BitQuantization
from hivemind.errors import ConfigError, SerializationError
from hivemind.log import get_logger
from hivemind.proto import runtime_pb2

__all__ = ["ENTRY_POINTS", "FIRST_FREE_NUMBER", "codec_for", "known_codecs", "register_codec"]

logger = get_logger(__name__)

#: The group of entry points under which installed packages name their codecs: classes, or instances.
ENTRY_POINTS = "hivemind.codecs"
#: Numbers below are hivemind's own; codecs of 4 bits and less will take some of them.
FIRST_FREE_NUMBER = 64

_codecs: dict[int, BufferCodec] = {
    codec.compression_type: codec
    for codec in (
        NoCompression(),
        ScaledFloat16Compression(),
        Float16Compression(),
        Quantile8BitQuantization(),
        Uniform8BitQuantization(),
        BlockwiseQuantization(),
    )
}
# guards both; taken again by a package that registers its codec when it is imported
_lock = threading.RLock()
_loaded = False


def register_codec(codec: BufferCodec) -> None:
    """Let messages with the number of ``codec`` be read and written. All peers that meet need it. Thread-safe.

    :raises ConfigError: if it is no codec, or its number is hivemind's own or another codec's
    """
    if not isinstance(codec, BufferCodec):
        raise ConfigError(
            "codec", type(codec).__name__, "an instance of a subclass of hivemind.compression.BufferCodec"
        )
    number = getattr(codec, "compression_type", None)
    if not isinstance(number, int) or not FIRST_FREE_NUMBER <= number < 2**31:
        raise ConfigError("compression_type", number, f"a number from {FIRST_FREE_NUMBER} to {2**31 - 1}")
    with _lock:
        known = _codecs.setdefault(number, codec)
    if type(known) is not type(codec):
        raise ConfigError("compression_type", number, f"another number: this one is {type(known).__name__}'s")


def codec_for(compression_type: int) -> BufferCodec:
    """The codec that writes and reads messages of this ``CompressionType``. Thread-safe.

    The first number that is not known has the codecs of installed packages loaded.

    :raises SerializationError: if there is none
    """
    codec = _codecs.get(compression_type)
    if codec is None:
        _load_entry_points()
        codec = _codecs.get(compression_type)
    if codec is None:
        names = ", ".join(_name_of(known) for known in known_codecs())
        raise SerializationError(f"compression type: got {compression_type}, allowed: {names}")
    return codec


def known_codecs() -> tuple[BufferCodec, ...]:
    """All codecs that were registered or are installed, by number."""
    _load_entry_points()
    with _lock:
        return tuple(_codecs[number] for number in sorted(_codecs))


def _name_of(codec: BufferCodec) -> str:
    number = codec.compression_type
    if number in runtime_pb2.CompressionType.values():
        return runtime_pb2.CompressionType.Name(number)  # type: ignore[arg-type]
    return f"{number} ({type(codec).__name__})"


def _load_entry_points() -> None:
    global _loaded
    with _lock:
        if _loaded:
            return
        _loaded = True
        for entry in entry_points(group=ENTRY_POINTS):
            try:
                found = entry.load()
                register_codec(found() if isinstance(found, type) else found)
            except Exception as error:  # noqa: BLE001 - whatever a package does wrong, the others are of use
                logger.warning("the codec %s (%s) is not there: %s", entry.name, entry.value, error)
