"""Names that hivemind 1.1 kept under ``hivemind.utils``: thin re-exports of where they live now.

The submodules have the paths of hivemind 1.1, too. Names are loaded on first use: only those of tensors load torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from hivemind.lazy import lazy_names

if TYPE_CHECKING:
    from hivemind.utils import asyncio as asyncio
    from hivemind.utils import auth as auth
    from hivemind.utils import crypto as crypto
    from hivemind.utils import logging as logging
    from hivemind.utils import mpfuture as mpfuture
    from hivemind.utils import nested as nested
    from hivemind.utils import networking as networking
    from hivemind.utils import performance_ema as performance_ema
    from hivemind.utils import serializer as serializer
    from hivemind.utils import streaming as streaming
    from hivemind.utils import tensor_descr as tensor_descr
    from hivemind.utils import timed_storage as timed_storage
    from hivemind.utils.asyncio import as_aiter as as_aiter
    from hivemind.utils.asyncio import cancel_and_wait as cancel_and_wait
    from hivemind.utils.logging import get_logger as get_logger
    from hivemind.utils.logging import use_hivemind_log_handler as use_hivemind_log_handler
    from hivemind.utils.mpfuture import MPFuture as MPFuture
    from hivemind.utils.nested import is_namedtuple as is_namedtuple
    from hivemind.utils.nested import nested_compare as nested_compare
    from hivemind.utils.nested import nested_flatten as nested_flatten
    from hivemind.utils.nested import nested_map as nested_map
    from hivemind.utils.nested import nested_pack as nested_pack
    from hivemind.utils.networking import choose_ip_address as choose_ip_address
    from hivemind.utils.networking import log_visible_maddrs as log_visible_maddrs
    from hivemind.utils.performance_ema import PerformanceEMA as PerformanceEMA
    from hivemind.utils.serializer import MSGPackSerializer as MSGPackSerializer
    from hivemind.utils.serializer import SerializerBase as SerializerBase
    from hivemind.utils.streaming import combine_from_streaming as combine_from_streaming
    from hivemind.utils.streaming import split_for_streaming as split_for_streaming
    from hivemind.utils.tensor_descr import BatchTensorDescriptor as BatchTensorDescriptor
    from hivemind.utils.tensor_descr import TensorDescriptor as TensorDescriptor
    from hivemind.utils.timed_storage import MAX_DHT_TIME_DISCREPANCY_SECONDS as MAX_DHT_TIME_DISCREPANCY_SECONDS
    from hivemind.utils.timed_storage import DHTExpiration as DHTExpiration
    from hivemind.utils.timed_storage import TimedStorage as TimedStorage
    from hivemind.utils.timed_storage import ValueWithExpiration as ValueWithExpiration
    from hivemind.utils.timed_storage import get_dht_time as get_dht_time

#: submodule → names of ``hivemind.utils`` that it has; a test holds it equal to the imports above
_HOMES = {
    "hivemind.utils.asyncio": ("as_aiter", "cancel_and_wait"),
    "hivemind.utils.logging": ("get_logger", "use_hivemind_log_handler"),
    "hivemind.utils.mpfuture": ("MPFuture",),
    "hivemind.utils.nested": ("is_namedtuple", "nested_compare", "nested_flatten", "nested_map", "nested_pack"),
    "hivemind.utils.networking": ("choose_ip_address", "log_visible_maddrs"),
    "hivemind.utils.performance_ema": ("PerformanceEMA",),
    "hivemind.utils.serializer": ("MSGPackSerializer", "SerializerBase"),
    "hivemind.utils.streaming": ("combine_from_streaming", "split_for_streaming"),
    "hivemind.utils.tensor_descr": ("BatchTensorDescriptor", "TensorDescriptor"),
    "hivemind.utils.timed_storage": (
        "MAX_DHT_TIME_DISCREPANCY_SECONDS",
        "DHTExpiration",
        "TimedStorage",
        "ValueWithExpiration",
        "get_dht_time",
    ),
}

__all__ = [name for names in _HOMES.values() for name in names]

_SUBMODULES = [module.rpartition(".")[2] for module in _HOMES]

__getattr__, __dir__ = lazy_names(__name__, _HOMES, ["auth", "crypto", *_SUBMODULES])
