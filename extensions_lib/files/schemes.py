"""Ways of naming that need the whole file: whose way it is, and names that are mere numbers.

Needs no torch; works on shapes.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from extensions_lib.files.sizes import Shape, Shapes, columns_of, outputs, sizes
from extensions_lib.models.families import Structure
from extensions_lib.models.names import canonical_layers

# --- whose way of naming ------------------------------------------------------------------------

_PEFT = re.compile(r"\.(?:lora_(?:[ABE]|emb|mag)|oft_R|boft_[Rs]|ia3_l)")
_LDM = re.compile(r"(?:input_blocks|middle_block|output_blocks|label_emb|time_embed_\d)")


def tell(key: str, layer: str) -> str:
    """Whose way of naming a key follows, for the report; `layer` is its part that means a layer."""
    if ".___." in key:
        return "HCP-Diffusion"
    if key.startswith("lycoris_"):
        return "LyCORIS"
    if key.startswith(("text_encoders.", "diffusion_model.")):
        return "ComfyUI"
    if key.startswith(("lora_", "oft_")):
        return (
            "kohya, half-dotted" if "." in layer else "kohya (ldm)" if _LDM.search(key) else "kohya"
        )
    if key.startswith("base_model.") or _PEFT.search(key):
        return "PEFT"
    if ".processor." in key or "lora_linear_layer" in key or ".to_out_lora." in key:
        return "diffusers (old)"
    return "diffusers"


# --- a text encoder without a name --------------------------------------------------------------

_BARE_TEXT = re.compile(
    r"(?:base_model\.model\.|lora[:.])?(?:lycoris_)?"
    r"(?:text_model[._]|encoder[._]layers[._]|embeddings[._]|final_layer_norm$)"
)
_ATTENTION = re.compile(r"[._](?:[qkv]_proj|out_proj)$")
_LAST_OF_FIRST = 24  # layers of the largest text encoder that is not SDXL's second


def names_no_encoder(spelled: str) -> bool:
    """Whether a layer's name says that it is of a text encoder, and not of which."""
    return _BARE_TEXT.match(spelled) is not None


def second_text_encoder(layers: Mapping[str, Shapes], structures: Sequence[Structure]) -> bool:
    """Whether layers of a text encoder that is not named are of SDXL's second, by their widths."""
    widths: dict[str, set[int]] = {"te1": set(), "te2": set()}
    for structure in structures:
        for component, text in zip(structure.text_components, structure.texts, strict=True):
            widths[component].add(text.width)
    only_second = widths["te2"] - widths["te1"]
    for spelled, shapes in layers.items():
        number = re.search(r"layers[._](\d{1,3})[._]", spelled)
        if number and int(number[1]) >= _LAST_OF_FIRST:
            return True
        told = (*(sizes(shapes) or ()), outputs(shapes), columns_of(shapes))
        if _ATTENTION.search(spelled) and any(size in only_second for size in told):
            return True
    return False


# --- cloneofsimo: pairs in the order of a walk ---------------------------------------------------

_NUMBERED = re.compile(r"(unet|text_encoder(?:_[12])?):(\d{1,6}):(up|down)$")
_COMPONENTS = {"unet": "unet", "text_encoder_2": "te2"}
_PLACE = re.compile(
    r"unet\.(down_blocks|up_blocks|mid_block)(?:\.(\d+))?\.(attentions|resnets)\.(\d+)\."
    r"(?:transformer_blocks\.(\d+)\.)?(.+)"
)
_ATTENTIONS = [f"{a}.{part}" for a in ("attn1", "attn2") for part in ("to_q", "to_k", "to_v", "to_out.0")]  # fmt: skip  # noqa: E501
_GEGLU = "ff.net.0.proj"
_RESNET = ["conv1", "time_emb_proj", "conv2", "conv_shortcut"]
# Which layers it trains, and in which order: ff stood between the attentions in diffusers < 0.15.
_UNET_WALKS: tuple[tuple[str, ...], ...] = tuple(
    (*inside, *more)
    for more in ((), tuple(_RESNET))
    for inside in (
        (*_ATTENTIONS[:4], _GEGLU, *_ATTENTIONS[4:]),
        (*_ATTENTIONS, _GEGLU),
        tuple(_ATTENTIONS),
    )
)
_TEXT_WALK = ("k_proj", "v_proj", "q_proj", "out_proj")


