"""Home routers that forward ports to who asks for it, for the sites of `tests.support.nat_lab`."""

from __future__ import annotations

import asyncio
import ipaddress
import re
import socket
import struct
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Self, cast
from xml.etree import ElementTree

from tests.support.nat_lab import NatLab, Site
from tests.support.nat_peer import Place

__all__ = ["HomeRouter", "NatPmpRouter", "UpnpRouter"]

_RULES = """
add table ip mapped
delete table ip mapped
table ip mapped {{
  chain arriving {{
    type nat hook prerouting priority dstnat;
    {rules}
  }}
}}
"""


@dataclass
class Mapping:
    """Where a port of the outside leads."""

    address: str
    port: int
    expires: float


class HomeRouter(ABC):
    """What routers of all protocols do. A context manager; it runs on the loop of a thread in the router's namespace.

    :param lease: seconds for which a port is forwarded at most, whatever is asked for
    """

    def __init__(self, lab: NatLab, site: Site, lease: float = 3600.0) -> None:
        self._lab = lab
        self._site = site
        self._lease = lease
        self._place = Place(lab, site.name)
        #: by protocol ("tcp", "udp") and port of the outside
        self.mapped: dict[tuple[str, int], Mapping] = {}
        #: how often ports were "mapped", "renewed", "removed" and "expired"
        self.events: Counter[str] = Counter()

    @abstractmethod
    async def serve(self) -> None:
        """Begin to answer."""

    @abstractmethod
    async def stop(self) -> None:
        """Answer no more."""

    def __enter__(self) -> Self:
        self._place.run(self.serve())
        return self

    def __exit__(self, *_: object) -> None:
        self._place.run(self.stop())
        self._place.__exit__(None, None, None)

    @property
    def inside(self) -> str:
        """Its address in the first network behind it."""
        return self._site.gateway(0)

    @property
    def outside(self) -> str:
        """Its public address."""
        return self._site.public_address

    def map(self, protocol: str, outside: int, address: str, port: int, seconds: float) -> float:
        """Forward a port of the outside.

        :returns: for how many seconds
        """
        granted = min(seconds, self._lease)
        key = (protocol, outside)
        known = self.mapped.get(key)
        self.events["mapped" if known is None else "renewed"] += 1
        self.mapped[key] = Mapping(address, port, time.monotonic() + granted)
        self._apply()
        asyncio.get_running_loop().call_later(granted + 0.01, self._expire)
        return granted

    def unmap(self, protocol: str, outside: int) -> bool:
        """Forward a port no more; whether it was forwarded."""
        known = self.mapped.pop((protocol, outside), None)
        self.events["removed"] += known is not None
        self._apply()
        return known is not None

    def _expire(self) -> None:
        now = time.monotonic()
        over = [key for key, mapping in self.mapped.items() if mapping.expires <= now]
        for key in over:
            del self.mapped[key]
        self.events["expired"] += len(over)
        if over:
            self._apply()

    def _apply(self) -> None:
        rules = (
            f'iifname "wan" {protocol} dport {outside} dnat to {mapping.address}:{mapping.port};'
            for (protocol, outside), mapping in self.mapped.items()
        )
        self._lab.nft(self._site.name, _RULES.format(rules="\n    ".join(rules)))


class _Datagrams(asyncio.DatagramProtocol):
    """Answers datagrams."""

    def __init__(self, answer: Callable[[bytes, str], bytes | None]) -> None:
        self._answer = answer

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.DatagramTransport", transport)

    def datagram_received(self, data: bytes, address: tuple[str, int]) -> None:
        reply = self._answer(data, address[0])
        if reply is not None:
            self._transport.sendto(reply, address)


class NatPmpRouter(HomeRouter):
    """Speaks NAT-PMP (RFC 6886)."""

    async def serve(self) -> None:
        self._transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(
            lambda: _Datagrams(self._answer), local_addr=(self.inside, 5351)
        )

    async def stop(self) -> None:
        self._transport.close()

    def _answer(self, data: bytes, sender: str) -> bytes | None:
        head = struct.pack("!BBHI", 0, data[1] + 128, 0, 1)
        if data[1] == 0:
            return head + ipaddress.IPv4Address(self.outside).packed
        protocol = {1: "udp", 2: "tcp"}[data[1]]
        inside, outside, seconds = struct.unpack("!4xHHI", data)
        if seconds == 0:
            for key, mapping in list(self.mapped.items()):
                if key[0] == protocol and (mapping.address, mapping.port) == (sender, inside):
                    self.unmap(*key)
            return head + struct.pack("!HHI", inside, 0, 0)
        taken = self.mapped.get((protocol, outside))
        if taken is not None and taken.address != sender:
            outside += 1
        granted = self.map(protocol, outside, sender, inside, seconds)
        return head + struct.pack("!HHI", inside, outside, int(granted))


