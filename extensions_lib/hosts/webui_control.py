"""`<lllite:…>` tags in a WebUI, with the control picture of the order."""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from extensions_lib.errors import FileProblem, NetworkProblem
from extensions_lib.hosts.control_picture import received
from extensions_lib.hosts.webui_order import at_the_end
from extensions_lib.prompts.tags import network_requests

if TYPE_CHECKING:
    from extensions_lib.hosts.control import ControlTags
    from extensions_lib.hosts.webui import Session
    from extensions_lib.library import Library

log = logging.getLogger("crucible")
NAME = "lllite"
_OURS = "crucible_control"  # on the WebUI's model: the tags in force
_PICTURE = "crucible_control_picture"  # on an order


class WebUIControl:
    """The ControlNet-LLLite in force on the model that the WebUI has loaded."""

    def __init__(self, session: Callable[[], Session], folders: Callable[[], list[Path]]) -> None:
        self._session, self._folders = session, folders
        self._of: Callable[[], Any] = lambda: None  # the model in use, held weakly

    @cached_property
    def _library(self) -> Library:
        from extensions_lib.library import LLLITES, Library

        library = Library(self._folders(), self._session().cache, LLLITES)
        library.refresh()
        return library

    def files(self) -> Library:
        """The files, read when first asked for."""
        return self._library

    def take_picture(self, p: Any, value: object) -> None:
        """Keeps the control picture of an order, as the page or a REST order gives it."""
        try:
            setattr(p, _PICTURE, received(value))
        except FileProblem as problem:
            _say(p, [str(problem)])

    def activate(self, p: Any, params_list: Sequence[Any]) -> None:
        """Brings the tags of a batch into force; says at the picture what could not be."""
        picture = getattr(p, _PICTURE, None)
        if not params_list and picture is None:
            self.clear()
            return
        requests, messages = [], []
        for params in params_list:
            tag = f"<{NAME}:{':'.join(str(item) for item in params.items)}>"
            _, found, wrong = network_requests(tag)
            requests += found
            messages += [problem.message for problem in wrong]
        at_the_end(p, "control", self.clear)
        hires = bool(getattr(p, "is_hr_pass", False))
        try:
            messages += self._on(p.sd_model).apply(requests, picture, hires=hires)
        except NetworkProblem as problem:
            messages.append(str(problem))
        _say(p, messages)

    def at(self, step: int, steps: int) -> None:
        """Brings the weights of a step of sampling into force."""
        if (ours := self._tags()) is not None:
            ours.at(step, steps)

    def deactivate(self, p: Any) -> None:
        """An order has been sampled: says what that has shown, and takes all off."""
        if (ours := self._tags()) is not None:
            _say(p, ours.remarks())
        self.clear()

    def clear(self) -> None:
        """Takes them off the model."""
        if (ours := self._tags()) is not None:
            ours.clear()

    def _tags(self) -> ControlTags | None:
        return getattr(self._of(), _OURS, None)

    def _on(self, sd_model: Any) -> ControlTags:
        from extensions_lib.hosts.control import ControlTags

        model = self._session().model(sd_model)
        found: ControlTags | None = getattr(sd_model, _OURS, None)
        if found is None or found.model is not model:  # another checkpoint in the same modules
            self.clear()
            found = ControlTags(model, self.files())
            # kept on the WebUI's own object, so that nothing of ours outlives it
            setattr(sd_model, _OURS, found)
        self._of = weakref.ref(sd_model)
        return found


def _say(p: Any, messages: Sequence[str]) -> None:
    for message in messages:
        log.warning(message)
        if message not in getattr(p, "comments", {}):
            p.comment(message)


def folders(networks: Sequence[Path]) -> list[Path]:
    """Where people put such files in a WebUI: with their ControlNet models, or their LoRA."""
    from modules import paths_internal, shared

    named = getattr(shared.cmd_opts, "controlnet_dir", None)
    beside = Path(paths_internal.extensions_dir) / "sd-webui-controlnet" / "models"
    places = [Path(named)] if named else []
    places += [Path(paths_internal.models_path) / "ControlNet", beside]
    return [place.absolute() for place in places] + list(networks)


def register(control: WebUIControl) -> None:
    """Becomes the WebUI's handler of `lllite` tags, which it has none for."""
    from modules import extra_networks

    class CrucibleControl(extra_networks.ExtraNetwork):
        """The handler that the WebUI calls with the tags of each batch."""

        def __init__(self) -> None:
            super().__init__(NAME)

        def activate(self, p: Any, params_list: Sequence[Any]) -> None:
            control.activate(p, params_list)

        def deactivate(self, p: Any) -> None:
            control.deactivate(p)

    extra_networks.register_extra_network(CrucibleControl())