@dataclass
class Listed:
    """What the numbered keys of a file mean."""

    names: dict[str, tuple[str, str]] = field(default_factory=dict)  # key -> layer, part
    keys: set[str] = field(default_factory=set)  # all that are numbered
    problems: list[str] = field(default_factory=list)


def listed_names(shapes: Mapping[str, Shape], structures: Sequence[Structure]) -> Listed | None:
    """The layers of keys that only count: `0`, `1`, … (a list) or `unet:0:up`; None: no such keys.

    Source: github.com/cloneofsimo/lora, which walks over a model's attentions (and, if asked,
    residual blocks) in the order in which diffusers built them, and saves [up0, down0, up1, …].
    The order itself is not in the file: the one in which every pair fits is taken.
    """
    runs: dict[str, dict[int, dict[str, str]]] = {}
    for key in shapes:
        if key.isdecimal() and key.isascii() and len(key) < 7:
            number = int(key)
            runs.setdefault("", {}).setdefault(number // 2, {})[("up", "down")[number % 2]] = key
        elif (match := _NUMBERED.match(key)) is not None:
            runs.setdefault(match[1], {}).setdefault(int(match[2]), {})[match[3]] = key
    if not runs or ("" in runs and sum(len(p) for p in runs[""].values()) != len(shapes)):
        return None
    found = Listed()
    for name, run in runs.items():
        found.keys |= {key for pair in run.values() for key in pair.values()}
        problem = _match(found, name, run, shapes, structures)
        if problem:
            found.problems.append(problem)
    return found


def _match(
    found: Listed,
    name: str,
    run: Mapping[int, Mapping[str, str]],
    shapes: Mapping[str, Shape],
    structures: Sequence[Structure],
) -> str | None:
    """Adds what a run of numbered pairs means, or says why it means nothing."""
    label = f"the numbered pairs{f' of {name}' if name else ''}"
    if sorted(run) != list(range(len(run))) or any(len(pair) != 2 for pair in run.values()):
        return f"{label} are not complete ({len(run)} of them, the last is {max(run)})"
    pairs = [run[index] for index in range(len(run))]
    wanted = _COMPONENTS.get(name, "te1") if name else None
    for structure in structures:
        weights = _weights(structure)
        for walk in _walks(structure, wanted):
            if len(walk) == len(pairs) and all(
                _fits(shapes[pair["up"]], shapes[pair["down"]], weights[layer])
                for pair, layer in zip(pairs, walk, strict=True)
            ):
                for pair, layer in zip(pairs, walk, strict=True):
                    for half, key in pair.items():
                        found.names[key] = (layer, f"lora_{half}.weight")
                return None
    return f"{label} ({len(run)}) fit the layers of no known model in the order of their trainer"


def _fits(up: Shape, down: Shape, weight: Shape) -> bool:
    return len(up) > 1 < len(down) and (up[0], *down[1:]) == weight[: len(down)] == weight


@functools.lru_cache(maxsize=8)
def _weights(structure: Structure) -> Mapping[str, Shape]:
    return {layer: info.shape for layer, info in canonical_layers(structure).items()}


def _walks(structure: Structure, wanted: str | None) -> Iterator[list[str]]:
    """The orders in which its layers may have been saved: of one component, or of any."""
    layers = list(_weights(structure))
    if wanted in (None, "unet"):
        for parts in _UNET_WALKS:
            yield _unet_walk(layers, parts)
    for component, text in zip(structure.text_components, structure.texts, strict=True):
        if wanted in (None, component):
            walk = [
                f"{component}.text_model.encoder.layers.{i}.self_attn.{part}"
                for i in range(text.layers)
                for part in _TEXT_WALK
            ]
            yield walk
            # diffusers leaves out the layers that never run
            yield walk[: (text.layers - text.unused_layers) * len(_TEXT_WALK)]


def _unet_walk(layers: Sequence[str], parts: Sequence[str]) -> list[str]:
    """Layers of a UNet by block; diffusers registers the middle one last, attentions first."""
    order = {part: place for place, part in enumerate(parts)}
    blocks = {"down_blocks": 0, "up_blocks": 1, "mid_block": 2}
    placed: list[tuple[tuple[int, ...], str]] = []
    for layer in layers:
        match = _PLACE.match(layer)
        if match and match[6] in order:
            place = (
                blocks[match[1]],
                int(match[2] or 0),
                int(match[3] == "resnets"),
                int(match[4]),
                int(match[5] or 0),
                order[match[6]],
            )
            placed.append((place, layer))
    return [layer for _, layer in sorted(placed)]
