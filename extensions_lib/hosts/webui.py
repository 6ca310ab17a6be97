"""Networks in a WebUI: its `<lora:…>` and `<lyco:…>` tags, answered by Crucible.

One session lives as long as the program, through reloads of the page. It knows the library, and
the networks in force on the model that is loaded. Networks are in force while pictures are made
and only then, so that whatever else uses or replaces the checkpoint finds it clean.
"""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable, Hashable, Sequence
from contextlib import AbstractContextManager
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from extensions_lib.errors import CrucibleError, NetworkProblem
from extensions_lib.hosts.webui_embeddings import prepare
from extensions_lib.hosts.webui_order import (
    NAMES,
    at_the_end,
    before_encoding,
    forget_conditions,
    note_hashes,
    sampling_of,
    tags_in,
    tell,
)
from extensions_lib.hosts.webui_pictures import Items, Samples, encode_apart, stack_of
from extensions_lib.prompts.tags import NetworkRequest, network_requests

if TYPE_CHECKING:
    from extensions_lib.hosts.networks import Applied, InForce, Networks, Sampling
    from extensions_lib.hosts.webui_embeddings import WebUIEmbeddings
    from extensions_lib.library import Library
    from extensions_lib.models.loaded import LoadedModel
    from extensions_lib.models.trainable import Trainable

    Apply = Callable[[Any], Sequence[Applied]]

log = logging.getLogger("crucible")
_OURS = "crucible_networks"


class WebUI(Protocol):
    """What differs between the WebUIs, for the use of networks."""

    name: str

    def loaded_model(self, sd_model: Any) -> LoadedModel: ...

    def in_force(self, sd_model: Any, model: LoadedModel) -> InForce: ...

    def forget_builtin(self) -> None: ...

    def current(self) -> Any:
        """The WebUI's object of the checkpoint, which it loads first if need be."""

    def sampling(self) -> Any:
        """The object of the checkpoint that samples now; None: it stays the same in an order."""

    def take_over_more(self, session: Session) -> None:
        """Answers tags besides those of networks that the WebUI itself does not."""

    def bare(self, sd_model: Any) -> None:
        """Sees to it that the modules hold the checkpoint's own weights, with no network parked."""

    def training_on(self, sd_model: Any, model: LoadedModel) -> AbstractContextManager[Trainable]:
        """The model as training uses it, with the queue lock held by the caller."""


