"""A new network for a model: which layers it has, of which kind and rank, and how fast each learns.

The usual choice of layers is kohya's: in the UNet all linear layers and 1x1 convolutions of the
transformers; with a rank for convolutions also the residual blocks and the samplers; in the text
encoders attention and MLP. The others are those of LyCORIS' presets.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from extensions_lib.adapters import (
    BOFT,
    IA3,
    OFT,
    Adapter,
    AdapterError,
    DoRA,
    Full,
    GLoRA,
    LoHa,
    LoKr,
    LoRA,
    Norm,
)
from extensions_lib.errors import CrucibleError
from extensions_lib.models.families import Family
from extensions_lib.models.loaded import LoadedModel
from extensions_lib.models.names import LayerInfo, canonical_layers, component_of
from extensions_lib.training.blocks import by_block
from extensions_lib.training.option_groups import BlockRates, NetworkOptions


def layers_of(model: LoadedModel, options: NetworkOptions) -> dict[str, LayerInfo]:
    """The layers that get an adapter, by canonical name. Raises CrucibleError where none does."""
    chosen = {}
    for name, info in canonical_layers(model.structure).items():
        component = component_of(name)
        if component == "unet" and options.train_unet:
            wanted = _of_unet(name, info, options, model.family)
        elif component in model.structure.text_components and options.train_text_encoder:
            wanted = _of_text(name, info, options) and _runs(model, name)
        else:
            wanted = False
        if wanted:
            chosen[name] = info
    if not chosen:
        raise CrucibleError("nothing is trained: train_unet and train_text_encoder are both off.")
    return chosen


def _norms(options: NetworkOptions) -> bool:
    return options.train_norm or options.kind == "norm"


def _of_unet(name: str, info: LayerInfo, options: NetworkOptions, family: Family) -> bool:
    layers = options.layers
    attention, block = ".attentions." in name, ".resnets." in name or "samplers." in name
    if info.kind == "norm":
        return _norms(options) and (attention or block)
    if options.kind == "norm" or info.kind not in ("linear", "conv"):
        return False
    kernel = _has_kernel(info)
    # LyCORIS knows what lies in no block by the names of SD1 and SD2 alone.
    ends = name in _ENDS and family is not Family.SDXL
    if layers == "full":
        return attention or block or ends
    if layers == "full-lin":
        return (attention or block or ends) and not kernel
    if layers == "unet-convblock-only":
        return block or (ends and kernel)
    if layers == "ia3":
        return attention and name.endswith((".to_k", ".to_v", ".ff.net.2"))
    chosen = ".attn" in name if layers == "attn-only" else attention
    convolutions = options.conv_dim is not None or bool(options.conv_block_dims)
    return chosen or (block and convolutions)


_ENDS = (
    "unet.conv_in",
    "unet.conv_out",
    "unet.time_embedding.linear_1",
    "unet.time_embedding.linear_2",
)


def _of_text(name: str, info: LayerInfo, options: NetworkOptions) -> bool:
    if ".layers." not in name:
        return False
    if info.kind == "norm":
        return _norms(options)
    if options.kind == "norm" or info.kind != "linear":
        return False
    if options.layers == "unet-convblock-only":
        return False
    if options.layers == "attn-only":
        return ".self_attn." in name
    return options.layers != "ia3" or name.endswith((".k_proj", ".v_proj", ".mlp.fc2"))


def _has_kernel(info: LayerInfo) -> bool:
    return info.kind == "conv" and math.prod(info.shape[2:]) > 1


def _runs(model: LoadedModel, name: str) -> bool:
    """Whether the model runs this layer of a text encoder: SD2 leaves its last one out."""
    index = model.structure.text_components.index(component_of(name))
    shape = model.structure.texts[index]
    number = int(name.partition(".layers.")[2].partition(".")[0])
    return number < shape.layers - shape.unused_layers


def fresh_network(
    model: LoadedModel, options: NetworkOptions, generator: torch.Generator
) -> dict[str, Adapter]:
    """New adapters that change nothing yet, on the model's device, in fp32.

    Raises CrucibleError where the options fit no layer.
    """
    adapters, problems = {}, []
    for name, info in layers_of(model, options).items():
        try:
            made = _fresh(model, name, info, options, generator)
        except AdapterError as error:
            problems.append(f"{name}: {error}")
            continue
        adapters[name] = made.to(model.device)
    if not adapters:
        raise CrucibleError(f"{options.kind} fits no layer of {model.name}: {problems[0]}.")
    return adapters


def _fresh(
    model: LoadedModel,
    name: str,
    info: LayerInfo,
    options: NetworkOptions,
    generator: torch.Generator,
) -> Adapter:
    shape = info.shape
    if info.kind == "norm":
        return Norm.fresh(shape, bias=info.bias)
    kernel = _has_kernel(info)
    rank, alpha = _rank(model, name, options, kernel)
    make: Callable[..., Adapter] = _MAKERS[options.kind]
    adapter = make(shape, rank, alpha, name, options, kernel, generator)
    if options.dora_wd and options.kind in ("lora", "loha", "lokr"):
        return DoRA.fresh(adapter, base_weight(model, name))
    return adapter


def _rank(
    model: LoadedModel, name: str, options: NetworkOptions, kernel: bool
) -> tuple[int, float]:
    """Rank and alpha of a layer. Raises AdapterError for a rank of 0."""
    rank, alpha = options.network_dim, options.network_alpha
    if kernel:
        rank = options.conv_dim or rank
        alpha = alpha if options.conv_alpha is None else options.conv_alpha
    prefix = "conv_block" if kernel else "block"
    if component_of(name) == "unet":
        rank = of_block(model, name, options, f"{prefix}_dims", rank)
        alpha = of_block(model, name, options, f"{prefix}_alphas", alpha)
    if not rank:
        raise AdapterError("its block has rank 0")
    return rank, float(rank) if alpha in (None, 0) else float(alpha)


def of_block(model: LoadedModel, name: str, options: BlockRates, what: str, usual: Any) -> Any:
    """The value of the layer's block, where the option has values."""
    values = getattr(options, what)
    if not values:
        return usual
    found = by_block(model.structure, values, what)(name)
    return usual if found is None else found


