"""Files that list peers: one id a line; ``#`` begins a comment."""

from __future__ import annotations

import os
from pathlib import Path

from hivemind.errors import ConfigError
from hivemind.identity import PeerID
from hivemind.log import get_logger
from hivemind.p2p import as_peer_ids

__all__ = ["AllowlistFile"]

logger = get_logger(__name__)


class AllowlistFile:
    """A file that its owner may change while it is in use.

    :param path: where it is
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = Path(path)
        # time of the last change and size of the content that was read last
        self._seen: tuple[int, int] | None = None

    def read(self) -> tuple[PeerID, ...]:
        """The ids.

        :raises ConfigError: if a line is none; names it
        :raises OSError: if the file cannot be read
        """
        state = self._path.stat()
        self._seen = (state.st_mtime_ns, state.st_size)
        ids: list[PeerID] = []
        for number, line in enumerate(self._path.read_text().splitlines(), 1):
            text = line.partition("#")[0].strip()
            if not text:
                continue
            ids += as_peer_ids(f"{self._path} line {number}", text)
        return tuple(ids)

    def read_if_changed(self) -> tuple[PeerID, ...] | None:
        """The ids if the file has changed since it was read; None if not, or if there is a mistake in it, of which a
        line is written: whoever was allowed stays so."""
        try:
            state = self._path.stat()
            if (state.st_mtime_ns, state.st_size) == self._seen:
                return None
            return self.read()
        except (ConfigError, OSError, UnicodeDecodeError) as error:
            logger.warning("the allowlist stays as it was: %s", error)
            return None
