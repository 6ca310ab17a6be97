"""DoRA: the changed weight keeps its direction and gets a trained length, W' = d * M / |M|.

Liu et al. 2024 (arXiv 2402.09353), around any other kind: M = W + delta(W). d and |M| are per
output channel (peft, LyCORIS since 3.2) or per input channel (LyCORIS before, A1111); the shape of
`dora_scale` tells. For output channels the norm is that of M, as peft and LyCORIS train it; Forge
and ComfyUI divide by that of W.

At multiplier m: W + m (W' - W), as A1111 and ComfyUI have it, so that the change is a multiple of
that at 1. LyCORIS has M (1 + m (d / |M| - 1)) with all of delta in M, which at 0 is not W. The norm
takes part in the gradient, where the paper (section 4.3) holds it constant to save memory.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from extensions_lib.adapters.base import Adapter, AdapterError, moved_towards, working_dtype
from extensions_lib.adapters.wrappers import Wrapper


@dataclass(eq=False)
class DoRA(Wrapper):
    """magnitude [out], [out, 1, ..] or [1, in, 1, ..]; [1, out, 1, 1] is how peft has convolutions.

    Where [1, n, 1, 1] could be either, it is the inputs'.
    """

    inner: Adapter
    magnitude: Tensor

    TITLE: ClassVar[str] = "a DoRA"
    PARTS: ClassVar[Mapping[str, str]] = {"magnitude": "dora_scale"}
    DIMS: ClassVar[Mapping[str, tuple[int, ...]]] = {"magnitude": (1, 2, 4)}

    def __post_init__(self) -> None:
        """Refuse anything that is not one row of numbers along the first or second axis."""
        super().__post_init__()
        shape = self.magnitude.shape
        if self.magnitude.numel() != max(shape[:2]):
            raise AdapterError(f"{self.said('magnitude')}: expected [out, 1, ..] or [1, in, ..]")

    def axis(self, base_shape: Sequence[int]) -> int | None:
        """0 for output channels, 1 for input channels, None where it fits neither."""
        count, first = self.magnitude.numel(), self.magnitude.shape[0]
        inputs = self.inputs_of(base_shape)
        # A single number may lie along either axis.
        order = (0, 1) if first == count else (1, 0)
        sizes = (base_shape[0], inputs)
        allowed = order if first == 1 else (0,)
        return next((each for each in allowed if sizes[each] == count), None)

    def misfit(self, base_shape: Sequence[int]) -> str | None:
        if problem := self.inner.misfit(base_shape):
            return problem
        if self.axis(base_shape) is None:
            found = list(self.magnitude.shape)
            return f"expected a dora_scale for {list(base_shape)}, found {found}"
        return None

    def _add(self, total: Tensor, base: Tensor, multiplier: float, out: Tensor | None) -> Tensor:
        # Where nothing has been added yet, the result's own memory holds the changed weight.
        room = out if total is base else None
        whole = self.inner.added(base, base, out=room)
        axis = self.axis(base.shape)
        assert axis is not None
        gain = self.magnitude.to(total.dtype).reshape(
            [-1 if each == axis else 1 for each in range(base.dim())]
        ) / length(whole, axis)
        if room is not None and multiplier == 1:
            return torch.mul(whole, gain, out=room)
        return moved_towards(total, base, torch.mul(whole, gain, out=room), multiplier, out)

    @property
    def needs_scratch(self) -> bool:
        return True

    @property
    def row_unit(self) -> int | None:
        # Lengths of input channels go over all rows.
        along_rows = self.magnitude.shape[0] == self.magnitude.numel() > 1
        return self.inner.row_unit if along_rows else None

    def rows(self, start: int, stop: int) -> "DoRA":
        part = self.magnitude.view(-1)[start:stop]
        return replace(self, inner=self.inner.rows(start, stop), magnitude=part)

    @classmethod
    def fresh(cls, inner: Adapter, base: Tensor, *, on_input: bool = False) -> "DoRA":
        """A new one around `inner`, its lengths those of `base`.

        Changes nothing yet where `inner` changes nothing. Raises AdapterError where inner does not
        fit.
        """
        inner.check_fit(base.shape)
        clean = base.detach().to(working_dtype(base))
        return cls(inner, length(clean[:, : inner.inputs_of(base.shape)], 1 if on_input else 0))


def length(weight: Tensor, axis: int) -> Tensor:
    """The norm of each output (0) or input (1) channel, [out, 1, ..] or [1, in, 1, ..].

    A channel that is all zero has no direction to scale; it is to stay zero.
    """
    others = [each for each in range(weight.dim()) if each != axis]
    norm: Tensor = torch.linalg.vector_norm(weight, dim=others, keepdim=True)
    return norm.clamp_min(torch.finfo(weight.dtype).eps)
