"""What the Toolbox tab works with: orders, their line, the routes of its script, previews."""

from __future__ import annotations

import secrets
import threading
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from extensions_lib.api.auth import basic_dependencies
from extensions_lib.api.toolbox import PREFIX, Service, add_routes
from extensions_lib.api.toolbox_orders import Desk
from extensions_lib.errors import CrucibleError
from extensions_lib.toolbox import sorts
from extensions_lib.ui.jobs import Jobs

if TYPE_CHECKING:
    from PIL.Image import Image

    from extensions_lib.hosts.standalone import StandaloneHost
    from extensions_lib.models.place import Sample
    from extensions_lib.toolbox.merge import Merging

_NAME = "crucible-merge"  # by which a prompt names what is looked at


@dataclass
class ToolboxRoom:
    """The desk, and what only the tab has."""

    desk: Desk
    token: str = field(default_factory=lambda: secrets.token_urlsafe(16))
    _plain: tuple[Any, Image] | None = None  # the picture without networks, and of what it is

    @cached_property
    def service(self) -> Service:
        """The line of jobs, for the tab and for REST."""
        return Service(self.desk, Jobs())

    @property
    def route(self) -> str:
        """Where the tab's script asks; whoever has the address was shown the page."""
        return f"{PREFIX}/live/{self.token}"

    def add_page_routes(self, app: Any) -> None:
        """Adds the routes for the tab's own script."""
        add_routes(app, self.service, self.route)

    def add_routes(self, app: Any, auth: str = "") -> None:
        """Adds those for programs too; `auth`: user:password that they must send."""
        add_routes(app, self.service, dependencies=basic_dependencies(auth))
        self.add_page_routes(app)

    def preview(
        self,
        networks: list[str],
        how: Merging,
        sample: Sample,
        tell: Callable[[Any], None],
        stop: threading.Event,
    ) -> list[Image]:
        """`sample` without the networks, and with what a merge would make of them.

        Its CFG scale is the checkpoint's own. Nothing of it stays on disk. Raises CrucibleError,
        Stopped.
        """
        import tempfile

        from extensions_lib.files.networks import read_network
        from extensions_lib.models.place import Snapshot
        from extensions_lib.toolbox.merge import merge
        from extensions_lib.toolbox.weighted import Weighted
        from extensions_lib.toolbox.work import Output, Watch

        place = self.desk.here()
        wanted = [Weighted.read(self.desk.weighted(text)) for text in networks]
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
            out = Output(str(Path(folder) / "merged.safetensors"), precision="fp32")
            watch = Watch(lambda done, of: tell((done, of)), stop)
            made = merge(wanted, how, out, watch)
            with place.turn(stop) as model:
                structure = model.loaded.structure
            network = read_network(made.path, structure=structure)
            about = place.about()
            sample = replace(sample, cfg=float(about["cfg"]))
            tell("picture")
            subject = (about["path"], sample)
            if self._plain is None or self._plain[0] != subject:
                self._plain = subject, place.picture(sample, stop)
            with place.shown(_NAME, lambda: Snapshot(network.adapters, 0)):
                tagged = replace(sample, prompt=f"{sample.prompt} <lora:{_NAME}:1>")
                return [self._plain[1], place.picture(tagged, stop)]


def toolbox_room(data: Path, host: StandaloneHost, *, strangers: bool) -> ToolboxRoom:
    """The room of the standalone page. `data` holds models/; files are those of its host."""
    root = data.absolute()

    def place() -> Any:
        from extensions_lib.hosts.standalone.place import StandalonePlace

        return StandalonePlace(host)

    def folders(sort: str) -> list[Path]:
        more = {
            sorts.CHECKPOINT: [root / "models" / "demo"],
            sorts.EMBEDDING: [root / "models" / "embeddings"],
        }
        return [root / sorts.PLACES[sort], *more.get(sort, [])] if sort in sorts.PLACES else []

    def loaded() -> Path | None:
        try:
            return host.checkpoint
        except CrucibleError:  # there is none yet
            return None

    below = root if strangers else None
    return ToolboxRoom(Desk(root, folders, loaded, place, root / "cache", below))
