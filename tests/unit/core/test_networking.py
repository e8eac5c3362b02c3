"""Which addresses are shown to be copied."""

from __future__ import annotations

import logging

import pytest
from multiaddr import Multiaddr

from hivemind.errors import ConfigError
from hivemind.networking import choose_ip_address, ip_of, is_relayed, log_visible_maddrs, peer_of

PEER = "12D3KooWDLXAnf92spivnVheW2jr1DtRKfd5AGGgDT3XTG3BRnqi"
RELAY = "12D3KooWEpjUsL9BhMfXf8n92cq2BhujvbMtKwGz31ENwzowg5eJ"
LOOPBACK = Multiaddr(f"/ip4/127.0.0.1/tcp/4001/p2p/{PEER}")
LOCAL = Multiaddr(f"/ip4/192.168.0.7/tcp/4001/p2p/{PEER}")
PUBLIC = Multiaddr(f"/ip4/93.184.216.34/tcp/4001/p2p/{PEER}")
PUBLIC_QUIC = Multiaddr(f"/ip4/93.184.216.34/udp/4001/quic-v1/p2p/{PEER}")
PUBLIC_6 = Multiaddr(f"/ip6/2606:2800:220:1::1/tcp/4001/p2p/{PEER}")
NAMED = Multiaddr(f"/dns4/example.org/tcp/4001/p2p/{PEER}")
RELAYED = Multiaddr(f"/ip4/93.184.216.99/tcp/4001/p2p/{RELAY}/p2p-circuit/p2p/{PEER}")


@pytest.fixture
def logged(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> pytest.LogCaptureFixture:
    monkeypatch.setattr(logging.getLogger("hivemind"), "propagate", True)
    return caplog


def test_choice() -> None:
    assert choose_ip_address([LOOPBACK, LOCAL, PUBLIC]) == "93.184.216.34"
    assert choose_ip_address([LOOPBACK, LOCAL, PUBLIC], prefer_global=False) == "127.0.0.1"
    assert choose_ip_address([LOCAL, PUBLIC_6]) == "2606:2800:220:1::1"
    assert choose_ip_address([PUBLIC_6, PUBLIC]) == "93.184.216.34"
    assert choose_ip_address([PUBLIC, PUBLIC_6], protocol_priority=("ip6", "ip4")) == "2606:2800:220:1::1"
    assert choose_ip_address([LOCAL, PUBLIC_6], protocol_priority=("ip4",)) == "192.168.0.7"
    for nothing in ([], [NAMED]):
        with pytest.raises(ValueError, match="ip4 or ip6"):
            choose_ip_address(nothing)


def test_parts() -> None:
    assert ip_of(PUBLIC_6) == "2606:2800:220:1::1"
    assert ip_of(NAMED) is None
    assert (is_relayed(RELAYED), is_relayed(PUBLIC)) == (True, False)
    assert str(peer_of(RELAYED)) == PEER
    with pytest.raises(ConfigError, match="peer id"):
        peer_of(Multiaddr("/ip4/127.0.0.1/tcp/4001"))


@pytest.mark.parametrize(
    ("addresses", "only_p2p", "shown"),
    [
        ([LOOPBACK, LOCAL, PUBLIC, PUBLIC_QUIC, RELAYED], False, [PUBLIC, PUBLIC_QUIC]),
        ([RELAYED], False, [RELAYED]),
        ([NAMED], False, [NAMED]),
        ([LOOPBACK, PUBLIC, RELAYED], True, [f"/p2p/{PEER}"]),
    ],
)
def test_lines_that_others_look_for(
    addresses: list[Multiaddr], only_p2p: bool, shown: list[object], logged: pytest.LogCaptureFixture
) -> None:
    log_visible_maddrs([*addresses, addresses[0]], only_p2p=only_p2p)
    first, second = logged.messages
    copied = " ".join(map(str, shown))
    assert first == f"Running a DHT instance. To connect other peers to this one, use --initial_peers {copied}"
    assert second == "Full list of visible multiaddresses: " + " ".join(map(str, addresses))
