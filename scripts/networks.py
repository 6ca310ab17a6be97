"""Registers Crucible's networks with the WebUI."""

import sys
from pathlib import Path

from modules import script_callbacks, scripts

ROOT = str(Path(scripts.basedir()))
if ROOT not in sys.path:  # the WebUI takes it off again once the scripts are loaded
    sys.path.append(ROOT)

from extensions_lib.ui import webui  # noqa: E402

script_callbacks.on_before_ui(webui.before_ui)
script_callbacks.on_before_component(webui.before_component)
script_callbacks.on_app_started(webui.app_started)
script_callbacks.on_model_loaded(webui.model_loaded)
script_callbacks.on_cfg_denoiser(webui.step_begins)
script_callbacks.on_infotext_pasted(webui.infotext_pasted)
script_callbacks.on_script_unloaded(webui.script_unloaded)
script_callbacks.on_ui_settings(webui.settings)
