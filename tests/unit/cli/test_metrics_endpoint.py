"""Where a command may serve what it has counted."""

from __future__ import annotations

import pytest

from hivemind.cli.metrics_endpoint import check_address
from hivemind.errors import ConfigError


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("127.0.0.1:9100", ("127.0.0.1", 9100)),
        ("localhost:0", ("localhost", 0)),
        ("[::1]:9100", ("::1", 9100)),
    ],
)
def test_addresses_of_this_machine(address: str, expected: tuple[str, int]) -> None:
    assert check_address(address, public=False) == expected


@pytest.mark.parametrize("address", ["", "9100", ":9100", "127.0.0.1", "127.0.0.1:x", "127.0.0.1:70000"])
def test_what_is_no_address(address: str) -> None:
    with pytest.raises(ConfigError, match="--metrics"):
        check_address(address, public=True)


@pytest.mark.parametrize("address", ["0.0.0.0:9100", "192.0.2.7:9100", "example.org:9100", "[::]:9100"])
def test_others_must_be_allowed(address: str) -> None:
    with pytest.raises(ConfigError, match="--metrics_public"):
        check_address(address, public=False)
    assert check_address(address, public=True)[1] == 9100
