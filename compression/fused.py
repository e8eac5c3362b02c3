"""Steps of codecs that a GPU does in one kernel, where that is right and faster.

With torch's operations, each of the few that make a step goes over the memory of a GPU once or twice. A kernel of
Triton (`hivemind.compression.triton_kernels`) goes over it once. Whether it pays depends on the GPU, the compiler and
the dtype: so the first tensor of a kind has both done to an example, and the kernel is used from then on if it computes
the same and takes less time. Without Triton, on other accelerators and on CPUs it is torch's operations.
"""

from __future__ import annotations

import functools
import importlib
import os
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, Final, Generic, ParamSpec, cast

import torch

from hivemind.log import get_logger

__all__ = ["ENVIRONMENT", "Step", "agree", "fused", "is_suitable", "pays", "try_out"]

logger = get_logger(__name__)

P = ParamSpec("P")

#: "0" in this environment variable keeps torch's operations everywhere.
ENVIRONMENT: Final = "HIVEMIND_FUSED_KERNELS"
#: Elements from which on a kernel is worth its launch.
LEAST_ELEMENTS: Final = 2**16
#: Elements that it is tried out with: as many as in a part of averaging, where launches are what takes time, or as in a
#: large tensor, where going over the memory is.
_SMALL: Final = 2**18
_LARGE: Final = 2**22
#: What kernels are written for: of GPUs that train, float64 is not the strength.
_DTYPES: Final = (torch.float16, torch.bfloat16, torch.float32)
#: A kernel is used if it takes less than this part of the time.
_PAYS: Final = 0.9
_REPEATS: Final = 5
#: How far results of float32 may be apart, relative and absolute: sums differ by the order they are computed in.
_DIGITS: Final = 2**-16
#: Numbers that fall between two indices may get either, where a product and a sum are rounded once or twice.
_RARE: Final = 1e-3


class Step(Generic[P]):
    """A function that writes to tensors it is given, with kernels of its name in place of it where they pay.

    Its first argument is a tensor of the numbers concerned.

    :param plain: the function with torch's operations, for any device
    """

    def __init__(self, plain: Callable[P, None]) -> None:
        self.plain = plain
        self.name = plain.__name__
        functools.update_wrapper(self, plain)

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> None:
        values = cast("torch.Tensor", args[0])
        if values.device.type != "cuda" or not is_suitable(args):
            self.plain(*args, **kwargs)
            return
        with torch.cuda.device(values.device):
            kernel = _choose(self, values)
            if kernel is None or not _launch(self, values, kernel, args):
                self.plain(*args, **kwargs)


def fused(plain: Callable[P, None]) -> Step[P]:
    """Decorates the function of a `Step`."""
    return Step(plain)


def agree(plain: Sequence[object], kernel: Sequence[object]) -> bool:
    """Whether two ways have left the same in the tensors they were given: but for the last digits, and for indices that
    are off by one in an element of a thousand."""
    pairs = zip(plain, kernel, strict=True)
    return all(_equal(a, b) for a, b in pairs if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor))


def pays(
    plain: Callable[..., None],
    kernel: Callable[..., None],
    example: Callable[[], Sequence[Any]],
    seconds: Callable[[Callable[[], None]], float],
) -> bool:
    """Whether ``kernel`` computes what ``plain`` does, in less time.

    :param example: makes arguments, the same ones each time
    :param seconds: how long a call takes
    """
    first, second = example(), example()
    plain(*first)
    kernel(*second)
    if not agree(first, second):
        logger.warning("%s: the kernel computes something else than torch, which is used", plain.__name__)
        return False
    taken = seconds(lambda: kernel(*second)) / seconds(lambda: plain(*first))
    logger.debug("%s: the kernel takes %.2f times as long as torch", plain.__name__, taken)
    return taken < _PAYS


def is_suitable(args: Sequence[object]) -> bool:
    """Whether there is a kernel for arguments of a `Step` such as these, wherever they are."""
    tensors = [each for each in args if isinstance(each, torch.Tensor)]
    return (
        tensors[0].numel() >= LEAST_ELEMENTS
        and tensors[0].dtype in _DTYPES
        and all(each.dtype != torch.float64 for each in tensors)
        and os.environ.get(ENVIRONMENT) != "0"
    )


def _equal(plain: torch.Tensor, kernel: torch.Tensor) -> bool:
    if plain.is_floating_point():
        digits = max(2 * torch.finfo(plain.dtype).eps, _DIGITS)
        return torch.allclose(plain, kernel, rtol=digits, atol=digits, equal_nan=True)
    distance = (plain.long() - kernel.long()).abs()
    return int(distance.max()) <= 1 and int((distance != 0).sum()) <= _RARE * plain.numel()


#: Guards `_choices`: threads that come meanwhile wait for the choice.
_lock = threading.Lock()
_choices: dict[tuple[str, torch.device, torch.dtype, int], Callable[..., None] | None] = {}  # by `_key`


def _key(step: Step[Any], values: torch.Tensor) -> tuple[str, torch.device, torch.dtype, int]:
    """What one choice is made for; last, with how many elements."""
    return step.name, values.device, values.dtype, _LARGE if values.numel() >= _LARGE else _SMALL


def _choose(step: Step[Any], values: torch.Tensor) -> Callable[..., None] | None:
    """The kernel for a step with such ``values``, or None where torch's operations are better."""
    key = _key(step, values)
    with _lock:
        if key not in _choices:
            _choices[key] = try_out(step, *key[1:])
        return _choices[key]


def _launch(step: Step[Any], values: torch.Tensor, kernel: Callable[..., None], args: Sequence[object]) -> bool:
    """Whether the kernel was launched. It may have to be compiled anew, as for memory that begins at an odd place."""
    try:
        kernel(*args)
    except Exception as error:  # noqa: BLE001 - as in `try_out`; nothing was written
        logger.warning("%s: the kernel fails, torch's operations are used from now on: %r", step.name, error)
        with _lock:
            _choices[_key(step, values)] = None
        return False
    return True


def try_out(step: Step[Any], device: torch.device, dtype: torch.dtype, length: int) -> Callable[..., None] | None:
    """The kernel for a step with ``length`` numbers, if it pays now."""
    try:
        kernels = importlib.import_module("hivemind.compression.triton_kernels")
    except ImportError:
        return None
    try:
        kernel: Callable[..., None] = getattr(kernels, step.name)
        example = functools.partial(kernels.example, step.name, device, dtype, length)
        return kernel if pays(step.plain, kernel, example, functools.partial(_seconds, device)) else None
    except Exception as error:  # noqa: BLE001 - compilers and drivers raise all sorts
        logger.warning("%s: no kernel on %s, torch's operations are used: %r", step.name, device, error)
        return None


def _seconds(device: torch.device, call: Callable[[], None]) -> float:
    """How long ``call`` takes, at the best of some times."""
    best = float("inf")
    for _ in range(_REPEATS):
        torch.cuda.synchronize(device)
        started = time.perf_counter()
        call()
        torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - started)
    return best
