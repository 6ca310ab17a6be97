"""Norm: the change of a normalisation layer's weight and bias (LyCORIS' "train_norm")."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from extensions_lib.adapters.full import Full


@dataclass(eq=False)
class Norm(Full):
    """A full change under names of its own: diff [n] is w_norm, diff_b [n] is b_norm."""

    kind: ClassVar[str] = "norm"
    TITLE: ClassVar[str] = "a norm"
    PARTS: ClassVar[Mapping[str, str]] = {"diff": "w_norm", "diff_b": "b_norm"}
    DIMS: ClassVar[Mapping[str, tuple[int, ...]]] = {"diff": (1,), "diff_b": (1,)}
