"""A model's folder as transformers saves it: config, weights, image processor, tokenizer.

Read without a network and without running code from the folder. The weights are read here and
handed to transformers: pickles as plain tensors only, and a file that is cut off is named.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from extensions_lib.errors import FileProblem
from extensions_lib.tagging.devices import Place, choose

if TYPE_CHECKING:
    import torch

CONFIG = "config.json"
WEIGHTS = ("model.safetensors", "pytorch_model.bin")  # in the order they are looked for
_INDEX = ".index.json"  # beside weights in several files
# Weights that newer versions of transformers tie and do not save, and older ones look for.
_TIED = {
    "text_decoder.cls.predictions.decoder.weight": (
        "text_decoder.bert.embeddings.word_embeddings.weight"
    ),
}
_END = 1 << 20  # bytes of either end of a large file that tell its revision
_POINTER = b"version https://git-lfs"


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file of a model's folder. Raises FileProblem."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FileProblem(f"{path}: is missing; copy the whole folder of the model.") from None
    except OSError as error:
        raise FileProblem(f"{path}: cannot be read ({error.strerror}).") from error
    except ValueError as error:
        raise FileProblem(f"{path}: is not JSON ({error}); get it again.") from error
    if not isinstance(found, dict):
        raise FileProblem(f"{path}: holds no JSON object; get it again.")
    return found


def weight_files(folder: Path) -> list[Path]:
    """The files of weights, safetensors first. Raises FileProblem naming what is missing."""
    for name in WEIGHTS:
        if (folder / name).is_file():
            return [folder / name]
        index = folder / (name + _INDEX)
        if index.is_file():
            return _shards(index)
    wanted = " or ".join(WEIGHTS)
    raise FileProblem(f"{folder}: has no weights; put {wanted} (or its parts and index) there.")


def shard_names(index: Path) -> list[str]:
    """The names of the files of weights that an index lists. Raises FileProblem."""
    listed = read_json(index).get("weight_map")
    if not isinstance(listed, dict) or not listed:
        raise FileProblem(f"{index}: lists no files of weights; get it again.")
    names = sorted({str(name) for name in listed.values()})
    for name in names:
        if Path(name).name != name or "\\" in name:
            raise FileProblem(f"{index}: names {name!r}, which is not a file beside it.")
    return names


def _shards(index: Path) -> list[Path]:
    files = [index.parent / name for name in shard_names(index)]
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        raise FileProblem(
            f"{index.parent}: {len(missing)} of {len(files)} files of weights are missing:"
            f" {', '.join(missing)}. Put them there."
        )
    return files


def read_weights(files: Sequence[Path]) -> dict[str, torch.Tensor]:
    """Every tensor of the files, mapped from disk where the format can be. Raises FileProblem."""
    found: dict[str, torch.Tensor] = {}
    for file in files:
        found.update(_read_file(file))
    return found


def _read_file(file: Path) -> dict[str, torch.Tensor]:
    try:
        with open(file, "rb") as stream:
            start = stream.read(len(_POINTER))
    except OSError as error:
        raise FileProblem(f"{file}: cannot be read ({error.strerror}).") from error
    if start == _POINTER:
        raise FileProblem(f"{file}: is a Git LFS pointer; run 'git lfs pull' to get the weights.")
    return _read_safetensors(file) if file.suffix == ".safetensors" else _read_pickle(file)


def _read_safetensors(file: Path) -> dict[str, torch.Tensor]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(file), framework="pt") as opened:
            return {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise _damaged(file, error) from error


def _read_pickle(file: Path) -> dict[str, torch.Tensor]:
    import pickle

    import torch

    whole = zipfile.is_zipfile(file)
    if not whole and file.stat().st_size > 0 and _starts_as_zip(file):
        raise _damaged(file, "its end is missing")
    try:
        # Only torch's newer form, a zip, can be mapped.
        found = torch.load(file, map_location="cpu", weights_only=True, mmap=whole or None)
    except pickle.UnpicklingError as error:
        raise FileProblem(
            f"{file}: holds more than tensors, and is not opened; look for a .safetensors of it."
        ) from error
    except Exception as error:  # what torch's reader trips over in bytes that are no pickle varies
        raise _damaged(file, error) from error
    if not isinstance(found, dict):
        raise FileProblem(f"{file}: holds no dictionary of tensors; it is no transformers model.")
    return {name: value for name, value in found.items() if isinstance(value, torch.Tensor)}


def _starts_as_zip(file: Path) -> bool:
    with open(file, "rb") as stream:
        return stream.read(2) == b"PK"


def _damaged(file: Path, why: object) -> FileProblem:
    first = str(why).splitlines()[0] if str(why) else type(why).__name__
    return FileProblem(f"{file}: is damaged or cut off ({first}); get it again.")


def revision_of(folder: Path) -> str:
    """16 hex digits that tell one model's folder from another: of its config and its weights.

    Large files count with their name, size and both ends, so that this takes no time.
    """
    digest = hashlib.sha256((folder / CONFIG).read_bytes())
    for file in weight_files(folder):
        size = file.stat().st_size
        digest.update(f"{file.name} {size}".encode())
        with open(file, "rb") as stream:
            digest.update(stream.read(_END))
            stream.seek(max(0, size - _END))
            digest.update(stream.read(_END))
    return digest.hexdigest()[:16]


def load_model(folder: Path, class_name: str, device: str, dtype: str) -> tuple[Any, Place]:
    """The model of a folder, in eval mode, and where it lies; `device` and `dtype` as options.

    Raises FileProblem when transformers here is too old for it, when weights are missing, of other
    shapes than the config says, or damaged; OptionProblem for a device that cannot be.
    """
    import transformers

    kind = getattr(transformers, class_name, None)
    if kind is None:
        raise FileProblem(
            f"{folder}: needs transformers with {class_name};"
            f" version {transformers.__version__} is installed and has none."
        )
    weights = read_weights(weight_files(folder))
    for name, twin in _TIED.items():
        if twin in weights:
            weights.setdefault(name, weights[twin])
    place = choose(device, dtype, sum(tensor.numel() for tensor in weights.values()))
    with local(folder, "its weights do not fit its config"):
        config = kind.config_class.from_pretrained(folder, local_files_only=True)
        model, info = kind.from_pretrained(
            None,
            config=config,
            state_dict=weights,
            output_loading_info=True,
            **{_dtype_name(): place.dtype},
        )
    del weights
    if missing := _missing(model, info["missing_keys"]):
        raise FileProblem(
            f"{folder}: the weights lack {len(missing)} tensors that {class_name} needs,"
            f" as {missing[0]}; get the model again."
        )
    if (folder / "generation_config.json").is_file() and model.can_generate():
        with local(folder, "its generation_config.json cannot be used"):
            told = transformers.GenerationConfig.from_pretrained(folder, local_files_only=True)
            model.generation_config = told
    return _placed(model, place.device, folder), place


def _missing(model: Any, keys: Sequence[str]) -> list[str]:
    """The parameters of the model that got no value, also not under another name.

    Buffers are not among them: those that files leave out are counted up anew (position ids).
    """
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    return sorted(same[0] for same in names.values() if set(same) <= set(keys))


def _dtype_name() -> str:
    """transformers' name for the argument, which changed in 4.56."""
    import transformers

    major, minor = (int(part) for part in transformers.__version__.split(".")[:2])
    return "dtype" if (major, minor) >= (4, 56) else "torch_dtype"


