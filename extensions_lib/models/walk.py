"""One walk over a model's plan that yields every layer with its diffusers and its ldm name.

The walks follow the construction order of the original code (openaimodel.UNetModel,
diffusionmodules.model.Encoder/Decoder, open_clip's text tower) and count diffusers' blocks
beside it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from extensions_lib.models.families import TextShape, UNetShape, VAEShape


@dataclass(frozen=True)
class Row:
    """A layer of one component, named relative to that component."""

    name: str
    ldm: str
    kind: str
    shape: tuple[int, ...]
    bias: bool = True
    rows: slice | None = None
    parameter: str = "weight"
    transposed: bool = False
    ldm_shape: tuple[int, ...] | None = None
    """The weight's shape in ldm, where it is another one."""
    unused: bool = False


def _linear(name: str, ldm: str, out: int, inp: int, bias: bool = True) -> Row:
    return Row(name, ldm, "linear", (out, inp), bias)


def _conv(name: str, ldm: str, out: int, inp: int, size: int = 3) -> Row:
    return Row(name, ldm, "conv", (out, inp, size, size))


def _norm(name: str, ldm: str, width: int) -> Row:
    return Row(name, ldm, "norm", (width,))


def unet_rows(shape: UNetShape) -> Iterator[Row]:
    """Every layer of the UNet."""
    base = shape.model_channels
    emb = base * 4
    yield _linear("time_embedding.linear_1", "time_embed.0", emb, base)
    yield _linear("time_embedding.linear_2", "time_embed.2", emb, emb)
    if shape.adm_in_channels is not None:
        yield _linear("add_embedding.linear_1", "label_emb.0.0", emb, shape.adm_in_channels)
        yield _linear("add_embedding.linear_2", "label_emb.0.2", emb, emb)
    yield _conv("conv_in", "input_blocks.0.0", base, shape.in_channels)

    skips = [base]
    yield from _unet_down(shape, emb, skips)
    width = shape.channels[-1]
    for index in (0, 1):
        yield from _unet_resnet(
            f"mid_block.resnets.{index}", f"middle_block.{index * 2}", width, width, emb
        )
    yield from _transformer(
        "mid_block.attentions.0", "middle_block.1", width, shape.middle_depth, shape
    )
    yield from _unet_up(shape, emb, skips)
    yield _norm("conv_norm_out", "out.0", shape.channels[0])
    yield _conv("conv_out", "out.2", shape.out_channels, base)


def _unet_down(shape: UNetShape, emb: int, skips: list[int]) -> Iterator[Row]:
    at, width = 1, shape.model_channels
    for level, channels in enumerate(shape.channels):
        block = f"down_blocks.{level}"
        for i in range(shape.num_res_blocks[level]):
            ldm = f"input_blocks.{at}"
            yield from _unet_resnet(f"{block}.resnets.{i}", f"{ldm}.0", width, channels, emb)
            width = channels
            if depth := shape.transformer_depth[level]:
                yield from _transformer(f"{block}.attentions.{i}", f"{ldm}.1", width, depth, shape)
            skips.append(width)
            at += 1
        if level < shape.levels - 1:
            yield _conv(f"{block}.downsamplers.0.conv", f"input_blocks.{at}.0.op", width, width)
            skips.append(width)
            at += 1


def _unet_up(shape: UNetShape, emb: int, skips: list[int]) -> Iterator[Row]:
    at, width = 0, shape.channels[-1]
    for block_index, level in enumerate(reversed(range(shape.levels))):
        block, channels = f"up_blocks.{block_index}", shape.channels[level]
        depth = shape.transformer_depth[level]
        for i in range(shape.num_res_blocks[level] + 1):
            ldm = f"output_blocks.{at}"
            inp = width + skips.pop()
            yield from _unet_resnet(f"{block}.resnets.{i}", f"{ldm}.0", inp, channels, emb)
            width = channels
            if depth:
                yield from _transformer(f"{block}.attentions.{i}", f"{ldm}.1", width, depth, shape)
            if level and i == shape.num_res_blocks[level]:
                upsampler = f"{ldm}.{2 if depth else 1}.conv"
                yield _conv(f"{block}.upsamplers.0.conv", upsampler, width, width)
            at += 1


