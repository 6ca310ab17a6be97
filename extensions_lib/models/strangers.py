"""What a file is that is not a checkpoint in ldm layout, told from its tensor names."""

from __future__ import annotations

from collections.abc import Collection

_NETWORK = ("lora_", "lycoris_", ".lora_A.", ".lora_B.", ".hada_w1", ".lokr_w", ".oft_")
# The first row that has a marker in any key names the file; more special rows come first.
_MARKERS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("a network (LoRA or a relative of it), not a base model", _NETWORK),
    ("a ControlNet", ("control_model.", "controlnet_cond_embedding.", "lllite_")),
    ("a Stable Diffusion 3 model", ("joint_blocks.",)),
    ("a Flux model", ("double_blocks.", "single_blocks.", "single_transformer_blocks.")),
    ("a Stable Cascade model", ("clip_txt_mapper.", "down_blocks.0.0.channelwise.")),
    (
        "a UNet in diffusers layout (a single-file checkpoint in the original layout is needed)",
        ("down_blocks.0.resnets.0.time_emb_proj", "unet.down_blocks.", "mid_block.attentions.0.tr"),
    ),
    (
        "a UNet alone, without the text encoder and the VAE of a whole checkpoint",
        ("input_blocks.0.0.weight",),
    ),
    ("a VAE alone", ("decoder.conv_in.weight", "encoder.down.0.", "decoder.up.0.")),
    (
        "a text encoder alone",
        ("text_model.encoder.layers.0.", "transformer.resblocks.0.", "encoder.block.0."),
    ),
    ("a textual inversion embedding", ("emb_params", "string_to_param", "clip_g", "clip_l")),
    ("an upscaler", ("body.0.rdb1.", "RRDB_trunk", "model.1.sub.")),
)


def is_network(keys: Collection[str]) -> bool:
    """Whether tensor names are those of a network for some model."""
    return any(marker in key for key in keys for marker in _NETWORK)


def describe(keys: Collection[str]) -> str:
    """Say in a clause what the tensor names look like, for a refusal."""
    if not keys:
        return "it has no tensors in it"
    for what, markers in _MARKERS:
        if any(marker in key for key in keys for marker in markers):
            return f"it looks like {what}"
    shown = ", ".join(sorted(keys)[:3])
    return f"its {len(keys)} tensors have names unknown here, such as {shown}"
