"""Another form of the same thing: file format, layout, names, precision; without what is no use."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from extensions_lib.atomic import atomic_write
from extensions_lib.errors import FileProblem
from extensions_lib.options import option
from extensions_lib.toolbox.casts import cast, planned
from extensions_lib.toolbox.dora_axis import IN, OUT, on_axis
from extensions_lib.toolbox.folders import PREDICTIONS, write_checkpoint, write_folder
from extensions_lib.toolbox.naming import KOHYA, NAMINGS, named
from extensions_lib.toolbox.sorts import (
    CHECKPOINT,
    EMBEDDING,
    HYPERNETWORK,
    NETWORK,
    is_picture,
    sort_of,
)
from extensions_lib.toolbox.spectrum import LayerFigures
from extensions_lib.toolbox.weighted import opened_base
from extensions_lib.toolbox.work import (
    BESIDE,
    PRECISIONS,
    QUIET,
    SAME,
    Output,
    ToolProblem,
    Watch,
    Written,
    copy_config,
    destination,
    misunderstood,
)

if TYPE_CHECKING:
    from torch import Tensor

    from extensions_lib.files.checkpoints import CheckpointKeys

FORMS = ("safetensors", "ckpt", "pt", "diffusers")
_PICKLES = (".ckpt", ".pt", ".bin", ".pth")


@dataclass(frozen=True)
class Converting:
    """What it is to become."""

    to: str = option(
        "safetensors",
        "form of the result; diffusers: a folder of a checkpoint. A folder becomes one file",
        choices=FORMS,
    )
    naming: str = option(
        SAME,
        "names of a network's layers: kohya (SDXL after ldm), kohya_diffusers, peft (diffusers) or"
        " comfyui",
        choices=(SAME, *NAMINGS),
    )
    dora_axis: str = option(
        SAME,
        "axis of a DoRA: in (A1111 reads this alone) or out; needs base",
        label="DoRA axis",
        choices=(SAME, IN, OUT),
    )
    base: str = option("", "checkpoint that a DoRA was made for")
    prune: bool = option(False, "of a checkpoint: leave out averaged weights, optimizer, leftovers")
    ema: bool = option(False, "of a checkpoint: take the averaged (EMA) weights", label="EMA")
    prediction: str | None = option(
        None, "what an SD2 checkpoint predicts, for a folder", choices=PREDICTIONS
    )

    @property
    def of_network(self) -> bool:
        """Whether it asks for what networks alone have."""
        return self.naming != SAME or self.dora_axis != SAME


@dataclass
class Converted(Written):
    """The file or folder."""

    layers: list[LayerFigures] = field(default_factory=list)  # that could not be kept whole


def convert(
    path: Path, how: Converting = Converting(), order: Output = BESIDE, watch: Watch = QUIET
) -> Converted:
    """Writes `path` in another form; it stays as it is. Metadata are kept.

    Raises FileProblem, ToolProblem (what it is cannot become that), Stopped.
    """
    from extensions_lib.files.diffusers_folders import is_diffusers_folder

    suffix = "" if how.to == "diffusers" else f".{how.to}"
    if (
        order.out
        and how.to != "diffusers"
        and Path(order.out).suffix in (".safetensors", *_PICKLES)
    ):
        suffix = Path(order.out).suffix
    if path.is_dir():
        if not is_diffusers_folder(path):
            raise FileProblem(f"{path}: is a folder without model_index.json; name a file")
        if suffix != ".safetensors" or how.of_network:
            raise ToolProblem(f"{path}: a folder of diffusers becomes a .safetensors checkpoint")
        result = Converted(destination(order, [path], "checkpoint", suffix))
        write_checkpoint(path, result.path, watch, result, precision=order.precision)
        return result
    sort = sort_of(path)
    _check_order(path, sort, how)
    result = Converted(destination(order, [path], _ending(how, order), suffix))
    if how.to == "diffusers":
        write_folder(
            path, result.path, watch, result, precision=order.precision, prediction=how.prediction
        )
    elif sort == NETWORK and how.of_network:
        _network(path, how, order, watch, result)
    elif sort == EMBEDDING:
        _embedding(path, order, result)
    elif sort == HYPERNETWORK:
        _hypernetwork(path, order, result)
    else:
        _file(path, sort, how, order, watch, result)
    return result


def _ending(how: Converting, order: Output) -> str:
    axis = SAME if how.dora_axis == SAME else f"dora-{how.dora_axis}"
    said = [how.naming, axis, "ema" if how.ema else SAME, "pruned" if how.prune else SAME]
    return "-".join(each for each in (*said, order.precision) if each != SAME) or (
        "diffusers" if how.to == "diffusers" else "converted"
    )


def _check_order(path: Path, sort: str, how: Converting) -> None:
    """Raises ToolProblem for an option that has no meaning for this kind of file."""
    checks = (
        (how.of_network, NETWORK, "naming and dora_axis are of networks"),
        (how.prune or how.ema, CHECKPOINT, "prune and ema are of checkpoints"),
        (how.to == "diffusers", CHECKPOINT, "a folder of diffusers is made of a checkpoint"),
    )
    for asked, of, why in checks:
        if asked and sort != of:
            raise ToolProblem(f"{path}: is no {of}; {why}")


# --- tensors as they are ----------------------------------------------------------------------


def _file(
    path: Path, sort: str, how: Converting, order: Output, watch: Watch, result: Converted
) -> None:
    """All tensors, or those of a checkpoint that are of use, in another format and precision."""
    from extensions_lib.files.streams import TensorReader, write_stream

    with TensorReader(path) as reader:
        sources = {name: name for name in reader.header.tensors}
        if sort == CHECKPOINT and (how.prune or how.ema):
            from extensions_lib.files.checkpoints import checkpoint_keys

            sources = _useful(checkpoint_keys(path), how, result)
        infos = {name: reader.header.tensors[source] for name, source in sources.items()}
        plan = {
            name: (_kept_dtype(name, info.dtype, order.precision), info.shape)
            for name, info in infos.items()
        }
        metadata = {**reader.header.metadata, **pickled_metadata(path)}
        metadata = {k: v for k, v in metadata.items() if not _outdated(k, sort, order)}

        def make(name: str) -> Tensor:
            return cast(reader[sources[name]], plan[name][0], name)

        counted = watch.counting(make, len(plan))
        if result.path.suffix.lower() == ".safetensors":
            write_stream(result.path, plan, counted, metadata, fresh=True)
        else:
            write_pickle(result.path, {name: counted(name) for name in plan}, metadata)
    if sort == CHECKPOINT:
        copy_config(path, result)


def _kept_dtype(name: str, dtype: str, precision: str) -> str:
    """An alpha is a number of its own, not one of many."""
    return dtype if name.endswith(".alpha") else planned(dtype, precision)


def _outdated(key: str, sort: str, order: Output) -> bool:
    """Whether a hash in the metadata is no longer that of the data."""
    hashes = key.startswith(("sshs_", "modelspec.hash"))
    return hashes and (sort == CHECKPOINT or order.precision != SAME)


def _useful(keys: CheckpointKeys, how: Converting, result: Converted) -> dict[str, str]:
    """Name in the result -> name in the file."""
    averaged = {
        old: ema
        for key, old in keys.names.items()
        if how.ema and (ema := keys.averaged(key)) is not None
    }
    if how.ema and not averaged:
        raise ToolProblem(f"{keys.path}: holds no averaged (EMA) weights")
    dropped = [
        key
        for key in keys.extras
        if key not in keys.markers and (how.prune or key.startswith("model_ema."))
    ]
    kept = [name for name in keys.header.tensors if name not in dropped]
    result.notes.append(f"{len(dropped)} leftovers are left out")
    if keys.unused:
        result.notes.append(f"{len(keys.unused)} tensors belong to no layer and stay as they are")
    return {name: averaged.get(name, name) for name in kept}


def write_pickle(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Writes tensors as PyTorch does, metadata beside them. Atomic; nothing is replaced.

    Raises FileProblem.
    """
    import torch

    # a tensor that is part of a larger one would take all of that along
    own = {name: tensor.contiguous().clone() for name, tensor in tensors.items()}
    with atomic_write(path, fresh=True) as temporary:
        torch.save({"state_dict": own, "metadata": dict(metadata)}, temporary)