def _unet_resnet(name: str, ldm: str, inp: int, out: int, emb: int) -> Iterator[Row]:
    yield _norm(f"{name}.norm1", f"{ldm}.in_layers.0", inp)
    yield _conv(f"{name}.conv1", f"{ldm}.in_layers.2", out, inp)
    yield _linear(f"{name}.time_emb_proj", f"{ldm}.emb_layers.1", out, emb)
    yield _norm(f"{name}.norm2", f"{ldm}.out_layers.0", out)
    yield _conv(f"{name}.conv2", f"{ldm}.out_layers.3", out, out)
    if inp != out:
        yield _conv(f"{name}.conv_shortcut", f"{ldm}.skip_connection", out, inp, 1)


def _transformer(name: str, ldm: str, width: int, depth: int, shape: UNetShape) -> Iterator[Row]:
    def projection(part: str) -> Row:
        if shape.linear_projection:
            return _linear(f"{name}.{part}", f"{ldm}.{part}", width, width)
        return _conv(f"{name}.{part}", f"{ldm}.{part}", width, width, 1)

    yield _norm(f"{name}.norm", f"{ldm}.norm", width)
    yield projection("proj_in")
    for i in range(depth):
        # Inside a transformer block both trees use the same names.
        for row in _transformer_block(width, shape.context_dim):
            part = f"transformer_blocks.{i}.{row.name}"
            yield Row(f"{name}.{part}", f"{ldm}.{part}", row.kind, row.shape, row.bias)
    yield projection("proj_out")


def _transformer_block(width: int, context: int) -> Iterator[Row]:
    for attention, source in (("attn1", width), ("attn2", context)):
        yield _linear(f"{attention}.to_q", "", width, width, bias=False)
        yield _linear(f"{attention}.to_k", "", width, source, bias=False)
        yield _linear(f"{attention}.to_v", "", width, source, bias=False)
        yield _linear(f"{attention}.to_out.0", "", width, width)
    # GEGLU: twice the inner width of 4 times the channels.
    yield _linear("ff.net.0.proj", "", width * 8, width)
    yield _linear("ff.net.2", "", width, width * 4)
    for i in (1, 2, 3):
        yield _norm(f"norm{i}", "", width)


def text_rows(shape: TextShape) -> Iterator[Row]:
    """Every layer of a text encoder; the ldm names are those of its kind."""
    yield from _openclip_rows(shape) if shape.kind == "openclip" else _clip_rows(shape)


def _clip_rows(shape: TextShape) -> Iterator[Row]:
    """ldm keeps transformers' own CLIP, so both names are the same."""
    for row in _openclip_rows(shape):
        yield Row(row.name, row.name, row.kind, row.shape, row.bias, unused=row.unused)


def _openclip_rows(shape: TextShape) -> Iterator[Row]:
    top, width = "text_model", shape.width
    yield Row(
        f"{top}.embeddings.token_embedding",
        "token_embedding",
        "embedding",
        (shape.vocab, width),
        False,
    )
    yield Row(
        f"{top}.embeddings.position_embedding",
        "",
        "embedding",
        (shape.positions, width),
        False,
        parameter="positional_embedding",
    )
    for i in range(shape.layers):
        unused = i >= shape.layers - shape.unused_layers
        yield from _openclip_layer(
            f"{top}.encoder.layers.{i}", f"transformer.resblocks.{i}", shape, unused
        )
    yield _norm(f"{top}.final_layer_norm", "ln_final", width)
    if shape.projection is not None:
        yield Row(
            "text_projection",
            "",
            "linear",
            (shape.projection, width),
            False,
            parameter="text_projection",
            transposed=True,
            ldm_shape=(width, shape.projection),
        )


