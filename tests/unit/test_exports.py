"""What users import: names are where hivemind 1.1 had them, and importing is cheap."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import hivemind
import hivemind.moe
import hivemind.moe.client
import hivemind.moe.server
import hivemind.utils

LAZY = [hivemind, hivemind.moe, hivemind.moe.client, hivemind.moe.server, hivemind.utils]

#: Names that hivemind 1.1 documents at these places, as far as they are built.
PUBLIC = {
    "hivemind": (
        "DHT DecentralizedAverager Optimizer P2P P2PContext P2PHandlerError PeerID PeerInfo get_dht_time get_logger "
        "use_hivemind_log_handler Float16Compression NoCompression SizeAdaptiveCompression RoleAdaptiveCompression "
        "PerTensorCompression ScaledFloat16Compression BlockwiseQuantization Quantile8BitQuantization "
        "Uniform8BitQuantization MSGPackSerializer ValueWithExpiration TimedStorage averaging compression dht moe "
        "optim p2p proto utils RemoteExpert RemoteMixtureOfExperts RemoteSwitchMixtureOfExperts ModuleBackend Server "
        "register_expert_class __version__"
    ),
    "hivemind.compression": (
        "PerTensorCompression RoleAdaptiveCompression SizeAdaptiveCompression CompressionBase CompressionInfo "
        "NoCompression TensorRole Float16Compression ScaledFloat16Compression BlockwiseQuantization "
        "Quantile8BitQuantization Uniform8BitQuantization deserialize_tensor_stream deserialize_torch_tensor "
        "serialize_torch_tensor adaptive base floating quantization serialization"
    ),
    "hivemind.compression.adaptive": "PerTensorCompression RoleAdaptiveCompression SizeAdaptiveCompression",
    "hivemind.compression.base": "CompressionBase CompressionInfo NoCompression TensorRole USE_LEGACY_BFLOAT16",
    "hivemind.compression.floating": "Float16Compression ScaledFloat16Compression",
    "hivemind.compression.quantization": "BlockwiseQuantization Quantile8BitQuantization Uniform8BitQuantization",
    "hivemind.compression.serialization": ("deserialize_tensor_stream deserialize_torch_tensor serialize_torch_tensor"),
    "hivemind.dht": "DHT DHTNode DHTID DHTValue DEFAULT_NUM_WORKERS CompositeValidator RecordValidatorBase",
    "hivemind.averaging": "DecentralizedAverager",
    "hivemind.moe": (
        "RemoteExpert RemoteMixtureOfExperts RemoteSwitchMixtureOfExperts ModuleBackend Server declare_experts "
        "get_experts register_expert_class ExpertInfo ExpertUID"
    ),
    "hivemind.moe.client": (
        "RemoteExpert RemoteMixtureOfExperts RemoteSwitchMixtureOfExperts MoEBeamSearcher create_remote_experts"
    ),
    "hivemind.moe.client.expert": (
        "RemoteExpert create_remote_experts batch_create_remote_experts expert_forward expert_backward get_server_stub "
        "DUMMY"
    ),
    "hivemind.moe.client.remote_expert_worker": "RemoteExpertWorker",
    "hivemind.moe.client.beam_search": "MoEBeamSearcher",
    "hivemind.moe.client.switch_moe": "RemoteSwitchMixtureOfExperts",
    "hivemind.moe.server": (
        "Server ModuleBackend background_server declare_experts get_experts register_expert_class layers runtime"
    ),
    "hivemind.moe.server.layers": (
        "name_to_block name_to_input add_custom_models_from_file register_expert_class "
        "get_linear_schedule_with_warmup schedule_name_to_scheduler"
    ),
    "hivemind.moe.server.layers.custom_experts": "add_custom_models_from_file register_expert_class",
    "hivemind.moe.server.layers.optim": "ClippingWrapper OptimizerWrapper",
    "hivemind.moe.server.layers.lr_schedule": "get_linear_schedule_with_warmup",
    "hivemind.moe.server.server": "Server _generate_uids",
    "hivemind.moe.server.module_backend": "ModuleBackend",
    "hivemind.moe.server.task_pool": "TaskPool TaskPoolBase",
    "hivemind.moe.server.runtime": "Runtime",
    "hivemind.moe.server.connection_handler": "ConnectionHandler",
    "hivemind.moe.server.checkpoints": "CheckpointSaver load_experts store_experts",
    "hivemind.moe.server.dht_handler": "declare_experts get_experts",
    "hivemind.utils.limits": "increase_file_limit",
    "hivemind.moe.expert_uid": (
        "ExpertInfo ExpertUID ExpertPrefix Coordinate UID_DELIMITER FLAT_EXPERT UID_PATTERN PREFIX_PATTERN "
        "is_valid_uid is_valid_prefix split_uid"
    ),
    "hivemind.optim": "Optimizer",
    "hivemind.p2p": "P2P P2PContext P2PDaemonError P2PHandlerError PeerID PeerInfo ServicerBase StubBase",
    "hivemind.utils": (
        "get_dht_time get_logger use_hivemind_log_handler MSGPackSerializer SerializerBase TimedStorage "
        "ValueWithExpiration DHTExpiration MAX_DHT_TIME_DISCREPANCY_SECONDS MPFuture PerformanceEMA TensorDescriptor "
        "BatchTensorDescriptor combine_from_streaming split_for_streaming as_aiter cancel_and_wait nested_compare "
        "nested_flatten nested_map nested_pack logging timed_storage serializer"
    ),
    "hivemind.utils.auth": "AccessToken AuthRole AuthRPCWrapper AuthorizerBase TokenAuthorizerBase",
    "hivemind.utils.crypto": "RSAPrivateKey RSAPublicKey",
    "hivemind.p2p.p2p_daemon_bindings.control": (
        "DEFAULT_MAX_MSG_SIZE MAX_UNARY_PAYLOAD_SIZE ControlFailure DispatchFailure P2PDaemonError P2PHandlerError"
    ),
    "hivemind.p2p.p2p_daemon_bindings.datastructures": "PeerID PeerInfo StreamInfo",
    "hivemind.p2p.p2p_daemon_bindings.utils": "ControlFailure DispatchFailure",
    "hivemind.utils.networking": "LOCALHOST choose_ip_address log_visible_maddrs",
    "hivemind.utils.logging": "get_logger use_hivemind_log_handler loglevel",
    "hivemind.utils.tensor_descr": "TensorDescriptor BatchTensorDescriptor DUMMY_BATCH_SIZE",
    "hivemind.utils.timed_storage": "get_dht_time ValueWithExpiration TimedStorage DHTExpiration",
    "hivemind.proto": "auth_pb2 averaging_pb2 crypto_pb2 dht_pb2 p2pd_pb2 runtime_pb2 test_pb2",
}


@pytest.mark.parametrize(("module", "name"), [(m, name) for m, names in PUBLIC.items() for name in names.split()])
def test_name_is_there(module: str, name: str) -> None:
    exec(f"from {module} import {name}", {})


def typed_imports(module: ModuleType) -> set[str]:
    """Names that a type checker sees: the imports under ``if TYPE_CHECKING``."""
    assert module.__file__ is not None
    body = ast.parse(Path(module.__file__).read_text()).body
    guarded = [
        n for n in body if isinstance(n, ast.If) and isinstance(n.test, ast.Name) and n.test.id == "TYPE_CHECKING"
    ]
    return {
        alias.asname or alias.name
        for block in guarded
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }


@pytest.mark.parametrize(
    "module",
    [hivemind, hivemind.moe, hivemind.moe.client, hivemind.moe.server, hivemind.utils],
    ids=lambda module: module.__name__,
)
def test_lazy_names_are_what_type_checkers_see(module: ModuleType) -> None:
    names = {name for name in typed_imports(module) if not isinstance(getattr(module, name), ModuleType)}
    assert names == set(module.__all__)
    assert set(module.__all__) <= set(dir(module))


@pytest.mark.parametrize(
    "module",
    [hivemind, hivemind.moe, hivemind.moe.client, hivemind.moe.server, hivemind.utils],
    ids=lambda module: module.__name__,
)
def test_lazy_name_is_the_one_of_its_home(module: ModuleType) -> None:
    for home, names in module._HOMES.items():
        for name in names:
            assert getattr(module, name) is getattr(importlib.import_module(home), name)


@pytest.mark.parametrize(
    "module",
    [hivemind, hivemind.moe, hivemind.moe.client, hivemind.moe.server, hivemind.utils],
    ids=lambda module: module.__name__,
)
def test_unknown_name_is_an_attribute_error_that_names_it(module: ModuleType) -> None:
    with pytest.raises(AttributeError, match=r"has no attribute 'no_such_name'"):
        _ = module.no_such_name


@pytest.mark.parametrize(
    ("statement", "may_not_load"),
    [
        ("import hivemind", "torch numpy multiaddr google cryptography asyncio"),
        ("from hivemind import get_dht_time, get_logger, PeerID", "torch"),
        ("import hivemind.p2p, hivemind.dht, hivemind.proto", "torch"),
        ("from hivemind.moe import declare_experts, ExpertInfo", "torch"),
        ("from hivemind.utils import get_dht_time, MSGPackSerializer, MPFuture", "torch"),
    ],
)
def test_import_is_cheap(statement: str, may_not_load: str) -> None:
    code = f"{statement}; import sys; print(*(set({may_not_load.split()!r}) & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.split() == []


def test_version_is_the_distributions() -> None:
    assert hivemind.__version__.startswith("2.")