def pickled_metadata(path: Path) -> dict[str, str]:
    """What `write_pickle` kept beside the tensors; none in other files. Raises FileProblem."""
    from extensions_lib.files.pickles import read_pickle
    from extensions_lib.files.safe import is_pickle

    loaded = read_pickle(path) if is_pickle(path) else None
    found = loaded.get("metadata") if isinstance(loaded, dict) else None
    if not isinstance(found, dict):
        return {}
    return {k: v for k, v in found.items() if isinstance(k, str) and isinstance(v, str)}


# --- networks ---------------------------------------------------------------------------------


def _network(path: Path, how: Converting, order: Output, watch: Watch, result: Converted) -> None:
    """A network under other names, or with its DoRA along another axis."""
    from extensions_lib.files.networks import read_network, write_named

    with opened_base(how.base) as base:
        network = read_network(path, structure=base.structure if base is not None else None)
        network.metadata |= pickled_metadata(path)
        result.left_out += misunderstood(network)
        if how.dora_axis != SAME:
            found, result.layers = on_axis(network.adapters, how.dora_axis, base, watch)
            network = replace(network, adapters=found)
    tensors, more = named(network, KOHYA if how.naming == SAME else how.naming)
    wanted = PRECISIONS.get(order.precision)
    if wanted:
        tensors = {
            name: tensor if name.endswith((".alpha", ".scale")) else cast(tensor, wanted, name)
            for name, tensor in tensors.items()
        }
    kept = {
        key: text
        for key, text in network.metadata.items()
        if not key.startswith("sshs_") and key != "lora_adapter_metadata"
    }
    if result.path.suffix.lower() == ".safetensors":
        write_named(result.path, tensors, {**kept, **more}, network.family, fresh=True)
    else:
        write_pickle(result.path, tensors, {**kept, **more})