def base_weight(model: LoadedModel, canonical: str) -> Tensor:
    """The layer's own weight [out, in, *k], as it lies in the model."""
    module, parameter, rows = model.layer(canonical)
    held = module._parameters[parameter]
    assert held is not None
    weight = held.detach()
    if getattr(model.layers[canonical], "transposed", False):
        weight = weight.t()
    return weight if rows is None else weight[rows]


def _low_rank(
    shape: Sequence[int],
    rank: int,
    alpha: float,
    _: str,
    options: NetworkOptions,
    kernel: bool,
    generator: torch.Generator,
) -> Adapter:
    tucker = options.use_tucker and kernel
    made = LoRA.fresh(shape, rank, alpha, tucker=tucker, generator=generator)
    if options.kind == "lora-fa":
        # Zhang et al. 2023 (arXiv 2308.03303): down stays as it is drawn, up alone learns.
        inputs = math.prod(shape[1:])
        made.down.normal_(0, math.sqrt(2 / (inputs + rank)), generator=generator)
    return made


_MAKERS: Mapping[str, Callable[..., Adapter]] = {
    "lora": _low_rank,
    "lora-fa": _low_rank,
    "dylora": _low_rank,
    "loha": lambda shape, rank, alpha, name, o, kernel, g: LoHa.fresh(
        shape, rank, alpha, tucker=o.use_tucker and kernel, generator=g
    ),
    "lokr": lambda shape, rank, alpha, name, o, kernel, g: LoKr.fresh(
        shape,
        rank,
        alpha,
        factor=o.factor,
        decompose_both=o.decompose_both,
        full_matrix=o.full_matrix,
        tucker=o.use_tucker and kernel,
        generator=g,
    ),
    "glora": lambda shape, rank, alpha, name, o, kernel, g: GLoRA.fresh(
        shape, rank, alpha, generator=g
    ),
    # Liu et al. 2022 (arXiv 2205.05638): keys and values by output, the feed-forward by input.
    "ia3": lambda shape, rank, alpha, name, o, kernel, g: IA3.fresh(
        shape, on_input=_feeds_forward(name), generator=g
    ),
    "full": lambda shape, rank, alpha, name, o, kernel, g: Full.fresh(shape, generator=g),
    "oft": lambda shape, rank, alpha, name, o, kernel, g: OFT.fresh(
        shape, rank, o.constraint or 0.0, generator=g
    ),
    "diag-oft": lambda shape, rank, alpha, name, o, kernel, g: OFT.fresh(
        shape, rank, o.constraint or 0.0, rank_is_size=True, rescale=o.rescaled, generator=g
    ),
    "boft": lambda shape, rank, alpha, name, o, kernel, g: BOFT.fresh(
        shape, rank, o.constraint or 0.0, rescale=o.rescaled, generator=g
    ),
}


