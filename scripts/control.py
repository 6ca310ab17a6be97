"""The control picture of `<lllite:…>` tags, in the WebUI's own page and REST orders."""

import sys
from pathlib import Path

from modules import script_callbacks, scripts

ROOT = str(Path(scripts.basedir()))
if ROOT not in sys.path:  # the WebUI takes it off again once the scripts are loaded
    sys.path.append(ROOT)

from extensions_lib.ui import webui_control  # noqa: E402


class ControlPicture(scripts.Script):
    """What the WebUI asks of a script."""

    def title(self):
        return "Control picture"

    def show(self, is_img2img):
        return scripts.AlwaysVisible

    def ui(self, is_img2img):
        return webui_control.panel(self.elem_id("crucible_control"))

    def process(self, p, picture=None, *_):
        webui_control.control().take_picture(p, picture)


# The WebUI's own `on_…` functions look for the caller's file on the stack, 40 ms each time.
for moment, function in {
    "before_ui": webui_control.register,
    "cfg_denoiser": webui_control.step_begins,
    "script_unloaded": webui_control.script_unloaded,
}.items():
    script_callbacks.add_callback(
        script_callbacks.callback_map[f"callbacks_{moment}"],
        function,
        category=moment,
        filename=__file__,
    )
