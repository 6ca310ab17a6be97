"""A real WebUI with the extension in it, started on data of its own and driven over its API."""

from __future__ import annotations

import base64
import io
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
PATIENCE = float(os.environ.get("CRUCIBLE_PATIENCE", "300"))  # seconds for a start
FLAGS = [
    "--skip-prepare-environment", "--skip-install", "--skip-torch-cuda-test",
    "--skip-version-check", "--no-download-sd-model", "--api", "--disable-console-progressbars",
]  # fmt: skip
# Where the WebUI computes. On a GPU it chooses its own types, half ones, as it does for its users.
DEVICE = os.environ.get("WEBUI_DEVICE", "cpu")
ON: dict[str, dict[str, list[str]]] = {
    "cpu": {
        "A1111": ["--use-cpu", "all", "--no-half", "--precision", "full"],
        "Forge": ["--always-cpu", "--all-in-fp32"],
    },
    "cuda": {"A1111": [], "Forge": []},
}
SIZE = {"A1111": 128, "Forge": 64}  # pixels, as large as a test's patience on two cores
PROMPT = "red circle, large, center, blue background"


def limit(cpu: float, half: float) -> float:
    """How far apart two results may be: in 32 bits on the CPU, or in half precision on a GPU."""
    return {"cpu": cpu, "cuda": half}[DEVICE]


def which_host() -> str:
    """What WEBUI_DIR holds: "A1111" or "Forge"; "A1111" where it is not set."""
    return (
        "Forge" if (Path(os.environ.get("WEBUI_DIR", "")) / "modules_forge").is_dir() else "A1111"
    )


HOST = which_host()
# Steps of 255 between our handler's picture and the builtin one's. Both round a merged weight once,
# where the model is in 32 bits, and another order of the sums shows as a step or two. In half
# precision the builtin handler multiplies the factors and adds them up in half as well, ours not.
NEAR = limit(2, half=8)


@dataclass
class WebUI:
    """A running WebUI."""

    address: str
    log: Path
    process: subprocess.Popen[bytes]

    def call(self, path: str, data: Any = None) -> Any:
        """GET, or POST where there is data; the answer's JSON."""
        body = None if data is None else json.dumps(data).encode()
        request = urllib.request.Request(
            self.address + path, body, {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
            return json.loads(answer.read() or b"null")

    def pictures(self, prompt: str, **other: Any) -> list[np.ndarray]:
        """The pictures of an order, uint8 [h, w, 3]; img2img where it has `init_images`."""
        order = {"prompt": prompt, "steps": 4, "width": SIZE[HOST], "height": SIZE[HOST],
                 "seed": 1, "cfg_scale": 4, "sampler_name": "Euler", **other}  # fmt: skip
        kind = "img2img" if "init_images" in other else "txt2img"
        self.info = self.call(f"/sdapi/v1/{kind}", order)
        return pictures_in(self.info["images"])

    def infotext(self) -> str:
        """The parameters of the last order's first picture."""
        return str(json.loads(self.info["info"])["infotexts"][0])

    def said(self) -> str:
        """The console so far."""
        return self.log.read_text(errors="replace")


def pictures_in(sent: list[str]) -> list[np.ndarray]:
    """Pictures in base64 as uint8 [h, w, 3]."""
    return [np.asarray(Image.open(io.BytesIO(base64.b64decode(each)))) for each in sent]


def furthest(one: np.ndarray, other: np.ndarray) -> int:
    """The largest difference of two pictures, in steps of 255."""
    return int(np.abs(one.astype(int) - other.astype(int)).max())


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models, and the extension as a link, in a folder of their own."""
    folder = tmp_path_factory.mktemp("webui")
    (folder / "extensions").mkdir()
    (folder / "extensions" / "crucible").symlink_to(ROOT)
    probe = folder / "extensions" / "probe" / "scripts"
    probe.mkdir(parents=True)
    for name in ("probe.py", "probe_within.py"):
        shutil.copy(Path(__file__).with_name(name), probe)
    shutil.copy(Path(__file__).with_name("probe_training.py"), probe.parent)
    checkpoints, networks = folder / "models" / "Stable-diffusion", folder / "models" / "Lora"
    checkpoints.mkdir(parents=True)
    if HOST == "Forge":
        from tests.webui.checkpoints import small_checkpoint, small_networks

        small_checkpoint(checkpoints / "demo.safetensors")
        small_networks(networks)
    else:
        shutil.copytree(ROOT / "models" / "Lora", networks)
        _demo(checkpoints)
    shutil.copy(checkpoints / "demo.safetensors", checkpoints / "other.safetensors")
    _disturb(checkpoints / "other.safetensors")
    return folder


def _demo(checkpoints: Path) -> None:
    """The demo checkpoint, twice, with configs that name its small tokenizer where it lies."""
    demo = ROOT / "models" / "demo"
    config = (demo / "demo.yaml").read_text().replace("models/demo/clip", str(demo / "clip"))
    for name in ("demo", "other"):
        (checkpoints / f"{name}.yaml").write_text(config)
    shutil.copy(demo / "demo.safetensors", checkpoints / "demo.safetensors")


def _disturb(checkpoint: Path) -> None:
    """Makes it another checkpoint of the same shape."""
    from safetensors.torch import load_file, save_file

    tensors = load_file(checkpoint)
    key = "model.diffusion_model.out.2.weight"
    tensors[key] = tensors[key] * 0.9
    save_file(tensors, checkpoint)


def start(data: Path, settings: dict[str, Any], *flags: str) -> WebUI:
    """Starts the WebUI of WEBUI_DIR by its own Python (WEBUI_PYTHON, or the one in its venv)."""
    checkout = Path(os.environ["WEBUI_DIR"])
    own = checkout / "venv" / "bin" / "python"
    python = os.environ.get("WEBUI_PYTHON") or str(own if own.exists() else sys.executable)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    defaults = {"sd_model_checkpoint": "demo.safetensors", "samples_save": False}
    (data / "config.json").write_text(json.dumps({**defaults, **settings}))
    if HOST == "Forge":  # or its page is refused its own scripts, with data elsewhere
        flags = (*flags, "--gradio-allowed-path", str(checkout))
    log = data / f"console-{port}.log"
    command = [
        python,
        "launch.py",
        *FLAGS,
        *ON[DEVICE][HOST],
        "--data-dir",
        str(data),
        "--port",
        str(port),
        *flags,
    ]
    with log.open("wb") as console:
        process = subprocess.Popen(command, cwd=checkout, stdout=console, stderr=console)
    made = WebUI(f"http://127.0.0.1:{port}", log, process)
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline and process.poll() is None:
        # Asking its API earlier than this breaks its start.
        if "Startup time" in made.said() and listens(made):
            return made
        time.sleep(1)
    process.kill()
    raise AssertionError("the WebUI did not start:\n" + made.said()[-4000:])


def listens(webui: WebUI) -> bool:
    """Whether its port is open. Without a page it says that it has started a moment before."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", int(webui.address.rpartition(":")[2]))) == 0