class Session:
    """The library and the networks in force.

    Args:
        host: the WebUI.
        folders: where it looks for networks.
        cache: folder for what was learned about files.
    """

    def __init__(self, host: WebUI, folders: Sequence[Path], cache: Path) -> None:
        self.host, self.folders, self.cache = host, list(folders), cache
        self._of: Callable[[], Any] = lambda: None  # the model looked at last, held weakly
        self._text_identity: Hashable = ()
        self._samples: Samples | None = None  # where the pictures of a batch differ
        self._asked: Apply | None = None  # puts on a model what is in force
        self.tell: Callable[[str], object] = log.warning  # says something at the order's pictures
        self.told: Sequence[str] = ()  # what was said there of the checkpoint itself

    @cached_property
    def library(self) -> Library:
        """The network files, read when first asked for."""
        from extensions_lib.library import Library

        library = Library(self.folders, self.cache)
        library.refresh()
        return library

    @cached_property
    def embeddings(self) -> WebUIEmbeddings:
        """What keeps the WebUI's embeddings in step with their folder."""
        from extensions_lib.hosts.webui_embeddings import of_webui

        return of_webui(self.cache)

    def why_not(self, sd_model: Any) -> str | None:
        """Why nothing of ours can be put on the model that the WebUI has loaded; None if it can."""
        try:
            self._on(sd_model)
        except NetworkProblem as problem:
            return str(problem)
        return None

    def apply(
        self,
        sd_model: Any,
        pictures: Sequence[Sequence[NetworkRequest]],
        *,
        hires: bool = False,
        sampling: Sampling | None = None,
    ) -> list[Applied]:
        """Puts exactly these networks in force on the model, for each picture of a batch.

        Raises CrucibleError.
        """
        networks = self._on(sd_model)
        self._forget_samples()
        applied = networks.apply_each(pictures, hires=hires, sampling=sampling)
        self._asked = partial(self.apply, pictures=pictures, hires=hires, sampling=sampling)
        if networks.differ:
            self._samples = Samples(networks.model.unet, len(pictures), networks.rows)
        return applied

    def encode_for(self, picture: int) -> None:
        """Brings the weights of a picture of the batch on the text encoders into force."""
        networks = getattr(self._of(), _OURS, None)
        if networks is not None:
            networks.encode_for(picture)

    def step(self, params: Any) -> None:
        """The UNet is about to be asked: brings the weights of this step into force.

        `params` are those of the WebUI's `cfg_denoiser` callback.
        """
        self.follow()
        networks = getattr(self._of(), _OURS, None)
        if networks is None:
            return
        networks.at(params.sampling_step, params.total_sampling_steps)
        if self._samples is not None:
            self._samples.expect(stack_of(params, self._samples.pictures))

    def model(self, sd_model: Any) -> LoadedModel:
        """The model that the WebUI has loaded. Raises NetworkProblem if it is none of ours."""
        return self._on(sd_model).model

    def park(self) -> None:
        """Takes all networks off; the next picture with the same ones finds them computed."""
        self._asked, self.tell = None, log.warning
        self._forget_samples()
        networks = getattr(self._of(), _OURS, None)
        if networks is not None:
            networks.park()
        if "embeddings" in self.__dict__:
            self.embeddings.take_back()

    def forget_model(self) -> None:
        """Takes all networks off and frees their memory: the model is being replaced."""
        self._asked = None
        self._forget_samples()
        model = self._of()
        networks = getattr(model, _OURS, None)
        if networks is not None:
            networks.release()
            delattr(model, _OURS)
        self._of = lambda: None

    def model_loaded(self, sd_model: Any) -> None:
        """Another checkpoint is in memory, maybe in the modules of the one before.

        Networks that were in force were so in the middle of an order, for which a refiner has taken
        over: they go on in it, at once or, in modules of its own, once prompts are encoded for it.
        """
        asked, same = self._asked, self._of() is sd_model
        self.forget_model()
        if same:
            self._go_on(asked, sd_model)
        else:
            self._asked = asked

    def follow(self) -> None:
        """Networks in force go on in the checkpoint that samples now, if that is another.

        A refiner that was in memory already takes over without a word.
        """
        if self._asked is None:
            return
        sd_model = self.host.sampling()
        if sd_model is not None and self._of() is not sd_model:
            asked = self._asked
            self.forget_model()
            self._go_on(asked, sd_model)

    def _go_on(self, asked: Apply | None, sd_model: Any) -> None:
        """Puts on this model what was asked for on another, as far as it goes."""
        if asked is None:
            return
        try:
            said = [text for each in asked(sd_model) for text in each.messages]
        except CrucibleError as error:
            said = [str(error)]
        for text in dict.fromkeys(said):
            if text not in self.told:
                self.tell(f"In the refiner: {text}")

    def text_changed(self, identity: Hashable) -> bool:
        """Whether the text encoders answer otherwise than at the last call."""
        changed, self._text_identity = identity != self._text_identity, identity
        return changed

    def _forget_samples(self) -> None:
        if self._samples is not None:
            self._samples.remove()
            self._samples = None

    def _on(self, sd_model: Any) -> Networks:
        if self._of() is not sd_model:
            self.forget_model()
            from extensions_lib.hosts.networks import Networks

            model = self.host.loaded_model(sd_model)
            networks = Networks(model, self.library, self.host.in_force(sd_model, model))
            # Kept on the WebUI's own object, so that nothing of ours outlives it or keeps it alive.
            setattr(sd_model, _OURS, networks)
            self._of = weakref.ref(sd_model)
        found: Networks = getattr(sd_model, _OURS)
        return found


