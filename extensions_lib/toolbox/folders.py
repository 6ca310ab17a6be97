"""A checkpoint as a folder of diffusers, and back: each tensor read, laid out anew and written."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from extensions_lib.atomic import held, reason, temporary_name
from extensions_lib.errors import FileProblem
from extensions_lib.models.built import (
    IMAGE_SIZE,
    VAE_SCALE,
    VOCABULARY,
    text_model,
    unet_model,
    vae_model,
)
from extensions_lib.models.families import Family, Structure
from extensions_lib.models.layouts import Part, parts, pieces, put_together
from extensions_lib.models.names import checkpoint_shapes
from extensions_lib.toolbox.casts import cast, planned
from extensions_lib.toolbox.work import ToolProblem, Watch, Written

if TYPE_CHECKING:
    from torch import Tensor

    from extensions_lib.files.checkpoints import CheckpointKeys

_FILES = {"unet": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model"}  # others: model
_INPAINTING = 9  # input channels of a UNet that also takes a mask
PREDICTIONS = ("epsilon", "v_prediction")


def write_folder(
    checkpoint: Path,
    target: Path,
    watch: Watch,
    result: Written,
    *,
    precision: str,
    prediction: str | None,
) -> None:
    """Writes a checkpoint as diffusers keeps it: configs, weights, vocabulary, scheduler.

    The folder has its name only when it is whole. prediction: what the UNet predicts, where neither
    the file nor its yaml says it. Raises FileProblem, ToolProblem, Stopped.
    """
    from extensions_lib.files.diffusers_folders import FOLDERS
    from extensions_lib.files.streams import write_stream
    from extensions_lib.files.weights import Weights

    with Weights(checkpoint) as weights:
        structure = weights.structure
        if structure.vae is None:
            raise ToolProblem(f"{checkpoint}: has no VAE in it; bake one in first")
        said = _prediction(weights.keys, prediction)
        kept = [part for part in parts(structure) if not _never_runs(part, structure)]
        if len(kept) < len(parts(structure)):
            result.left_out.append("the last layer of the text encoder, which SD2 never runs")
        result.left_out += [f"{key}: belongs to no layer" for key in weights.keys.unused]
        dtypes = {
            k: weights.keys.header.tensors[old].dtype for k, old in weights.keys.names.items()
        }
        done = watch.counting(lambda _: None, len(kept))
        with _whole_folder(target) as folder:
            _write_configs(folder, weights.keys, said)
            for component in ("unet", "vae", *structure.text_components):
                own = {part.name: part for part in kept if part.component == component}
                plan = {
                    name: (planned(dtypes[part.key], precision), part.shape)
                    for name, part in own.items()
                }

                def make(
                    name: str,
                    own: dict[str, Part] = own,
                    plan: dict[str, tuple[str, tuple[int, ...]]] = plan,
                ) -> Tensor:
                    done(name)
                    part = own[name]
                    return cast(part.taken(weights.stored(part.key)), plan[name][0], part.key)

                file = f"{_FILES.get(component, 'model')}.safetensors"
                write_stream(folder / FOLDERS[component] / file, plan, make, {"format": "pt"})


def write_checkpoint(
    source: Path, target: Path, watch: Watch, result: Written, *, precision: str
) -> None:
    """Writes a folder of diffusers as one checkpoint. Raises FileProblem, ToolProblem, Stopped."""
    from extensions_lib.files.diffusers_folders import read_folder
    from extensions_lib.files.streams import TensorReader, write_stream

    folder = read_folder(source)
    structure, shapes = folder.structure, checkpoint_shapes(folder.structure)
    whole = pieces(structure)
    used = {(part.component, part.name) for part in parts(structure)}
    result.left_out += [
        f"{component} {name}: belongs to no layer"
        for component, name in folder.files
        if (component, name) not in used and not name.endswith("position_ids")
    ]
    with ExitStack() as opened:
        readers = {
            file: opened.enter_context(TensorReader(file))
            for file in {file for file, _ in folder.files.values()}
        }

        def dtype_of(part: Part) -> str:
            file, key = folder.files[part.component, part.name]
            return readers[file].header.tensors[key].dtype

        def read(part: Part) -> Tensor:
            file, key = folder.files[part.component, part.name]
            return readers[file][key].reshape(part.shape)

        plan = {
            key: (planned(dtype_of(own[0]), precision), shapes[key]) for key, own in whole.items()
        }
        for marker, there in (
            ("v_pred", folder.prediction == "v_prediction"),
            ("ztsnr", folder.zero_terminal_snr),
        ):
            if there:
                plan[marker] = ("F32", (0,))
        if "v_pred" in plan:
            result.notes.append("it predicts v: marked by an empty tensor 'v_pred'")

        def make(key: str) -> Tensor:
            import torch

            if key not in whole:
                return torch.zeros(0)
            made = put_together(whole[key], [read(part) for part in whole[key]], shapes[key])
            return cast(made, plan[key][0], key)

        counted = watch.counting(make, len(plan))
        write_stream(target, plan, counted, {"format": "pt"}, fresh=True)


def _never_runs(part: Part, structure: Structure) -> bool:
    """Whether it is of a text encoder's last layers, which SD2 leaves out and diffusers has not."""
    if part.component not in structure.text_components:
        return False
    text = structure.texts[structure.text_components.index(part.component)]
    runs = text.layers - text.unused_layers
    layer = part.layer.split(".encoder.layers.")[-1].split(".")[0]
    return structure.family is Family.SD2 and layer.isdecimal() and int(layer) >= runs


