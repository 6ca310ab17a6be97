"""Single-file checkpoints in the original (ldm) layout, with the yaml that may lie beside them."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from extensions_lib.errors import FileProblem
from extensions_lib.files.model_configs import ModelConfig, config_beside
from extensions_lib.files.safe import Header, read_any_header, read_tensors
from extensions_lib.models.families import Family, Structure
from extensions_lib.models.names import checkpoint_shapes
from extensions_lib.models.structures import SD1_TEXT_PREFIX, VAE_PREFIX, structure_of

if TYPE_CHECKING:
    from torch import Tensor

Prediction = Literal["epsilon", "v_prediction"]

# Keys that real checkpoints carry and no layer takes: averaged weights, schedule tables, index
# buffers, training leftovers, the image half of CLIP, SD2's pooled projection, markers.
_EXTRAS = re.compile(
    r"model_ema\.|(optimizer\w*|callbacks|lr_schedulers|loops|hparams)\b|embedding_manager\."
    r"|(betas|alphas_cumprod(_prev)?|sqrt_\w*|log_one_minus_\w*|posterior_\w*|lvlb_weights"
    r"|logvar|scale_factor|global_step|v_pred|ztsnr|edm_vpred\.\w+|denoiser\.sigmas)$"
    r"|first_stage_model\.loss\.|depth_model\."
    r"|(cond_stage_model|conditioner)\..*(position_ids|logit_scale|attn_mask|\bvisual\b"
    r"|vision_model\.|visual_projection\.|text_projection(\.weight)?$)"
)
# Of these, what says how the model is to be run, without being a number of it.
_MARKERS = re.compile(r"(v_pred|ztsnr|edm_vpred\.\w+)$")
_OLD_SD1_TEXT = re.compile(
    r"cond_stage_model\.transformer\.(embeddings|encoder|final_layer_norm)\."
)
_VAE_ATTENTION = re.compile(
    re.escape(VAE_PREFIX) + r"((?:en|de)coder\.mid\.attn_1)\.(\w+(?:\.0)?)\.(weight|bias)$"
)
_VAE_PARTS = {
    "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out", "query": "q", "key": "k",
    "value": "v", "proj_attn": "proj_out", "group_norm": "norm",
}  # fmt: skip


@dataclass
class Checkpoint:
    """The content of a checkpoint file, complete and under its standard keys."""

    path: Path
    structure: Structure
    tensors: dict[str, Tensor]
    """By ldm key, in the file's own dtypes, on the CPU; perhaps mapped from the file."""
    metadata: Mapping[str, str]
    config: ModelConfig | None
    prediction: Prediction | None
    """What the yaml or a marker in the file says the UNet predicts; None: neither says it."""
    zero_terminal_snr: bool
    unused: tuple[str, ...] = ()
    """Keys in the file that belong to no layer and are not known leftovers either."""


def checkpoint_structure(path: str | os.PathLike[str]) -> Structure:
    """The plan of the model in a checkpoint, from its header (and its yaml) alone.

    Raises:
        FileProblem: not a readable SD1, SD2 or SDXL checkpoint.
    """
    path = Path(path)
    shapes = read_any_header(path).shapes
    return _structure(path, standard_names(shapes), shapes, config_beside(path))


def read_checkpoint(path: str | os.PathLike[str]) -> Checkpoint:
    """Read a whole checkpoint (.safetensors, or the weights of a .ckpt/.pt) in ldm layout.

    Keys of older layouts are brought to today's, averaged (EMA) weights and other leftovers are
    left in the file. A file without a VAE is read with `structure.vae` None.

    Raises:
        FileProblem: unreadable, of another kind, or with tensors missing or of a wrong shape.
    """
    path = Path(path)
    keys = checkpoint_keys(path)
    stored = read_tensors(path, list(keys.names.values()))
    return Checkpoint(
        path=path,
        structure=keys.structure,
        tensors={key: stored[old] for key, old in keys.names.items()},
        metadata=keys.header.metadata,
        config=keys.config,
        prediction=keys.prediction,
        zero_terminal_snr=keys.zero_terminal_snr,
        unused=keys.unused,
    )


