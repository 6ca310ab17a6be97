"""What all tools share: where the result goes, in which precision, progress and Stop."""

from __future__ import annotations

import itertools
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, TypeVar

from extensions_lib.atomic import atomic_write, sweep
from extensions_lib.errors import CrucibleError, FileProblem, Stopped
from extensions_lib.options import option

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from extensions_lib.files.networks import Network

Item = TypeVar("Item")
Progress = Callable[[int, int], None]  # done, of how many
PRECISIONS = {"fp32": "F32", "fp16": "F16", "bf16": "BF16"}  # as safetensors names them
SAME = "same"


class ToolProblem(CrucibleError):
    """An order that a tool cannot carry out."""


@dataclass(frozen=True)
class Output:
    """Where the result goes."""

    out: str = option("", "file to write; without it a name is made beside the first input")
    number: bool = option(False, "where the name is taken, add the next free number to it")
    precision: str = option(
        SAME, "numbers of the result; same: as in the input", choices=(SAME, *PRECISIONS)
    )


BESIDE = Output()  # the usual order


@dataclass(frozen=True)
class Watch:
    """How a tool tells its progress, and is stopped."""

    progress: Progress | None = None
    stop: Event | None = None

    def over(self, items: Iterable[Item], total: int) -> Iterator[Item]:
        """The items, each counted when it is done. Raises Stopped between two of them."""
        self._tell(0, total)
        for done, item in enumerate(items, 1):
            yield item
            self._tell(done, total)

    def counting(self, work: Callable[[str], Item], total: int) -> Callable[[str], Item]:
        """The work, each call of it counted. Raises Stopped between two of them."""
        done = itertools.count(1)
        self._tell(0, total)

        def counted(name: str) -> Item:
            made = work(name)
            self._tell(next(done), total)
            return made

        return counted

    def _tell(self, done: int, total: int) -> None:
        if self.stop is not None and self.stop.is_set():
            raise Stopped("stopped; nothing was written")
        if self.progress is not None:
            self.progress(done, total)


QUIET = Watch()


@dataclass
class Written:
    """What a tool wrote, and what is to be known about it."""

    path: Path
    notes: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)  # of the input, with the reason


def destination(order: Output, inputs: Sequence[Path], ending: str, suffix: str) -> Path:
    """The path of the result, which is free; nothing there is ever written over.

    Without a name it is the first input's with `-ending`; where it has no suffix `suffix` is added
    ("" for a folder). Raises FileProblem for an input, and for a name that is taken if `number` is
    not set. What killed programs left in its folder is removed.
    """
    first = inputs[0]
    if order.out:
        path = Path(order.out)
        if path.is_dir() and suffix:
            path = path / f"{first.stem}-{ending}{suffix}"
        elif suffix and path.suffix.lower() not in _SUFFIXES:
            path = path.with_name(path.name + suffix)
    else:
        stem = first.name if first.is_dir() else first.stem
        path = first.with_name(f"{stem}-{ending}{suffix}")
    sweep(path.parent)
    if not os.path.lexists(path):
        return path
    if order.number:
        return free_name(path)
    if any(path.exists() and each.exists() and path.samefile(each) for each in inputs):
        raise FileProblem(f"{path}: is an input, which is not written over; give another name")
    raise FileProblem(f"{path}: exists; give another name, or have it numbered (--number)")


_SUFFIXES = (".safetensors", ".pt", ".ckpt", ".bin", ".pth")


def free_name(path: Path) -> Path:
    """The path, or the first of name-2, name-3, … that is free."""
    if not os.path.lexists(path):
        return path
    named = (path.with_name(f"{path.stem}-{n}{path.suffix}") for n in itertools.count(2))
    return next(each for each in named if not os.path.lexists(each))


def copy_config(checkpoint: Path, result: Written) -> None:
    """Puts the yaml beside a checkpoint, which says how it is run, beside the new one too."""
    from extensions_lib.files.model_configs import config_beside

    found = config_beside(checkpoint)
    if found is None:
        return
    target = result.path.with_suffix(".yaml")
    if target.exists():
        result.notes.append(f"{target.name} is there already and was left as it is")
        return
    with atomic_write(target, fresh=True) as temporary:
        shutil.copyfile(found.path, temporary)


def torch_precision(precision: str) -> torch.dtype | None:
    """The dtype of an option's word; None for "same"."""
    from extensions_lib.files.dtypes import torch_dtype

    return None if precision == SAME else torch_dtype(PRECISIONS[precision])


def common_precision(tensors: Iterable[Tensor]) -> torch.dtype:
    """What a result of these is written in: that of all of them, fp32 where they differ."""
    import torch

    found = {tensor.dtype for tensor in tensors if tensor.is_floating_point()}
    return found.pop() if len(found) == 1 and torch.float64 not in found else torch.float32


def factor_precision(network: Network) -> torch.dtype:
    """The precision of a network's factors."""
    return common_precision(
        tensor for adapter in network.adapters.values() for tensor in adapter.parameters().values()
    )


def misunderstood(network: Network) -> list[str]:
    """What of a network's file is not in the result, in words."""
    name = network.path.name
    return [
        *(f"{name}: {problem}" for problem in network.problems),
        *(f"{name}: {key} means nothing here" for key in network.unmatched),
    ]