def _prediction(keys: CheckpointKeys, asked: str | None) -> str:
    said = asked or keys.prediction
    if said is None and keys.structure.family is Family.SD2:
        raise ToolProblem(
            f"{keys.path}: SD2 models predict noise or v and their files do not tell which; say"
            " --prediction v_prediction (the 768 models) or epsilon (the 512 ones)"
        )
    return said or "epsilon"


@contextmanager
def _whole_folder(target: Path) -> Iterator[Path]:
    """A folder under a temporary name, which gets its own when the block ends well."""
    temporary = temporary_name(target)
    try:
        temporary.mkdir(parents=True)
        with held(temporary):
            yield temporary
        os.rename(temporary, target)
    except OSError as error:
        raise FileProblem(f"{target}: cannot be written ({reason(error)})") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


# --- configs ----------------------------------------------------------------------------------


def _write_configs(folder: Path, keys: CheckpointKeys, prediction: str) -> None:
    """The configs as diffusers' own classes write them."""
    from diffusers import DDIMScheduler

    structure, label = keys.structure, str(keys.path)
    assert structure.vae is not None
    scale = (keys.config and keys.config.vae_scale) or VAE_SCALE[structure.family]
    size = IMAGE_SIZE[structure.family]
    unet_model(structure, label).save_config(folder / "unet")
    vae_model(structure.vae, scale, size).save_config(folder / "vae")
    scheduler = DDIMScheduler(
        beta_start=(keys.config and keys.config.linear_start) or 0.00085,
        beta_end=(keys.config and keys.config.linear_end) or 0.012,
        num_train_timesteps=(keys.config and keys.config.timesteps) or 1000,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type=prediction,
        rescale_betas_zero_snr=keys.zero_terminal_snr,
    )
    scheduler.save_config(folder / "scheduler")
    for component, text in zip(structure.text_components, structure.texts, strict=True):
        end = component.removeprefix("te").replace("1", "").replace("2", "_2")
        runs = text
        if structure.family is Family.SD2:
            runs = replace(text, layers=text.layers - text.unused_layers, unused_layers=0)
        model = text_model(runs)
        model.config.architectures = [type(model).__name__]
        model.config.save_pretrained(folder / f"text_encoder{end}")
        padding = "<|endoftext|>" if text.kind == "clip" else "!"
        _write_tokenizer(folder / f"tokenizer{end}", padding)
    index = json.dumps(_index(structure), indent=2) + "\n"
    (folder / "model_index.json").write_text(index, encoding="utf-8")


def _write_tokenizer(folder: Path, padding: str) -> None:
    folder.mkdir()
    for name in ("vocab.json", "merges.txt", "special_tokens_map.json", "tokenizer_config.json"):
        raw = (VOCABULARY / name).read_text(encoding="utf-8")
        if name.endswith("config.json") or name.startswith("special"):
            raw = json.dumps({**json.loads(raw), "pad_token": padding}, indent=2) + "\n"
        (folder / name).write_text(raw, encoding="utf-8")


def _index(structure: Structure) -> dict[str, Any]:
    """model_index.json: which pipeline, and the class of each part."""
    import diffusers

    xl = structure.family is Family.SDXL
    refiner = structure.text_components == ("te2",)
    inpainting = structure.unet.in_channels == _INPAINTING
    ending = "Inpaint" if inpainting else "Img2Img" if refiner else ""
    index: dict[str, Any] = {
        "_class_name": f"StableDiffusion{'XL' if xl else ''}{ending}Pipeline",
        "_diffusers_version": diffusers.__version__,
        "scheduler": ["diffusers", "DDIMScheduler"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    missing: list[str | None] = [None, None]
    if xl:
        index |= {"force_zeros_for_empty_prompt": not refiner, "requires_aesthetics_score": refiner}
        if not refiner:
            del index["requires_aesthetics_score"]
        index["text_encoder_2"] = ["transformers", "CLIPTextModelWithProjection"]
        index["tokenizer_2"] = ["transformers", "CLIPTokenizer"]
    else:
        index |= {"safety_checker": missing, "requires_safety_checker": False}
    index |= {"feature_extractor": missing, "image_encoder": missing}
    index["text_encoder"] = missing if refiner else ["transformers", "CLIPTextModel"]
    index["tokenizer"] = missing if refiner else ["transformers", "CLIPTokenizer"]
    return index
