"""Networks into a checkpoint, and checkpoints into each other: one tensor at a time.

What is held is the tensor at hand of each input and the result of it; the file grows as they are
made, under a temporary name until it is whole.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from extensions_lib.models.layouts import pieces, put_together
from extensions_lib.models.names import component_of, unet_blocks
from extensions_lib.options import option
from extensions_lib.prompts.blocks import BASE, BlockMistake, Blocks, read_blocks
from extensions_lib.toolbox.casts import cast, planned
from extensions_lib.toolbox.weighted import Stacks, Weighted, as_words, stacked
from extensions_lib.toolbox.work import (
    BESIDE,
    PRECISIONS,
    QUIET,
    SAME,
    Output,
    ToolProblem,
    Watch,
    Written,
    copy_config,
    destination,
    misunderstood,
)

if TYPE_CHECKING:
    from torch import Tensor

    from extensions_lib.files.weights import Weights
    from extensions_lib.models.layouts import Part

_PIECE = 1 << 22  # numbers that are mixed at once
_LATENTS, _INPAINTING = 4, 9  # input channels of a UNet, and of one that also takes a mask


@dataclass(frozen=True)
class Baking:
    """What goes into the checkpoint besides networks."""

    other: str = option(
        "", "a second checkpoint B: the result is A + alpha (B - A)", label="Second checkpoint"
    )
    minus: str = option(
        "", "a third checkpoint C: the result is A + alpha (B - C)", label="Third checkpoint"
    )
    alpha: float | None = option(
        None, "how much of the second checkpoint; none: 0.5, or 1 with minus or blocks"
    )
    blocks: str = option(
        "", "times alpha, by block: a preset or 12, 17, 20 or 26 numbers as in <lora:…:lbw=…>"
    )
    vae: str = option(
        "", "VAE file, or a checkpoint with one, that takes the place of the VAE", label="VAE"
    )
    prune: bool = option(True, "leave out averaged weights, optimizer state and other leftovers")


@dataclass
class Baked(Written):
    """The file, and what changed in it."""

    changed: int = 0  # tensors
    tensors: int = 0
    layers: dict[str, int] = field(default_factory=dict)  # network -> its layers that are in it


def bake(
    checkpoint: Path,
    networks: Sequence[Weighted] = (),
    how: Baking = Baking(),
    order: Output = BESIDE,
    watch: Watch = QUIET,
) -> Baked:
    """Writes `checkpoint` with networks and other checkpoints in it.

    Checkpoints are mixed first, as in the WebUI's checkpoint merger (the VAE stays A's); networks
    are put on the result. Everything is computed in fp32 and rounded once.
    Raises FileProblem, ToolProblem, Stopped; inputs stay as they are.
    """
    from extensions_lib.files.networks import read_network
    from extensions_lib.files.streams import write_stream
    from extensions_lib.files.weights import Weights

    inputs = [checkpoint, *(Path(each) for each in (how.other, how.minus, how.vae) if each)]
    inputs += [each.path for each in networks]
    path = destination(order, inputs, "baked", ".safetensors")
    if path.suffix.lower() != ".safetensors":
        raise ToolProblem(f"{path}: is written tensor by tensor; give a name in .safetensors")
    result = Baked(path)
    with ExitStack() as opened:
        base = opened.enter_context(Weights(checkpoint))
        mix = _mix(base, how, opened)
        read = [read_network(each.path, structure=base.structure) for each in networks]
        for network in read:
            result.left_out += misunderstood(network)
        stacks = _fitting(stacked(networks, read, base.structure), base, result)
        vae = _vae(how, base)
        if not (mix or stacks.layers or vae):
            raise ToolProblem(f"{checkpoint}: there is nothing to put into it; name a network,"
                              " another checkpoint or a VAE")  # fmt: skip
        plan = _plan(base, how, vae, order, result)
        maker = _Maker(base, mix, stacks, vae, plan, result)
        result.tensors = len(plan)
        metadata = _metadata(base, networks, how)
        write_stream(path, plan, watch.counting(maker, len(plan)), metadata, fresh=True)
    copy_config(checkpoint, result)
    return result


def _plan(
    base: Weights, how: Baking, vae: Mapping[str, Tensor], order: Output, result: Baked
) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Key in the result -> its dtype and shape."""
    from extensions_lib.files.dtypes import safetensors_name

    keys = base.keys
    names = {old: keys.header.tensors[old] for old in keys.names.values()}
    kept = [*(keys.markers if how.prune else keys.extras), *keys.unused]
    names |= {old: keys.header.tensors[old] for old in kept}
    if how.prune and len(keys.extras) > len(keys.markers):
        result.notes.append(f"{len(keys.extras) - len(keys.markers)} leftovers are left out")
    if keys.unused:
        result.notes.append(f"{len(keys.unused)} tensors belong to no layer and stay as they are")
    if not how.prune and any(key.startswith("model_ema.") for key in keys.extras):
        result.notes.append("averaged (EMA) weights stay as they are, without what was put in")
    plan = {}
    for name, info in names.items():
        plan[name] = (planned(info.dtype, order.precision), info.shape)
    for key, tensor in vae.items():
        stored = plan.get(keys.names.get(key, key))
        dtype = stored[0] if stored else str(safetensors_name(tensor.dtype))
        if order.precision != SAME:
            dtype = PRECISIONS[order.precision]
        plan[keys.names.get(key, key)] = (dtype, tuple(tensor.shape))
    return plan


