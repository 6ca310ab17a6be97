"""The part of `bench webui` that runs inside the WebUI, as a script of a small extension.

It notes when each sampling step begins and ends, tells how much memory the process holds, and gives
the network tags to the one handler or the other.
"""

from __future__ import annotations

import ctypes
import gc
import os
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from modules import extra_networks, script_callbacks, sd_models

# What the builtin handler leaves on a module that it has once written to.
LEFT = ("network_current_names", "network_weights_backup", "network_bias_backup")
Moment = tuple[float, float]  # the machine's monotonic clock, and this process's CPU seconds
begun: list[Moment] = []
ended: list[Moment] = []


def now() -> Moment:
    """This moment."""
    return time.monotonic(), time.process_time()


def marks() -> dict[str, Any]:
    """When the steps since the last call began and ended, and now."""
    told = {"begun": begun[:], "ended": ended[:], "now": now()}
    begun.clear()
    ended.clear()
    return told


def resident() -> int:
    """Bytes in memory (Linux), less what the allocator can give back."""
    gc.collect()
    with suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def warm(size: int) -> None:
    """Takes so many bytes, writes to them and frees them; the allocator keeps them."""
    import torch

    block = 8 << 20
    blocks = [torch.ones(block // 4) for _ in range(size // block)]
    blocks.clear()


def use(handler: str) -> None:
    """Clears the model of both handlers and their memory, then lets "ours" or "builtin" answer."""
    from extensions_lib.hosts.webui import take_over
    from extensions_lib.ui.webui import session

    builtin = sys.modules["networks"]
    session().forget_model()
    session().host.forget_builtin()
    model: Any = sd_models.model_data.sd_model
    for module in model.modules():
        for name in LEFT:
            if name in vars(module):
                delattr(module, name)
    if handler == "ours":
        take_over(session())
    else:
        extra_networks.register_extra_network(builtin.extra_network_lora)
        extra_networks.register_extra_network_alias(builtin.extra_network_lora, "lyco")


def answering() -> str:
    """The class that answers `lora` tags now."""
    return type(extra_networks.extra_network_registry["lora"]).__name__


def add_routes(_: Any, app: Any) -> None:
    """What the bench asks for."""
    app.add_api_route("/crucible-bench/marks", marks, methods=["GET"])
    app.add_api_route("/crucible-bench/resident", resident, methods=["GET"])
    app.add_api_route("/crucible-bench/answering", answering, methods=["GET"])
    app.add_api_route("/crucible-bench/warm", warm, methods=["POST"])
    app.add_api_route("/crucible-bench/use", use, methods=["POST"])


script_callbacks.on_cfg_denoiser(lambda _: begun.append(now()))
script_callbacks.on_cfg_denoised(lambda _: ended.append(now()))
script_callbacks.on_app_started(add_routes)
