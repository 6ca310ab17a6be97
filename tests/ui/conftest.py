"""A running standalone page on a tiny checkpoint, and a real browser in front of it."""

from __future__ import annotations

import json
import os
import queue
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
PATIENCE = float(os.environ.get("CRUCIBLE_PATIENCE", "120"))  # seconds, on a busy machine
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder: one small SD1 checkpoint, four network files and two more in subfolders."""
    import torch
    from PIL import Image
    from safetensors.torch import load_file, save_file

    from tests.tiny import tiny_checkpoint

    folder = tmp_path_factory.mktemp("data")
    path = tiny_checkpoint(folder / "models" / "Stable-diffusion" / "tiny.safetensors")
    tensors = load_file(path)
    save_file(tensors, path, {"crucible.size": "64", "crucible.example": "a red circle"})
    networks = folder / "models" / "Lora"
    networks.mkdir()
    save_file(strong_lora(tensors), networks / "colours.safetensors", {"ss_output_name": "paint"})
    Image.new("RGB", (96, 96), (220, 120, 40)).save(networks / "colours.png")
    save_file(strong_lora(tensors, seed=2), networks / "night (v2).safetensors")
    wide = {
        "lora_unet_input_blocks_4_1_transformer_blocks_0_attn2_to_k.lora_down.weight": (4, 2048),
        "lora_unet_input_blocks_4_1_transformer_blocks_0_attn2_to_k.lora_up.weight": (640, 4),
    }
    save_file({k: torch.randn(s) for k, s in wide.items()}, networks / "for_sdxl.safetensors")
    (networks / "broken.safetensors").write_bytes(b"<!doctype html><title>Log in</title>")
    told_about_network(tensors, networks / "styles" / "ink.safetensors")
    (networks / "styles" / "old").mkdir()
    save_file(strong_lora(tensors, seed=4), networks / "styles" / "old" / "dust.safetensors")
    for age, name in enumerate(("styles/ink", "night (v2)", "styles/old/dust", "colours")):
        os.utime(networks / f"{name}.safetensors", (1.7e9 - age, 1.7e9 - age))
    shutil.copytree(ROOT / "models" / "demo-tagger", folder / "models" / "demo-tagger")
    return folder


EVIL = "<img src=x onerror=\"window.evil='yes'\"></textarea></title><script>window.evil=1</script>"


def told_about_network(tensors: dict[str, Any], path: Path) -> None:
    """A LoRA with training tags, notes and a layer of its own; some texts are up to no good."""
    import torch
    from safetensors.torch import save_file

    path.parent.mkdir()
    strange = {"lora_unet_nowhere.lora_down.weight": torch.zeros(4, 8)}
    tags = {"10_ink": {"ink": 30, "brush, wide": 12, EVIL: 40}, "2_more": {"ink": 5, "paper": 2}}
    metadata = {"ss_output_name": EVIL, "ss_tag_frequency": json.dumps(tags)}
    save_file({**strong_lora(tensors, seed=3), **strange}, path, metadata)
    user = {"activation text": "inkwash", "preferred weight": 0.7, "notes": f"dry {EVIL}"}
    path.with_suffix(".json").write_text(json.dumps(user), encoding="utf-8")


def strong_lora(tensors: dict[str, Any], seed: int = 1) -> dict[str, Any]:
    """A LoRA on the UNet's cross attention, strong enough to be seen."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    found: dict[str, Any] = {}
    for key, weight in tensors.items():
        match = re.fullmatch(r"model\.diffusion_model\.(.*attn2\.to_[qkv])\.weight", key)
        if not match:
            continue
        # Kohya's name, in the checkpoint's own (ldm) spelling of the layers.
        name = "lora_unet_" + match[1].replace(".", "_")
        out, inp = weight.shape
        found[f"{name}.lora_down.weight"] = torch.randn(4, inp, generator=generator)
        found[f"{name}.lora_up.weight"] = torch.randn(out, 4, generator=generator)
        found[f"{name}.alpha"] = torch.tensor(4.0)
    return found


@dataclass
class Server:
    """A page that is being served, and what its process said."""

    address: str
    process: subprocess.Popen[str]
    lines: list[str]


def start_server(data: Path, *options: str) -> Server:
    """Starts `run.py` as a person does and waits until it says that it is ready."""
    command = [sys.executable, "run.py", "--no-browser", "--threads", "1", "--data", str(data)]
    environment = {**os.environ, "CRUCIBLE_VENV": sys.prefix, "GRADIO_TEMP_DIR": str(data / "tmp")}
    # As on a person's machine; a page that asks a hub without being told to would be seen.
    del environment["HF_HUB_OFFLINE"]
    environment |= {"HF_HOME": str(data / "hub"), "HF_ENDPOINT": "http://127.0.0.1:9"}
    process = subprocess.Popen(
        [*command, *options], cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True
    )
    said: queue.Queue[str] = queue.Queue()
    lines: list[str] = []

    def listen() -> None:
        assert process.stderr
        for line in process.stderr:
            lines.append(line)
            said.put(line)

    threading.Thread(target=listen, daemon=True).start()
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline and process.poll() is None:
        try:
            found = re.match(r"ready at (\S+) in", said.get(timeout=0.5))
        except queue.Empty:
            continue
        if found:
            return Server(found[1], process, lines)
    process.kill()
    raise AssertionError("the page did not start:\n" + "".join(lines))


