"""``hivemind dht-view`` as a process: nodes, round trips, what is under keys, as a table and as JSON."""

from __future__ import annotations

import json
import subprocess
import sys

from hivemind.clock import get_dht_time
from hivemind.dht import DHT
from tests.support.waiting import PATIENCE

NOBODY = "/ip4/127.0.0.1/tcp/1/p2p/12D3KooWLKifE42tchWXuDRntRwJN85zKCKziLH4mp1iUyZhgiec"
LOCAL = {"auto_nat": False, "nat_port_map": False}


def view(*arguments: str) -> subprocess.CompletedProcess[str]:
    code = "from hivemind.cli.main import main; main()"
    command = [sys.executable, "-c", code, "dht-view", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)


def test_one_look() -> None:
    with DHT(start=True, **LOCAL) as first:
        address = [str(each) for each in first.get_visible_maddrs()]
        with DHT(initial_peers=address, start=True, **LOCAL) as second:
            now = get_dht_time()
            assert first.store("plain", {"sky": "clear"}, now + 600)
            assert first.store("members", "\x1b[2Jhostile", now + 600, subkey="a")
            assert first.store("members", 1, now + 300, subkey=("b", 2))
            options = ("--initial_peers", *address, "--keys", "plain", "members", "none", "--once")
            shown = view(*options, "--json")
            assert shown.returncode == 0, shown.stderr
            seen = json.loads(shown.stdout)
            assert {each["peer_id"] for each in seen["members"]} == {str(first.peer_id), str(second.peer_id)}
            assert all(0 < each["round_trip"] < 10 for each in seen["members"])
            entries = {(each["key"], each["subkey"]): each for each in seen["entries"]}
            assert entries.keys() == {("plain", None), ("members", "'a'"), ("members", "('b', 2)")}
            assert entries["plain", None]["value"] == "{'sky': 'clear'}"
            assert 200 < entries["members", "('b', 2)"]["expires_in"] <= 300
            assert seen["held"] == []
            assert seen["failures"] == 0

            table = view(*options)
            assert table.returncode == 0, table.stderr
            assert table.stdout.startswith("2 nodes, 2 answer, median round trip")
            assert str(second.peer_id) in table.stdout
            assert "\x1b" not in table.stdout

            joined = json.loads(view(*options, "--json", "--join").stdout)
            assert len(joined["members"]) == 2


def test_what_is_wrong_is_said() -> None:
    for arguments, words in ((("--period", "0"), "--period"), (("--most", "0"), "--most")):
        shown = view("--initial_peers", NOBODY, *arguments)
        assert shown.returncode == 2
        assert words in shown.stderr
    nobody = view("--initial_peers", NOBODY, "--once")
    assert nobody.returncode == 1
    assert "failed to connect to bootstrap peers" in nobody.stderr
