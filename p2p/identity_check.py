"""Before a peer starts under an identity of its own: make the file, or ask the swarm whether another uses it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from hivemind.clock import Deadline
from hivemind.errors import DeadlineExceeded, P2PDaemonError, PeerUnreachable
from hivemind.identity import PeerID
from hivemind.p2p.config import P2PConfig
from hivemind.p2p.daemon import DaemonTransport
from hivemind.p2p.identity_file import ensure_identity, read_peer_id
from hivemind.runtime import in_pool

__all__ = ["is_identity_taken", "prepare_identity"]

#: Seconds in which the swarm must find the peer.
_LOOKUP_SECONDS = 5.0


async def prepare_identity(config: P2PConfig) -> None:
    """Make the identity file of ``config`` if it is missing; with initial peers, refuse one that is in use.

    :raises P2PDaemonError: "… already taken by another peer"
    :raises ConfigError: if the file holds no key
    """
    if config.identity_path is None:
        return
    path = Path(config.identity_path)
    if await in_pool(ensure_identity, path):
        return
    peer_id = read_peer_id(path)
    if config.initial_peers and config.check_if_identity_free and await is_identity_taken(peer_id, config):
        raise P2PDaemonError(
            f"the identity {path} ({peer_id}) is already taken by another peer: "
            "give each peer an identity_path of its own, or stop the other one first"
        )


async def is_identity_taken(peer_id: PeerID, config: P2PConfig) -> bool:
    """Whether a peer of that id can be reached through the initial peers of ``config``; asks under a throw-away id."""
    probe = DaemonTransport(replace(config, identity_path=None, restart=False), ephemeral=True)
    await probe.start()
    try:
        await probe.connect(peer_id, (), Deadline.after(min(_LOOKUP_SECONDS, config.startup_timeout)))
    except (PeerUnreachable, DeadlineExceeded):
        return False
    finally:
        await probe.close()
    return True
