"""Two peers behind routers with address translation, and a public host between them, in network namespaces.

Nothing leaves the namespaces: every cable has both its ends in them. The public addresses are of 192.0.0.0/24, which is
reserved and never routed, but which libp2p takes for public, unlike the networks for documentation. Needs root,
``ip``, ``nft`` and ``sysctl`` (Debian: iproute2, nftables, procps).
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess

__all__ = ["NATS", "PUBLIC_IP", "NatLab", "why_not"]

PUBLIC_IP = "192.0.0.129"

#: Each kind with what its router does to packets on their way out. "cone": all go out from one port, which takes in
#: what comes from where something was sent (the port-restricted kind). "symmetric": another port for each destination.
NATS = {"cone": "masquerade", "symmetric": "masquerade random"}

_RULES = """
flush ruleset
table ip nat {{
  chain out {{
    type nat hook postrouting priority srcnat;
    oifname "wan" {translate};
  }}
}}
table ip filter {{
  chain inside {{
    type filter hook input priority filter; policy drop;
    iifname != "wan" accept;
    ct state established,related accept;
  }}
  chain through {{
    type filter hook forward priority filter; policy drop;
    iifname "lan" accept;
    ct state established,related accept;
  }}
}}
"""


def why_not() -> str | None:
    """What this machine lacks for a laboratory; None if it can have one."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    missing = [tool for tool in ("ip", "nft", "sysctl") if shutil.which(tool) is None]
    if missing:
        return f"{', '.join(missing)} missing (Debian: apt-get install iproute2 nftables procps)"
    name = f"hm{os.getpid()}-try"
    tried = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True)
    if tried.returncode != 0:
        return f"no network namespaces here: {tried.stderr.strip()}"
    subprocess.run(["ip", "netns", "del", name], check=True)
    return None


class NatLab:
    """The namespaces ``pub``, ``natA``, ``natB``, ``peerA`` and ``peerB``; a context manager that removes them."""

    def __init__(self) -> None:
        self._prefix = f"hm{os.getpid()}-"

    def inside(self, place: str) -> list[str]:
        """The beginning of a command that runs in a namespace."""
        return ["ip", "netns", "exec", self._prefix + place]

    def __enter__(self) -> NatLab:
        try:
            self._build()
        except BaseException:
            self._remove()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._remove()

    def _build(self) -> None:
        for place in ("pub", "natA", "natB", "peerA", "peerB"):
            _run("ip", "netns", "add", self._prefix + place)
            self._ip(place, "link set lo up")
        self._cable(("pub", "toA", "192.0.0.193/30"), ("natA", "wan", "192.0.0.194/30"))
        self._cable(("pub", "toB", "192.0.0.197/30"), ("natB", "wan", "192.0.0.198/30"))
        self._cable(("natA", "lan", "10.1.0.1/24"), ("peerA", "eth0", "10.1.0.2/24"))
        self._cable(("natB", "lan", "10.2.0.1/24"), ("peerB", "eth0", "10.2.0.2/24"))
        self._ip("pub", f"addr add {PUBLIC_IP}/32 dev lo")
        for place, gateway in {
            "natA": "192.0.0.193",
            "natB": "192.0.0.197",
            "peerA": "10.1.0.1",
            "peerB": "10.2.0.1",
        }.items():
            self._ip(place, f"route add default via {gateway}")
        for place in ("pub", "natA", "natB"):
            _run(*self.inside(place), "sysctl", "-qw", "net.ipv4.ip_forward=1")

    def set_nats(self, a: str, b: str) -> None:
        """Make the routers of the two peers of these kinds."""
        for place, kind in (("natA", a), ("natB", b)):
            _run(*self.inside(place), "nft", "-f", "-", text=_RULES.format(translate=NATS[kind]))

    def _cable(self, one: tuple[str, str, str], other: tuple[str, str, str]) -> None:
        ends = [("name", device, "netns", self._prefix + place) for place, device, _ in (one, other)]
        _run("ip", "link", "add", *ends[0], "type", "veth", "peer", *ends[1])
        for place, device, address in (one, other):
            self._ip(place, f"addr add {address} dev {device}")
            self._ip(place, f"link set {device} up")

    def _ip(self, place: str, command: str) -> None:
        _run("ip", "-n", self._prefix + place, *command.split())

    def _remove(self) -> None:
        for place in ("peerA", "peerB", "natA", "natB", "pub"):
            with contextlib.suppress(subprocess.CalledProcessError):  # it was not made
                _run("ip", "netns", "del", self._prefix + place)


def _run(*command: str, text: str | None = None) -> None:
    done = subprocess.run(command, input=text, capture_output=True, text=True)
    if done.returncode != 0:
        raise subprocess.CalledProcessError(done.returncode, command, done.stdout, done.stderr)
