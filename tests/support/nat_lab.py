"""An internet in network namespaces: public hosts, and sites behind routers that translate addresses.

Nothing leaves the namespaces: every cable has both its ends in them. The public addresses are of 192.0.0.0/24, which is
reserved and never routed, but which libp2p takes for public, unlike the networks for documentation. What is sent to an
address that nobody has is dropped without a word, as on the internet. Needs root, ``ip`` and ``nft`` (Debian: iproute2,
nftables).
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import os
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

__all__ = ["KINDS", "PUBLIC", "NatLab", "Site", "enter", "why_not"]

#: The namespace of the public hosts, through which all sites are connected.
PUBLIC = "pub"

#: Each kind of router with what it does to packets on their way out. None: no router, the peer has a public address.
#: The cones send everything of one port of the inside from one port of the outside. "full cone" lets everybody in
#: there, "port-restricted" the addresses that something was sent to. "symmetric" has another port for each destination,
#: and lets in the one that it is for.
KINDS: dict[str, str | None] = {
    "none": None,
    "full cone": "masquerade",
    "port-restricted": "masquerade",
    "symmetric": "masquerade random",
}

# Without the chain "inside" the router would answer for what nobody asked for, or remember it, so that the next packet
# of the same port on its way out would get another one. Its own public address is not for the inside (no hairpin).
_RULES = """
flush ruleset
table ip nat {{
  {unsolicited}
  chain out {{
    type nat hook postrouting priority srcnat;
    oifname "wan" {translate};
  }}
}}
table ip filter {{
  chain inside {{
    type filter hook input priority filter; policy drop;
    ip daddr {{ 10.0.0.0/8, 239.255.255.250 }} iifname != "wan" accept;
    ct state established,related accept;
  }}
  chain through {{
    type filter hook forward priority filter; policy drop;
    iifname != "wan" accept;
    ct state established,related accept;
    ct status dnat accept;
  }}
}}
"""
_UNSOLICITED = """
  chain unsolicited {{
    type nat hook prerouting priority dstnat;
    iifname "wan" meta l4proto {{ tcp, udp }} dnat to {peer};
  }}
"""

_CUT = """
table ip cut {{
  chain arriving {{
    type filter hook prerouting priority raw;
    ip daddr {address} drop;
  }}
  chain leaving {{
    type filter hook output priority raw;
    ip saddr {address} drop;
  }}
}}
"""

_CLONE_NEWNET = 0x40000000
_NAMESPACES = Path("/run/netns")


def enter(namespace: str) -> None:
    """Move this thread, and what it will start, into a namespace of `NatLab.namespace`.

    :raises OSError: if there is none of that name, or this process may not
    """
    libc = ctypes.CDLL(None, use_errno=True)
    descriptor = os.open(_NAMESPACES / namespace, os.O_RDONLY | os.O_CLOEXEC)
    try:
        if libc.setns(descriptor, _CLONE_NEWNET) != 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), namespace)
    finally:
        os.close(descriptor)


def why_not() -> str | None:
    """What this machine lacks for a laboratory; None if it can have one."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    missing = [tool for tool in ("ip", "nft") if shutil.which(tool) is None]
    if missing:
        return f"{' and '.join(missing)} missing (Debian: apt-get install iproute2 nftables)"
    try:
        with NatLab() as lab:
            lab.add_site("try", "symmetric")
    except (subprocess.CalledProcessError, OSError) as error:
        reason = getattr(error, "stderr", None) or str(error)
        return f"no network namespaces with address translation here: {reason.strip()}"
    return None


class Site:
    """A router and peers behind it, each with a network of its own between which the router forwards; or, of the kind
    "none", one peer with a public address. Made by `NatLab.add_site`.

    :param peers: names of the namespaces, for `NatLab`
    """

    def __init__(self, lab: NatLab, name: str, kind: str, number: int, peers: int) -> None:
        if kind not in KINDS or (kind == "none" and peers != 1):
            raise ValueError(f"{peers} peers behind {kind!r}: one of {list(KINDS)}, and one peer behind 'none'")
        self._lab = lab
        self.name = name
        self.kind = kind
        self.peers = [f"{name}.{each}" for each in range(peers)]
        self._number = number
        self._uplink = "to" + name
        self._hosts = [2] * peers

    def build(self) -> None:
        """Make the namespaces and the cables."""
        routed = self.kind != "none"
        for place in [self.name, *self.peers] if routed else self.peers:
            self._lab.add_namespace(place, forward=place == self.name)
        self._top, self._wan = (self.name, "wan") if routed else (self.peers[0], "eth0")
        self._lab.cable((PUBLIC, self._uplink), (self._top, self._wan))
        self._connect()
        if routed:
            for each, place in enumerate(self.peers):
                self._lab.cable((self.name, f"lan{each}"), (place, "eth0"))
                self._lab.ip(self.name, f"addr add {self._lan(each)}.1/24 dev lan{each}")
                self._address(each)
            translate = KINDS[self.kind]
            full = self.kind == "full cone"
            unsolicited = _UNSOLICITED.format(peer=f"{self._lan(0)}.2") if full else ""
            self._lab.nft(self.name, _RULES.format(translate=translate, unsolicited=unsolicited))

    def gateway(self, peer: int) -> str:
        """The router's address in the network of a peer behind it."""
        return f"{self._lan(peer)}.1"

    def change_public_address(self) -> None:
        """The provider gives the router, or the public peer, another address; the old one is nobody's."""
        self._lab.ip(self._top, f"addr flush dev {self._wan}")
        self._lab.ip(PUBLIC, f"addr flush dev {self._uplink}")
        self._connect()

    def change_address(self, peer: int) -> None:
        """A peer behind the router gets another address of its network."""
        self._lab.ip(self.peers[peer], "addr flush dev eth0")
        self._hosts[peer] += 1
        self._address(peer)

    def _connect(self) -> None:
        ours, theirs = self._lab.next_link()
        self._lab.ip(PUBLIC, f"addr add {ours}/31 dev {self._uplink}")
        self._lab.ip(self._top, f"addr add {theirs}/31 dev {self._wan}", f"route replace default via {ours}")
        self.public_address = theirs

    def _address(self, peer: int) -> None:
        lan = self._lan(peer)
        address = f"addr add {lan}.{self._hosts[peer]}/24 dev eth0"
        self._lab.ip(self.peers[peer], address, f"route replace default via {lan}.1")

    def _lan(self, peer: int) -> str:
        return f"10.{self._number}.{peer}"


