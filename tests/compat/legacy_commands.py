"""What a test may ask of a peer of hivemind 1.1.12. Loaded by that library's Python only; see ``legacy_driver``.

Objects live under names that the test chooses. A command that involves another peer returns how it ended, also when
that is an error (``{"raised": type, "text": text}``): whose fault it was is for the test to say. What raises is taken
for a fault of 1.1.12.
"""

import asyncio
import time
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import torch
from pydantic.v1 import BaseModel, StrictFloat

import hivemind
from hivemind.averaging.averager import DecentralizedAverager
from hivemind.compression import (
    BlockwiseQuantization,
    Float16Compression,
    NoCompression,
    deserialize_torch_tensor,
    serialize_torch_tensor,
)
from hivemind.dht import DHT, DHTID, DHTNode
from hivemind.dht.crypto import RSASignatureValidator
from hivemind.dht.schema import SchemaValidator
from hivemind.p2p import P2P
from hivemind.proto import runtime_pb2
from hivemind.utils import get_dht_time
from tests.compat import service, workload
from tests.compat.legacy_expert_calls import experts_call as experts_call
from tests.compat.legacy_expert_calls import experts_info as experts_info
from tests.compat.legacy_expert_calls import experts_join as experts_join
from tests.compat.legacy_expert_calls import experts_mix as experts_mix
from tests.compat.legacy_experts import experts_serve as experts_serve
from tests.compat.legacy_experts import experts_stop as experts_stop
from tests.compat.packing import pack_tensor, unpack_tensor
from tests.support import nat_lab

LOCAL: dict[str, Any] = {"host_maddrs": ["/ip4/127.0.0.1/tcp/0"], "nat_port_map": False, "auto_nat": False}
COMPRESSIONS = {"NONE": NoCompression, "FLOAT16": Float16Compression, "BLOCKWISE_8BIT": BlockwiseQuantization}


class Schema(BaseModel):
    """Values under the key ``run_losses``."""

    losses: dict[bytes, StrictFloat]


Command = TypeVar("Command", bound=Callable[..., Any])

_dhts: dict[str, DHT] = {}
_p2ps: dict[str, P2P] = {}
_services: dict[str, service.Arithmetic] = {}
_calls: dict[str, "asyncio.Task[None]"] = {}
_averagers: dict[str, DecentralizedAverager] = {}
_trainers: dict[str, workload.Trainer] = {}


def in_background(command: Command) -> Command:
    """Mark a command that waits for other peers: it gets a thread of its own."""
    command.in_background = True  # type: ignore[attr-defined]
    return command


def _outcome(run: Callable[[], Any]) -> Any:
    try:
        return run()
    except Exception as error:  # noqa: BLE001 (the test judges it)
        return {"raised": type(error).__name__, "text": str(error)}


# DHT


def dht_start(name: str, initial_peers: list[str], node_id: bytes | None = None, **options: Any) -> dict[str, Any]:
    """Start a DHT node; returns its peer id and addresses."""
    if node_id is not None:
        options["node_id"] = DHTID.from_bytes(node_id)
    dht = _dhts[name] = DHT(initial_peers=initial_peers, start=True, **LOCAL, **options)
    return {"peer_id": dht.peer_id.to_base58(), "maddrs": [str(maddr) for maddr in dht.get_visible_maddrs()]}


def dht_validate(name: str) -> str:
    """Have records signed by their owners, and fit a schema, from now on; returns the marker of this owner."""
    signer = RSASignatureValidator()
    _dhts[name].add_validators([signer, SchemaValidator(Schema, prefix="run")])
    return signer.local_public_key.decode()


def dht_store(name: str, key: Any, value: Any, lifetime: float, subkey: Any = None) -> bool:
    """Store a value for ``lifetime`` seconds."""
    return bool(_dhts[name].store(key, value, get_dht_time() + lifetime, subkey=subkey))


def dht_get(name: str, key: Any, latest: bool = True) -> Any:
    """The value under a key, ``{subkey: value}`` for a dictionary, None if there is none."""
    found = _dhts[name].get(key, latest=latest)
    if found is None:
        return None
    if isinstance(found.value, dict):
        return {subkey: getattr(entry, "value", entry) for subkey, entry in found.value.items()}
    return found.value


async def _copies_of(key: Any, dht: DHT, node: DHTNode) -> dict[str, bool]:
    key_id = DHTID.generate(source=key)
    return {
        "stored": node.protocol.storage.get(key_id) is not None,
        "cached": node.protocol.cache.get(key_id) is not None,
    }


def dht_copies(name: str, key: Any) -> dict[str, bool]:
    """Whether the node itself holds a key: ``stored``, ``cached``."""
    copies: dict[str, bool] = _dhts[name].run_coroutine(partial(_copies_of, key))
    return copies


async def _drop(key: Any, dht: DHT, node: DHTNode) -> None:
    for place in (node.protocol.storage, node.protocol.cache):
        if DHTID.generate(source=key) in place:
            del place[DHTID.generate(source=key)]


def dht_drop(name: str, key: Any) -> None:
    """Have the node itself hold a key no more."""
    _dhts[name].run_coroutine(partial(_drop, key))


def dht_stop(name: str) -> None:
    """Shut a DHT node down in order."""
    _dhts.pop(name).shutdown()


# calls


async def p2p_start(name: str, initial_peers: list[str], **options: Any) -> dict[str, Any]:
    """Start a peer without a DHT; returns its peer id and addresses."""
    p2p = _p2ps[name] = await P2P.create(initial_peers=initial_peers, **{**LOCAL, **options})
    maddrs = [] if options.get("no_listen") else [str(maddr) for maddr in await p2p.get_visible_maddrs()]
    return {"peer_id": p2p.peer_id.to_base58(), "maddrs": maddrs}


