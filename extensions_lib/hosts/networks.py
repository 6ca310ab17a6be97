"""The networks that a prompt asks for: found, read, put in force; what fails becomes a message."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Protocol

from extensions_lib.errors import CrucibleError
from extensions_lib.files.networks import Key, Network, network_key, read_network
from extensions_lib.hosts.embeddings import bundled_of
from extensions_lib.hosts.live import LIVE
from extensions_lib.models.names import component_of, named_blocks
from extensions_lib.patching import (
    ActiveSet,
    ApplyReport,
    Course,
    Shares,
    Wanted,
    combined,
    together,
)
from extensions_lib.prompts.blocks import BASE, Blocks

if TYPE_CHECKING:
    from extensions_lib.files.embeddings import Embedding
    from extensions_lib.library import Entry, Library
    from extensions_lib.models.loaded import LoadedModel
    from extensions_lib.prompts.tags import NetworkRequest, Plan

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


@dataclass(frozen=True)
class Sampling:
    """What is about to be sampled: it decides how networks are applied, not what they do.

    steps: as `Networks.at` counts them. rows, area: samples in one forward pass of the UNet, and
    latent pixels in one of them.
    """

    steps: int
    rows: int
    area: int


class InForce(Protocol):
    """The set of networks in force on a model (patching.ActiveSet says what each call does)."""

    def apply(self, wanted: Sequence[Wanted]) -> ApplyReport: ...

    def change(self, wanted: Sequence[Wanted]) -> None:
        """As apply, in the middle of sampling: the UNet's weights only."""

    def encode(self, wanted: Sequence[Wanted]) -> None:
        """As apply, between two texts that are encoded: the text encoders' weights only."""

    def rows(self, pictures: Sequence[int]) -> None: ...

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
        # For each picture whose networks differ: one entry where they are the same for all.
        self._asked: list[list[tuple[NetworkRequest, Network]]] = [[]]
        self._text_of = 0
        self._sampling: Sampling | None = None
        self._hires = False
        self._by_layer: dict[Blocks, Shares] = {}

    def apply(
        self,
        requests: Sequence[NetworkRequest],
        *,
        hires: bool = False,
        sampling: Sampling | None = None,
    ) -> Applied:
        """Makes exactly these networks active; those that cannot be are left out and reported.

        `hires`: for the second pass of a hires fix, in which a tag may have other weights.
        """
        return self.apply_each([requests], hires=hires, sampling=sampling)[0]

    def apply_each(
        self,
        pictures: Sequence[Sequence[NetworkRequest]],
        *,
        hires: bool = False,
        sampling: Sampling | None = None,
    ) -> list[Applied]:
        """As `apply`, for the pictures of one batch, each with networks of its own.

        The text encoders have those of the first picture until `encode_for` names another. Where
        the sets differ, `rows` is to be called before each forward pass of the UNet. What is wrong
        with a tag is said once, at the first picture that has it.
        """
        self._hires, self._sampling, self._text_of = hires, sampling, 0
        differ = any(list(each) != list(pictures[0]) for each in pictures)
        found = [self._asked_for(requests) for requests in (pictures if differ else pictures[:1])]
        self._asked = [asked for _, asked in found]
        wanted = self._wanted(0, 1)
        report = self._active.apply(wanted)
        self._forget_but(len(wanted) + _KEPT)
        said = [applied for applied, _ in found]
        said[0].messages += [*_unfit(report.unfit), *report.notes]
        _say_once(said)
        return said if differ else said + [replace(said[0], messages=[]) for _ in pictures[1:]]

    def encode_for(self, picture: int) -> None:
        """Brings a picture's weights on the text encoders into force, before its texts are encoded.

        Only layers of the text encoders are computed.
        """
        if self.differ and picture != self._text_of:
            self._text_of = picture
            self._active.encode(self._wanted(0, 1))

    @property
    def differ(self) -> bool:
        """Whether pictures of the batch have networks of their own."""
        return len(self._asked) > 1

    def rows(self, pictures: Sequence[int]) -> None:
        """Says of which picture, from 0, each sample is that the UNet is asked about next."""
        if self.differ:
            self._active.rows(pictures)

    @property
    def changing(self) -> bool:
        """Whether a weight changes while a picture is sampled: then `at` is to be called."""
        each = (request.plan for asked in self._asked for request, _ in asked)
        return any(plan is not None and plan.changing for plan in each)

    def at(self, step: int, steps: int) -> None:
        """Brings the weights of step `step` (from 0) of `steps` into force, before it is sampled.

        Where a network is computed beside its layers, a few numbers change; where it is merged, the
        layers of the networks whose weights change are merged anew.
        """
        if self.changing:
            self._active.change(self._wanted(step, steps))

    def _asked_for(
        self, requests: Sequence[NetworkRequest]
    ) -> tuple[Applied, list[tuple[NetworkRequest, Network]]]:
        """The networks of one picture's tags, and what is to be said about them."""
        applied = Applied()
        found = [(request, self._network(request, applied)) for request in requests]
        asked = [(request, network) for request, network in found if network is not None]
        applied.bundled, wrong = bundled_of(network for _, network in asked)
        applied.messages += wrong
        texts = [self._one(request, network, 0, 1) for request, network in asked]
        applied.text_identity = tuple(
            sorted((each.part, each.te) for each in combined(texts) if each.te)
        )
        return applied, asked

    def _wanted(self, step: int, steps: int) -> list[Wanted]:
        pictures = [
            [self._one(request, network, step, steps) for request, network in asked]
            for asked in self._asked
        ]
        return together(pictures, self._text_of) if self.differ else pictures[0]

    def _one(self, request: NetworkRequest, network: Network, step: int, steps: int) -> Wanted:
        if request.plan is None:
            return Wanted(network, request.te, request.unet, request.dyn)
        te, unet = request.plan.weights(step, steps, hires=self._hires)
        shares = self._shares(request.plan.blocks)
        return Wanted(network, te, unet, request.dyn, shares, self._course(request.plan))

    def _course(self, plan: Plan) -> Course | None:
        """How the weight on the UNet goes over the sampling; None where it stays or is unknown."""
        if self._sampling is None or not plan.changing:
            return None
        steps = self._sampling.steps
        weights = [plan.weights(step, steps, hires=self._hires)[1] for step in range(steps)]
        changes = sum(now != before for before, now in pairwise([0.0, *weights]))
        forwards = sum(weight != 0 for weight in weights)
        return Course(changes, forwards, self._sampling.rows, self._sampling.area)

    def _shares(self, blocks: Blocks | None) -> Shares | None:
        """Block weights, layer by layer of this model."""
        if blocks is None:
            return None
        if blocks not in self._by_layer:
            of = {
                layer: blocks.of(BASE if block is None else block, names)
                for layer, (block, names) in named_blocks(self._model.structure).items()
                if component_of(layer) != "vae"
            }
            self._by_layer[blocks] = Shares(blocks.key, of)
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
        live = LIVE.find(request.name)
        if live is not None and self._misfit(live) is None:
            return live
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
                applied.messages.append(f"{tag}: {len(parts)} {what}: {some(parts)}")
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


def _say_once(applied: Sequence[Applied]) -> None:
    """Leaves each message at the first that has it."""
    said: set[str] = set()
    for each in applied:
        each.messages = [text for text in dict.fromkeys(each.messages) if text not in said]
        said.update(each.messages)


def _unfit(lines: Sequence[str]) -> list[str]:
    """One message for all layers of one network that do not fit."""
    by_name: dict[str, list[str]] = {}
    for line in lines:
        name, _, rest = line.partition(": ")
        by_name.setdefault(name, []).append(rest)
    return [
        f"{name}: {len(parts)} layers were left out: {some(parts)}"
        for name, parts in by_name.items()
    ]


def some(parts: Sequence[str]) -> str:
    """The first few of a list, and how many more there are."""
    more = f"; and {len(parts) - _SHOWN} more" if len(parts) > _SHOWN else ""
    return "; ".join(parts[:_SHOWN]) + more
