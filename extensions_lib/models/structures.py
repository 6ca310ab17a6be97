"""The plan of a model, read off the shapes of its weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from extensions_lib.errors import FileProblem
from extensions_lib.models.families import Family, Structure, TextShape, UNetShape, VAEShape
from extensions_lib.models.shapes import Shapes, below, count, shape_at
from extensions_lib.models.strangers import describe

UNET_PREFIX = "model.diffusion_model."
VAE_PREFIX = "first_stage_model."
SD1_TEXT_PREFIX = "cond_stage_model.transformer.text_model."
SD2_TEXT_PREFIX = "cond_stage_model.model."
SDXL_CLIP_PREFIX = "conditioner.embedders.0.transformer.text_model."
SDXL_OPENCLIP_PREFIX = "conditioner.embedders.1.model."
REFINER_TEXT_PREFIX = "conditioner.embedders.0.model."


def structure_of(
    shapes: Shapes,
    *,
    heads: int | None = None,
    head_dim: int | None = None,
    text_heads: Sequence[int | None] = (),
    label: str = "the file",
) -> Structure:
    """Read the plan of a model from the key shapes of a checkpoint in ldm layout.

    Head counts leave no trace in the shapes: `heads`/`head_dim` (of the UNet) and `text_heads`
    (one entry a text encoder) come from a config file where there is one; otherwise the
    standard of the family is taken: 8 heads for SD1, heads of 64 channels for SD2 and SDXL, and
    heads of 64 channels in every text encoder. `label` names the file in messages.

    Raises:
        FileProblem: the keys are not those of an SD1, SD2 or SDXL checkpoint; the message says
            what they look like.
    """
    try:
        return _structure(shapes, heads, head_dim, text_heads)
    except FileProblem as problem:
        raise FileProblem(f"{label}: {problem}") from None


def _structure(
    shapes: Shapes, heads: int | None, head_dim: int | None, text_heads: Sequence[int | None]
) -> Structure:
    if f"{UNET_PREFIX}input_blocks.0.0.weight" not in shapes:
        raise FileProblem(f"is not a Stable Diffusion checkpoint: {describe(shapes)}")
    family, texts = _text_encoders(shapes, text_heads)
    return _assembled(family, texts, shapes, heads, head_dim)


def structure_of_parts(
    shapes: Shapes, texts: Mapping[str, Shapes], *, label: str = "the model"
) -> Structure:
    """Read the plan of a model that a host holds in parts.

    `shapes` has the UNet and the VAE under their names in a checkpoint; `texts` the text encoders
    in transformers' layout (`text_model.…`), by "clip_l" (OpenAI's), "clip_h" (SD2's) or "clip_g"
    (SDXL's second).

    Raises:
        FileProblem: it is not SD1, SD2 or SDXL.
    """
    kinds = {
        ("clip_l",): Family.SD1,
        ("clip_h",): Family.SD2,
        ("clip_l", "clip_g"): Family.SDXL,
        ("clip_g",): Family.SDXL,
    }
    family = kinds.get(tuple(texts))
    try:
        if family is None or f"{UNET_PREFIX}input_blocks.0.0.weight" not in shapes:
            raise FileProblem(f"is not SD1, SD2 or SDXL: it has {', '.join(texts)}")
        plans = tuple(_transformers_text(name, own) for name, own in texts.items())
        return _assembled(family, plans, shapes, None, None)
    except FileProblem as problem:
        raise FileProblem(f"{label}: {problem}") from None


def _transformers_text(name: str, shapes: Shapes) -> TextShape:
    plan = _clip(shapes, "text_model.", None)
    if name == "clip_l":
        return plan
    projection = shape_at(shapes, "text_projection.weight", 2)[0] if name == "clip_g" else None
    # The host has left out the layers that never run.
    return replace(plan, kind="openclip", projection=projection)


def _assembled(
    family: Family,
    texts: tuple[TextShape, ...],
    shapes: Shapes,
    heads: int | None,
    head_dim: int | None,
) -> Structure:
    if heads is None and head_dim is None:
        heads, head_dim = (8, None) if family is Family.SD1 else (None, 64)
    unet = _unet(shapes, heads, head_dim)
    if (family is Family.SDXL) != (unet.adm_in_channels is not None):
        found = "has" if unet.adm_in_channels else "lacks"
        raise FileProblem(
            f"the UNet does not belong to a plain {family} model: it {found} a label embedding "
            "(unCLIP and upscaler models are not supported)"
        )
    structure = Structure(family, unet, texts, _vae(shapes))
    _check_divisible(structure)
    return structure


def _check_divisible(structure: Structure) -> None:
    """Norms have 32 groups everywhere, and attention splits its channels among its heads."""
    unet, vae = structure.unet, structure.vae
    normed = list(unet.channels)
    if vae:
        normed += [vae.channels * mult for mult in (1, *vae.channel_mult)]
    for channels in normed:
        if not channels or channels % 32:
            raise FileProblem(f"a level has {channels} channels; expected a multiple of 32")
    split = [
        ("UNet", channels, heads)
        for channels, heads, used in zip(
            unet.channels, unet.level_heads, (*unet.attention[:-1], True), strict=True
        )
        if used
    ] + [("text encoder", text.width, text.heads) for text in structure.texts]
    for where, channels, heads in split:
        if channels % heads:
            raise FileProblem(
                f"{channels} channels of the {where} cannot be split among {heads} heads; "
                "correct the head count in the yaml beside the file"
            )


def _text_encoders(
    shapes: Shapes, heads: Sequence[int | None]
) -> tuple[Family, tuple[TextShape, ...]]:
    given = [*heads, None, None]
    token = "embeddings.token_embedding.weight"
    if SDXL_CLIP_PREFIX + token in shapes:
        first = _clip(shapes, SDXL_CLIP_PREFIX, given[0])
        second = _openclip(shapes, SDXL_OPENCLIP_PREFIX, given[1], pooled=True)
        return Family.SDXL, (first, second)
    if f"{REFINER_TEXT_PREFIX}token_embedding.weight" in shapes:
        return Family.SDXL, (_openclip(shapes, REFINER_TEXT_PREFIX, given[0], pooled=True),)
    if f"{SD2_TEXT_PREFIX}token_embedding.weight" in shapes:
        return Family.SD2, (_openclip(shapes, SD2_TEXT_PREFIX, given[0], pooled=False),)
    if SD1_TEXT_PREFIX + token in shapes:
        return Family.SD1, (_clip(shapes, SD1_TEXT_PREFIX, given[0]),)
    raise FileProblem(
        "it has a UNet and no text encoder known here "
        "(expected the CLIP of SD1, the OpenCLIP of SD2, or both of SDXL)"
    )


def _clip(shapes: Shapes, prefix: str, heads: int | None) -> TextShape:
    vocab, width = shape_at(shapes, f"{prefix}embeddings.token_embedding.weight", 2)
    layers = count(shapes, f"{prefix}encoder.layers.")
    mlp = shape_at(shapes, f"{prefix}encoder.layers.0.mlp.fc1.weight", 2)[0]
    positions = shape_at(shapes, f"{prefix}embeddings.position_embedding.weight", 2)[0]
    return TextShape(
        width, layers, mlp, heads or max(1, width // 64), "clip", None, vocab, positions
    )


def _openclip(shapes: Shapes, prefix: str, heads: int | None, *, pooled: bool) -> TextShape:
    vocab, width = shape_at(shapes, f"{prefix}token_embedding.weight", 2)
    layers = count(shapes, f"{prefix}transformer.resblocks.")
    mlp = shape_at(shapes, f"{prefix}transformer.resblocks.0.mlp.c_fc.weight", 2)[0]
    positions = shape_at(shapes, f"{prefix}positional_embedding", 2)[0]
    projection = shape_at(shapes, f"{prefix}text_projection", 2)[1] if pooled else None
    # Files converted back from diffusers carry 23 of OpenCLIP-H's 24 layers: all of them run.
    unused = 0 if pooled or (width == 1024 and layers == 23) else 1
    return TextShape(
        width,
        layers,
        mlp,
        heads or max(1, width // 64),
        "openclip",
        projection,
        vocab,
        positions,
        min(unused, layers - 1),
    )


def _unet(shapes: Shapes, heads: int | None, head_dim: int | None) -> UNetShape:
    own = below(shapes, UNET_PREFIX)
    model_channels, in_channels = shape_at(own, "input_blocks.0.0.weight", 4)[:2]
    widths: list[int] = []
    blocks: list[int] = [0]
    depths: list[set[int]] = [set()]
    for index in range(1, count(own, "input_blocks.")):
        at = f"input_blocks.{index}"
        if f"{at}.0.op.weight" in own:
            blocks.append(0)
            depths.append(set())
            continue
        width = shape_at(own, f"{at}.0.out_layers.3.weight", 4)[0]
        if not blocks[-1]:
            widths.append(width)
        blocks[-1] += 1
        depths[-1].add(count(own, f"{at}.1.transformer_blocks."))
    middle = count(own, "middle_block.1.transformer_blocks.")
    if 0 in blocks or any(len(depth) != 1 for depth in depths) or not middle:
        raise FileProblem(
            "the UNet is not built as those of SD1, SD2 and SDXL "
            "(attention differs within a level, as in distilled models such as SSD-1B)"
        )
    projection = shape_at(own, "middle_block.1.proj_in.weight", None)
    context = shape_at(own, "middle_block.1.transformer_blocks.0.attn2.to_k.weight", 2)[1]
    label = "label_emb.0.0.weight"
    return UNetShape(
        in_channels=in_channels,
        model_channels=model_channels,
        channel_mult=tuple(width // model_channels for width in widths),
        num_res_blocks=tuple(blocks),
        transformer_depth=tuple(min(depth) for depth in depths),
        middle_depth=middle,
        context_dim=context,
        heads=heads,
        head_dim=head_dim,
        linear_projection=len(projection) == 2,
        adm_in_channels=shape_at(own, label, 2)[1] if label in own else None,
        out_channels=shape_at(own, "out.2.weight", 4)[0],
    )


def _vae(shapes: Shapes) -> VAEShape | None:
    own = below(shapes, VAE_PREFIX)
    if not own:
        return None
    channels, image_channels = shape_at(own, "encoder.conv_in.weight", 4)[:2]
    levels = count(own, "decoder.up.")
    widths = [shape_at(own, f"decoder.up.{i}.block.0.conv1.weight", 4)[0] for i in range(levels)]
    return VAEShape(
        channels=channels,
        channel_mult=tuple(width // channels for width in widths),
        num_res_blocks=count(own, "decoder.up.0.block.") - 1,
        latent_channels=shape_at(own, "decoder.conv_in.weight", 4)[1],
        image_channels=image_channels,
    )
