"""What a file is, and what of it would not load."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from extensions_lib.errors import FileProblem
from extensions_lib.files.cache import FileCache
from extensions_lib.files.checkpoints import checkpoint_structure
from extensions_lib.files.hashes import data_hash, legacy_hash, sha256_file, stated_hash
from extensions_lib.files.keys import KNOWN
from extensions_lib.files.lllite import is_lllite, lllite_facts, read_lllite
from extensions_lib.files.model_configs import config_beside
from extensions_lib.files.recognise import TITLES, NetworkFacts, facts_of, layers_of, strays
from extensions_lib.files.safe import Header, is_pickle, read_any_header
from extensions_lib.models.families import Family
from extensions_lib.models.strangers import describe
from extensions_lib.toolbox.report import Report

if TYPE_CHECKING:
    from torch import Tensor

    from extensions_lib.adapters import Adapter

_EMBEDDING_FAMILIES = {768: Family.SD1, 1024: Family.SD2, 1280: Family.SDXL}
_HYPERNETWORK = re.compile(r"(320|640|768|1024|1280)\.[01]\.linear")


def inspect(
    path: str | os.PathLike[str], *, hashes: bool = True, cache: FileCache | None = None
) -> Report:
    """Tells a file by its names and shapes: checkpoint, network, VAE, embedding, …

    hashes: also hash the file (a checkpoint takes some seconds); `cache` keeps the results.
    Raises FileProblem if the file cannot be read at all.
    """
    path = Path(path)
    header = read_any_header(path)
    report = Report(path, path.stat().st_size)
    report.format = "PyTorch pickle" if is_pickle(path) else "safetensors"
    report.metadata = dict(header.metadata)
    report.tensors = len(header.tensors)
    report.dtypes = dict(Counter(info.dtype for info in header.tensors.values()))
    _recognise(report, header)
    if hashes:
        _hash(report, header, cache)
    return report


def _recognise(report: Report, header: Header) -> None:
    shapes = header.shapes
    if is_lllite(shapes):
        _lllite(report, shapes)
        return
    facts = facts_of(shapes)
    if facts.layers or facts.problems or facts.embeddings or facts.foreign:
        _network(report, facts)
    elif any("input_blocks.0.0.weight" in key for key in shapes):
        _checkpoint(report, shapes)
    elif _is_vae(shapes):
        report.what = "VAE"
    elif any(_HYPERNETWORK.match(key) for key in shapes):
        report.what = "Hypernetwork"
        widths = sorted({int(match[1]) for key in shapes if (match := _HYPERNETWORK.match(key))})
        report.details.append(f"widths {', '.join(map(str, widths))}")
    elif not _embedding(report, shapes):
        report.what = "Unknown"
        report.problems.append(f"It is nothing that is known here: {describe(shapes)}.")
        report.unmatched = facts.unmatched


def _checkpoint(report: Report, shapes: Mapping[str, tuple[int, ...]]) -> None:
    report.what = "Checkpoint"
    try:
        structure = checkpoint_structure(report.path)
        config = config_beside(report.path)
    except FileProblem as problem:
        report.problems.append(str(problem))
        return
    unet = structure.unet
    report.family = structure.family
    report.what = f"Checkpoint {structure.family}"
    report.details += [
        f"UNet {unet.model_channels} channels × {list(unet.channel_mult)},"
        f" context {unet.context_dim}",
        "text encoders " + ", ".join(f"{text.kind} {text.width}" for text in structure.texts),
    ]
    if unet.in_channels == 9:
        report.details.append("inpainting (9 input channels)")
    prediction = (config.prediction if config else None) or ("v_prediction" * ("v_pred" in shapes))
    if prediction:
        report.details.append(f"predicts {prediction}")
    if structure.vae is None:
        report.details.append("no VAE in the file")
    if any(key.startswith("model_ema.") for key in shapes):
        report.details.append("also holds averaged (EMA) weights")


def _is_vae(keys: Collection[str]) -> bool:
    return any(key.removeprefix("first_stage_model.") == "decoder.conv_in.weight" for key in keys)


def _embedding(report: Report, shapes: Mapping[str, tuple[int, ...]]) -> bool:
    """Textual inversion: [vectors, width] under any name; SDXL: clip_l and clip_g."""
    flat = {name: shape for name, shape in shapes.items() if len(shape) in (1, 2)}
    named = [n for n in flat if n in ("emb_params", "clip_l", "clip_g") or "string_to_param" in n]
    chosen = named or (list(flat) if len(shapes) == 1 else [])
    widths = sorted({flat[name][-1] for name in chosen})
    if not chosen or not (named or set(widths) <= set(_EMBEDDING_FAMILIES)):
        return False
    first = flat[chosen[0]]
    report.what = "Embedding (textual inversion)"
    report.family = _EMBEDDING_FAMILIES.get(widths[-1])
    count = first[0] if len(first) == 2 else 1
    report.details.append(f"{count} vectors, width {' + '.join(map(str, widths))}")
    if report.family is None:
        report.problems.append(
            f"Its width is {widths[-1]}: SD1 needs 768, SD2 1024, SDXL 768 and 1280."
        )
    return True


def _network(report: Report, facts: NetworkFacts) -> None:
    """The header tells the kinds; reading it as the WebUI would tells what does not load."""
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
        network = read_network(report.path)
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
        wrong = _misfit(layer, adapter, facts.family) or _not_finite(layer, tensors)
        if wrong:
            report.problems.append(wrong)
    report.alphas = dict(sorted(alphas.items()))
    _say_strays(report, network.adapters)


def _lllite(report: Report, shapes: Mapping[str, tuple[int, ...]]) -> None:
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


def _misfit(layer: str, adapter: Adapter, family: Family | None) -> str | None:
    """Why a layer fits no model of the family; a network of no known family has none to fit."""
    weights = [
        layers_of(structure)[layer].shape
        for structure in KNOWN
        if structure.family is family and layer in layers_of(structure)
    ]
    reasons = [adapter.misfit(weight) for weight in weights]
    return f"{layer}: {reasons[0]} ({family})" if reasons and all(reasons) else None


def _hash(report: Report, header: Header, cache: FileCache | None) -> None:
    path = report.path
    full = sha256_file(path, cache)
    report.hashes = {"sha256": full, "AutoV2": full[:10], "AutoV1": legacy_hash(path)}
    if report.format != "safetensors":
        return
    data = data_hash(path, cache)
    report.hashes |= {"AutoV3": data[:12], "data sha256": data}
    stated = stated_hash(header)
    if stated and stated != data:
        report.problems.append(
            f"The hash in its metadata ({stated[:12]}) is not that of its data ({data[:12]}): the"
            " file was changed after it was saved; pictures will name the hash in the metadata."
        )
