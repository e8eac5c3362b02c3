"""Options of a node of the network."""

from __future__ import annotations

import ipaddress
import os
import warnings
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from multiaddr import Multiaddr

from hivemind.config import check_choice, check_count, check_seconds
from hivemind.errors import ConfigError
from hivemind.identity import PeerID
from hivemind.p2p.limits import DEFAULT_MAX_MSG_SIZE
from hivemind.p2p.relay_limits import RelayLimits
from hivemind.p2p.swarm_key import SwarmKey
from hivemind.p2p.watch import SLOW_SECONDS

__all__ = ["P2PConfig", "as_multiaddrs", "as_peer_ids"]

_PEER_IDS = "a peer id such as 12D3Koo… or Qm…"
_FLAGS = (
    "auto_nat",
    "conn_manager",
    "nat_port_map",
    "tls",
    "use_relay",
    "use_auto_relay",
    "relay_service",
    "no_listen",
    "restart",
    "metrics_public",
    "pprof",
)


@dataclass(frozen=True, kw_only=True)
class P2PConfig:
    """The keywords of `P2P.create`, as in hivemind 1.1. Addresses are given as text or `Multiaddr`.

    :raises ConfigError: if one is wrong
    """

    #: peers to join, each ``/…/p2p/<id>``; one that answers is enough
    initial_peers: Sequence[Multiaddr | str] | None = None
    #: addresses told to others instead of those listened on; a port 0 is an error
    announce_maddrs: Sequence[Multiaddr | str] | None = None
    #: find out whether this peer can be reached, help others to, punch holes
    auto_nat: bool = True
    #: close connections that are used least when there are over 512, down to 256
    conn_manager: bool = True
    #: address routing (libp2p Kademlia): "server" answers others, "client" only asks, "auto" decides by reachability
    dht_mode: str = "server"
    #: "public" or "private" instead of finding out
    force_reachability: str | None = None
    #: addresses to listen on. Loopback by default: other machines need ``/ip4/0.0.0.0/tcp/0``
    host_maddrs: Sequence[Multiaddr | str] = ("/ip4/127.0.0.1/tcp/0",)
    #: file of the private key; made if missing, its folder must be there. Default: a fresh key, a new id each time
    identity_path: str | os.PathLike[str] | None = None
    #: with ``identity_path`` and ``initial_peers``: ask the swarm first whether another peer uses this identity
    check_if_identity_free: bool = True
    #: seconds that a daemon of hivemind 1.1 lived without clients; ours ends with its owner at once
    idle_timeout: float = 30.0
    #: open the router's port by UPnP or NAT-PMP
    nat_port_map: bool = True
    #: accepted for hivemind 1.1, where it had no effect
    relay_hop_limit: int = 0
    #: seconds in which the daemon must be ready, joining included
    startup_timeout: float = 15.0
    #: encrypt by TLS 1.3 where both sides can; noise is always there
    tls: bool = True
    #: reach others through circuit relays
    use_relay: bool = True
    #: be reached through relays while others cannot connect to this peer directly; no effect with ``no_listen``
    use_auto_relay: bool = False
    #: with ``use_auto_relay``: relays asked first, each ``/…/p2p/<id>``; then those among the connected peers
    trusted_relays: Sequence[Multiaddr | str] | None = None
    #: relay for others: for a peer with a public address
    relay_service: bool = False
    #: what a relay gives to each; with ``relay_service`` only
    relay_limits: RelayLimits | None = None
    #: the ids of the only peers that may use this relay, at either end; None: everybody. With ``relay_service`` only
    relay_allowlist: Collection[PeerID | str] | None = None
    #: join the Kademlia of the public IPFS network besides; initial peers can then be named by ``/p2p/<id>`` alone.
    #: Instead of True: bootstrap peers of another such network, each ``/…/p2p/<id>``
    use_ipfs: bool | Sequence[Multiaddr | str] = False
    #: bytes of one unary message with its envelope. Peers of hivemind 1.1 refuse more than the default
    persistent_conn_max_msg_size: int = DEFAULT_MAX_MSG_SIZE
    #: start the daemon again if it dies: the same peer, on the same ports where they are free, with the same handlers
    restart: bool = False
    #: what one peer may have at once (docs/limits.md): calls that handlers work on, more are answered with `PeerBusy`
    max_peer_calls: int = 512
    #: open streams, calls included
    max_peer_streams: int = 1024
    #: bytes of its requests and messages that are held for handlers; more wait unread
    max_peer_bytes: int = 256 * 1024 * 1024
    #: what a peer may be refused (calls and streams over its limits, protocols unknown here, garbage) before it is
    #: slowed down, and dropped if it goes on; 20 a second are forgotten. 0 = never
    flood_limit: int = 2048
    #: seconds for which a peer is refused that was dropped so
    flood_ban_seconds: float = 60.0
    #: seconds after which a unary handler that still runs is named in the log
    slow_handler_seconds: float = SLOW_SECONDS
    #: where the daemon serves Prometheus text (docs/metrics.md): ``"127.0.0.1:9100"``, port 0 takes a free one, or
    #: ``"unix:/path/to/socket"``; see `P2P.metrics_address`
    metrics: str | None = None
    #: allow ``metrics`` on an address that others can reach: they can read all of it
    metrics_public: bool = False
    #: serve Go's profiles of the daemon there too, under ``/debug/pprof/``
    pprof: bool = False
    #: do not listen: a node that only calls
    no_listen: bool = False
    #: the secret of a private swarm: a key, or the content of its file. Only peers that have it can connect; over TCP
    swarm_key: SwarmKey | str | None = field(default=None, repr=False)
    #: file of that secret, as `hivemind swarm-key make` makes it
    swarm_key_path: str | os.PathLike[str] | None = None
    #: gone from hivemind already; accepted with a warning
    quic: bool | None = None
    use_relay_hop: bool | None = None
    use_relay_discovery: bool | None = None
    #: not an option: addresses that were left out, as they cannot be used with ``swarm_key``
    dropped_maddrs: tuple[str, ...] = field(default=(), init=False, repr=False)

    def __post_init__(self) -> None:
        for name in _FLAGS:
            check_choice(name, getattr(self, name), (True, False))
        check_choice("dht_mode", self.dht_mode, ("server", "client", "auto"))
        check_choice("force_reachability", self.force_reachability, (None, "public", "private"))
        check_seconds("idle_timeout", self.idle_timeout, zero=True)
        check_seconds("startup_timeout", self.startup_timeout)
        check_count("persistent_conn_max_msg_size", self.persistent_conn_max_msg_size, least=1024)
        check_count("max_peer_calls", self.max_peer_calls)
        check_count("max_peer_streams", self.max_peer_streams, least=16)
        check_count("max_peer_bytes", self.max_peer_bytes, least=1024 * 1024)
        check_count("flood_limit", self.flood_limit, least=0)
        check_seconds("flood_ban_seconds", self.flood_ban_seconds)
        check_seconds("slow_handler_seconds", self.slow_handler_seconds)
        self._check_metrics()
        self._freeze_addresses()
        self._check_identity_path()
        self._check_relays()
        self._check_swarm_key()
        for name in ("quic", "use_relay_hop", "use_relay_discovery"):
            if getattr(self, name) is not None:
                warnings.warn(f"P2P option {name} has no effect and will be removed", DeprecationWarning, stacklevel=4)

    def _check_metrics(self) -> None:
        if self.metrics is None:
            for name in ("metrics_public", "pprof"):
                if getattr(self, name):
                    raise ConfigError(name, True, "False without metrics, which says where")
            return
        allowed = "an address such as '127.0.0.1:9100' or '[::1]:0', or 'unix:' and an absolute path"
        if not isinstance(self.metrics, str):
            raise ConfigError("metrics", self.metrics, allowed)
        if self.metrics.startswith("unix:/"):
            return
        host, _, port = self.metrics.rpartition(":")
        try:
            address = ipaddress.ip_address(host.removeprefix("[").removesuffix("]"))
            known = 0 <= int(port) <= 65535
        except ValueError:
            known = False
        if not known:
            raise ConfigError("metrics", self.metrics, allowed)
        if not address.is_loopback and not self.metrics_public:
            raise ConfigError("metrics", self.metrics, "a loopback address, or metrics_public=True")

    def _freeze_addresses(self) -> None:
        object.__setattr__(
            self, "initial_peers", as_multiaddrs("initial_peers", self.initial_peers or (), with_peer=True)
        )
        object.__setattr__(
            self, "trusted_relays", as_multiaddrs("trusted_relays", self.trusted_relays or (), with_peer=True)
        )
        object.__setattr__(self, "host_maddrs", as_multiaddrs("host_maddrs", self.host_maddrs))
        if not isinstance(self.use_ipfs, bool):
            if not isinstance(self.use_ipfs, Sequence) or isinstance(self.use_ipfs, str) or not self.use_ipfs:
                raise ConfigError("use_ipfs", self.use_ipfs, "True, False, or a list of bootstrap peers")
            object.__setattr__(self, "use_ipfs", as_multiaddrs("use_ipfs", self.use_ipfs, with_peer=True))
        if self.announce_maddrs is not None:
            announced = as_multiaddrs("announce_maddrs", self.announce_maddrs)
            for address in announced:
                if any(value == "0" for code in ("tcp", "udp") for value in _values(address, code)):
                    raise ConfigError("announce_maddrs", str(address), "an address with a port other than 0")
            object.__setattr__(self, "announce_maddrs", announced)
        if not self.host_maddrs and not self.no_listen:
            raise ConfigError("host_maddrs", self.host_maddrs, "at least one address, or no_listen=True")

    def _check_identity_path(self) -> None:
        if self.identity_path is None:
            return
        path = Path(self.identity_path)
        object.__setattr__(self, "identity_path", path)
        if not path.parent.is_dir():
            raise FileNotFoundError(f"identity_path: the folder of {path} does not exist: create it first")

    def _check_relays(self) -> None:
        for name in ("use_auto_relay", "relay_service"):
            if getattr(self, name) and not self.use_relay:
                raise ConfigError(name, True, "False where use_relay is False")
        if self.trusted_relays and not self.use_auto_relay:
            raise ConfigError(
                "trusted_relays", [str(each) for each in self.trusted_relays], "none without use_auto_relay"
            )
        if self.relay_limits is not None and not isinstance(self.relay_limits, RelayLimits):
            raise ConfigError("relay_limits", self.relay_limits, "RelayLimits(…)")
        if self.relay_allowlist is not None:
            if not isinstance(self.relay_allowlist, Collection):
                raise ConfigError("relay_allowlist", self.relay_allowlist, "a list of peer ids")
            allowed = as_peer_ids("relay_allowlist", self.relay_allowlist)
            object.__setattr__(self, "relay_allowlist", allowed)
        for name in ("relay_limits", "relay_allowlist"):
            if getattr(self, name) is not None and not self.relay_service:
                raise ConfigError(name, getattr(self, name), "None without relay_service")

    def _check_swarm_key(self) -> None:
        key, path = self.swarm_key, self.swarm_key_path
        if key is not None and path is not None:
            raise ConfigError("swarm_key_path", str(path), "None together with swarm_key")
        if path is not None:
            key = SwarmKey.read(path)
            object.__setattr__(self, "swarm_key_path", None)  # so that a copy of these options is valid, too
        elif isinstance(key, str):
            key = SwarmKey.parse(key)
        elif key is not None and not isinstance(key, SwarmKey):
            raise ConfigError("swarm_key", "(not shown)", "a SwarmKey, or the content of its file as text")
        object.__setattr__(self, "swarm_key", key)
        if key is None:
            return
        if self.use_ipfs:
            raise ConfigError("use_ipfs", self.use_ipfs, "False in a private swarm (swarm_key)")
        for name in ("host_maddrs", "announce_maddrs", "initial_peers", "trusted_relays"):
            self._keep_tcp(name)

    def _keep_tcp(self, name: str) -> None:
        """Drop addresses of transports that know no swarm key: libp2p has it for TCP only."""
        given: tuple[Multiaddr, ...] = getattr(self, name) or ()
        # without addresses, as /p2p/<id>, the routing is asked
        kept = tuple(each for each in given if not _values(each, "udp"))
        if kept == given:
            return
        dropped = [str(each) for each in given if each not in kept]
        if not kept:
            raise ConfigError(name, dropped, "addresses with TCP: QUIC cannot be used in a private swarm (swarm_key)")
        object.__setattr__(self, name, kept)
        object.__setattr__(self, "dropped_maddrs", (*self.dropped_maddrs, *dropped))

    @property
    def only_loopback(self) -> bool:
        """Whether no other machine can reach this node by what it listens on."""
        hosts = [ip for address in self.host_maddrs for ip in (*_values(address, "ip4"), *_values(address, "ip6"))]
        return all(ipaddress.ip_address(ip).is_loopback for ip in hosts)


