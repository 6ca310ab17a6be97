"""Registers Crucible's tabs with the WebUI."""

import sys
from pathlib import Path

from modules import script_callbacks, scripts

ROOT = str(Path(scripts.basedir()))
if ROOT not in sys.path:  # the WebUI takes it off again once the scripts are loaded
    sys.path.append(ROOT)

from extensions_lib.ui import webui_tabs  # noqa: E402

# The WebUI's own `on_…` functions look for the caller's file on the stack, 40 ms each time.
for moment, function in {
    "ui_tabs": webui_tabs.tabs,
    "app_started": webui_tabs.app_started,
    "script_unloaded": webui_tabs.script_unloaded,
    "ui_settings": webui_tabs.settings,
}.items():
    script_callbacks.add_callback(
        script_callbacks.callback_map[f"callbacks_{moment}"],
        function,
        category=moment,
        filename=__file__,
    )
