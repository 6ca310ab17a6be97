"""A network from the difference of two checkpoints.

Both are read layer by layer, and of each layer nothing stays but its few ranks: memory does not
grow with the checkpoints. The decomposition is randomised (toolbox.spectrum), several times faster
than a whole one at nearly the same error.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from extensions_lib.options import option
from extensions_lib.toolbox.spectrum import (
    Decomposed,
    LayerFigures,
    Ranks,
    fitted,
    kept_share,
    layer_named,
    of_matrix,
)
from extensions_lib.toolbox.work import (
    BESIDE,
    QUIET,
    SAME,
    Output,
    ToolProblem,
    Watch,
    Written,
    destination,
    torch_precision,
)

if TYPE_CHECKING:
    from torch import Tensor

    from extensions_lib.adapters import Adapter
    from extensions_lib.files.weights import Weights
    from extensions_lib.models.names import LayerInfo

LAYERS = ("attention", "convolutions", "all")


@dataclass(frozen=True)
class Extracting(Ranks):
    """What is taken out of the difference."""

    kind: str = option("lora", "what the network is to be", choices=("lora", "lokr"))
    layers: str = option(
        "convolutions",
        "attention: attention and feed-forward, as a LoRA has them; convolutions: the residual"
        " blocks too, as a LoCon; all: every layer, norms and biases, too",
        choices=LAYERS,
    )
    text_encoder: bool = option(True, "take out the difference of the text encoders, too")
    factor: int = option(-1, "of a LoKr: size of its first matrix; -1: near the root", low=-1)
    least: float = option(0.0, "leave out layers whose largest difference is at most this", low=0.0)
    device: str = option("auto", "where to compute", choices=("auto", "cpu", "cuda"))


@dataclass
class Extracted(Written):
    """The file, and how much of each layer's difference is in it."""

    layers: list[LayerFigures] = field(default_factory=list)
    same: int = 0  # layers that both checkpoints have alike
    whole: int = 0  # norms and biases, kept as they are

    @property
    def kept(self) -> float:
        """The share of the energy of all layers' differences."""
        total = sum(each.energy for each in self.layers)
        return sum(each.kept * each.energy for each in self.layers) / total if total else 1.0


def extract(
    base: Path,
    tuned: Path,
    how: Extracting = Extracting(),
    order: Output = BESIDE,
    watch: Watch = QUIET,
) -> Extracted:
    """Writes the network that makes about `tuned` of `base`.

    Raises FileProblem, ToolProblem (checkpoints of two plans, or alike), Stopped.
    """
    from extensions_lib.files.networks import write_network
    from extensions_lib.files.weights import Weights

    how.check()
    result = Extracted(destination(order, [tuned, base], "extracted", ".safetensors"))
    with Weights(base) as before, Weights(tuned) as after:
        _comparable(before, after, result)
        chosen = list(_chosen(before, after, how, result))
        made: dict[str, Adapter] = {}
        for layer, info in watch.over(chosen, len(chosen)):
            adapter = _of_layer(layer, info, before, after, how, result)
            if adapter is not None:
                made[layer] = adapter
        family = before.structure.family
    if not made:
        raise ToolProblem(f"{tuned}: does not differ from {base} in the layers asked for")
    metadata = {
        "ss_network_dim": str(how.rank) if how.rule == "rank" else "Dynamic",
        "ss_network_alpha": str(how.rank) if how.rule == "rank" else "Dynamic",
        "ss_network_module": "networks.lora" if how.kind == "lora" else "lycoris.kohya",
        "ss_sd_model_name": base.name,
        "crucible_extracted": f"{tuned.stem} minus {base.stem}, {result.kept:.4f} of the energy",
    }
    # "same" as the checkpoints means little: their difference is worked out in fp32.
    dtype = torch_precision("fp16" if order.precision == SAME else order.precision)
    write_network(result.path, made, metadata, dtype=dtype, family=family, fresh=True)
    return result


def _comparable(before: Weights, after: Weights, result: Extracted) -> None:
    one, two = before.structure, after.structure
    if one.family is not two.family:
        raise ToolProblem(
            f"{after.keys.path.name} is {two.family} and {before.keys.path.name} {one.family}: only"
            " checkpoints of one family have a difference"
        )
    if before.keys.prediction != after.keys.prediction:
        result.notes.append(
            "one of the checkpoints is marked as v-prediction, the other is not: use the network"
            " with the first alone"
        )


