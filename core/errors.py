"""The one tree of errors that hivemind raises.

::

    HivemindError
    ├── ConfigError (ValueError)            an argument or option is wrong: names it, what came, what is allowed
    │   ├── WrongTypeError (TypeError)      it is of a type that is not allowed
    │   └── NameTakenError (RuntimeError)   it is a name that something else has already
    ├── RuntimeClosedError (RuntimeError)   the network thread is gone (after shutdown, or in a forked child)
    ├── DeadlineExceeded (TimeoutError)     a bounded wait has passed its bound
    ├── P2PDaemonError                      this machine's daemon, or the way to a peer
    │   ├── DaemonStartError                the daemon did not start: carries its own words
    │   ├── BootstrapError (RuntimeError)   no initial peer answered: names each address and why
    │   ├── DaemonDied                      the daemon ended while it was needed: carries its last log lines
    │   ├── ControlFailure                  the control connection broke its protocol
    │   └── DispatchFailure                 a call could not be brought to the peer
    │       ├── PeerUnreachable             no address answered: names each address and why
    │       ├── ProtocolNotSupported        the peer has no such handler
    │       ├── PeerBusy                    too many calls in flight
    │       │   └── HandlerBusy             the peer's handler refuses: says after how many seconds to try again
    │       ├── MessageTooLarge             over the limit of this side or the other
    │       ├── StreamReset                 the peer reset the stream, or the connection broke
    │       └── StreamTruncated             the peer's stream ended inside a message
    ├── P2PHandlerError                     the peer's handler raised: carries its text
    ├── ProtocolViolation                   a peer sent what the protocol forbids
    ├── AuthorizationError                  a call or its answer does not come from who may take part: says why
    │   └── TokenUnavailable                this peer has no access token of its own to show
    ├── ValidationError                     a peer or a record failed a check (clock, reachability, signature)
    ├── SerializationError (ValueError)     bytes that do not decode, or a value that does not encode
    │   └── TensorLengthError (RuntimeError) a tensor's buffer does not fit its shape and dtype
    ├── ExpertError                         an expert was asked in vain
    │   ├── UnknownExpert (KeyError)        the server has no expert of this uid
    │   ├── InputMismatch (ValueError)      the tensors do not fit what the expert takes
    │   ├── ExpertFailed (RuntimeError)     its module raised, or its answer is none
    │   ├── NotEnoughExperts (RuntimeError, TimeoutError)  fewer of a mixture have answered than should: says why
    │   └── ServerBusy (HandlerBusy)        the queue is full
    ├── ServerStartError (RuntimeError)     a server of experts in another process did not start: carries its words
    ├── MatchmakingException                no group was formed
    └── AllreduceException                  an averaging round failed
        └── BannedException                 this peer was excluded from the round

A local fault, a remote fault, a daemon's fault and a timeout are different types, so that callers never match texts.
Old names of hivemind 1.1 keep their place in the tree.
"""

from __future__ import annotations

import signal
from collections.abc import Mapping

__all__ = [
    "AllreduceException",
    "AuthorizationError",
    "BannedException",
    "BootstrapError",
    "ConfigError",
    "ControlFailure",
    "DaemonDied",
    "DaemonStartError",
    "DeadlineExceeded",
    "DispatchFailure",
    "ExpertError",
    "ExpertFailed",
    "HandlerBusy",
    "HivemindError",
    "InputMismatch",
    "MatchmakingException",
    "MessageTooLarge",
    "NameTakenError",
    "NotEnoughExperts",
    "P2PDaemonError",
    "P2PHandlerError",
    "PeerBusy",
    "PeerUnreachable",
    "ProtocolNotSupported",
    "ProtocolViolation",
    "RuntimeClosedError",
    "SerializationError",
    "ServerBusy",
    "ServerStartError",
    "StreamReset",
    "StreamTruncated",
    "TensorLengthError",
    "TokenUnavailable",
    "UnknownExpert",
    "ValidationError",
    "WrongTypeError",
]


class HivemindError(Exception):
    """The root: ``except HivemindError`` catches all that this library raises on purpose."""


class ConfigError(HivemindError, ValueError):
    """An argument or option is wrong.

    :param name: the argument
    :param value: what came
    :param allowed: what is allowed, in words
    """

    def __init__(self, name: str, value: object, allowed: str) -> None:
        super().__init__(name, value, allowed)
        self.name = name
        self.value = value
        self.allowed = allowed

    def __str__(self) -> str:
        return f"{self.name}: got {self.value!r}, allowed: {self.allowed}"


class WrongTypeError(ConfigError, TypeError):
    """An argument is of a type that is not allowed, or an object is used in a way that its type does not support."""


class NameTakenError(ConfigError, RuntimeError):
    """A name belongs to something else already; a RuntimeError too, as hivemind 1.1 raises there."""


class RuntimeClosedError(HivemindError, RuntimeError):
    """The network thread of this process is not running (any more)."""


class DeadlineExceeded(HivemindError, TimeoutError):
    """A bounded wait has passed its bound."""


class P2PDaemonError(HivemindError):
    """This machine's daemon failed, or could not reach a peer."""