@pytest.fixture(scope="session")
def server(data: Path) -> Iterator[Server]:
    """One page for all tests."""
    running = start_server(data)
    yield running
    running.process.send_signal(signal.SIGINT)
    running.process.wait(timeout=30)


@pytest.fixture(scope="session")
def browser(chromium_path: str) -> Iterator[Any]:
    """One headless Chromium for all tests."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        yield playwright.chromium.launch(executable_path=chromium_path, args=FLAGS)


@dataclass
class Visit:
    """A person at the page: what they do, and what the browser asked for meanwhile."""

    page: Any
    requests: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)

    def prompt(self, text: str) -> None:
        """Types a prompt in place of the one that is there."""
        self.page.locator("#crucible-prompt textarea").fill(text)

    def prompt_text(self) -> str:
        return str(self.page.locator("#crucible-prompt textarea").input_value())

    def number(self, name: str, value: float) -> None:
        """Types a number beside a slider, or into the seed."""
        box = self.page.locator(f"#crucible-{name} input[type=number]")
        box.fill(str(value))
        box.press("Tab")

    def tab(self, name: str) -> None:
        self.page.get_by_role("tab", name=name, exact=True).click()

    def card(self, name: str) -> Any:
        return self.page.locator(f'.crucible-card[data-name="{name}"]')

    def generate(self) -> None:
        """Presses Generate and waits for the answer."""
        before = self.last_job()
        self.page.locator("#crucible-go").click()
        self.wait_for_answer(before)

    def last_job(self) -> str:
        """Which job has ended last in this window; "" if none has since the page was opened."""
        shown = "document.querySelector('#crucible-progress [data-job]')?.dataset.job ?? ''"
        return str(self.page.evaluate(shown))

    def wait_for_answer(self, before: str = "") -> None:
        """Waits until another job than `before` has ended and the page is at rest."""
        self.page.wait_for_function(
            """(before) => {
                const ended = document.querySelector("#crucible-progress [data-job]");
                return ended !== null && ended.dataset.job !== before
                    && document.querySelector("#crucible-stop").disabled;
            }""",
            arg=before,
        )

    def slow_answers(self, seconds: float) -> None:
        """Lets every answer to an event outside the line come late, as from a busy server."""
        self.page.evaluate(
            """(wait) => {
                const plain = window.fetch;
                window.fetch = async (...asked) => {
                    const answer = await plain(...asked);
                    const late = String(asked[0]).includes("/run/predict");
                    if (late) await new Promise((go) => setTimeout(go, wait));
                    return answer;
                };
            }""",
            seconds * 1000,
        )

    def picture(self) -> bytes:
        """The pixels of the picture shown."""
        from PIL import Image

        image = self.page.locator("#crucible-gallery img").first
        image.wait_for()
        source = self.page.evaluate("(img) => img.src", image.element_handle())
        answer = self.page.request.get(source)
        assert answer.ok, source
        import io

        return Image.open(io.BytesIO(answer.body())).convert("RGB").tobytes()

    def parameters(self) -> str:
        return str(self.page.locator("#crucible-parameters textarea").input_value())

    def notes(self) -> str:
        return str(self.page.locator("#crucible-notes").inner_text()).strip()

    def shot(self, name: str) -> None:
        """Keeps a picture of the page, where CRUCIBLE_SHOTS names a folder for them."""
        if folder := os.environ.get("CRUCIBLE_SHOTS"):
            self.page.screenshot(path=str(Path(folder) / f"{name}.png"))


def open_page(context: Any) -> Visit:
    """An empty page."""
    context.set_default_timeout(PATIENCE * 1000)
    return Visit(context.new_page())


def arrive(visit: Visit, server: Server) -> None:
    """Goes to the page and waits until it is filled."""
    visit.page.goto(server.address)
    visit.page.locator(".crucible-card").first.wait_for(state="attached")


@pytest.fixture
def visit(browser: Any, server: Server, request: pytest.FixtureRequest) -> Iterator[Visit]:
    """The page freshly opened; `visit` takes context options by indirect parametrisation."""
    options = {"viewport": {"width": 1280, "height": 860}, **getattr(request, "param", {})}
    context = browser.new_context(**options)
    made = open_page(context)
    page = made.page
    page.on("request", lambda asked: made.requests.append(asked.url))
    page.on("pageerror", lambda error: made.complaints.append(str(error)))
    arrive(made, server)
    yield made
    context.close()
