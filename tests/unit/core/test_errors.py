"""The tree of errors: complete, and with the old names in their places."""

from __future__ import annotations

import pickle

import pytest

from hivemind import errors
from hivemind.errors import ConfigError, DaemonDied, DaemonStartError, HivemindError

ALL = [getattr(errors, name) for name in errors.__all__]


def test_every_error_is_listed_and_in_the_tree() -> None:
    defined = {
        value for value in vars(errors).values() if isinstance(value, type) and value.__module__ == errors.__name__
    }
    assert defined == set(ALL)
    assert all(issubclass(error, HivemindError) for error in ALL)
    for error in ALL:
        assert error.__name__ in (errors.__doc__ or ""), "the drawing shows all of them"


def test_old_relations_hold() -> None:
    assert issubclass(errors.ControlFailure, errors.P2PDaemonError)
    assert issubclass(errors.DispatchFailure, errors.P2PDaemonError)
    assert not issubclass(errors.P2PHandlerError, errors.P2PDaemonError)
    assert issubclass(errors.ConfigError, ValueError)
    assert issubclass(errors.DeadlineExceeded, TimeoutError)
    assert issubclass(errors.BannedException, errors.AllreduceException)


def test_texts_say_what_happened() -> None:
    assert str(ConfigError("size", -1, "an integer >= 1")) == "size: got -1, allowed: an integer >= 1"
    assert str(DaemonStartError("no luck", "try again")) == "no luck (try again)"
    assert str(DaemonStartError("no luck")) == "no luck"
    assert str(DaemonDied(-9, "line one\nline two")).endswith("line one\nline two")
    assert "-9" in str(DaemonDied(-9))


@pytest.mark.parametrize(
    "error", [ConfigError("a", 1, "b"), DaemonStartError("a", "b"), DaemonDied(3, "x"), errors.PeerBusy("c")]
)
def test_errors_cross_process_borders(error: HivemindError) -> None:
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is type(error)
    assert str(copy) == str(error)
    assert vars(copy) == vars(error)
