"""Where a torch model runs, and in which type of number."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from extensions_lib.errors import Stopped
from extensions_lib.options import OptionProblem

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)

DEVICES_HELP = "auto (CUDA where there is room, else the CPU), cpu, cuda, cuda:1, mps"
DTYPES = ("auto", "float32", "float16", "bfloat16")
_SPARE = 512 << 20  # bytes on the device for activations and cuDNN's workspace
_ACTIVATIONS = 0.25  # and as a share of the weights


@dataclass(frozen=True)
class Place:
    """A device, the type weights take there, and why it is not the GPU where there is one."""

    device: torch.device
    dtype: torch.dtype
    why_not_gpu: str | None = None


def choose(device: str, dtype: str, numbers: int) -> Place:
    """Where to put a model of so many `numbers`.

    "auto" is CUDA in float16 where torch says that it has room for them, else the CPU in float32.
    Raises OptionProblem for a device that torch does not have, and for float16 off the GPU.
    """
    import torch

    if device == "auto":
        place, why = _automatic(numbers, 4 if dtype == "float32" else 2)
    else:
        place, why = _named(device), None
    if dtype == "auto":
        dtype = "float16" if place.type == "cuda" else "float32"
    if dtype == "float16" and place.type != "cuda":
        told = f" ({why})" if why else ""
        raise OptionProblem(
            f"dtype: float16 runs on CUDA only, and the model goes to {place}{told}; take auto."
        )
    if dtype not in DTYPES:
        raise OptionProblem(f"dtype: takes one of {', '.join(DTYPES)}, not {dtype!r}.")
    return Place(place, getattr(torch, dtype), why)


def _automatic(numbers: int, width: int) -> tuple[torch.device, str | None]:
    import torch

    if not torch.cuda.is_available():
        return torch.device("cpu"), None
    need = int(numbers * width * (1 + _ACTIVATIONS)) + _SPARE
    free, _ = torch.cuda.mem_get_info()
    # What torch keeps for itself and does not use can be had too.
    free += torch.cuda.memory_reserved() - torch.cuda.memory_allocated()
    if free >= need:
        return torch.device("cuda", torch.cuda.current_device()), None
    why = f"the GPU has {free / 1e9:.1f} GB free and the model needs about {need / 1e9:.1f} GB"
    log.warning("Running on the CPU: %s", why)
    return torch.device("cpu"), why


def _named(device: str) -> torch.device:
    import torch

    try:
        found = torch.device(device)
    except RuntimeError:
        raise OptionProblem(f"device: takes {DEVICES_HELP}, not {device!r}.") from None
    if found.type == "cuda" and (found.index or 0) >= torch.cuda.device_count():
        there = torch.cuda.device_count()
        raise OptionProblem(
            f"device: there is no {device!r}; torch sees {there} CUDA devices. Take auto or cpu."
        )
    if found.type == "mps" and not torch.backends.mps.is_available():
        raise OptionProblem("device: there is no 'mps' on this machine; take auto or cpu.")
    if found.type not in ("cpu", "cuda", "mps"):
        raise OptionProblem(f"device: takes {DEVICES_HELP}, not {device!r}.")
    return found


@contextlib.contextmanager
def stoppable(model: torch.nn.Module, stop: Callable[[], bool] | None) -> Iterator[None]:
    """Within it the model asks `stop` at every layer, and raises Stopped when it says so.

    So that one may stop also where a CPU takes seconds for a batch.
    """

    def ask(*_: object) -> None:
        if stop is not None and stop():
            raise Stopped("Stopped.")

    layers = [each for each in model.modules() if type(each).__name__.endswith("Norm")]
    hooks = [each.register_forward_pre_hook(ask) for each in layers if stop is not None]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def give_back(device: torch.device) -> None:
    """Frees what torch keeps of a model that is no longer referred to."""
    import gc

    import torch

    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif device.type == "mps":
        torch.mps.empty_cache()