# --- one tensor -------------------------------------------------------------------------------


class _Maker:
    """Makes the tensors of the result, one after the other; each is rounded once, at its end."""

    def __init__(
        self,
        base: Weights,
        mix: _Mix | None,
        stacks: Stacks,
        vae: Mapping[str, Tensor],
        plan: Mapping[str, tuple[str, tuple[int, ...]]],
        result: Baked,
    ) -> None:
        self._base, self._mix, self._stacks, self._plan = base, mix, stacks, plan
        self._vae = {base.keys.names.get(key, key): tensor for key, tensor in vae.items()}
        self._standard = {old: key for key, old in base.keys.names.items()}
        self._pieces = pieces(base.structure)
        self._result = result

    def __call__(self, name: str) -> Tensor:
        """The tensor that has this name in the file. Raises ToolProblem where fp16 is too small."""
        made = self._changed(name)
        self._result.changed += made is not None
        return cast(self._base.raw(name) if made is None else made, self._plan[name][0], name)

    def _changed(self, name: str) -> Tensor | None:
        """The tensor before it is rounded; None where it is the checkpoint's own."""
        key = self._standard.get(name)
        if name in self._vae:
            return self._vae[name]
        if key is None:
            return None
        own, stored = self._pieces[key], self._base.raw(name)
        mixed = self._mix.of(key, own[0].layer, stored) if self._mix else None
        if not any(part.layer in self._stacks.layers for part in own):
            return mixed
        whole = stored if mixed is None else mixed
        parts = [self._with_networks(part, whole) for part in own]
        return put_together(own, parts, tuple(stored.shape))

    def _with_networks(self, part: Part, whole: Tensor) -> Tensor:
        import torch

        from extensions_lib.adapters import merged
        from extensions_lib.adapters.base import working_dtype

        clean = part.taken(whole)
        stack = self._stacks.layers.get(part.layer, [])
        if not stack:
            return clean
        exact = clean.to(working_dtype(clean))
        if part.name.endswith(".bias"):
            for adapter, weight in stack:
                change = adapter.bias_delta(clean)
                exact = exact if change is None else exact + weight * change
            return exact
        contiguous = exact.contiguous()
        return merged(contiguous, stack, out=torch.empty_like(contiguous))


# --- checkpoints into each other --------------------------------------------------------------