class NatLab:
    """Namespaces and what connects them; a context manager that removes them. At first there is `PUBLIC` only."""

    def __init__(self) -> None:
        self._prefix = f"hm{os.getpid()}-{next(_labs)}-"
        self._made: list[str] = []
        self._hosts = iter(range(129, 168))
        self._links = iter(range(176, 256, 2))
        self._sites = itertools.count(1)

    def __enter__(self) -> NatLab:
        _remove_forsaken()
        try:
            self.add_namespace(PUBLIC, forward=True)
            self.ip(PUBLIC, "route add blackhole default")
        except BaseException:
            self._remove()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._remove()

    def namespace(self, place: str) -> str:
        """The name that the system knows a place by, for `enter`."""
        return self._prefix + place

    def inside(self, place: str) -> list[str]:
        """The beginning of a command that runs in a namespace."""
        return ["ip", "netns", "exec", self.namespace(place)]

    def add_public_host(self) -> str:
        """One more address of the namespace `PUBLIC`."""
        address = f"192.0.0.{next(self._hosts)}"
        self.ip(PUBLIC, f"addr add {address}/32 dev lo")
        return address

    def cut_public_host(self, address: str) -> None:
        """Drop all that goes to and comes from an address of `PUBLIC`; nobody is told."""
        # taking the address away would not do: the kernel goes on delivering to connections that it knows
        self.nft(PUBLIC, _CUT.format(address=address))

    def add_site(self, name: str, kind: str, peers: int = 1) -> Site:
        """A router of that kind with so many peers behind it.

        :param name: at most 10 characters
        """
        site = Site(self, name, kind, next(self._sites), peers)
        site.build()
        return site

    # -- for sites ---------------------------------------------------------------------------------------------------

    def add_namespace(self, place: str, *, forward: bool) -> None:
        """A place that forwards packets or does not."""
        name = self.namespace(place)
        self._made.append(name)
        _run("ip", "netns", "add", name)
        self.ip(place, "link set lo up")
        if forward:
            _in_thread(lambda: _allow_forwarding(name))

    def cable(self, one: tuple[str, str], other: tuple[str, str]) -> None:
        """Connect two places, each given with the name that the device has there."""
        ends = [("name", device, "netns", self.namespace(place)) for place, device in (one, other)]
        _run("ip", "link", "add", *ends[0], "type", "veth", "peer", *ends[1])
        for place, device in (one, other):
            self.ip(place, f"link set {device} up")

    def ip(self, place: str, *commands: str) -> None:
        """Commands of ``ip`` in a place."""
        _run("ip", "-n", self.namespace(place), "-batch", "-", text="\n".join(commands) + "\n")

    def nft(self, place: str, rules: str) -> None:
        """Rules for the packets of a place."""
        _run(*self.inside(place), "nft", "-f", "-", text=rules)

    def next_link(self) -> tuple[str, str]:
        """Public addresses for the two ends of a cable."""
        first = next(self._links)
        return f"192.0.0.{first}", f"192.0.0.{first + 1}"

    def _remove(self) -> None:
        for name in reversed(self._made):
            with contextlib.suppress(subprocess.CalledProcessError):  # it was not made
                _run("ip", "netns", "del", name)
        self._made.clear()


_labs: Iterator[int] = itertools.count()


def _remove_forsaken() -> None:
    """Remove what runs that were killed have left."""
    for path in _NAMESPACES.glob("hm*-*-*"):
        owner = path.name.removeprefix("hm").partition("-")[0]
        if owner.isdigit() and not Path(f"/proc/{owner}").exists():
            with contextlib.suppress(subprocess.CalledProcessError):  # another run was faster
                _run("ip", "netns", "del", path.name)


def _allow_forwarding(namespace: str) -> None:
    enter(namespace)
    Path("/proc/sys/net/ipv4/ip_forward").write_text("1")


def _in_thread(action: Callable[[], None]) -> None:
    """Do it in a thread, which may change its namespace.

    :raises OSError: what it raises
    """
    failed: list[OSError] = []

    def run() -> None:
        try:
            action()
        except OSError as error:
            failed.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if failed:
        raise failed[0]


def _run(*command: str, text: str | None = None) -> None:
    done = subprocess.run(command, input=text, capture_output=True, text=True)
    if done.returncode != 0:
        raise subprocess.CalledProcessError(done.returncode, command, done.stdout, done.stderr)
