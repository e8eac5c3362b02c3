"""hivemind: train one PyTorch model on many computers that come and go, with no master.

Public names are loaded on first use (PEP 562), so that ``import hivemind`` is cheap and torch is loaded only where
it is needed. ``hivemind.utils`` and the other packages are attributes without an import of their own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hivemind.lazy import lazy_names

if TYPE_CHECKING:
    from hivemind.averaging import DecentralizedAverager as DecentralizedAverager
    from hivemind.clock import MAX_DHT_TIME_DISCREPANCY_SECONDS as MAX_DHT_TIME_DISCREPANCY_SECONDS
    from hivemind.clock import DHTExpiration as DHTExpiration
    from hivemind.clock import get_dht_time as get_dht_time
    from hivemind.compression import BlockwiseQuantization as BlockwiseQuantization
    from hivemind.compression import CompressionBase as CompressionBase
    from hivemind.compression import CompressionInfo as CompressionInfo
    from hivemind.compression import Float16Compression as Float16Compression
    from hivemind.compression import NoCompression as NoCompression
    from hivemind.compression import PerTensorCompression as PerTensorCompression
    from hivemind.compression import Quantile8BitQuantization as Quantile8BitQuantization
    from hivemind.compression import RoleAdaptiveCompression as RoleAdaptiveCompression
    from hivemind.compression import ScaledFloat16Compression as ScaledFloat16Compression
    from hivemind.compression import SizeAdaptiveCompression as SizeAdaptiveCompression
    from hivemind.compression import TensorDescriptor as TensorDescriptor
    from hivemind.compression import TensorRole as TensorRole
    from hivemind.compression import Uniform8BitQuantization as Uniform8BitQuantization
    from hivemind.compression import combine_from_streaming as combine_from_streaming
    from hivemind.compression import deserialize_tensor_stream as deserialize_tensor_stream
    from hivemind.compression import deserialize_torch_tensor as deserialize_torch_tensor
    from hivemind.compression import serialize_torch_tensor as serialize_torch_tensor
    from hivemind.compression import split_for_streaming as split_for_streaming
    from hivemind.dht import DEFAULT_NUM_WORKERS as DEFAULT_NUM_WORKERS
    from hivemind.dht import DHT as DHT
    from hivemind.dht import DHTID as DHTID
    from hivemind.dht import CompositeValidator as CompositeValidator
    from hivemind.dht import DHTNode as DHTNode
    from hivemind.dht import DHTValue as DHTValue
    from hivemind.dht import RecordValidatorBase as RecordValidatorBase
    from hivemind.errors import AllreduceException as AllreduceException
    from hivemind.errors import ConfigError as ConfigError
    from hivemind.errors import DeadlineExceeded as DeadlineExceeded
    from hivemind.errors import HivemindError as HivemindError
    from hivemind.errors import MatchmakingException as MatchmakingException
    from hivemind.errors import P2PDaemonError as P2PDaemonError
    from hivemind.errors import P2PHandlerError as P2PHandlerError
    from hivemind.log import get_logger as get_logger
    from hivemind.log import use_hivemind_log_handler as use_hivemind_log_handler
    from hivemind.moe import ModuleBackend as ModuleBackend
    from hivemind.moe import RemoteExpert as RemoteExpert
    from hivemind.moe import RemoteMixtureOfExperts as RemoteMixtureOfExperts
    from hivemind.moe import RemoteSwitchMixtureOfExperts as RemoteSwitchMixtureOfExperts
    from hivemind.moe import Server as Server
    from hivemind.moe import register_expert_class as register_expert_class
    from hivemind.optim import Optimizer as Optimizer
    from hivemind.p2p import P2P as P2P
    from hivemind.p2p import P2PContext as P2PContext
    from hivemind.p2p import PeerID as PeerID
    from hivemind.p2p import PeerInfo as PeerInfo
    from hivemind.p2p import ServicerBase as ServicerBase
    from hivemind.p2p import StubBase as StubBase
    from hivemind.serializer import MSGPackSerializer as MSGPackSerializer
    from hivemind.serializer import SerializerBase as SerializerBase
    from hivemind.timed_storage import TimedStorage as TimedStorage
    from hivemind.timed_storage import ValueWithExpiration as ValueWithExpiration

    __version__: str

#: module → public names of ``hivemind`` that live there; a test holds it equal to the imports above
_HOMES = {
    "hivemind.averaging": ("DecentralizedAverager",),
    "hivemind.clock": ("MAX_DHT_TIME_DISCREPANCY_SECONDS", "DHTExpiration", "get_dht_time"),
    "hivemind.compression": (
        "ScaledFloat16Compression",
        "BlockwiseQuantization",
        "Quantile8BitQuantization",
        "Uniform8BitQuantization",
        "CompressionBase",
        "CompressionInfo",
        "Float16Compression",
        "NoCompression",
        "PerTensorCompression",
        "RoleAdaptiveCompression",
        "SizeAdaptiveCompression",
        "TensorDescriptor",
        "TensorRole",
        "combine_from_streaming",
        "deserialize_tensor_stream",
        "deserialize_torch_tensor",
        "serialize_torch_tensor",
        "split_for_streaming",
    ),
    "hivemind.dht": (
        "DEFAULT_NUM_WORKERS",
        "DHT",
        "DHTID",
        "CompositeValidator",
        "DHTNode",
        "DHTValue",
        "RecordValidatorBase",
    ),
    "hivemind.errors": (
        "AllreduceException",
        "ConfigError",
        "DeadlineExceeded",
        "HivemindError",
        "MatchmakingException",
        "P2PDaemonError",
        "P2PHandlerError",
    ),
    "hivemind.log": ("get_logger", "use_hivemind_log_handler"),
    "hivemind.moe": (
        "ModuleBackend",
        "RemoteExpert",
        "RemoteMixtureOfExperts",
        "RemoteSwitchMixtureOfExperts",
        "Server",
        "register_expert_class",
    ),
    "hivemind.optim": ("Optimizer",),
    "hivemind.p2p": ("P2P", "P2PContext", "PeerID", "PeerInfo", "ServicerBase", "StubBase"),
    "hivemind.serializer": ("MSGPackSerializer", "SerializerBase"),
    "hivemind.timed_storage": ("TimedStorage", "ValueWithExpiration"),
}
_PACKAGES = ("averaging", "compression", "dht", "errors", "moe", "optim", "p2p", "proto", "utils")

__all__ = [name for names in _HOMES.values() for name in names]

_load, __dir__ = lazy_names(__name__, _HOMES, _PACKAGES)


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("hivemind")
    return _load(name)
