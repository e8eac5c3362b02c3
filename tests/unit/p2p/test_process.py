"""Where the daemon's binary is looked for."""

from __future__ import annotations

from pathlib import Path

import pytest

from hivemind.errors import DaemonStartError
from hivemind.p2p.process import find_binary


def test_the_binary_is_named_by_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    binary = tmp_path / "p2pd"
    binary.write_text("")
    monkeypatch.setenv("HIVEMIND_P2PD", str(binary))
    with pytest.raises(DaemonStartError, match="HIVEMIND_P2PD"):
        find_binary()
    binary.chmod(0o755)
    assert find_binary() == binary
    monkeypatch.setenv("HIVEMIND_P2PD", str(tmp_path))
    with pytest.raises(DaemonStartError, match="HIVEMIND_P2PD"):
        find_binary()
