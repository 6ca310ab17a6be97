"""Networks in a WebUI: its `<lora:…>` and `<lyco:…>` tags, answered by Crucible.

One session lives as long as the program, through reloads of the page. It knows the library, and
the networks in force on the model that is loaded. Networks are in force while pictures are made
and only then, so that whatever else uses or replaces the checkpoint finds it clean.
"""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable, Hashable, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from extensions_lib.errors import CrucibleError, NetworkProblem
from extensions_lib.hosts.webui_embeddings import prepare
from extensions_lib.prompts.tags import NetworkRequest, network_requests

if TYPE_CHECKING:
    from extensions_lib.hosts.networks import Applied, InForce, Networks
    from extensions_lib.hosts.webui_embeddings import WebUIEmbeddings
    from extensions_lib.library import Library
    from extensions_lib.models.loaded import LoadedModel

log = logging.getLogger("crucible")
NAMES = ("lora", "lyco")
_OURS = "crucible_networks"
_CACHES = ("cached_c", "cached_uc", "cached_hr_c", "cached_hr_uc")


class WebUI(Protocol):
    """What differs between the WebUIs, for the use of networks."""

    name: str

    def loaded_model(self, sd_model: Any) -> LoadedModel: ...

    def in_force(self, sd_model: Any, model: LoadedModel) -> InForce: ...

    def forget_builtin(self) -> None: ...

    def current(self) -> Any:
        """The WebUI's object of the checkpoint, which it loads first if need be."""

    def take_over_more(self, session: Session) -> None:
        """Answers tags besides those of networks that the WebUI itself does not."""

    def bare(self, sd_model: Any) -> None:
        """Sees to it that the modules hold the checkpoint's own weights, with no network parked."""


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
        self, sd_model: Any, requests: Sequence[NetworkRequest], *, hires: bool = False
    ) -> Applied:
        """Puts exactly these networks in force on the model. Raises CrucibleError."""
        return self._on(sd_model).apply(requests, hires=hires)

    def at(self, step: int, steps: int) -> None:
        """Brings the weights of a step of sampling into force, where they change."""
        networks = getattr(self._of(), _OURS, None)
        if networks is not None:
            networks.at(step, steps)

    def model(self, sd_model: Any) -> LoadedModel:
        """The model that the WebUI has loaded. Raises NetworkProblem if it is none of ours."""
        return self._on(sd_model).model

    def park(self) -> None:
        """Takes all networks off; the next picture with the same ones finds them computed."""
        networks = getattr(self._of(), _OURS, None)
        if networks is not None:
            networks.park()
        if "embeddings" in self.__dict__:
            self.embeddings.take_back()

    def forget_model(self) -> None:
        """Takes all networks off and frees their memory: the model is being replaced."""
        model = self._of()
        networks = getattr(model, _OURS, None)
        if networks is not None:
            networks.release()
            delattr(model, _OURS)
        self._of = lambda: None

    def text_changed(self, applied: Applied) -> bool:
        """Whether the text encoders answer otherwise than at the last call."""
        changed = applied.text_identity != self._text_identity
        self._text_identity = applied.text_identity
        return changed

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


def requests_of(params_list: Sequence[Any]) -> tuple[list[NetworkRequest], list[str]]:
    """The WebUI's parsed tags as requests, and what is wrong with the others, in sentences."""
    requests, problems = [], []
    for params in params_list:
        tag = f"<lora:{':'.join(str(item) for item in params.items)}>"
        _, found, wrong = network_requests(tag)
        requests += found
        problems += [problem.message for problem in wrong]
    return requests, problems


def activate(session: Session, p: Any, params_list: Sequence[Any], options: Any) -> None:
    """Brings the networks of a batch into force; says at the picture what could not be.

    `p` is the WebUI's StableDiffusionProcessing, `options` its settings. Never raises for a
    network that is missing or does not fit: the others still apply.
    """
    from extensions_lib.hosts.networks import Applied

    added = getattr(options, "sd_lora", "None")
    weight = getattr(options, "extra_networks_default_multiplier", 1.0)
    tags = with_default(p, list(params_list), NAMES[0], added, weight)
    requests, messages = requests_of(tags)
    applied = Applied()
    if requests:
        _clean_up_at_the_end(session, p)
        try:
            hires = bool(getattr(p, "is_hr_pass", False))
            applied = session.apply(p.sd_model, requests, hires=hires)
        except CrucibleError as error:
            messages.append(str(error))
    else:
        session.park()
    messages += applied.messages
    prepared = prepare(session, p, applied.bundled)
    messages += prepared.messages
    if session.text_changed(applied) or prepared.changed:
        _forget_conditions(p)
    if getattr(options, "lora_add_hashes_to_infotext", True):
        _note_hashes(p, applied)
    for message in messages:
        log.warning(message)
        if message not in getattr(p, "comments", {}):
            p.comment(message)


def with_default(p: Any, params_list: list[Any], kind: str, added: Any, weight: Any) -> list[Any]:
    """The tags, and the one of this kind that the settings add to every prompt."""
    if added in (None, "", "None") or any(params.items[0] == added for params in params_list):
        return params_list
    from modules import extra_networks

    p.all_prompts = [f"{prompt}<{kind}:{added}:{weight}>" for prompt in p.all_prompts]
    return [*params_list, extra_networks.ExtraNetworkParams(items=[added, weight])]


def _clean_up_at_the_end(session: Session, p: Any) -> None:
    """An order that fails or is stopped is closed too, but its `deactivate` is never called."""
    if getattr(p, "crucible_cleans_up", False):
        return
    close: Callable[[], Any] = p.close

    def clean_up() -> Any:
        session.park()
        return close()

    p.close, p.crucible_cleans_up = clean_up, True


def _forget_conditions(p: Any) -> None:
    """The WebUI remembers encoded prompts by their words, which miss a network file's change."""
    for name in _CACHES:
        cache = getattr(p, name, None)
        if cache is not None:
            cache[0] = None


def _note_hashes(p: Any, applied: Applied) -> None:
    from extensions_lib.prompts.infotext import write_hashes

    # The second pass of a hires fix adds its own to those of the first.
    if not getattr(p, "is_hr_pass", False) or not hasattr(p, "lora_hashes"):
        p.lora_hashes = {}
    p.lora_hashes.update(applied.hashes)
    if p.lora_hashes:
        p.extra_generation_params["Lora hashes"] = write_hashes(p.lora_hashes)


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
            self._lend(p)
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
