"""How long a request may take before another node is asked as well."""

from __future__ import annotations

from hivemind.dht.search import Patience


def test_it_follows_what_is_usual() -> None:
    patience = Patience()
    assert patience.seconds == 1.0, "nothing is known yet"
    for _ in range(50):
        patience.note(0.1)
    assert 0.1 < patience.seconds < 0.12
    patience.note(0.3)
    assert patience.seconds > 0.3, "times that vary are waited for"


def test_it_grows_when_it_was_too_short_and_is_bounded() -> None:
    patience = Patience()
    for _ in range(50):
        patience.note(0.0001)
    assert patience.seconds == 0.005
    waits = []
    for _ in range(10):
        patience.note_overdue()
        waits.append(patience.seconds)
    assert waits == [0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.0, 1.0, 1.0]
    patience.note(0.06)
    assert 0.06 < patience.seconds < 0.1, "an answer tells more"
