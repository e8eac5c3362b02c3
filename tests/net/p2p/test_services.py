"""`P2P` and services over real daemons."""

from __future__ import annotations

from tests.support.service_contract import ServiceContract


class TestDaemon(ServiceContract):
    """Runs the contract."""
