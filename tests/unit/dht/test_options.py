"""Options: keywords of hivemind 1.1, checked before anything starts; and the blacklist they set up."""

from __future__ import annotations

import pickle
import threading
from collections.abc import Iterator

import pytest

from hivemind.clock import simulated_time
from hivemind.dht import DHT, DHTNodeOptions
from hivemind.dht.blacklist import Blacklist
from hivemind.dht.bootstrap import parse_initial_peers
from hivemind.dht.config import split_node_options
from hivemind.errors import ConfigError, RuntimeClosedError, WrongTypeError
from hivemind.identity import PeerID
from hivemind.networking import peer_of

ADDRESS = "/ip4/127.0.0.1/tcp/1/p2p/12D3KooWDLXAnf92spivnVheW2jr1DtRKfd5AGGgDT3XTG3BRnqi"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("bucket_size", 0),
        ("num_replicas", 2.5),
        ("depth_modulo", True),
        ("parallel_rpc", 0),
        ("wait_timeout", 0),
        ("wait_timeout", float("nan")),
        ("refresh_timeout", -1),
        ("bootstrap_timeout", "3"),
        ("cache_locally", "yes"),
        ("cache_nearest", -1),
        ("cache_size", -1),
        ("cache_refresh_before_expiry", -1),
        ("num_workers", 0),
        ("chunk_size", 0),
        ("blacklist_time", "5"),
        ("backoff_rate", 0.5),
        ("client_mode", None),
        ("strict", 2),
    ],
)
def test_wrong_values_name_themselves(name: str, value: object) -> None:
    with pytest.raises(ConfigError, match=name):
        DHTNodeOptions(**{name: value})  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=name):
        DHT(start=True, **{name: value})  # type: ignore[arg-type]
    assert not [thread for thread in threading.enumerate() if thread.name == "hivemind-net"], "nothing was started"


def test_unknown_names_get_a_hint() -> None:
    with pytest.raises(ConfigError, match="num_replicas"):
        DHT(start=True, num_replica=5)
    with pytest.raises(ConfigError, match="host_maddrs"):
        DHT(start=True, host_maddr=["/ip4/127.0.0.1/tcp/0"])


def test_options_are_sorted_to_node_and_peer() -> None:
    options, peer = split_node_options({"num_replicas": 3, "use_relay": False}, shared=False, where="DHT")
    assert options == DHTNodeOptions(num_replicas=3)
    assert peer == {"use_relay": False}
    with pytest.raises(ConfigError, match="use_relay"):
        split_node_options({"use_relay": False}, shared=True, where="DHT")
    with pytest.raises(ConfigError, match="host_maddrs"):
        split_node_options({"host_maddrs": ["nonsense"]}, shared=False, where="DHT")


def test_one_address_is_not_several() -> None:
    with pytest.raises(TypeError, match="a list of addresses"):
        DHT(initial_peers=ADDRESS, start=True)
    with pytest.raises(WrongTypeError, match="a list"):
        parse_initial_peers(7)


@pytest.mark.parametrize("address", ["nonsense", "/ip4/127.0.0.1/tcp/1", "/ip4/1.2.3.4/tcp/1/p2p/QmNotAnId!", 5, None])
def test_bad_addresses_are_named(address: object) -> None:
    with pytest.raises(ConfigError, match="initial_peers"):
        DHT(initial_peers=[address], start=True)  # type: ignore[list-item]


def test_the_last_peer_of_an_address_counts() -> None:
    (parsed,) = parse_initial_peers([ADDRESS])
    assert str(peer_of(parsed)) == ADDRESS.rpartition("/")[2]
    (relayed,) = parse_initial_peers(
        ["/p2p/QmYyQSo1c1Ym7orWxLYvCrM2EmxFTANf8wXmmE7DWjhx5N/p2p-circuit" + ADDRESS[-57:]]
    )
    assert peer_of(relayed) == peer_of(parsed)
    assert parse_initial_peers(None) == ()


def test_a_dht_that_was_not_started_says_so() -> None:
    dht = DHT(start=False)
    assert not dht.is_alive()
    for use in (lambda: dht.get("k"), lambda: dht.node, lambda: dht.peer_id, lambda: dht.add_validators([])):
        with pytest.raises(RuntimeError, match="not started"):
            use()
    dht.shutdown()
    dht.shutdown()
    with pytest.raises(RuntimeClosedError, match="shut down"):
        dht.store("k", 1, 2.0)


def test_only_what_runs_can_be_given_to_another_process() -> None:
    with pytest.raises(RuntimeClosedError, match="not started"):
        pickle.dumps(DHT(start=False))


class Clock:
    seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


@pytest.fixture
def clock() -> Iterator[Clock]:
    clock = Clock()
    with simulated_time(clock):
        yield clock


def test_blacklist_backs_off(clock: Clock) -> None:
    blacklist = Blacklist(base_time=5, backoff_rate=2)
    silent = PeerID(b"silent")
    for seconds in (5, 10, 20):
        blacklist.register_failure(silent)
        blacklist.register_failure(silent)  # while it is left alone already
        clock.seconds += seconds - 0.5
        assert silent in blacklist
        clock.seconds += 1
        assert silent not in blacklist
    assert blacklist[silent] == 3
    blacklist.register_success(silent)
    assert blacklist[silent] == 0
    blacklist.register_failure(silent)
    blacklist.register_success(silent)
    assert silent not in blacklist
    assert len(blacklist) == 0


def test_blacklist_can_be_off_and_is_bounded(clock: Clock) -> None:
    off = Blacklist(base_time=0, backoff_rate=2)
    off.register_failure(PeerID(b"silent"))
    assert PeerID(b"silent") not in off
    small = Blacklist(base_time=5, backoff_rate=10, maxsize=10)
    for n in range(1000):
        small.register_failure(PeerID(n.to_bytes(2, "big")))
    assert len(small) <= 10
    assert len(small.ban_counter) <= 11
    for _ in range(100):
        clock.seconds += 10_000
        small.register_failure(PeerID(b"for ever"))
    clock.seconds += 3601
    assert PeerID(b"for ever") not in small, "a ban ends"
