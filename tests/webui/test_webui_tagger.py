"""The tagger's routes in a real WebUI, under its own `--api-auth`."""

from __future__ import annotations

import base64
import io
import json
import shutil
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.webui.conftest import ROOT, WebUI, start, stop

pytestmark = [pytest.mark.webui, pytest.mark.slow]


@pytest.fixture(scope="module")
def guarded(data: Path) -> Iterator[WebUI]:
    """A WebUI that answers programs with a password only."""
    target = data / "models" / "demo-tagger"
    if not target.exists():
        shutil.copytree(ROOT / "models" / "demo-tagger", target)
    running = start(data, {}, "--nowebui", "--api-auth", "ann:secret")
    yield running
    stop(running)


def ask(webui: WebUI, path: str, order: Any = None, password: str = "secret") -> Any:
    """GET, or POST where there is an order; the answer's JSON."""
    request = urllib.request.Request(
        webui.address + path,
        None if order is None else json.dumps(order).encode(),
        {"Content-Type": "application/json"},
    )
    if password:
        pair = base64.b64encode(f"ann:{password}".encode()).decode()
        request.add_header("Authorization", f"Basic {pair}")
    with urllib.request.urlopen(request, timeout=120) as answer:
        return json.loads(answer.read())


def picture() -> str:
    raw = io.BytesIO()
    Image.new("RGB", (64, 64), "red").save(raw, "PNG")
    return base64.b64encode(raw.getvalue()).decode()


def onnxruntime_is_there(webui: WebUI) -> bool:
    """Whether the WebUI's Python has it."""
    python = webui.process.args[0]  # type: ignore[index]
    return subprocess.run([python, "-c", "import onnxruntime"], capture_output=True).returncode == 0


def test_only_with_the_password(guarded: WebUI) -> None:
    for path, order in (
        ("/tagger/v1/interrogators", None),
        ("/tagger/v1/interrogate", {"model": "demo-tagger", "image": picture()}),
        ("/tagger/v1/unload-interrogators", {}),
    ):
        for password in ("", "wrong"):
            with pytest.raises(urllib.error.HTTPError) as refused:
                ask(guarded, path, order, password)
            assert refused.value.code == 401
    assert "demo-tagger" in ask(guarded, "/tagger/v1/interrogators")["models"]
    assert "Error executing callback" not in guarded.said()


def test_a_picture(guarded: WebUI) -> None:
    order = {"model": "demo-tagger", "image": picture(), "threshold": 0.3}
    if not onnxruntime_is_there(guarded):
        with pytest.raises(urllib.error.HTTPError) as refused:
            ask(guarded, "/tagger/v1/interrogate", order)
        assert "pip install" in refused.value.read().decode()
        return
    flat = ask(guarded, "/tagger/v1/interrogate", order)["caption"]
    assert all(isinstance(score, float) for score in flat.values())
    nested = ask(guarded, "/tagger/v1/interrogate", {**order, "queue": ""})["caption"]
    assert set(nested) == {"tag", "rating"}
    assert {**nested["rating"], **nested["tag"]} == flat
    assert ask(guarded, "/tagger/v1/unload-interrogators", {}) == "1 models unloaded"
