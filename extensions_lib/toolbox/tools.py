"""The tools by name, with what each is given: from this the shell, REST and the tab are made."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from extensions_lib.options import OptionProblem
from extensions_lib.toolbox.bake import Baking, bake
from extensions_lib.toolbox.convert import Converting, convert
from extensions_lib.toolbox.extract import Extracting, extract
from extensions_lib.toolbox.merge import Merging, merge
from extensions_lib.toolbox.resize import Resizing, resize
from extensions_lib.toolbox.sorts import CHECKPOINT, NETWORK
from extensions_lib.toolbox.spectrum import LayerFigures
from extensions_lib.toolbox.weighted import Weighted
from extensions_lib.toolbox.work import Output, Watch, Written

Given = Mapping[str, Any]  # input -> text, or texts where there may be many


@dataclass(frozen=True)
class Input:
    """A file that a tool is given; `weighted`: a network with its weights, as in a tag.

    `many`: any number of them, at least `least`. `metavar` names it on the command line.
    """

    name: str
    help: str
    metavar: str = ""
    weighted: bool = False
    many: bool = False
    least: int = 1


@dataclass(frozen=True)
class Tool:
    """`run` takes the inputs as texts by name, the options, where it goes, and what looks on.

    `makes` is the sort of the result (toolbox.sorts), "" that of the input; `paths` are the options
    that name a file.
    """

    word: str
    said: str
    inputs: tuple[Input, ...]
    options: type
    run: Callable[[Given, Any, Output, Watch], Written]
    makes: str = ""
    paths: tuple[str, ...] = ()

    def check(self, given: Given) -> dict[str, Any]:
        """The inputs, each a text or a list of texts. Raises OptionProblem."""
        known = {each.name: each for each in self.inputs}
        for name in given:
            if name not in known:
                raise OptionProblem(f"{name}: {self.word} takes {', '.join(known)}.")
        return {each.name: _checked(each, given.get(each.name)) for each in self.inputs}


def _checked(each: Input, value: Any) -> Any:
    if each.many:
        value = [] if value is None else value
        if isinstance(value, str) or not isinstance(value, Sequence):
            raise OptionProblem(f"{each.name}: takes a list of texts.")
        texts = [text for text in value if not isinstance(text, str) or text.strip()]
        if not all(isinstance(text, str) for text in texts):
            raise OptionProblem(f"{each.name}: takes a list of texts.")
        if len(texts) < each.least:
            raise OptionProblem(f"{each.name}: name {each.help}.")
        return texts
    if not isinstance(value, str) or not value.strip():
        raise OptionProblem(f"{each.name}: name {each.help}.")
    return value


def _networks(given: Given) -> list[Weighted]:
    return [Weighted.read(text) for text in given["networks"]]


_WEIGHTED = "a network file, with weights as in a tag: FILE:te:unet:dyn:lbw=…"
_NETWORKS = Input("networks", _WEIGHTED, "NETWORK", weighted=True, many=True)

TOOLS: Mapping[str, Tool] = {
    tool.word: tool
    for tool in (
        Tool(
            "convert",
            "another file format, layout, naming or precision",
            (Input("file", "a file or a folder of diffusers"),),
            Converting,
            lambda given, how, order, watch: convert(Path(given["file"]), how, order, watch),
            paths=("base",),
        ),
        Tool(
            "merge",
            "several networks as one",
            (_NETWORKS,),
            Merging,
            lambda given, how, order, watch: merge(_networks(given), how, order, watch),
            NETWORK,
            ("base",),
        ),
        Tool(
            "resize",
            "a network with fewer ranks, or as a LoRA",
            (Input("file", "a network file"),),
            Resizing,
            lambda given, how, order, watch: resize(Path(given["file"]), how, order, watch),
            NETWORK,
            ("base",),
        ),
        Tool(
            "extract",
            "the difference of two checkpoints as a network",
            (
                Input("base_file", "the checkpoint to start from", "BASE"),
                Input("tuned_file", "the checkpoint to arrive at", "TUNED"),
            ),
            Extracting,
            lambda given, how, order, watch: extract(
                Path(given["base_file"]), Path(given["tuned_file"]), how, order, watch
            ),
            NETWORK,
        ),
        Tool(
            "bake",
            "networks and other checkpoints into a checkpoint",
            (
                Input("file", "the checkpoint A", "CHECKPOINT"),
                Input("networks", _WEIGHTED, "NETWORK", weighted=True, many=True, least=0),
            ),
            Baking,
            lambda given, how, order, watch: bake(
                Path(given["file"]), _networks(given), how, order, watch
            ),
            CHECKPOINT,
            ("other", "minus", "vae"),
        ),
    )
}


@dataclass(frozen=True)
class Kept:
    """How much of the energy of all layers a result keeps, and which layer keeps least."""

    layers: int
    share: float
    least: LayerFigures


def kept_of(result: Written) -> Kept | None:
    """None where a tool has no figures of layers."""
    layers = figures_of(result)
    if not layers:
        return None
    total = sum(each.energy for each in layers)
    share = sum(each.kept * each.energy for each in layers) / total if total else 1.0
    return Kept(len(layers), share, min(layers, key=lambda each: each.kept))


def figures_of(result: Written) -> list[LayerFigures]:
    """What was kept of each layer, where a tool tells."""
    found = getattr(result, "layers", None)
    return found if isinstance(found, list) else []