@dataclass(frozen=True)
class CheckpointKeys:
    """What a checkpoint's header tells: its plan, and which of its keys is what."""

    path: Path
    header: Header
    structure: Structure
    names: Mapping[str, str]
    """Standard key of each tensor of the model -> the key in the file."""
    extras: tuple[str, ...]
    """Known leftovers: averaged (EMA) weights, optimizer, schedule tables, markers."""
    unused: tuple[str, ...]
    """Keys that belong to no layer and are no known leftovers either."""
    config: ModelConfig | None
    prediction: Prediction | None
    zero_terminal_snr: bool

    @property
    def markers(self) -> tuple[str, ...]:
        """Those of the extras that say how the model is to be run."""
        return tuple(key for key in self.extras if _MARKERS.match(key))

    def averaged(self, key: str) -> str | None:
        """The key in the file of a standard key's averaged (EMA) weight; None if there is none."""
        flat = "model_ema." + key.removeprefix("model.").replace(".", "")
        return flat if key.startswith("model.") and flat in self.header.tensors else None


def checkpoint_keys(path: str | os.PathLike[str]) -> CheckpointKeys:
    """What `read_checkpoint` would read, from the header alone. Raises FileProblem as it does."""
    path = Path(path)
    header = read_any_header(path)
    shapes = header.shapes
    standard = standard_names(shapes)
    config = config_beside(path)
    structure = _structure(path, standard, shapes, config)
    expected = checkpoint_shapes(structure)
    _check(path, structure, expected, {key: shapes[old] for key, old in standard.items()})
    names = {key: standard[key] for key in expected}
    rest = set(shapes).difference(names.values())
    extras = {old for old in rest if _EXTRAS.match(old)}
    return CheckpointKeys(
        path,
        header,
        structure,
        names,
        tuple(sorted(extras)),
        tuple(sorted(rest - extras)),
        config,
        _prediction(shapes, config),
        "ztsnr" in shapes,
    )


def _structure(
    path: Path,
    standard: Mapping[str, str],
    shapes: Mapping[str, tuple[int, ...]],
    config: ModelConfig | None,
) -> Structure:
    named = {key: shapes[old] for key, old in standard.items()}
    if config is None:
        return structure_of(named, label=str(path))
    return structure_of(
        named,
        heads=config.heads,
        head_dim=config.head_dim,
        text_heads=config.text_heads,
        label=str(path),
    )


def standard_names(keys: Iterable[str]) -> dict[str, str]:
    """Today's key to the key in the file."""
    names: dict[str, str] = {}
    for key in keys:
        standard = key
        if _OLD_SD1_TEXT.match(key):
            standard = key.replace("cond_stage_model.transformer.", SD1_TEXT_PREFIX, 1)
        elif (match := _VAE_ATTENTION.match(key)) and match[2] in _VAE_PARTS:
            standard = f"{VAE_PREFIX}{match[1]}.{_VAE_PARTS[match[2]]}.{match[3]}"
        if standard == key or standard not in names:
            names[standard] = key
    return names


def _prediction(keys: Iterable[str], config: ModelConfig | None) -> Prediction | None:
    if config is not None and config.prediction is not None:
        return config.prediction
    return "v_prediction" if "v_pred" in keys else None


def _check(
    path: Path,
    structure: Structure,
    expected: Mapping[str, tuple[int, ...]],
    found: Mapping[str, tuple[int, ...]],
) -> None:
    missing = [key for key in expected if key not in found]
    if missing:
        raise FileProblem(
            f"{path}: the {structure.family} checkpoint is incomplete: {len(missing)} of "
            f"{len(expected)} tensors are missing ({_some(missing)}); download or save it again"
        )
    wrong = [
        f"{key} should be {list(shape)}, is {list(found[key])}"
        for key, shape in expected.items()
        if _plain(found[key]) != _plain(shape)
    ]
    if wrong:
        hint = ""
        if structure.family is Family.SD1 and structure.unet.linear_projection:
            hint = "; the UNet looks like SD2's, the text encoder like SD1's"
        raise FileProblem(
            f"{path}: {len(wrong)} tensors do not fit the {structure.family} model they are part "
            f"of ({_some(wrong)}){hint}"
        )


def _plain(shape: tuple[int, ...]) -> tuple[int, ...]:
    """A 1x1 convolution and a linear layer hold the same weight: compare without the ones."""
    return shape[:2] if len(shape) > 2 and set(shape[2:]) == {1} else tuple(shape)


def _some(names: list[str], count: int = 3) -> str:
    more = f" and {len(names) - count} more" if len(names) > count else ""
    return ", ".join(names[:count]) + more
