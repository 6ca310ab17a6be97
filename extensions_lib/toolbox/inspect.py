"""What a file is, and what of it would not load."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from extensions_lib.errors import FileProblem
from extensions_lib.files.cache import FileCache
from extensions_lib.files.checkpoints import checkpoint_keys
from extensions_lib.files.diffusers_folders import read_folder
from extensions_lib.files.embeddings import embedding_facts
from extensions_lib.files.hashes import data_hash, legacy_hash, sha256_file, stated_hash
from extensions_lib.files.keys import KNOWN
from extensions_lib.files.lllite import lllite_facts, read_lllite
from extensions_lib.files.pickles import names_called
from extensions_lib.files.recognise import TITLES, facts_of, layers_of, strays
from extensions_lib.files.safe import PICKLE_SUFFIXES, Header, is_safetensors
from extensions_lib.models.families import Family, Structure
from extensions_lib.models.strangers import describe
from extensions_lib.toolbox import sorts
from extensions_lib.toolbox.match import match
from extensions_lib.toolbox.metadata import page_of
from extensions_lib.toolbox.report import Report

if TYPE_CHECKING:
    from torch import Tensor

    from extensions_lib.adapters import Adapter

Shapes = Mapping[str, tuple[int, ...]]
_EMBEDDING_FAMILIES = {768: Family.SD1, 1024: Family.SD2, 1280: Family.SDXL}
_CONTEXTS = {768: Family.SD1, 1024: Family.SD2, 2048: Family.SDXL}  # widths of a UNet's text
_PRECISIONS = {"F32": "fp32", "F16": "fp16", "BF16": "bf16", "F8_E4M3": "fp8", "F8_E5M2": "fp8"}


def inspect(
    path: str | os.PathLike[str],
    *,
    hashes: bool = True,
    cache: FileCache | None = None,
    checkpoint: Path | None = None,
) -> Report:
    """Tells a file by its names and shapes: checkpoint, network, VAE, embedding, …

    hashes: also hash the file (a checkpoint takes some seconds); `cache` keeps the results.
    checkpoint: whose layers a network is held against. A pickle with code in it is told, and
    nothing of it is run. Raises FileProblem if the file cannot be read at all.
    """
    path = Path(path)
    if path.is_dir():
        return _folder(path)
    code = _code(path)
    report = Report(path, path.stat().st_size if path.is_file() else 0)
    if code:
        report.what, report.format = "PyTorch pickle with code in it", "PyTorch pickle"
        report.problems.append(
            f"It would call {', '.join(code)}; nothing of it was run. {_REFUSED}"
        )
    elif sorts.is_picture(path):
        _picture(report)
    else:
        header, pickled = sorts.header_of(path)
        report.format = "PyTorch pickle" if pickled else "safetensors"
        report.metadata = dict(header.metadata)
        report.tensors = len(header.tensors)
        report.dtypes = dict(Counter(info.dtype for info in header.tensors.values()))
        report.sort = sorts.sort_of_shapes(header.shapes)
        report.page = page_of(report.metadata)
        if report.sort == sorts.NETWORK:
            against = None if checkpoint is None else checkpoint_keys(checkpoint).structure
            _network(report, header.shapes, against)
        else:
            _TELLERS.get(report.sort, _unknown)(report, header.shapes)
    report.place = sorts.PLACES.get(report.sort, "")
    if hashes:
        _hash(report, cache)
    return report


_REFUSED = "Do not open it elsewhere; get a .safetensors version."


def _code(path: Path) -> list[str]:
    """What a pickle would call; none in other files, and in those that are no pickle at all."""
    if path.suffix.lower() not in (*PICKLE_SUFFIXES, ".state", ".optim") or not path.is_file():
        return []
    try:
        return [] if is_safetensors(path) else names_called(path)
    except FileProblem:
        return []  # reading it says what is wrong


# --- by sort ----------------------------------------------------------------------------------


def _checkpoint(report: Report, shapes: Shapes) -> None:
    report.what = "Checkpoint"
    try:
        keys = checkpoint_keys(report.path)
    except FileProblem as problem:
        report.problems.append(str(problem))
        return
    structure = keys.structure
    _structure(report, structure)
    dtypes = Counter(keys.header.tensors[old].dtype for old in keys.names.values())
    said = ", ".join(_PRECISIONS.get(dtype, dtype) for dtype, _ in dtypes.most_common())
    report.details.append(f"precision {said}")
    prediction = keys.prediction
    if prediction:
        report.details.append(f"predicts {prediction}")
    elif structure.family is Family.SD2 and structure.unet.in_channels == 4:
        report.details.append("predicts noise or v (SD2-v): the file does not tell")
    if keys.zero_terminal_snr:
        report.details.append("trained to zero terminal SNR")
    if structure.vae is None:
        report.details.append("no VAE in the file")
    if any(key.startswith("model_ema.") for key in shapes):
        report.details.append("also holds averaged (EMA) weights")
    rest = len(keys.extras) - len(keys.markers)
    report.details.append(f"not pruned: {rest} leftovers" if rest else "pruned")
    if keys.unused:
        report.notes.append(f"{len(keys.unused)} tensors belong to no layer, as {keys.unused[0]}")


def _structure(report: Report, structure: Structure) -> None:
    unet = structure.unet
    report.family = structure.family
    refiner = structure.text_components == ("te2",)
    report.what = f"Checkpoint {structure.family}{' refiner' if refiner else ''}"
    report.details += [
        f"UNet {unet.model_channels} channels × {list(unet.channel_mult)},"
        f" context {unet.context_dim}",
        "text encoders " + ", ".join(f"{text.kind} {text.width}" for text in structure.texts),
    ]
    if unet.in_channels == 9:
        report.details.append("inpainting (9 input channels)")


def _folder(path: Path) -> Report:
    """A model as diffusers keeps it; another folder is refused."""
    if not sorts.is_diffusers_folder(path):
        raise FileProblem(f"{path}: is a folder without model_index.json; name a file")
    report = Report(path, sum(each.stat().st_size for each in path.rglob("*") if each.is_file()))
    report.sort, report.format = sorts.FOLDER, "folder of diffusers"
    try:
        found = read_folder(path)
    except FileProblem as problem:
        report.what = "Diffusers folder"
        report.problems.append(str(problem))
        return report
    _structure(report, found.structure)
    report.what = f"Diffusers folder {found.structure.family}"
    report.tensors = len(found.files)
    if found.prediction:
        report.details.append(f"predicts {found.prediction}")
    report.notes.append("a WebUI needs it as one file: convert it")
    return report


def _vae(report: Report, shapes: Shapes) -> None:
    report.what = "VAE"
    layout = "diffusers" if any(".resnets." in key for key in shapes) else "ldm"
    report.details.append(f"{layout} layout")
    latents = next((s[1] for k, s in shapes.items() if k.endswith("decoder.conv_in.weight")), 4)
    if latents != 4:
        report.problems.append(
            f"It has {latents} latent channels: SD1, SD2 and SDXL have 4; it is another model's."
        )


def _hypernetwork(report: Report, shapes: Shapes) -> None:
    from extensions_lib.files.hypernetworks import read_hypernetwork

    report.what = "Hypernetwork"
    widths = sorted({int(key.split(".")[0]) for key in shapes if key.split(".")[0].isdecimal()})
    report.details.append(f"widths {', '.join(map(str, widths))}")
    found = [family for width, family in _CONTEXTS.items() if width in widths]
    report.family = found[0] if len(found) == 1 else None
    if report.format != "PyTorch pickle":
        report.notes.append("no WebUI loads one of this format; convert it to .pt")
        return
    try:
        read = read_hypernetwork(report.path)
    except FileProblem as problem:
        report.problems.append(str(problem))
        return
    built = [f"layers {' → '.join(f'{part:g}' for part in read.structure)}"]
    built.append(f"activation {read.activation or 'linear'}")
    built += ["layer norm"] if read.layer_norm else []
    built += [] if read.activate_output else ["no activation at the end"]
    report.details.append(", ".join(built))
    trained = {"step": read.step, "on": read.checkpoint}
    said = ", ".join(f"{name} {value}" for name, value in trained.items() if value is not None)
    report.details += [f"trained: {said}"] if said else []


def _embedding(report: Report, shapes: Shapes) -> None:
    chosen = sorts.embedded(shapes)
    first = shapes[chosen[0]]
    _vectors(
        report,
        sorted({shapes[name][-1] for name in chosen}),
        first[0] if len(first) == 2 else 1,
    )


def _picture(report: Report) -> None:
    facts = embedding_facts(report.path)
    if facts is None:
        raise FileProblem(f"{report.path}: is a picture without an embedding in it")
    report.sort, report.format = sorts.EMBEDDING, "picture"
    _vectors(report, sorted(set(facts.widths.values())), facts.vectors)
    report.details += [f"called {facts.name}"] if facts.name else []


def _vectors(report: Report, widths: list[int], count: int) -> None:
    report.what = "Embedding (textual inversion)"
    report.family = _EMBEDDING_FAMILIES.get(widths[-1])
    encoders = {768: "CLIP-L", 1024: "OpenCLIP-H", 1280: "OpenCLIP-bigG"}
    said = " and ".join(encoders.get(width, "no known encoder") for width in widths)
    report.details.append(f"{count} vectors, width {' + '.join(map(str, widths))}, for {said}")
    if report.family is None:
        report.problems.append(
            f"Its width is {widths[-1]}: SD1 needs 768, SD2 1024, SDXL 768 and 1280."
        )


def _aesthetic(report: Report, shapes: Shapes) -> None:
    report.what, report.family = "Aesthetic embedding", Family.SD1
    width = next(iter(shapes.values()))[-1]
    report.details.append(f"one vector of {width} numbers")


def _controlnet(report: Report, shapes: Shapes) -> None:
    report.what = "ControlNet"
    widths = {shape[1] for key, shape in shapes.items() if key.endswith("attn2.to_k.weight")}
    found = [family for width, family in _CONTEXTS.items() if width in widths]
    report.family = found[0] if len(found) == 1 else None
    report.notes.append("it is used by the WebUI's ControlNet extension, not by this one")


def _optimizer(report: Report, _: Shapes) -> None:
    report.what = "Optimizer state"
    report.notes.append("training goes on with it; no picture is made with it")


def _run(report: Report, shapes: Shapes) -> None:
    report.what = "Training state"
    report.notes.append("a training run goes on from it; the network is saved beside it")
    step = report.path.stem.rpartition("-")[2]
    report.details += [f"step {int(step)}"] if step.isdecimal() else []


def _unknown(report: Report, shapes: Shapes) -> None:
    report.what = "Unknown"
    report.problems.append(f"It is nothing that is known here: {describe(shapes)}.")
    report.unmatched = facts_of(shapes).unmatched


def _network(report: Report, shapes: Shapes, against: Structure | None) -> None:
    """The header tells the kinds; reading it as the WebUI would tells what does not load.

    against: a checkpoint's, whose layers it may fit where it fits none of the known models'.
    """
    if against is not None:
        found = match(shapes, against)
        report.fitting, report.strange = found.fitting, found.strange
    facts = facts_of(shapes)
    report.what = facts.title or ("Network" if facts.layers else "Network that does not load")
    report.family, report.foreign = facts.family, facts.foreign
    report.kinds = {TITLES.get(kind, kind): count for kind, count in facts.kinds.items()}
    report.ranks = dict(sorted(facts.ranks.items()))
    report.components, report.names = dict(facts.components), dict(facts.ways)
    report.dora = facts.dora
    report.unmatched, report.problems = facts.unmatched, facts.problems
    report.notes = facts.notes
    if facts.foreign:
        report.what = f"Network for {facts.foreign}"

    from extensions_lib.files.networks import read_network

    try:
        network = read_network(report.path, structure=against)
    except FileProblem as problem:
        report.problems = [*facts.problems, str(problem)]
        return
    report.matched = len(network.adapters)
    report.unmatched, report.problems = network.unmatched, network.problems
    report.notes, report.embeddings = network.notes, sorted(network.embeddings)
    if report.embeddings and not report.matched:
        report.what = "Embeddings in a network file"
    alphas: Counter[float] = Counter()
    for layer, adapter in network.adapters.items():
        tensors = adapter.tensors()
        if tensors.get("alpha") is not None:
            alphas[round(float(tensors["alpha"]), 6)] += 1
        wrong = _misfit(layer, adapter, facts.family, against) or _not_finite(layer, tensors)
        if wrong:
            report.problems.append(wrong)
    report.alphas = dict(sorted(alphas.items()))
    _say_strays(report, network.adapters)


def _lllite(report: Report, shapes: Shapes) -> None:
    report.what = "ControlNet-LLLite"
    facts = lllite_facts(shapes)
    report.family = facts.family
    report.unmatched, report.problems = facts.unmatched, facts.problems
    sizes = ((facts.cond_dims, "picture"), (facts.mlp_dims, "hidden layer"))
    report.details = [
        f"{facts.layers} layers of the UNet: "
        + ", ".join(f"{what} {' or '.join(map(str, dims))} wide" for dims, what in sizes if dims)
    ]
    try:
        found = read_lllite(report.path)
    except FileProblem as problem:
        report.problems = [*facts.problems, str(problem)]
    else:
        report.problems = found.problems


_TELLERS = {
    sorts.LLLITE: _lllite,
    sorts.CHECKPOINT: _checkpoint,
    sorts.VAE: _vae,
    sorts.HYPERNETWORK: _hypernetwork,
    sorts.EMBEDDING: _embedding,
    sorts.AESTHETIC: _aesthetic,
    sorts.CONTROLNET: _controlnet,
    sorts.OPTIMIZER: _optimizer,
    sorts.RUN: _run,
}


# --- what of a network does not load ----------------------------------------------------------


def _not_finite(layer: str, tensors: Mapping[str, Tensor]) -> str | None:
    """Names the first part of a layer with numbers that are none: pictures would turn black."""
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(tensor.float().isfinite().all()):
            return f"{layer}: {name} holds values that are no numbers (NaN or infinite)"
    return None


def _say_strays(report: Report, layers: Collection[str]) -> None:
    """A file that mixes families, or was trained on a model of another plan."""
    if report.family is None and report.matched:
        report.notes.append("its layers are of no single family: SD1, SD2 or SDXL")
    strange = strays(layers, report.family)
    if strange:
        report.problems.append(
            f"{len(strange)} layers are in no {report.family} model, such as {strange[0]}"
        )


def _misfit(
    layer: str, adapter: Adapter, family: Family | None, against: Structure | None
) -> str | None:
    """Why a layer fits no model of the family; a network of no known family has none to fit."""
    models = KNOWN if against is None else (*KNOWN, against)
    weights = [
        layers_of(structure)[layer].shape
        for structure in models
        if structure.family is family and layer in layers_of(structure)
    ]
    reasons = [adapter.misfit(weight) for weight in weights]
    return f"{layer}: {reasons[0]} ({family})" if reasons and all(reasons) else None


def _hash(report: Report, cache: FileCache | None) -> None:
    path = report.path
    full = sha256_file(path, cache)
    report.hashes = {"sha256": full, "AutoV2": full[:10], "AutoV1": legacy_hash(path)}
    if report.format != "safetensors":
        return
    data = data_hash(path, cache)
    report.hashes |= {"AutoV3": data[:12], "data sha256": data}
    stated = stated_hash(Header({}, report.metadata))
    if stated and stated != data:
        report.problems.append(
            f"The hash in its metadata ({stated[:12]}) is not that of its data ({data[:12]}): the"
            " file was changed after it was saved; pictures will name the hash in the metadata."
        )