@dataclass
class _Mix:
    """A + alpha (B - C), C being A where there is none."""

    other: Weights
    minus: Weights | None
    weight_of: Callable[[str], float]

    def of(self, key: str, layer: str, stored: Tensor) -> Tensor | None:
        """The mixed tensor in fp32; None where it is A's alone."""
        alpha = self.weight_of(layer)
        if alpha == 0 or component_of(layer) == "vae":
            return None
        import torch

        theirs = self.other.stored(key)
        inside = _inpaints(stored) and not _inpaints(theirs)
        ours = stored[:, :_LATENTS] if inside else stored
        theirs = _like(theirs, ours, key, self.other)
        minus = self.minus
        third = None if minus is None else _like(minus.stored(key), ours, key, minus)
        new = stored.to(torch.float32, copy=True)
        target = new[:, :_LATENTS] if inside else new
        # In pieces: several large tensors at once in fp32 would take a GB.
        step = max(1, _PIECE // max(1, ours[0].numel()))
        for start in range(0, len(ours), step):
            rows = slice(start, start + step)
            a, b = ours[rows].float(), theirs[rows].float()
            if third is None:
                target[rows] = a.lerp(b, alpha)
            else:
                target[rows] = a.add(b - third[rows].float(), alpha=alpha)
        return new


def _inpaints(weight: Tensor) -> bool:
    return weight.dim() == 4 and weight.shape[1] == _INPAINTING


def _like(tensor: Tensor, wanted: Tensor, key: str, source: Weights) -> Tensor:
    """The tensor in the shape wanted: 1x1 convolutions and linear layers hold the same numbers."""
    if tensor.numel() != wanted.numel() or tensor.shape[:2] != wanted.shape[:2]:
        raise ToolProblem(
            f"{source.keys.path}: its {key} is {list(tensor.shape)}, expected {list(wanted.shape)};"
            " only checkpoints of one plan go into each other"
        )
    return tensor.reshape(wanted.shape)


def _mix(base: Weights, how: Baking, opened: ExitStack) -> _Mix | None:
    from extensions_lib.files.weights import Weights

    if not how.other:
        if how.minus or how.blocks or how.alpha is not None:
            raise ToolProblem(
                "minus, alpha and blocks go with a second checkpoint; name it by other"
            )
        return None
    other = opened.enter_context(Weights(how.other))
    minus = opened.enter_context(Weights(how.minus)) if how.minus else None
    for each in (other, minus):
        if each is not None:
            _check_plan(base, each)
    blocks = _blocks(how.blocks)
    alpha = how.alpha if how.alpha is not None else 1.0 if how.minus or how.blocks else 0.5
    named = unet_blocks(base.structure)

    def weight_of(layer: str) -> float:
        if blocks is None or component_of(layer) == "vae":
            return alpha
        block = named.get(layer, "") if component_of(layer) == "unet" else BASE
        return alpha * blocks.of(block)

    return _Mix(other, minus, weight_of)


def _blocks(text: str) -> Blocks | None:
    try:
        return read_blocks(text) if text else None
    except BlockMistake as mistake:
        raise ToolProblem(f"blocks: {mistake}") from None


def _check_plan(base: Weights, other: Weights) -> None:
    missing = [
        key
        for key in base.keys.names
        if key not in other.keys.names and not key.startswith("first_stage_model.")
    ]
    if base.structure.family is not other.structure.family or missing:
        why = f": {missing[0]} is not in it" if missing else ""
        raise ToolProblem(
            f"{other.keys.path} is a {other.structure.family} model of another plan than"
            f" {base.keys.path.name} ({base.structure.family}){why}"
        )


# --- networks and the VAE ---------------------------------------------------------------------


def _fitting(stacks: Stacks, base: Weights, result: Baked) -> Stacks:
    """The stacks without what fits no layer of the checkpoint, which is said."""
    from extensions_lib.files.recognise import layers_of

    layers = layers_of(base.structure)
    for layer in list(stacks.layers):
        if layer not in layers:
            result.left_out.append(f"{layer}: the checkpoint has no such layer")
            del stacks.layers[layer]
            continue
        good = []
        for adapter, weight in stacks.layers[layer]:
            if problem := adapter.misfit(layers[layer].shape):
                result.left_out.append(f"{layer}: {problem}")
            else:
                good.append((adapter, weight))
        stacks.layers[layer] = good
        if not good:
            del stacks.layers[layer]
    named = stacks.family
    if result.left_out and named is not None and named is not base.structure.family:
        raise ToolProblem(
            f"the networks are for {named}, {base.keys.path.name} is {base.structure.family}:"
            f" {result.left_out[-1]}"
        )
    for network in stacks.networks:
        result.layers[network.name] = sum(layer in stacks.layers for layer in network.adapters)
    return stacks


def _vae(how: Baking, base: Weights) -> dict[str, Tensor]:
    """The VAE that is put in, by standard key; empty for none."""
    from dataclasses import replace

    from extensions_lib.files.vaes import read_vae
    from extensions_lib.models.families import SD15

    if not how.vae:
        return {}
    structure = base.structure
    if structure.vae is None:
        structure = replace(structure, vae=SD15.vae)
    return read_vae(how.vae, structure)


def _metadata(base: Weights, networks: Sequence[Weighted], how: Baking) -> dict[str, str]:
    kept = {
        key: text
        for key, text in base.keys.header.metadata.items()
        if not key.startswith(("sshs_", "modelspec.hash"))
    }
    recipe: dict[str, object] = {
        "checkpoint": base.keys.path.stem,
        "networks": [as_words(each) for each in networks],
        **{
            name: str(Path(text).stem)
            for name, text in (("other", how.other), ("minus", how.minus), ("vae", how.vae))
            if text
        },
    }
    if how.other:
        recipe |= {"alpha": how.alpha, "blocks": how.blocks}
    return {**kept, "crucible_baked": json.dumps(recipe, ensure_ascii=False)}
