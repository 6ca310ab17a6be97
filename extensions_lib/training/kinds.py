"""What can be trained: the recipe of each, its file, and how a prompt asks for it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from extensions_lib.errors import CrucibleError
from extensions_lib.training.options import TRAINED, TrainingOptions

if TYPE_CHECKING:
    from extensions_lib.adapters.lllite import LLLite
    from extensions_lib.models.trainable import Trainable
    from extensions_lib.training.step import Recipe


@dataclass(frozen=True)
class Kind:
    """One of `options.TRAINED`.

    `suffix` is its file's. `tagged` writes a prompt that asks for it by name. `make` makes the
    recipe, going on with a file where one is given. `guided`: its samples follow a picture each.
    """

    suffix: str
    tagged: Callable[[str, str], str]
    make: Callable[[Trainable, TrainingOptions, Path | None], Recipe]
    guided: bool = False


def kind_of(options: TrainingOptions) -> Kind:
    """The kind that a run trains."""
    return KINDS[options.train]


def _plain(prompt: str, name: str) -> str:
    return prompt


def _with_tag(kind: str) -> Callable[[str, str], str]:
    def tagged(prompt: str, name: str) -> str:
        own = f"<{kind}:{name}:"
        return prompt if own in prompt else f"{prompt} {own}1>"

    return tagged


def _with_word(prompt: str, name: str) -> str:
    return prompt if name.lower() in prompt.lower() else f"{name}, {prompt}"


def _network(model: Trainable, options: TrainingOptions, file: Path | None) -> Recipe:
    from extensions_lib.training.recipes.network import NetworkRecipe

    adapters = None if file is None else _adapters(model, file, options)
    return NetworkRecipe(
        model, options, options.learning_rate, seed=options.seed, adapters=adapters
    )


def _adapters(model: Trainable, path: Path, options: TrainingOptions) -> dict[str, Any]:
    """The adapters of a file, to be trained further, in fp32 on the model's device.

    Those of a part that is not trained are left out, as in a network that is new.
    """
    import torch

    from extensions_lib.files.networks import read_network
    from extensions_lib.models.names import component_of

    network = read_network(path, structure=model.loaded.structure)
    strange = [layer for layer in network.adapters if layer not in model.loaded.layers]
    if strange or network.problems:
        first, name = [*strange, *network.problems][0], model.loaded.name
        raise CrucibleError(f"{path}: cannot be trained further on {name}: {first}")
    found = {}
    for layer, adapter in network.adapters.items():
        unet = component_of(layer) == "unet"
        if not (options.train_unet if unet else options.train_text_encoder):
            continue
        parts = {
            name: tensor.to(model.loaded.device, torch.float32).clone()
            if tensor.is_floating_point()
            else tensor.clone()
            for name, tensor in adapter.tensors().items()
        }
        found[layer] = type(adapter).from_tensors(parts)
    if not found:
        raise CrucibleError(
            f"{path}: has no layers of what is trained; see train_unet and train_text_encoder."
        )
    return found


def _embedding(model: Trainable, options: TrainingOptions, file: Path | None) -> Recipe:
    from extensions_lib.files.embeddings import read_embedding
    from extensions_lib.training.recipes.embedding import EmbeddingRecipe

    own = replace(options, token_string=options.token_string or options.output_name)
    known = [] if file is None else [read_embedding(file)]
    return EmbeddingRecipe(model, own, options.learning_rate, embeddings=known)


def _hypernetwork(model: Trainable, options: TrainingOptions, file: Path | None) -> Recipe:
    from extensions_lib.files.hypernetworks import read_hypernetwork
    from extensions_lib.training.recipes.hypernetwork import HypernetworkRecipe

    known = None if file is None else read_hypernetwork(file)
    return HypernetworkRecipe(
        model, options, options.learning_rate, seed=options.seed, hypernetwork=known
    )


def _checkpoint(model: Trainable, options: TrainingOptions, file: Path | None) -> Recipe:
    from extensions_lib.training.recipes.full import FullRecipe

    if file is not None:
        raise CrucibleError("network_weights: load the checkpoint instead to train it further.")
    return FullRecipe(model, options, options.learning_rate)


def _lllite(model: Trainable, options: TrainingOptions, file: Path | None) -> Recipe:
    from extensions_lib.training.recipes.lllite import LLLiteRecipe

    layers = None if file is None else _side_paths(model, file)
    return LLLiteRecipe(model, options, options.learning_rate, seed=options.seed, layers=layers)


def _side_paths(model: Trainable, path: Path) -> Mapping[str, LLLite]:
    from extensions_lib.files.lllite import read_lllite

    found = read_lllite(path, structure=model.loaded.structure)
    if found.unmatched or found.problems:
        first, name = [*found.unmatched, *found.problems][0], model.loaded.name
        raise CrucibleError(f"{path}: cannot be trained further on {name}: {first}")
    return found.layers


KINDS: Mapping[str, Kind] = {
    "network": Kind(".safetensors", _with_tag("lora"), _network),
    "embedding": Kind(".safetensors", _with_word, _embedding),
    "hypernetwork": Kind(".pt", _with_tag("hypernet"), _hypernetwork),
    "checkpoint": Kind(".safetensors", _plain, _checkpoint),
    "lllite": Kind(".safetensors", _with_tag("lllite"), _lllite, guided=True),
}
assert tuple(KINDS) == TRAINED