def _feeds_forward(name: str) -> bool:
    return name.endswith((".ff.net.2", ".mlp.fc2"))


def rate_groups(
    model: LoadedModel,
    adapters: Mapping[str, Adapter],
    options: NetworkOptions,
    learning_rate: float,
) -> list[dict[str, Any]]:
    """torch's parameter groups: by component, and up apart from the rest where LoRA+ is asked for.

    LoRA+: Hayou et al. 2024 (arXiv 2402.12354). A component whose rate is 0 is left out.
    """
    groups: dict[str, dict[str, Any]] = {}
    for name, adapter in adapters.items():
        component = component_of(name)
        rate = rate_of(model, component, options, learning_rate)
        weight = 1.0
        if component == "unet":
            weight = of_block(model, name, options, "block_lr_weight", 1.0)
        if rate * weight == 0:
            continue
        for part, tensor in trained_parts(adapter, options).items():
            plus = plus_ratio(component, options) if part.startswith("lora_up") else None
            group = f"{component} up" if plus else component
            group += f" × {weight:g}" if weight != 1 else ""
            entry = {"params": [], "lr": rate * weight * (plus or 1), "name": group}
            groups.setdefault(group, entry)["params"].append(tensor)
    if not groups:
        raise CrucibleError("nothing is trained: every learning rate is 0.")
    return list(groups.values())


def plus_ratio(component: str, options: NetworkOptions) -> float | None:
    """LoRA+'s ratio in a component: its own, else that of all."""
    own = options.loraplus_text_encoder_lr_ratio
    if component == "unet":
        own = options.loraplus_unet_lr_ratio
    return own or options.loraplus_lr_ratio


def trained_parts(adapter: Adapter, options: NetworkOptions) -> dict[str, Tensor]:
    """The tensors of an adapter that learn."""
    parts = adapter.parameters()
    if options.kind == "lora-fa":
        return {name: each for name, each in parts.items() if not name.startswith("lora_down")}
    return parts


def rate_of(
    model: LoadedModel, component: str, options: NetworkOptions, learning_rate: float
) -> float:
    """The learning rate of a component. Raises CrucibleError for a wrong count of rates."""
    if component == "unet":
        return learning_rate if options.unet_lr is None else options.unet_lr
    rates, texts = options.text_encoder_lr, model.structure.text_components
    if len(rates) not in (0, 1, len(texts)):
        raise CrucibleError(
            f"text_encoder_lr has {len(rates)} values; {model.name} has {len(texts)} text encoders."
        )
    if not rates:
        return learning_rate
    return rates[0] if len(rates) == 1 else rates[texts.index(component)]


@torch.no_grad()
def limit_norms(adapters: Mapping[str, Adapter], longest: float) -> int:
    """Shortens every change longer (Frobenius) than this that is a product; how many there were.

    Its n factors are each multiplied by (longest / norm)^(1/n), as sd-scripts' scale_weight_norms
    does it for LoRA and LyCORIS for LoKr. Other kinds than LoRA, LoHa and LoKr stay as they are.
    """
    shortened = 0
    for each in adapters.values():
        adapter = each.inner if isinstance(each, DoRA) else each
        if not isinstance(adapter, (LoRA, LoHa, LoKr)):
            continue
        norm = float(_norm(adapter))
        if norm > longest:
            factors = list(adapter.parameters().values())
            for factor in factors:
                factor.mul_((longest / norm) ** (1 / len(factors)))
            shortened += 1
    return shortened


def _norm(adapter: LoRA | LoHa | LoKr) -> Tensor:
    """The length of its change; nothing of the weight's size is made but for a LoHa."""
    if isinstance(adapter, LoRA):
        low = adapter.low_rank(adapter.shape)
        # |U D|^2 = sum of (U^T U)(D D^T)
        square = ((low.up.T @ low.up) * (low.down @ low.down.T)).sum()
        return abs(low.scale) * square.clamp(min=0).sqrt()
    plain = adapter.plain(torch.float32)
    if isinstance(plain, LoKr):
        assert plain.w1 is not None and plain.w2 is not None
        return abs(plain.scale) * plain.w1.norm() * plain.w2.norm()
    return abs(plain.scale) * ((plain.w1_a @ plain.w1_b) * (plain.w2_a @ plain.w2_b)).norm()