def _chosen(
    before: Weights, after: Weights, how: Extracting, result: Extracted
) -> Iterator[tuple[str, LayerInfo]]:
    """The layers to compare; those of different sizes are said."""
    from extensions_lib.files.recognise import layers_of

    ours, theirs = layers_of(before.structure), layers_of(after.structure)
    for layer, info in ours.items():
        if not _wanted(layer, info, how):
            continue
        if layer not in theirs:
            result.left_out.append(f"{layer}: {after.keys.path.name} has no such layer")
        elif theirs[layer].shape != info.shape:
            sizes = f"{list(info.shape)} and {list(theirs[layer].shape)}"
            result.left_out.append(f"{layer}: has two sizes, {sizes}")
        else:
            yield layer, info


def _wanted(layer: str, info: LayerInfo, how: Extracting) -> bool:
    component, _, path = layer.partition(".")
    if component == "vae" or info.kind == "embedding":
        return False
    if component.startswith("te"):
        if not how.text_encoder:
            return False
        return how.layers == "all" or ".self_attn." in path or ".mlp." in path
    if how.layers == "all":
        return True
    if info.kind not in ("linear", "conv"):
        return False
    wider = (".attentions.", ".resnets.", "samplers.")
    return any(mark in path for mark in (wider if how.layers == "convolutions" else wider[:1]))


def _of_layer(
    layer: str,
    info: LayerInfo,
    before: Weights,
    after: Weights,
    how: Extracting,
    result: Extracted,
) -> Adapter | None:
    """One layer's adapter; None where the checkpoints are alike."""

    from extensions_lib.adapters import Biased, Full, Norm

    change = _difference(layer, before.weight(layer), after.weight(layer), how)
    bias = None
    if how.layers == "all" and info.bias:
        old, new = before.bias(layer), after.bias(layer)
        bias = None if old is None or new is None else _difference(layer, old, new, how)
    if change is None and bias is None:
        result.same += 1
        return None
    if len(info.shape) < 2 or change is None:
        result.whole += 1
        kind = Norm if info.kind == "norm" else Full
        return kind(change, bias).to("cpu")
    result.whole += bias is not None
    with layer_named(layer):
        fit = _lokr if how.kind == "lokr" else _lora
        made, figures = fit(layer, change, how)
    result.layers.append(figures)
    return made if bias is None else Biased(made, bias.cpu())


def _difference(layer: str, old: Tensor, new: Tensor, how: Extracting) -> Tensor | None:
    """new - old in fp32, on the device; None where they are alike. Raises ToolProblem."""
    import torch

    change = new.float() - old.float()
    most = float(change.abs().max()) if change.numel() else 0.0
    if not torch.isfinite(torch.tensor(most)):
        raise ToolProblem(f"{layer}: a checkpoint holds values that are no numbers there")
    device = how.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    return None if most <= how.least else change.to(device)


def _lora(layer: str, change: Tensor, how: Extracting) -> tuple[Adapter, LayerFigures]:
    shape = tuple(change.shape)
    # only the share of the sum asks for all of the values
    most = None if how.rule == "sv_cumulative" else how.most(shape)
    made, figures = fitted(layer, of_matrix(change.flatten(1), most), shape, how)
    return made.to("cpu"), figures


def _lokr(layer: str, change: Tensor, how: Extracting) -> tuple[Adapter, LayerFigures]:
    """The nearest Kronecker product, w2 in `rank` ranks where that is less than whole.

    Blocks of the change as rows make a matrix whose first singular pair is it (Van Loan and
    Pitsianis 1993, Approximation with Kronecker products).
    """
    from extensions_lib.adapters import LoKr
    from extensions_lib.adapters.lokr import factors_of

    shape = tuple(change.shape)
    (a, b), (c, d) = factors_of(shape[0], how.factor), factors_of(shape[1], how.factor)
    blocks = change.view(a, b, c, -1).transpose(1, 2).reshape(a * c, -1)
    found = of_matrix(blocks, 1)
    root = found.values[0].sqrt()
    w1 = (found.left[:, 0] * root).view(a, c).cpu()
    w2 = (found.right[0] * root).view(b, d, *shape[2:]).cpu()
    rank = how.most(shape)
    if rank >= max(b, d) / 2:
        share = kept_share(found, 1)
        made = LoKr(w1.contiguous(), w2=w2.contiguous())
        return made, LayerFigures(layer, shape, min(b, d), share, found.energy)
    inner: Decomposed = of_matrix(w2.flatten(1), rank)
    roots = inner.values.sqrt()
    made = LoKr(
        w1.contiguous(),
        w2_a=(inner.left * roots).contiguous(),
        w2_b=(inner.right * roots[:, None]).contiguous(),
        alpha=float(rank),
    )
    share = kept_share(found, 1) * kept_share(inner, rank)
    return made, LayerFigures(layer, shape, rank, share, found.energy)
