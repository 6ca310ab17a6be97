"""The model families and the shape of one model: enough numbers to name and size every layer.

A `Structure` is read from the key shapes of a checkpoint in the original (ldm) layout, so an
inpainting variant or a small model of the same plan is described as exactly as a standard one.
Nothing here needs torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Family(str, Enum):
    """Models whose networks are interchangeable."""

    SD1 = "SD1"
    SD2 = "SD2"
    SDXL = "SDXL"

    def __str__(self) -> str:
        return self.value


@dataclass(frozen=True)
class UNetShape:
    """The plan of a denoising UNet; tuples have one entry a level, the finest level first."""

    in_channels: int
    model_channels: int
    channel_mult: tuple[int, ...]
    num_res_blocks: tuple[int, ...]
    transformer_depth: tuple[int, ...]
    """Transformer blocks in each attention of a level; 0: the level has no attention."""
    middle_depth: int
    context_dim: int
    heads: int | None
    """Heads at every level; None: as many as `head_dim` channels each make."""
    head_dim: int | None
    linear_projection: bool
    """Whether proj_in and proj_out are linear layers (SD2, SDXL) or 1x1 convolutions (SD1)."""
    adm_in_channels: int | None
    """Width of the size and pooled-text vector (SDXL); None: the UNet takes none."""
    out_channels: int = 4

    @property
    def levels(self) -> int:
        return len(self.channel_mult)

    @property
    def channels(self) -> tuple[int, ...]:
        """Channels of each level."""
        return tuple(self.model_channels * mult for mult in self.channel_mult)

    @property
    def attention(self) -> tuple[bool, ...]:
        """Whether each level has attention."""
        return tuple(depth > 0 for depth in self.transformer_depth)

    @property
    def level_heads(self) -> tuple[int, ...]:
        """Attention heads of each level."""
        if self.heads is not None:
            return (self.heads,) * self.levels
        return tuple(max(1, channels // (self.head_dim or 64)) for channels in self.channels)


@dataclass(frozen=True)
class TextShape:
    """The plan of a text encoder."""

    width: int
    layers: int
    mlp: int
    heads: int
    kind: str
    """"clip" (OpenAI's, quick GELU) or "openclip" (fused attention weights, GELU)."""
    projection: int | None = None
    """Width of the pooled projection, where the family uses one (SDXL's second encoder)."""
    vocab: int = 49408
    positions: int = 77
    unused_layers: int = 0
    """Last layers that are in the file and never run: SD2 stops at the layer before the last."""


@dataclass(frozen=True)
class VAEShape:
    """The plan of the image autoencoder; `channel_mult` has the finest level first."""

    channels: int
    channel_mult: tuple[int, ...]
    num_res_blocks: int
    latent_channels: int = 4
    image_channels: int = 3


@dataclass(frozen=True)
class Structure:
    """The plan of a whole model."""

    family: Family
    unet: UNetShape
    texts: tuple[TextShape, ...]
    vae: VAEShape | None = VAEShape(128, (1, 2, 4, 4), 2)
    """None: the file carries no VAE."""

    @property
    def text_components(self) -> tuple[str, ...]:
        """Component names of `texts`; the SDXL refiner has only the second encoder of SDXL."""
        if self.family is Family.SDXL and len(self.texts) == 1:
            return ("te2",)
        return tuple(f"te{i + 1}" for i in range(len(self.texts)))


CLIP_L = TextShape(width=768, layers=12, mlp=3072, heads=12, kind="clip")
OPENCLIP_H = TextShape(width=1024, layers=24, mlp=4096, heads=16, kind="openclip", unused_layers=1)
OPENCLIP_BIGG = TextShape(
    width=1280, layers=32, mlp=5120, heads=20, kind="openclip", projection=1280
)

SD15 = Structure(
    Family.SD1,
    UNetShape(
        in_channels=4,
        model_channels=320,
        channel_mult=(1, 2, 4, 4),
        num_res_blocks=(2, 2, 2, 2),
        transformer_depth=(1, 1, 1, 0),
        middle_depth=1,
        context_dim=768,
        heads=8,
        head_dim=None,
        linear_projection=False,
        adm_in_channels=None,
    ),
    (CLIP_L,),
)
SD21 = Structure(
    Family.SD2,
    UNetShape(
        in_channels=4,
        model_channels=320,
        channel_mult=(1, 2, 4, 4),
        num_res_blocks=(2, 2, 2, 2),
        transformer_depth=(1, 1, 1, 0),
        middle_depth=1,
        context_dim=1024,
        heads=None,
        head_dim=64,
        linear_projection=True,
        adm_in_channels=None,
    ),
    (OPENCLIP_H,),
)
SDXL_BASE = Structure(
    Family.SDXL,
    UNetShape(
        in_channels=4,
        model_channels=320,
        channel_mult=(1, 2, 4),
        num_res_blocks=(2, 2, 2),
        transformer_depth=(0, 2, 10),
        middle_depth=10,
        context_dim=2048,
        heads=None,
        head_dim=64,
        linear_projection=True,
        adm_in_channels=2816,
    ),
    (CLIP_L, OPENCLIP_BIGG),
)
SDXL_REFINER = Structure(
    Family.SDXL,
    UNetShape(
        in_channels=4,
        model_channels=384,
        channel_mult=(1, 2, 4, 4),
        num_res_blocks=(2, 2, 2, 2),
        transformer_depth=(0, 4, 4, 0),
        middle_depth=4,
        context_dim=1280,
        heads=None,
        head_dim=64,
        linear_projection=True,
        adm_in_channels=2560,
    ),
    (OPENCLIP_BIGG,),
)