def requests_of(tags: Sequence[Items]) -> tuple[list[NetworkRequest], list[str]]:
    """The WebUI's parsed tags as requests, and what is wrong with the others, in sentences."""
    requests, problems = [], []
    for items in tags:
        tag = f"<lora:{':'.join(str(item) for item in items)}>"
        _, found, wrong = network_requests(tag)
        requests += found
        problems += [problem.message for problem in wrong]
    return requests, problems


def activate(session: Session, p: Any, params_list: Sequence[Any], options: Any) -> None:
    """Brings the networks of a batch into force; says at the picture what could not be.

    `p` is the WebUI's StableDiffusionProcessing, `options` its settings. Each picture gets what its
    own prompt asks for. Never raises for a network that is missing or does not fit: the others
    still apply.
    """
    from extensions_lib.hosts.networks import Applied

    read = [requests_of(tags) for tags in tags_in(p, params_list, options)]
    pictures = [requests for requests, _ in read]
    messages = list(dict.fromkeys(text for _, said in read for text in said))
    applied = [Applied() for _ in pictures]
    session.tell = partial(tell, p)
    if any(pictures):
        at_the_end(p, "networks", session.park)
        before_encoding(p, session.follow)
        try:
            hires = bool(getattr(p, "is_hr_pass", False))
            sampling = sampling_of(p, len(pictures), hires=hires)
            applied = session.apply(p.sd_model, pictures, hires=hires, sampling=sampling)
        except CrucibleError as error:
            messages.append(str(error))
    else:
        session.park()
    messages += [text for each in applied for text in each.messages]
    prepared = prepare(session, p, {k: v for each in applied for k, v in each.bundled.items()})
    messages += prepared.messages
    texts = [each.text_identity for each in applied]
    if session.text_changed(tuple(texts) if len(set(texts)) > 1 else texts[0]) or prepared.changed:
        forget_conditions(p)
    encode_apart(p, texts, session.encode_for)
    if getattr(options, "lora_add_hashes_to_infotext", True):
        note_hashes(p, [each.hashes for each in applied])
    session.told = messages
    for message in messages:
        tell(p, message)


def take_over(session: Session) -> None:
    """Becomes the WebUI's handler of `lora` and `lyco` tags, in place of the builtin one.

    For a model that is none of ours (Flux, Stable Diffusion 3, …) the builtin one goes on.
    """
    from modules import extra_networks, shared

    builtin = extra_networks.extra_network_registry.get(NAMES[0])
    builtin = getattr(builtin, "builtin", builtin)  # ours from before a reload of the page

    class CrucibleNetworks(extra_networks.ExtraNetwork):
        """The handler that the WebUI calls with the tags of each batch."""

        def __init__(self) -> None:
            super().__init__(NAMES[0])
            self.builtin = builtin
            self.lent = False  # whether the builtin one has answered last

        def activate(self, p: Any, params_list: Sequence[Any]) -> None:
            # An empty prompt is encoded for a checkpoint that was read, be it an order's refiner.
            if getattr(p, "all_prompts", None) is not None:
                self._lend(p)
            elif not self.lent:
                return
            if self.lent:
                builtin.activate(p, params_list)
            else:
                activate(session, p, params_list, shared.opts)

        def deactivate(self, p: Any) -> None:
            if self.lent:
                builtin.deactivate(p)
            else:
                session.park()

        def _lend(self, p: Any) -> None:
            lent = builtin is not None and session.why_not(p.sd_model) is not None
            if self.lent and not lent:
                session.host.forget_builtin()
            self.lent = lent

    session.host.take_over_more(session)
    handler = CrucibleNetworks()
    session.host.forget_builtin()
    extra_networks.register_extra_network(handler)
    extra_networks.register_extra_network_alias(handler, NAMES[1])
