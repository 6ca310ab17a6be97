"""What the tests of a running WebUI share: odd files in its folders, one WebUI at a time."""

from __future__ import annotations

import json
import re
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from tests.webui.conftest import HOST, PROMPT, ROOT, WebUI, start, stop

Picture = np.ndarray
STAR = f"{PROMPT} <lora:star:0.8>"
HEART = f"{PROMPT} <lora:heart-linear:0.7>"
API_ONLY = "--nowebui"
ALONE = {"disabled_extensions": ["sd_forge_lora" if HOST == "Forge" else "Lora"]}


# --- what is in the WebUI's folders ---------------------------------------------------------------


def lay_out(data: Path, folder: Path) -> None:
    """The data of the other tests, and more beside it: odd networks, a VAE, other checkpoints."""
    # The probe of other tests needs the extension, which some runs disable.
    unwanted = shutil.ignore_patterns("cache", "*.log", "probe")
    shutil.copytree(data, folder, symlinks=True, ignore=unwanted)
    checkpoints, networks = folder / "models" / "Stable-diffusion", folder / "models" / "Lora"
    _networks(networks)
    if HOST != "Forge":
        _vae(checkpoints / "demo.safetensors", folder / "models" / "VAE" / "strange.safetensors")
        _same_config(checkpoints)
        _other_config(checkpoints)


def _networks(folder: Path) -> None:
    """One that is broken, one of unknown keys, one for another family, two for the small model."""
    import torch
    from safetensors.torch import load_file, save_file

    from tests.hosts.conftest import tiny_lora

    (folder / "broken.safetensors").write_text("no network")
    save_file({"some.layer.weight": torch.zeros(2, 2)}, folder / "foreign.safetensors")
    tiny_lora(folder / "large.safetensors", 1, "SDXL")
    small = tiny_lora(folder / "small.safetensors", 2, "SD1", rank=4)
    tags = json.dumps({"10_shapes": {"red (dark)": 12}})
    save_file(load_file(small), folder / "tagged.safetensors", {"ss_tag_frequency": tags})


def _vae(checkpoint: Path, path: Path) -> None:
    from safetensors.torch import load_file, save_file

    prefix = "first_stage_model."
    tensors = {
        key.removeprefix(prefix): tensor
        for key, tensor in load_file(checkpoint).items()
        if key.startswith(prefix)
    }
    tensors["decoder.conv_out.weight"] = tensors["decoder.conv_out.weight"] * 0.5
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path)


def _same_config(folder: Path) -> None:
    """Another checkpoint with the very same yaml beside it, which the WebUI loads into the model
    that it has: it finds the yaml by the stem."""
    import torch
    from safetensors.torch import load_file

    tensors = {key: each.clone() for key, each in load_file(folder / "other.safetensors").items()}
    # Its own unpickler knows this older form alone.
    torch.save({"state_dict": tensors}, folder / "demo.ckpt", _use_new_zipfile_serialization=False)


def _other_config(folder: Path) -> None:
    """A random checkpoint of other widths, with a yaml and a text encoder's config of its own."""
    from tests.tiny import tiny_checkpoint
    from tests.webui.checkpoints import clip_folder

    tiny_checkpoint(folder / "tiny.safetensors", "SD1")
    demo, clip = ROOT / "models" / "demo", folder / "tiny-clip"
    clip_folder(demo / "clip", clip)
    config = yaml.safe_load((demo / "demo.yaml").read_text())
    params = config["model"]["params"]
    params["unet_config"]["params"] |= {"model_channels": 32, "channel_mult": [1, 2, 2, 2],
                                        "num_heads": 8, "context_dim": 32}  # fmt: skip
    params["first_stage_config"]["params"]["ddconfig"] |= {"ch": 32, "num_res_blocks": 1}
    params["cond_stage_config"]["params"]["version"] = str(clip)
    (folder / "tiny.yaml").write_text(yaml.safe_dump(config))


# --- one WebUI at a time --------------------------------------------------------------------------


class Runs:
    """Keeps one WebUI running on `folder`: the one asked for last."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._now: tuple[WebUI, object] | None = None

    def __call__(self, *flags: str, **settings: Any) -> WebUI:
        """The WebUI with these flags and settings, started if it does not run yet."""
        if self._now is None or self._now[1] != (flags, settings):
            self.end()
            made = start(self.folder, settings, *flags)
            self._now = made, (flags, settings)
        return self._now[0]

    def end(self) -> None:
        """Ends the one that runs; its console is to hold no failure of ours."""
        if self._now is not None:
            running, self._now = self._now[0], None
            stop(running)
            assert complaints(running) == []


@contextmanager
def running(data: Path, folder: Path) -> Iterator[Runs]:
    """Runs on a copy of `data` with more in it, at `folder`."""
    lay_out(data, folder)
    runs = Runs(folder)
    try:
        yield runs
    finally:
        runs.end()


def complaints(webui: WebUI) -> list[str]:
    """Lines of the console about a failure in our code, or Python's warnings about it."""
    ours = re.compile(r"extensions_lib|Error executing callback .*crucible", re.IGNORECASE)
    return [line for line in webui.said().splitlines() if ours.search(line)]


def options(webui: WebUI, **values: Any) -> None:
    """Changes settings of a running WebUI."""
    webui.call("/sdapi/v1/options", values)


def picture(webui: WebUI, prompt: str, **other: Any) -> Picture:
    """The one picture of a txt2img order."""
    return webui.pictures(prompt, **other)[0]


def wait(true: Callable[[], bool], patience: float = 60) -> None:
    """Waits until it is true; fails after so many seconds."""
    deadline = time.monotonic() + patience
    while not true():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.2)