_DEVICE = """<?xml version="1.0"?>
<root xmlns="urn:schemas-upnp-org:device-1-0">
  <specVersion><major>1</major><minor>0</minor></specVersion>
  <device><deviceType>urn:schemas-upnp-org:device:InternetGatewayDevice:1</deviceType><friendlyName>home</friendlyName>
    <UDN>uuid:1</UDN><deviceList><device>
      <deviceType>urn:schemas-upnp-org:device:WANDevice:1</deviceType><UDN>uuid:2</UDN><deviceList><device>
        <deviceType>urn:schemas-upnp-org:device:WANConnectionDevice:1</deviceType><UDN>uuid:3</UDN><serviceList><service>
          <serviceType>urn:schemas-upnp-org:service:WANIPConnection:1</serviceType>
          <serviceId>urn:upnp-org:serviceId:WANIPConn1</serviceId>
          <controlURL>/control</controlURL><eventSubURL>/events</eventSubURL><SCPDURL>/scpd.xml</SCPDURL>
        </service></serviceList>
      </device></deviceList>
    </device></deviceList>
  </device>
</root>
"""
_ENVELOPE = """<?xml version="1.0"?>
<s:Envelope xmlns:s="http://schemas.xmlsoap.org/soap/envelope/" s:encodingStyle="http://schemas.xmlsoap.org/soap/encoding/">
<s:Body>{body}</s:Body></s:Envelope>
"""
_FAULT = """<s:Fault><faultcode>s:Client</faultcode><faultstring>UPnPError</faultstring><detail>
<UPnPError xmlns="urn:schemas-upnp-org:control-1-0"><errorCode>{code}</errorCode>
<errorDescription>{code}</errorDescription></UPnPError></detail></s:Fault>"""
_GROUP = "239.255.255.250"


class UpnpRouter(HomeRouter):
    """Speaks UPnP, as an Internet Gateway Device of version 1. Knows no leases where it is told so: some do not.

    :param leases: forwards ports for a time
    """

    def __init__(self, lab: NatLab, site: Site, leases: bool = True) -> None:
        super().__init__(lab, site)
        self._leases = leases

    async def serve(self) -> None:
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sock.bind(("0.0.0.0", 1900))
        membership = socket.inet_aton(_GROUP) + socket.inet_aton(self.inside)
        sock.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, membership)
        self._transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(
            lambda: _Datagrams(self._discovered), sock=sock
        )
        self._server = await asyncio.start_server(self._request, self.inside, 0)
        self._url = f"http://{self.inside}:{self._server.sockets[0].getsockname()[1]}/device.xml"

    async def stop(self) -> None:
        self._transport.close()
        self._server.close()
        await self._server.wait_closed()

    def _discovered(self, data: bytes, _: str) -> bytes | None:
        wanted = re.search(rb"(?im)^ST: *(\S+)", data)
        if not data.startswith(b"M-SEARCH") or wanted is None or wanted[1].decode() not in _DEVICE:
            return None
        lines = ["HTTP/1.1 200 OK", "CACHE-CONTROL: max-age=120", "EXT:", f"ST: {wanted[1].decode()}"]
        lines += [f"USN: uuid:1::{wanted[1].decode()}", "SERVER: home", f"LOCATION: {self._url}", "", ""]
        return "\r\n".join(lines).encode()

    async def _request(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        length = re.search(r"(?im)^content-length: *(\d+)", head)
        body = await reader.readexactly(int(length[1]) if length else 0)
        status, answer = ("200 OK", _DEVICE)
        if head.startswith("POST /control"):
            status, answer = self._control(body)
        lines = [f"HTTP/1.1 {status}", 'Content-Type: text/xml; charset="utf-8"', "Connection: close"]
        lines += [f"Content-Length: {len(answer)}", "", answer]
        writer.write("\r\n".join(lines).encode())
        await writer.drain()
        writer.close()

    def _control(self, body: bytes) -> tuple[str, str]:
        action = ElementTree.fromstring(body)[0][0]
        space, name = action.tag[1:].split("}")
        given = {each.tag: each.text or "" for each in action}
        results, code = self._act(name, given)
        if code:
            return "500 Internal Server Error", _ENVELOPE.format(body=_FAULT.format(code=code))
        told = "".join(f"<{key}>{value}</{key}>" for key, value in results.items())
        return "200 OK", _ENVELOPE.format(body=f'<u:{name}Response xmlns:u="{space}">{told}</u:{name}Response>')

    def _act(self, name: str, given: dict[str, str]) -> tuple[dict[str, str], int]:
        """What an action answers, or the code of its error."""
        if name == "GetExternalIPAddress":
            return {"NewExternalIPAddress": self.outside}, 0
        key = (given["NewProtocol"].lower(), int(given["NewExternalPort"]))
        if name == "DeletePortMapping":
            return {}, 0 if self.unmap(*key) else 714
        known = self.mapped.get(key)
        if name == "GetSpecificPortMappingEntry":
            if known is None:
                return {}, 714
            found = {"NewInternalPort": str(known.port), "NewInternalClient": known.address, "NewEnabled": "1"}
            return found | {"NewPortMappingDescription": "", "NewLeaseDuration": "0"}, 0
        assert name == "AddPortMapping"
        seconds = float(given["NewLeaseDuration"])
        if seconds and not self._leases:
            return {}, 725  # OnlyPermanentLeasesSupported
        self.map(*key, given["NewInternalClient"], int(given["NewInternalPort"]), seconds or 3600.0)
        return {}, 0