def as_multiaddrs(
    name: str, given: Iterable[Multiaddr | str] | Multiaddr | str, *, with_peer: bool = False
) -> tuple[Multiaddr, ...]:
    """The addresses as `Multiaddr`.

    :param name: the argument, for the error's text
    :param with_peer: each must end in ``/p2p/<id>``
    :raises ConfigError: if one is no multiaddr
    """
    if isinstance(given, str | Multiaddr):
        given = (given,)
    addresses = []
    for each in given:
        try:
            address = each if isinstance(each, Multiaddr) else Multiaddr(each)
        except (ValueError, TypeError, LookupError) as error:
            raise ConfigError(name, each, f"a multiaddr such as /ip4/127.0.0.1/tcp/4001 ({error})") from error
        if with_peer and not _values(address, "p2p"):
            raise ConfigError(name, str(address), "an address that ends in /p2p/<peer id>")
        addresses.append(address)
    return tuple(addresses)


def as_peer_ids(name: str, given: Iterable[PeerID | str] | PeerID | str) -> tuple[PeerID, ...]:
    """The ids as `PeerID`.

    :param name: the argument, for the error's text
    :raises ConfigError: if one is no peer id
    """
    if isinstance(given, str | PeerID):
        given = (given,)
    ids = []
    for each in given:
        try:
            peer_id = each if isinstance(each, PeerID) else PeerID.from_base58(each)
        except (ConfigError, TypeError, AttributeError) as error:
            raise ConfigError(name, each, _PEER_IDS) from error
        # a multihash of SHA-256 or, for short keys, the key itself: anything else is a slip
        code, length = peer_id.to_bytes()[:2].ljust(2)
        if code not in (0x12, 0x00) or length != len(peer_id.to_bytes()) - 2:
            raise ConfigError(name, str(each), _PEER_IDS)
        ids.append(peer_id)
    return tuple(ids)


def _values(address: Any, protocol: str) -> list[str]:
    return [str(value) for kind, value in address.items() if kind.name == protocol]