class DaemonStartError(P2PDaemonError):
    """The daemon did not start.

    :param reason: what failed, in the daemon's words
    :param hint: what to do about it; may be empty
    :param kind: the daemon's name for what failed, as "listen" (docs/control-protocol.md); "" if it has told none
    """

    def __init__(self, reason: str, hint: str = "", kind: str = "") -> None:
        super().__init__(reason, hint, kind)
        self.reason = reason
        self.hint = hint
        self.kind = kind

    def __str__(self) -> str:
        return f"{self.reason} ({self.hint})" if self.hint else self.reason


class BootstrapError(P2PDaemonError, RuntimeError):
    """None of the initial peers has answered.

    :param reasons: why, by address
    """

    def __init__(self, reasons: Mapping[str, str]) -> None:
        super().__init__(reasons)
        self.reasons = dict(reasons)

    def __str__(self) -> str:
        each = "; ".join(f"{address}: {reason}" for address, reason in self.reasons.items())
        return f"failed to connect to bootstrap peers: {each}"


class DaemonDied(P2PDaemonError):
    """The daemon ended while it was needed. Calls that were under way may have reached their peers.

    :param exit_code: its exit code, negative for a signal; None where it is not known
    :param log_tail: its last log lines; after a crash its message
    :param note: what follows from it, in words
    """

    def __init__(self, exit_code: int | None, log_tail: str = "", note: str = "") -> None:
        super().__init__(exit_code, log_tail, note)
        self.exit_code = exit_code
        self.log_tail = log_tail
        self.note = note

    @property
    def summary(self) -> str:
        """One line, without the log."""
        how = "" if self.exit_code is None else f" (exit code {self.exit_code}{_signal_name(self.exit_code)})"
        return f"the p2p daemon has died{how}" + (f"; {self.note}" if self.note else "")

    def __str__(self) -> str:
        return f"{self.summary}; its last log lines:\n{self.log_tail}" if self.log_tail else self.summary


def _signal_name(exit_code: int) -> str:
    try:
        name = signal.Signals(-exit_code).name
    except ValueError:
        return ""
    return f", {name}: perhaps out of memory" if name == "SIGKILL" else f", {name}"


class ControlFailure(P2PDaemonError):
    """The connection to the daemon broke its protocol, or the daemon refused a request."""


class DispatchFailure(P2PDaemonError):
    """A call could not be brought to the peer, or its answer could not be brought back."""


class PeerUnreachable(DispatchFailure):
    """No address of the peer answered; the text names each address and why."""


class ProtocolNotSupported(DispatchFailure):
    """The peer has no such handler; the text contains "protocol not supported"."""


class PeerBusy(DispatchFailure):
    """Too many calls are in flight at the peer or here."""

    #: seconds after which to try again; None where nobody knows
    retry_after: float | None = None


class HandlerBusy(PeerBusy):
    """A handler has more to do than it can answer in time. Raised by a handler, it is the same error at the caller;
    callers of hivemind 1.1 get its repr as the text of a `P2PHandlerError`.

    :param reason: what is full
    :param retry_after: seconds after which to try again, below 3600
    """

    retry_after: float

    def __init__(self, reason: str, retry_after: float) -> None:
        super().__init__(reason, retry_after)
        self.retry_after = retry_after

    def __str__(self) -> str:
        return f"{self.args[0]}: try again in {self.retry_after:.2g} s"


class MessageTooLarge(DispatchFailure):
    """A message is over the limit of this side or of the other."""


class StreamReset(DispatchFailure):
    """The peer reset the stream, or the connection broke."""


class StreamTruncated(DispatchFailure):
    """The peer's stream ended inside a message."""


class P2PHandlerError(HivemindError):
    """The peer's handler raised; the text is what it said."""


class ProtocolViolation(HivemindError):
    """A peer sent what the protocol forbids."""


class AuthorizationError(HivemindError):
    """A call was refused, or its answer is not trusted: who is at the other side may not take part."""


class TokenUnavailable(AuthorizationError):
    """This peer could not get an access token for itself."""


class ValidationError(HivemindError):
    """A peer or a record failed a check: clock, reachability, signature, schema."""


class SerializationError(HivemindError, ValueError):
    """Bytes that do not decode, or a value that does not encode."""


class TensorLengthError(SerializationError, RuntimeError):
    """The buffer of a tensor does not fit its shape and dtype; a RuntimeError too, as hivemind 1.1 raises there."""


class ExpertError(HivemindError):
    """An expert was asked in vain. It travels by its name, so that it is the same error at server and client."""

    def __str__(self) -> str:  # not the repr that KeyError gives
        return str(self.args[0]) if self.args else ""


class UnknownExpert(ExpertError, KeyError):
    """The server has no expert of this uid (any more)."""


class InputMismatch(ExpertError, ValueError):
    """Shapes, dtypes or number of the tensors do not fit what the expert takes; the text says what it takes."""


class ExpertFailed(ExpertError, RuntimeError):
    """The expert's module raised, or what it gave is no answer (NaN, wrong shape). The expert is as it was before."""


class NotEnoughExperts(ExpertError, DeadlineExceeded, RuntimeError):
    """Fewer experts of a mixture have answered than each sample should have; the text says how many, and why."""


class ServerBusy(HandlerBusy, ExpertError):
    """The server has more to do than it can answer in time."""


class ServerStartError(HivemindError, RuntimeError):
    """A server of experts in another process did not start, or did not say so in time."""


class MatchmakingException(HivemindError):
    """No group was formed; the text says why."""


class AllreduceException(HivemindError):
    """An averaging round failed; the tensors are as they were before it."""


class BannedException(AllreduceException):
    """A peer was excluded from the round."""
