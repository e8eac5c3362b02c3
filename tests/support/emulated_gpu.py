"""A GPU that is not there: tensors of device "cuda" whose values lie in this processor's memory.

It holds callers to what a GPU asks of them. Operations take tensors of one device; values come to the processor by
copies only; what is copied to pinned memory without blocking is there once its stream was waited for. So code for GPUs
runs where there is none, and fails where it would fail on one for these reasons. It tells nothing of speed, nor of
kernels.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

__all__ = ["GPU", "emulate_gpu", "gpu"]

GPU = torch.device("cuda", 0)

aten = torch.ops.aten
#: They take tensors of two devices.
_COPIES = (aten.copy_.default, aten._to_copy.default)
#: They take indices on the processor.
_INDEXING = (aten.index.Tensor, aten.index_put_.default, aten.index_put.default)


class _Stream:
    """Copies to pinned memory that nobody has waited for."""

    def __init__(self) -> None:
        self._pending: list[Callable[[], object]] = []
        self._lock = threading.Lock()

    def add(self, copy: Callable[[], object]) -> None:
        with self._lock:
            self._pending.append(copy)

    def synchronize(self) -> None:
        with self._lock:
            pending, self._pending = self._pending, []
        for copy in pending:
            copy()


class _GpuTensor(torch.Tensor):
    """A tensor that says it is on the GPU.

    :param values: what it holds, in the processor's memory
    """

    values: torch.Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, values: torch.Tensor) -> _GpuTensor:
        made = torch.Tensor._make_wrapper_subclass(
            cls,
            values.shape,
            strides=values.stride(),
            storage_offset=values.storage_offset(),
            dtype=values.dtype,
            device="meta",
        )
        made.values = values
        return made

    # For torch itself it is a meta tensor: of one on the GPU it would ask the driver for the device.
    device = property(lambda self: GPU)
    is_cuda = property(lambda self: True)
    is_meta = property(lambda self: False)

    def tolist(self) -> Any:
        return self.cpu().tolist()

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _Emulation.current.run(func, args, kwargs or {})


class _Emulation(TorchDispatchMode):
    current: _Emulation

    def __init__(self) -> None:
        super().__init__()
        self.stream = _Stream()
        self._pinned: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self.run(func, args, kwargs or {})

    def run(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """An operation, wherever its tensors are."""
        given = [each for each in tree_flatten((args, kwargs))[0] if isinstance(each, torch.Tensor)]
        here = [each for each in given if not isinstance(each, _GpuTensor)]
        there = len(given) - len(here)
        if there and any(each.dim() for each in here) and func not in (*_COPIES, *_INDEXING):
            raise RuntimeError(f"{func}: expected all tensors to be on the same device, found at least two devices")
        pin, device = kwargs.get("pin_memory"), kwargs.get("device")
        if func is aten.is_pinned.default:
            return args[0].untyped_storage().data_ptr() in self._pinned
        if func is aten.copy_.default and not isinstance(args[0], _GpuTensor) and there:
            return self._bring(*args)
        if func in (aten._local_scalar_dense.default, aten._to_copy.default) and there:
            self.stream.synchronize()
        to_gpu = bool(there) if device is None else torch.device(device).type == "cuda"
        plain_args, plain = tree_map(
            _values_of, (args, {**kwargs, **({"device": "cpu"} if device is not None else {})})
        )
        plain.pop("pin_memory", None)
        made = func(*plain_args, **plain)
        if pin:
            self._pinned.add(made.untyped_storage().data_ptr())
        return tree_map(lambda each: _as_gpu(each, given) if to_gpu else each, made)

    def _bring(self, target: torch.Tensor, source: torch.Tensor, non_blocking: bool = False) -> torch.Tensor:
        values = _values_of(source)
        if non_blocking and target.untyped_storage().data_ptr() in self._pinned:
            self.stream.add(lambda: target.copy_(values))
        else:
            self.stream.synchronize()
            target.copy_(values)
        return target


def _values_of(each: Any) -> Any:
    return each.values if isinstance(each, _GpuTensor) else each


def _as_gpu(each: Any, given: list[torch.Tensor]) -> Any:
    """``each`` on the GPU; the tensor that was given where it is that one, as what is written in place."""
    if not isinstance(each, torch.Tensor):
        return each
    written = [one for one in given if _values_of(one) is each]
    return written[0] if written else _GpuTensor(each)


def _tensor(data: Any, *, device: torch.device | str | None = None, **kwargs: Any) -> torch.Tensor:
    """`torch.tensor`, which asks the driver for the device before any operation is seen."""
    made = _make_tensor(data, **kwargs)
    return made if device is None else made.to(device)


_make_tensor = torch.tensor


@contextmanager
def emulate_gpu() -> Iterator[_Stream]:
    """Within it there is a GPU: for this thread, for those that are started, and for what is given to thread pools."""
    emulation = _Emulation.current = _Emulation()
    submit = ThreadPoolExecutor.submit

    def submit_emulated(pool: ThreadPoolExecutor, work: Callable[..., Any], *args: Any, **kwargs: Any) -> Future[Any]:
        def run() -> Any:
            with emulation:
                return work(*args, **kwargs)

        return submit(pool, run)

    run_thread = threading.Thread.run

    def run_emulated(thread: threading.Thread) -> None:
        with emulation:
            run_thread(thread)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ThreadPoolExecutor, "submit", submit_emulated)
        patch.setattr(threading.Thread, "run", run_emulated)
        patch.setattr(torch, "tensor", _tensor)
        patch.setattr(torch.cuda, "_lazy_init", lambda: None)
        patch.setattr(torch.cuda, "current_stream", lambda device=None: emulation.stream)
        patch.setattr(torch.cuda, "synchronize", lambda device=None: emulation.stream.synchronize())
        patch.setattr(torch.cuda, "device", lambda device: nullcontext())
        patch.setattr(torch.cuda, "set_device", lambda device: None)
        patch.setattr(torch.cuda, "current_device", lambda: GPU.index)
        with emulation:
            yield emulation.stream


def gpu() -> AbstractContextManager[object]:
    """Within it there is a GPU: the one that torch can use, or else an emulated one."""
    return nullcontext() if torch.cuda.is_available() else emulate_gpu()
