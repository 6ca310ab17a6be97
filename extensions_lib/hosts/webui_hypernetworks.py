"""`<hypernet:…>` in Forge, which reads the tag and does nothing with it.

AUTOMATIC1111's own handler works and stays.
"""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from extensions_lib.errors import NetworkProblem
from extensions_lib.hosts.webui_order import at_the_end, with_default
from extensions_lib.prompts.tags import network_requests

if TYPE_CHECKING:
    from extensions_lib.hosts.hypernetworks import HypernetworkTags
    from extensions_lib.hosts.webui import Session
    from extensions_lib.library import Library

log = logging.getLogger("crucible")
NAME = "hypernet"
_OURS = "crucible_hypernetworks"


class WebUIHypernetworks:
    """The hypernetworks in force on the model that the WebUI has loaded."""

    def __init__(self, session: Session, library: Library) -> None:
        self._session, self._library = session, library
        self._of: Callable[[], Any] = lambda: None

    def activate(self, p: Any, params_list: Sequence[Any], options: Any) -> None:
        """Brings the hypernetworks of a batch into force; says at the picture what could not be."""
        added = getattr(options, "sd_hypernetwork", "None")
        weight = getattr(options, "extra_networks_default_multiplier", 1.0)
        params = with_default(p, list(params_list), NAME, added, weight)
        if not params:
            self.clear()
            return
        requests, messages = [], []
        for each in params:
            tag = f"<{NAME}:{':'.join(str(item) for item in each.items)}>"
            _, found, wrong = network_requests(tag)
            requests += found
            messages += [problem.message for problem in wrong]
        at_the_end(p, "hypernetworks", self.clear)
        try:
            messages += self._on(p.sd_model).apply(requests)
        except NetworkProblem as problem:
            messages.append(str(problem))
        for message in messages:
            log.warning(message)
            if message not in getattr(p, "comments", {}):
                p.comment(message)

    def clear(self) -> None:
        """Takes them off the model."""
        ours: HypernetworkTags | None = getattr(self._of(), _OURS, None)
        if ours is not None:
            ours.clear()

    def _on(self, sd_model: Any) -> HypernetworkTags:
        from extensions_lib.hosts.hypernetworks import HypernetworkTags

        model = self._session.model(sd_model)
        if self._of() is not sd_model:
            self.clear()
            # kept on the WebUI's own object, so that nothing of ours outlives it
            setattr(sd_model, _OURS, HypernetworkTags(model, self._library))
            self._of = weakref.ref(sd_model)
        found: HypernetworkTags = getattr(sd_model, _OURS)
        return found


def take_over(session: Session, cache: Path) -> WebUIHypernetworks:
    """Becomes Forge's handler of `hypernet` tags; `cache`: where the index keeps what it learnt."""
    from modules import extra_networks, shared

    from extensions_lib.library import HYPERNETWORKS, Library

    library = Library([Path(shared.cmd_opts.hypernetwork_dir).absolute()], cache, HYPERNETWORKS)
    ours = WebUIHypernetworks(session, library)

    class CrucibleHypernetworks(extra_networks.ExtraNetwork):
        """The handler that Forge calls with the tags of each batch."""

        def __init__(self) -> None:
            super().__init__(NAME)

        def activate(self, p: Any, params_list: Sequence[Any]) -> None:
            ours.activate(p, params_list, shared.opts)

        def deactivate(self, p: Any) -> None:
            ours.clear()

    extra_networks.register_extra_network(CrucibleHypernetworks())
    return ours
