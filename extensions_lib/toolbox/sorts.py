"""What sort of thing a file is, by the names and shapes of its tensors; without torch."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path

from extensions_lib.errors import FileProblem
from extensions_lib.files.diffusers_folders import is_diffusers_folder
from extensions_lib.files.embedding_pictures import PICTURES
from extensions_lib.files.embeddings import embedding_facts
from extensions_lib.files.header import Header, opened
from extensions_lib.files.lllite import is_lllite
from extensions_lib.files.pickles import read_pickle_header
from extensions_lib.files.recognise import facts_of
from extensions_lib.files.safe import is_pickle, read_any_header

Shapes = Mapping[str, tuple[int, ...]]

CHECKPOINT, NETWORK, VAE = "checkpoint", "network", "VAE"
EMBEDDING, HYPERNETWORK, LLLITE = "embedding", "hypernetwork", "ControlNet-LLLite"
CONTROLNET, AESTHETIC, FOLDER = "ControlNet", "aesthetic embedding", "diffusers folder"
OPTIMIZER, RUN, UNKNOWN = "optimizer state", "training state", "unknown file"

# Where each lies below a WebUI's folder; AUTOMATIC1111's and Forge's alike.
PLACES: Mapping[str, str] = {
    CHECKPOINT: "models/Stable-diffusion",
    NETWORK: "models/Lora",
    VAE: "models/VAE",
    EMBEDDING: "embeddings",
    HYPERNETWORK: "models/hypernetworks",
    LLLITE: "models/ControlNet",
    CONTROLNET: "models/ControlNet",
    AESTHETIC: "models/aesthetic_embeddings",
}
_HYPERNETWORK = re.compile(r"\d+\.[01]\.linear")
_STATES = (".state", ".optim")  # pickles under names of their own
_OF_OPTIMIZERS = (".exp_avg", ".exp_avg_sq", ".momentum_buffer")
_WIDTHS = (768, 1024, 1280)  # of the text encoders


def is_picture(path: str | os.PathLike[str]) -> bool:
    """Whether it may be a picture that carries an embedding."""
    return Path(path).suffix.lower() in PICTURES


def header_of(path: Path) -> tuple[Header, bool]:
    """Its header, and whether it is a pickle; states of training included. Raises FileProblem."""
    if path.suffix.lower() in _STATES:
        with opened(path) as file:
            if file.read(2) in (b"PK", b"\x80\x02"):
                return read_pickle_header(path), True
    return read_any_header(path), is_pickle(path)


def sort_of(path: Path) -> str:
    """What a file or folder is, one of the names above. Raises FileProblem if it is unreadable."""
    if path.is_dir():
        if is_diffusers_folder(path):
            return FOLDER
        raise FileProblem(f"{path}: is a folder; name a file")
    if is_picture(path):
        if embedding_facts(path) is None:
            raise FileProblem(f"{path}: is a picture without an embedding in it")
        return EMBEDDING
    return sort_of_shapes(header_of(path)[0].shapes)


def sort_of_shapes(shapes: Shapes) -> str:
    """What tensors of these names and shapes are."""
    if is_lllite(shapes):
        return LLLITE
    if any(key.startswith("state.trained.") for key in shapes):
        return RUN
    if any(_is_control(key) for key in shapes):
        return CONTROLNET
    if any("input_blocks.0.0.weight" in key for key in shapes):
        return CHECKPOINT  # which may hold an optimizer's state, too
    if any(key.endswith(_OF_OPTIMIZERS) for key in shapes):
        return OPTIMIZER
    facts = facts_of(shapes)
    if facts.layers or facts.problems or facts.embeddings or facts.foreign:
        return NETWORK
    if _is_vae(shapes):
        return VAE
    if any(_HYPERNETWORK.match(key) for key in shapes):
        return HYPERNETWORK
    if list(shapes) == [""] or shapes.get("") in ((768,), (1, 768)):
        return AESTHETIC  # a bare tensor: an embedding has a name
    return EMBEDDING if embedded(shapes) else UNKNOWN


def _is_control(key: str) -> bool:
    return key.startswith("control_model.") or key.endswith(
        ("controlnet_cond_embedding.conv_in.weight", "input_hint_block.0.weight")
    )


def _is_vae(shapes: Shapes) -> bool:
    names = {key.removeprefix("first_stage_model.").removeprefix("vae.") for key in shapes}
    return "decoder.conv_in.weight" in names and not any("input_blocks" in key for key in shapes)


def embedded(shapes: Shapes) -> list[str]:
    """The tensors of a textual inversion: [vectors, width] under any name; SDXL: two of them."""
    flat = {name: shape for name, shape in shapes.items() if len(shape) in (1, 2)}
    named = [n for n in flat if n in ("emb_params", "clip_l", "clip_g") or "string_to_param" in n]
    chosen = named or (list(flat) if len(shapes) == 1 else [])
    widths = {flat[name][-1] for name in chosen}
    return chosen if named or widths <= set(_WIDTHS) else []
