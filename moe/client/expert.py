"""`RemoteExpert`: an expert of another peer as a torch module."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, overload

from torch import nn

from hivemind.clock import Deadline, DHTExpiration
from hivemind.config import check_seconds
from hivemind.dht import DHT, DHTNode
from hivemind.errors import WrongTypeError
from hivemind.moe.client.autograd import DUMMY, RemoteCall, call_expert
from hivemind.moe.client.calls import DEFAULT_TIMEOUT, expert_backward, expert_forward
from hivemind.moe.client.eager import outside_of_graphs
from hivemind.moe.client.remote import ask_schema, stub_of
from hivemind.moe.client.schema import check_inputs
from hivemind.moe.declare import check_uids, find_experts
from hivemind.moe.messages import ExpertSchema
from hivemind.moe.service import get_server_stub
from hivemind.moe.uid import ExpertInfo, ExpertUID, check_uid
from hivemind.nested import nested_pack
from hivemind.p2p import P2P, PeerID, StubBase
from hivemind.runtime import HivemindFuture, get_runtime

__all__ = [
    "DUMMY",
    "RemoteExpert",
    "batch_create_remote_experts",
    "create_remote_experts",
    "expert_backward",
    "expert_forward",
    "get_experts",
    "get_server_stub",
]

Experts = list["RemoteExpert | None"]


class RemoteExpert(nn.Module):
    """Calls an expert on its server as if it were a module here: forward, and in backward once more, upon which the
    expert makes a step of its own optimizer. It has no parameters here. Thread-safe.

    ``forward`` takes and gives what ``info`` says; floating point inputs of another dtype, as under autocast, are
    converted on the way. It raises

    * `WrongTypeError` (a ``TypeError``) or `InputMismatch` (a ``ValueError``) if the arguments do not fit;
    * `UnknownExpert`, `ExpertFailed`, `ServerBusy` (all `ExpertError`) if the server cannot answer;
    * `P2PDaemonError` if it cannot be reached, `DeadlineExceeded` if it does not answer in time;
    * `ProtocolViolation` or `SerializationError` if its answer is none.

    So does ``backward``, which asks anew each time it runs over a graph that was kept.

    :param expert_info: its name and its server
    :param p2p: this process's peer on the network thread, as ``dht.p2p``
    :param timeout: seconds for each of forward and backward; None = wait for ever
    """

    def __init__(self, expert_info: ExpertInfo, p2p: P2P, *, timeout: float | None = DEFAULT_TIMEOUT) -> None:
        super().__init__()
        check_uid("expert_info.uid", expert_info.uid)
        if not isinstance(expert_info.peer_id, PeerID):
            raise WrongTypeError("expert_info.peer_id", expert_info.peer_id, "a PeerID")
        check_seconds("timeout", timeout, optional=True)
        self._expert = ExpertInfo(*expert_info)
        self._p2p = p2p
        self._timeout = timeout
        # written once, by whichever thread is first: all would write the same
        self._info: ExpertSchema | None = None

    @property
    def expert_info(self) -> ExpertInfo:
        """Its name and its server."""
        return self._expert

    @property
    def uid(self) -> ExpertUID:
        """Its name."""
        return self._expert.uid

    @property
    def peer_id(self) -> PeerID:
        """Its server."""
        return self._expert.peer_id

    @property
    def stub(self) -> StubBase:
        """Its server, for coroutines of the network thread."""
        return stub_of(self._expert, self._p2p)

    @property
    def info(self) -> ExpertSchema:
        """What it takes and gives: ``forward_schema``, ``outputs_schema``, ``keyword_names``. Asked once; blocks."""
        if self._info is None:
            self._info = get_runtime().call(ask_schema, self._expert, self._p2p, Deadline.after(self._timeout))
        return self._info

    @outside_of_graphs
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Outputs of the expert, structured as its ``outputs_schema`` says, on the device of the first input.

        :param args: tensors or nested structures of them, batch first
        """
        schema = self.info
        inputs = check_inputs(schema, args, kwargs)
        outputs = call_expert(RemoteCall(self._expert, self._p2p, schema, self._timeout), inputs)
        return nested_pack(outputs, schema["outputs_schema"])

    def extra_repr(self) -> str:
        return f"uid={self.uid}, server_peer_id={self.peer_id}"


def _make(info: ExpertInfo | None, p2p: P2P) -> RemoteExpert | None:
    return None if info is None else RemoteExpert(info, p2p)


Infos = Sequence[ExpertInfo | None]


@overload
def create_remote_experts(
    infos: Infos | HivemindFuture[Infos], dht: DHT, return_future: Literal[False] = False
) -> Experts: ...


@overload
def create_remote_experts(
    infos: Infos | HivemindFuture[Infos], dht: DHT, return_future: Literal[True]
) -> HivemindFuture[Experts]: ...


def create_remote_experts(
    infos: Infos | HivemindFuture[Infos], dht: DHT, return_future: bool = False
) -> Experts | HivemindFuture[Experts]:
    """Modules for experts whose servers are known; None stays None.

    :param infos: names and servers, or a future of them
    :param return_future: return at once
    """

    async def create(dht: DHT, node: DHTNode) -> Experts:
        known = await infos if isinstance(infos, HivemindFuture) else infos
        return [_make(info, node.p2p) for info in known]

    return dht.run_coroutine(create, return_future=True) if return_future else dht.run_coroutine(create)


def batch_create_remote_experts(
    infos: Sequence[Infos] | HivemindFuture[Sequence[Infos]], dht: DHT, return_future: bool = False
) -> list[Experts] | HivemindFuture[list[Experts]]:
    """`create_remote_experts` for several lists."""

    async def create(dht: DHT, node: DHTNode) -> list[Experts]:
        known = await infos if isinstance(infos, HivemindFuture) else infos
        return [[_make(info, node.p2p) for info in each] for each in known]

    return dht.run_coroutine(create, return_future=True) if return_future else dht.run_coroutine(create)


@overload
def get_experts(
    dht: DHT,
    uids: Sequence[ExpertUID],
    expiration_time: DHTExpiration | None = None,
    return_future: Literal[False] = False,
) -> Experts: ...


@overload
def get_experts(
    dht: DHT, uids: Sequence[ExpertUID], expiration_time: DHTExpiration | None = None, *, return_future: Literal[True]
) -> HivemindFuture[Experts]: ...


def get_experts(
    dht: DHT, uids: Sequence[ExpertUID], expiration_time: DHTExpiration | None = None, return_future: bool = False
) -> Experts | HivemindFuture[Experts]:
    """Look up who serves ``uids``. Thread-safe.

    :param expiration_time: stop early at a record that holds up to this DHT time; default now, infinity for the latest
    :param return_future: return at once
    :returns: in the order of ``uids``, None where nobody is known to serve one
    :raises ConfigError: if a name is malformed; `WrongTypeError` if ``uids`` is one name and not several
    """
    check_uids(uids)

    async def find(dht: DHT, node: DHTNode) -> Experts:
        return [_make(info, node.p2p) for info in await find_experts(node, uids, expiration_time)]

    return dht.run_coroutine(find, return_future=True) if return_future else dht.run_coroutine(find)