# --- embeddings and hypernetworks -------------------------------------------------------------


def _embedding(path: Path, order: Output, result: Converted) -> None:
    """Its vectors in the dtype they have, with how they were trained."""
    from extensions_lib.files.dtypes import torch_dtype
    from extensions_lib.files.embeddings import read_embedding, write_embedding
    from extensions_lib.files.safe import read_any_header

    embedding = read_embedding(path)
    stored = "F32" if is_picture(path) else _one_dtype(read_any_header(path).tensors)
    dtype = planned(stored, order.precision)
    parts = {
        part: cast(vectors, dtype, part or "the vectors").to(torch_dtype(dtype))
        for part, vectors in embedding.parts.items()
    }
    write_embedding(result.path, replace(embedding, parts=parts), fresh=True)


def _one_dtype(tensors: Mapping[str, Any]) -> str:
    found = {info.dtype for info in tensors.values()}
    return found.pop() if len(found) == 1 else "F32"


_FIELDS = "crucible_hypernetwork"  # metadata: what a hypernetwork holds beside its tensors


def _hypernetwork(path: Path, order: Output, result: Converted) -> None:
    """A dict of state dicts by width as flat names with its fields in the metadata, and back."""
    import torch

    from extensions_lib.files.hypernetworks import read_hypernetwork
    from extensions_lib.files.pickles import flatten, read_pickle
    from extensions_lib.files.safe import is_pickle, read_file, write_safetensors

    if is_pickle(path):
        read_hypernetwork(path)  # refuses what no WebUI would load
        loaded = read_pickle(path)
        assert isinstance(loaded, Mapping)
        tensors = flatten(loaded, path)
        fields = {k: v for k, v in loaded.items() if isinstance(k, str) and _plain(v)}
    else:
        tensors, metadata = read_file(path)
        try:
            fields = json.loads(metadata.get(_FIELDS, "{}"))
        except ValueError:
            raise FileProblem(f"{path}: its metadata {_FIELDS} is not JSON") from None
    cased = {
        name: cast(tensor, planned(_name_of(tensor), order.precision), name)
        for name, tensor in tensors.items()
    }
    if result.path.suffix.lower() == ".safetensors":
        result.notes.append("no WebUI loads a hypernetwork of this format; convert it back for use")
        write_safetensors(result.path, cased, {_FIELDS: json.dumps(fields)}, fresh=True)
        return
    pairs: dict[int, tuple[dict[str, Tensor], dict[str, Tensor]]] = {}
    for name, tensor in cased.items():
        width, which, key = name.split(".", 2)
        pairs.setdefault(int(width), ({}, {}))[int(which)][key] = tensor.clone()
    with atomic_write(result.path, fresh=True) as temporary:
        torch.save(dict([*pairs.items(), *fields.items()]), temporary)


def _name_of(tensor: Tensor) -> str:
    from extensions_lib.files.dtypes import safetensors_name

    return str(safetensors_name(tensor.dtype))


def _plain(value: object) -> bool:
    """Whether JSON has it and gives it back as it was."""
    if isinstance(value, (list, tuple)):
        return all(isinstance(each, (int, float)) for each in value)
    return value is None or isinstance(value, (str, int, float, bool))