def _placed(model: Any, device: torch.device, folder: Path) -> Any:
    import torch

    try:
        return model.to(device).eval()
    except torch.cuda.OutOfMemoryError as error:
        raise FileProblem(
            f"{folder}: does not fit into the memory of {device}; unload other models, or take the"
            " option device=cpu."
        ) from error


def load_image_processor(folder: Path) -> Any:
    """What makes pixels of pictures, at the size its config says. Raises FileProblem."""
    from transformers import AutoImageProcessor

    read_json(folder / "preprocessor_config.json")
    with local(folder, "its preprocessor_config.json cannot be used"):
        # The fast ones resize by torchvision, with other pixels than the models were trained on.
        return AutoImageProcessor.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False, use_fast=False
        )


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer of a folder. Raises FileProblem."""
    from transformers import AutoTokenizer

    with local(folder, "its tokenizer cannot be used"):
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)


@contextlib.contextmanager
def local(folder: Path, what: str) -> Iterator[None]:
    """Runs transformers' loaders quietly; their complaints become one FileProblem."""
    from transformers.utils import logging as chatter

    before = chatter.get_verbosity()
    chatter.set_verbosity_error()
    try:
        yield
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, ImportError) as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise FileProblem(f"{folder}: {what} ({first[:300]}).") from error
    finally:
        chatter.set_verbosity(before)
