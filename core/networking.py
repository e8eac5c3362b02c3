"""Addresses as people copy them: which of them to show, and the lines that show them."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from typing import Any

from multiaddr import Multiaddr

from hivemind.errors import ConfigError
from hivemind.identity import PeerID
from hivemind.log import get_logger

__all__ = ["LOCALHOST", "choose_ip_address", "ip_of", "is_relayed", "log_visible_maddrs", "peer_of"]

LOCALHOST = "127.0.0.1"

logger = get_logger(__name__)


def choose_ip_address(
    maddrs: Sequence[Multiaddr], prefer_global: bool = True, protocol_priority: Sequence[str] = ("ip4", "ip6")
) -> str:
    """The address under which others should first try a peer.

    :param prefer_global: an address of the internet before one of a local network
    :param protocol_priority: among those, the protocol that comes first here
    :raises ConfigError: (a ValueError) if none of ``maddrs`` has an IP address of these protocols
    """
    every = [item for maddr in maddrs for item in _items(maddr)]
    found = [(protocol, value) for protocol, value in every if protocol in protocol_priority]
    if not found:
        raise ConfigError("maddrs", [str(each) for each in maddrs], f"an address with {' or '.join(protocol_priority)}")

    def rank(item: tuple[str, str]) -> tuple[bool, int]:
        return prefer_global and not _is_global(item[1]), list(protocol_priority).index(item[0])

    return min(found, key=rank)[1]


def ip_of(maddr: Multiaddr) -> str | None:
    """The IP address of the machine that is dialed, of a relay for an address through one; None if it has none."""
    return next((value for protocol, value in _items(maddr) if protocol in ("ip4", "ip6")), None)


def peer_of(maddr: Multiaddr) -> PeerID:
    """The peer that an address leads to: its last ``/p2p`` part; one before it is a relay.

    :raises ConfigError: if it names none
    """
    peers = [value for protocol, value in _items(maddr) if protocol == "p2p"]
    if not peers:
        raise ConfigError("address", str(maddr), "one that ends in /p2p/<peer id>")
    return PeerID.from_base58(peers[-1])


def is_relayed(maddr: Multiaddr) -> bool:
    """Whether an address leads through a relay."""
    return any(protocol == "p2p-circuit" for protocol, _ in _items(maddr))


def log_visible_maddrs(visible_maddrs: Sequence[Multiaddr], only_p2p: bool = False) -> None:
    """Log what other peers need to join: a line to copy, then all addresses. In words that programs look for.

    :param only_p2p: of the addresses only the peer ids, for peers that find each other through IPFS
    """
    maddrs = list(dict.fromkeys(visible_maddrs))
    if only_p2p:
        shown: list[Any] = [f"/p2p/{peer}" for peer in dict.fromkeys(map(peer_of, maddrs))]
    else:
        direct = [each for each in maddrs if not is_relayed(each)] or maddrs
        chosen = choose_ip_address(direct) if any(map(ip_of, direct)) else None
        shown = [each for each in direct if ip_of(each) == chosen]
    text = " ".join(map(str, shown))
    logger.info("Running a DHT instance. To connect other peers to this one, use --initial_peers %s", text)
    logger.info("Full list of visible multiaddresses: %s", " ".join(map(str, maddrs)))


def _items(maddr: Multiaddr) -> list[tuple[str, str]]:
    return [(protocol.name, str(value)) for protocol, value in maddr.items()]


def _is_global(text: str) -> bool:
    return ipaddress.ip_address(text).is_global