def stop(webui: WebUI) -> None:
    """Ends it."""
    webui.process.terminate()
    try:
        webui.process.wait(20)
    except subprocess.TimeoutExpired:
        webui.process.kill()


@pytest.fixture(scope="session")
def builtin(data: Path) -> dict[str, list[np.ndarray]]:
    """The same orders answered by the WebUI's own handler: our setting is off."""
    running = start(data, {"crucible_networks": False}, "--nowebui")
    try:
        return {name: running.pictures(**order) for name, order in ORDERS.items()}
    finally:
        stop(running)


@pytest.fixture(scope="session")
def webui(data: Path, builtin: object) -> Iterator[WebUI]:
    """The WebUI with Crucible at work (after the other one has ended: both need the memory)."""
    running = start(data, {})
    yield running
    stop(running)


def drawn(side: int) -> str:
    """A picture to begin from, as PNG in base64: two colours, one fading into the other."""
    fade = np.linspace(0, 255, side, dtype=np.uint8)
    pixels = np.stack([np.tile(fade, (side, 1)), np.tile(fade[:, None], (1, side))] * 2, -1)[
        ..., :3
    ]
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(buffer, format="PNG")
    return base64.b64encode(buffer.getvalue()).decode()


ORDERS: dict[str, dict[str, Any]] = {
    "plain": {"prompt": PROMPT},
    "one": {"prompt": f"{PROMPT} <lora:star:0.8>"},
    "text and unet": {"prompt": f"{PROMPT} <lora:star:1:0.3>"},
    "named": {"prompt": f"{PROMPT} <lora:star:te=0.2:unet=0.9>"},
    "kept out of unet": {"prompt": f"{PROMPT} <lora:heart-linear:0.7:0>"},
    "two": {"prompt": f"{PROMPT} <lora:star:0.5> <lora:heart-linear:0.7>"},
    "batches": {"prompt": f"{PROMPT} <lora:star:0.8>", "n_iter": 2, "batch_size": 2},
    "img2img": {
        "prompt": f"{PROMPT} <lora:star:0.8>",
        "init_images": [drawn(SIZE[HOST])],
        "denoising_strength": 0.7,
    },
    "hires": {
        "prompt": f"{PROMPT} <lora:star:0.8>",
        "enable_hr": True,
        "hr_scale": 2,
        "denoising_strength": 0.5,
        "hr_prompt": f"{PROMPT} <lora:heart-linear:1>",
    },
}
if HOST == "Forge":  # its API wants these said; its tags know no "lyco"
    # It encodes a picture with noise of no seed: two runs of one order differ.
    del ORDERS["img2img"]
    ORDERS["hires"] |= {"hr_additional_modules": ["Use same choices"], "hr_cfg": 4}
else:
    ORDERS["lyco"] = {"prompt": f"{PROMPT} <lyco:heart-linear:0.7>"}