def _openclip_layer(name: str, ldm: str, shape: TextShape, unused: bool) -> Iterator[Row]:
    width, mlp = shape.width, shape.mlp
    for i, part in enumerate(("q_proj", "k_proj", "v_proj")):
        yield Row(
            f"{name}.self_attn.{part}",
            f"{ldm}.attn",
            "linear",
            (width, width),
            rows=slice(i * width, (i + 1) * width),
            parameter="in_proj_weight",
            unused=unused,
        )
    for part, old, kind, size in (
        ("self_attn.out_proj", "attn.out_proj", "linear", (width, width)),
        ("layer_norm1", "ln_1", "norm", (width,)),
        ("mlp.fc1", "mlp.c_fc", "linear", (mlp, width)),
        ("mlp.fc2", "mlp.c_proj", "linear", (width, mlp)),
        ("layer_norm2", "ln_2", "norm", (width,)),
    ):
        yield Row(f"{name}.{part}", f"{ldm}.{old}", kind, size, unused=unused)


def vae_rows(shape: VAEShape) -> Iterator[Row]:
    """Every layer of the autoencoder."""
    z, widths = shape.latent_channels, [shape.channels * mult for mult in shape.channel_mult]
    yield _conv("encoder.conv_in", "encoder.conv_in", shape.channels, shape.image_channels)
    yield from _vae_down(shape, widths)
    yield from _vae_middle("encoder", widths[-1], widths[-1], 2 * z)
    yield _conv("quant_conv", "quant_conv", 2 * z, 2 * z, 1)
    yield _conv("post_quant_conv", "post_quant_conv", z, z, 1)
    yield _conv("decoder.conv_in", "decoder.conv_in", widths[-1], z)
    yield from _vae_middle("decoder", widths[-1], widths[0], shape.image_channels)
    yield from _vae_up(shape, widths)


def _vae_down(shape: VAEShape, widths: list[int]) -> Iterator[Row]:
    width = shape.channels
    for level, channels in enumerate(widths):
        name, ldm = f"encoder.down_blocks.{level}", f"encoder.down.{level}"
        for i in range(shape.num_res_blocks):
            yield from _vae_resnet(f"{name}.resnets.{i}", f"{ldm}.block.{i}", width, channels)
            width = channels
        if level < len(widths) - 1:
            yield _conv(f"{name}.downsamplers.0.conv", f"{ldm}.downsample.conv", width, width)


def _vae_up(shape: VAEShape, widths: list[int]) -> Iterator[Row]:
    width = widths[-1]
    for index, level in enumerate(reversed(range(len(widths)))):
        name, ldm = f"decoder.up_blocks.{index}", f"decoder.up.{level}"
        for i in range(shape.num_res_blocks + 1):
            yield from _vae_resnet(f"{name}.resnets.{i}", f"{ldm}.block.{i}", width, widths[level])
            width = widths[level]
        if level:
            yield _conv(f"{name}.upsamplers.0.conv", f"{ldm}.upsample.conv", width, width)


def _vae_middle(half: str, width: int, last: int, out: int) -> Iterator[Row]:
    """The middle and the output layers of the encoder or decoder."""
    name, ldm = f"{half}.mid_block", f"{half}.mid"
    yield from _vae_resnet(f"{name}.resnets.0", f"{ldm}.block_1", width, width)
    attention = f"{name}.attentions.0"
    yield _norm(f"{attention}.group_norm", f"{ldm}.attn_1.norm", width)
    for part, old in (("to_q", "q"), ("to_k", "k"), ("to_v", "v"), ("to_out.0", "proj_out")):
        # 1x1 convolutions in ldm, linear layers in diffusers.
        yield Row(
            f"{attention}.{part}",
            f"{ldm}.attn_1.{old}",
            "linear",
            (width, width),
            ldm_shape=(width, width, 1, 1),
        )
    yield from _vae_resnet(f"{name}.resnets.1", f"{ldm}.block_2", width, width)
    yield _norm(f"{half}.conv_norm_out", f"{half}.norm_out", last)
    yield _conv(f"{half}.conv_out", f"{half}.conv_out", out, last)


def _vae_resnet(name: str, ldm: str, inp: int, out: int) -> Iterator[Row]:
    yield _norm(f"{name}.norm1", f"{ldm}.norm1", inp)
    yield _conv(f"{name}.conv1", f"{ldm}.conv1", out, inp)
    yield _norm(f"{name}.norm2", f"{ldm}.norm2", out)
    yield _conv(f"{name}.conv2", f"{ldm}.conv2", out, out)
    if inp != out:
        yield _conv(f"{name}.conv_shortcut", f"{ldm}.nin_shortcut", out, inp, 1)