async def enter_namespace(namespace: str) -> None:
    """Move to a network namespace; daemons that are started from now on are inside."""
    nat_lab.enter(namespace)  # the loop's thread: it starts them


async def p2p_ways(name: str, peer_id: str) -> list[str]:
    """The remote addresses of a peer's connections to another."""
    infos = await _p2ps[name].list_peers()
    return [str(addr) for info in infos if info.peer_id.to_base58() == peer_id for addr in info.addrs]


async def service_start(name: str) -> None:
    """Serve ``Arithmetic`` on a peer."""
    _services[name] = service.Arithmetic()
    await _services[name].add_p2p_handlers(_p2ps[name])


async def service_seen(name: str) -> dict[str, Any]:
    """What the handlers of a peer have seen so far."""
    seen = _services[name]
    return {"callers": seen.callers, "started": seen.started, "cancelled": seen.cancelled}


async def service_call(name: str, peer_id: str, method: str, argument: Any) -> Any:
    """Call a method of another peer's ``Arithmetic``; see :func:`service.call`."""
    return await service.call(_p2ps[name], peer_id, method, argument)


async def hang_begin(name: str, peer_id: str) -> None:
    """Start a call that never ends by itself."""
    _calls[name] = asyncio.ensure_future(service.hang(_p2ps[name], peer_id))


async def hang_cancel(name: str) -> bool:
    """Cancel that call; returns whether it was still running."""
    task = _calls.pop(name)
    running = task.cancel()
    await asyncio.wait([task])
    return running


async def raw_serve(name: str, handler: str) -> None:
    """Serve a binary stream that sends back what comes, with 8 bytes of length before it."""

    async def echo(info: Any, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await P2P.send_raw_data(await P2P.receive_raw_data(reader), writer)

    await _p2ps[name].add_binary_stream_handler(handler, echo)


# averaging


def averager_start(
    name: str,
    dht: str,
    tensors: list[dict[str, Any]],
    compression: str = "NONE",
    state_compression: str = "NONE",
    **options: Any,
) -> None:
    """Start a ``DecentralizedAverager`` on a DHT node that was started before."""
    _averagers[name] = DecentralizedAverager(
        [unpack_tensor(tensor) for tensor in tensors],
        _dhts[dht],
        start=True,
        compression=COMPRESSIONS[compression](),
        state_compression=COMPRESSIONS[state_compression](),
        **options,
    )


@in_background
def averager_step(name: str, schedule_in: float | None = None, **options: Any) -> dict[str, Any]:
    """One round; returns ``{"gathered": {peer id: data}}`` or what it raised, with the tensors afterwards."""
    averager = _averagers[name]
    scheduled = None if schedule_in is None else get_dht_time() + schedule_in
    started = time.monotonic()
    result = _outcome(lambda: {"gathered": _by_text(averager.step(scheduled_time=scheduled, **options))})
    return {**result, "seconds": time.monotonic() - started, "tensors": averager_tensors(name)}


def _by_text(gathered: Any) -> dict[str, Any]:
    return {peer_id.to_base58(): data for peer_id, data in gathered.items()}


@in_background
def averager_tensors(name: str) -> list[dict[str, Any]]:
    """The averager's tensors as they are now."""
    with _averagers[name].get_tensors() as tensors:
        return [pack_tensor(tensor) for tensor in tensors]


@in_background
def averager_load_state(name: str, timeout: float) -> Any:
    """Download the state of another peer: metadata and tensors, or None."""
    state = _averagers[name].load_state_from_peers(timeout=timeout)
    if state is None:
        return None
    metadata, tensors = state
    return {"metadata": metadata, "tensors": [pack_tensor(tensor) for tensor in tensors]}


def averager_stop(name: str) -> None:
    """Shut an averager down in order."""
    _averagers.pop(name).shutdown()


# training


def trainer_start(name: str, dht: str, **options: Any) -> None:
    """Make the digits trainer of ``workload`` on a DHT node that was started before."""
    _trainers[name] = workload.Trainer(_dhts[dht], **options)


@in_background
def trainer_run(name: str, epochs: int, deadline: float) -> dict[str, Any]:
    """Train until the local epoch is ``epochs``, for at most ``deadline`` seconds."""
    return _trainers[name].run(epochs, deadline)


@in_background
def trainer_report(name: str) -> dict[str, Any]:
    """Epoch, loss, accuracy and parameters as they are now."""
    return _trainers[name].report()


@in_background
def trainer_load_state(name: str) -> None:
    """Download parameters and epoch from the swarm."""
    _trainers[name].optimizer.load_state_from_peers()


def trainer_stop(name: str) -> None:
    """Shut the optimizer down in order."""
    _trainers.pop(name).optimizer.shutdown()


# tensors


def tensor_serialize(tensor: dict[str, Any], compression: str) -> bytes:
    """A tensor as the bytes of its message."""
    kind = runtime_pb2.CompressionType.Value(compression)
    return serialize_torch_tensor(unpack_tensor(tensor), kind).SerializeToString()


def tensor_deserialize(message: bytes) -> dict[str, Any]:
    """The tensor in the bytes of a message."""
    return pack_tensor(deserialize_torch_tensor(runtime_pb2.Tensor.FromString(message)))


def version() -> dict[str, str]:
    """Which libraries this process runs."""
    return {"hivemind": hivemind.__version__, "torch": torch.__version__}
