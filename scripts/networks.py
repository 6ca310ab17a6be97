"""Registers Crucible's networks with the WebUI."""

import sys
from pathlib import Path

from modules import script_callbacks, scripts

ROOT = str(Path(scripts.basedir()))
if ROOT not in sys.path:  # the WebUI takes it off again once the scripts are loaded
    sys.path.append(ROOT)

from extensions_lib.ui import webui  # noqa: E402

# The WebUI's own `on_…` functions look for the caller's file on the stack, 40 ms each time.
for moment, function in {
    "before_ui": webui.before_ui,
    "before_component": webui.before_component,
    "app_started": webui.app_started,
    "model_loaded": webui.model_loaded,
    "cfg_denoiser": webui.step_begins,
    "infotext_pasted": webui.infotext_pasted,
    "script_unloaded": webui.script_unloaded,
    "ui_settings": webui.settings,
}.items():
    script_callbacks.add_callback(
        script_callbacks.callback_map[f"callbacks_{moment}"],
        function,
        category=moment,
        filename=__file__,
    )
