"""The networks that a prompt asks for: found, read, put in force; what fails becomes a message."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from extensions_lib.errors import CrucibleError
from extensions_lib.files.networks import Key, Network, network_key, read_network
from extensions_lib.hosts.embeddings import bundled_of
from extensions_lib.models.names import component_of, unet_blocks
from extensions_lib.patching import ActiveSet, ApplyReport, Shares, Wanted
from extensions_lib.prompts.blocks import BASE, Blocks

if TYPE_CHECKING:
    from extensions_lib.files.embeddings import Embedding
    from extensions_lib.library import Entry, Library
    from extensions_lib.models.loaded import LoadedModel
    from extensions_lib.prompts.tags import NetworkRequest

_KEPT = 4  # networks in memory beyond those in use
_SHOWN = 3


@dataclass
class Applied:
    """What a prompt's networks came to.

    `messages` are sentences about what is missing or does not fit; `hashes` are WebUI's "Lora
    hashes" by name; `text_identity` changes whenever the text encoders answer otherwise.
    """

    messages: list[str] = field(default_factory=list)
    hashes: dict[str, str] = field(default_factory=dict)
    text_identity: Hashable = ()
    bundled: dict[str, Embedding] = field(default_factory=dict)  # embeddings inside the networks


class InForce(Protocol):
    """The set of networks in force on a model (patching.ActiveSet says what each call does)."""

    def apply(self, wanted: Sequence[Wanted]) -> ApplyReport: ...

    def change(self, wanted: Sequence[Wanted]) -> None:
        """As apply, in the middle of sampling: the UNet's weights only."""

    def clear(self) -> None: ...

    def park(self) -> None: ...

    def release(self) -> None: ...


class Networks:
    """Keeps the networks of the last prompt in force on one model.

    `active` puts them there; None: a patching.ActiveSet.
    """

    def __init__(self, model: LoadedModel, library: Library, active: InForce | None = None) -> None:
        self._model = model
        self._library = library
        self._active = active or ActiveSet(model)
        self._read: OrderedDict[Key, Network] = OrderedDict()
        self._asked: list[tuple[NetworkRequest, Network]] = []
        self._hires = False
        self._by_layer: dict[Blocks, Shares] = {}

    def apply(self, requests: Sequence[NetworkRequest], *, hires: bool = False) -> Applied:
        """Makes exactly these networks active; those that cannot be are left out and reported.

        `hires`: for the second pass of a hires fix, in which a tag may have other weights.
        """
        applied = Applied()
        found = [(request, self._network(request, applied)) for request in requests]
        self._asked = [(request, network) for request, network in found if network is not None]
        self._hires = hires
        applied.bundled, wrong = bundled_of(network for _, network in self._asked)
        applied.messages += wrong
        wanted = self._wanted(0, 1)
        report = self._active.apply(wanted)
        self._forget_but(len(wanted) + _KEPT)
        applied.messages += _unfit(report.unfit)
        applied.text_identity = tuple(sorted((each.part, each.te) for each in wanted if each.te))
        return applied

    @property
    def changing(self) -> bool:
        """Whether a weight changes while a picture is sampled: then `at` is to be called."""
        return any(request.plan and request.plan.changing for request, _ in self._asked)

    def at(self, step: int, steps: int) -> None:
        """Brings the weights of step `step` (from 0) of `steps` into force, before it is sampled.

        Only layers of networks whose weight changes are computed. That is one pass over those
        weights: little beside the step itself.
        """
        if self.changing:
            self._active.change(self._wanted(step, steps))

    def _wanted(self, step: int, steps: int) -> list[Wanted]:
        wanted = []
        for request, network in self._asked:
            te, unet, shares = request.te, request.unet, None
            if request.plan is not None:
                te, unet = request.plan.weights(step, steps, hires=self._hires)
                shares = self._shares(request.plan.blocks)
            wanted.append(Wanted(network, te, unet, request.dyn, shares))
        return wanted

    def _shares(self, blocks: Blocks | None) -> Shares | None:
        """Block weights, layer by layer of this model."""
        if blocks is None:
            return None
        if blocks not in self._by_layer:
            structure = self._model.structure
            of = {layer: blocks.of(name) for layer, name in unet_blocks(structure).items()}
            texts = [n for n in self._model.layers if component_of(n) in structure.text_components]
            of |= dict.fromkeys(texts, blocks.of(BASE))
            self._by_layer[blocks] = Shares(blocks.weights, of)
        return self._by_layer[blocks]

    @property
    def model(self) -> LoadedModel:
        """The model that they are put on."""
        return self._model

    def clear(self) -> None:
        """Takes every network off the model; what was read stays at hand."""
        self._active.clear()

    def park(self) -> None:
        """Takes every network off the model; the same set comes back without computing."""
        self._active.park()

    def release(self) -> None:
        """Takes every network off the model and frees their memory."""
        self._active.release()
        self._read.clear()

    def _network(self, request: NetworkRequest, applied: Applied) -> Network | None:
        """The network of one tag; None, with a message, when it cannot be used."""
        tag = request.tag or f"<{request.kind}:{request.name}>"
        if request.kind != "lora":
            applied.messages.append(f"{tag}: this host applies no {request.kind!r} networks.")
            return None
        entry = self._library.find(request.name)
        if entry is None:
            # It may have been saved a moment ago, by a training run for one.
            self._library.refresh()
            entry = self._library.find(request.name)
        if entry is None:
            applied.messages.append(
                f"{tag}: no network named {request.name!r} was found in the network folders."
            )
            return None
        try:
            network = self._load(entry)
        except CrucibleError as error:
            applied.messages.append(f"{tag}: {error}")
            return None
        problem = self._misfit(network)
        if problem:
            applied.messages.append(f"{tag}: {problem}")
            return None
        applied.hashes[request.name] = entry.hash[:12]
        for parts, what in (
            (network.problems, "layers cannot be used"),
            (network.unmatched, "keys match no layer that is known here"),
        ):
            if parts:
                applied.messages.append(f"{tag}: {len(parts)} {what}: {_some(parts)}")
        return network

    def _load(self, entry: Entry) -> Network:
        """The entry's network, from memory as long as the file is the same."""
        key = network_key(entry.path)
        if key not in self._read:
            self._read[key] = read_network(
                entry.path, structure=self._model.structure, name=entry.name
            )
        self._read.move_to_end(key)
        return self._read[key]

    def _forget_but(self, kept: int) -> None:
        while len(self._read) > kept:
            self._read.popitem(last=False)

    def _misfit(self, network: Network) -> str | None:
        """Why the network belongs to another kind of model, or None if it may well fit."""
        family, own = network.family, self._model.family
        if family is own:
            return None
        if family is None:
            there = {"unet", "vae", *self._model.structure.text_components}
            strange = sorted({component_of(layer) for layer in network.adapters} - there)
            if not strange:
                return None
            return f"made for a model with {', '.join(strange)}, which {own} has not; left out."
        return (
            f"made for {family}, but the loaded checkpoint {self._model.name} is {own}; left out."
        )


def _unfit(lines: Sequence[str]) -> list[str]:
    """One message for all layers of one network that do not fit."""
    by_name: dict[str, list[str]] = {}
    for line in lines:
        name, _, rest = line.partition(": ")
        by_name.setdefault(name, []).append(rest)
    return [
        f"{name}: {len(parts)} layers were left out: {_some(parts)}"
        for name, parts in by_name.items()
    ]


def _some(parts: Sequence[str]) -> str:
    more = f"; and {len(parts) - _SHOWN} more" if len(parts) > _SHOWN else ""
    return "; ".join(parts[:_SHOWN]) + more
