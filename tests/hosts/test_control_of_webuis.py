"""Control pictures and `<lllite:…>` tags as a WebUI's order brings them."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from extensions_lib.errors import NetworkProblem
from extensions_lib.hosts.control import UNUSED
from extensions_lib.hosts.standalone import StandaloneHost
from extensions_lib.hosts.webui_control import WebUIControl
from tests.lllite import lllite_file
from tests.tiny import TINY


class SdModel:
    """What the WebUI has loaded: something that can be held weakly."""


class Order:
    """As much of a StableDiffusionProcessing as matters."""

    def __init__(self, sd_model: object) -> None:
        self.sd_model, self.comments, self.closed = sd_model, {}, 0  # type: ignore[var-annotated]

    def comment(self, text: str) -> None:
        self.comments[text] = 1

    def close(self) -> None:
        self.closed += 1


def params(*tags: str) -> list[Any]:
    return [SimpleNamespace(items=tag.split(":")) for tag in tags]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("ControlNet")
    lllite_file(made / "canny.safetensors", TINY["SDXL"])
    return made


@pytest.fixture
def control(
    hosts: Callable[[str], StandaloneHost], folder: Path, tmp_path: Path
) -> tuple[WebUIControl, Any]:
    model = hosts("SDXL").model()
    session: Any = SimpleNamespace(cache=tmp_path, model=lambda _: model)
    return WebUIControl(lambda: session, lambda: [folder]), model.unet


def drawn() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))


def hooks(unet: torch.nn.Module) -> int:
    return sum(len(module._forward_pre_hooks) for module in unet.modules())


def test_an_order_from_its_first_batch_to_its_last(control: tuple[WebUIControl, Any]) -> None:
    ours, unet = control
    order = Order(SdModel())
    ours.take_picture(order, drawn())
    ours.activate(order, params("canny:0.5"))
    assert hooks(unet) > 10 and order.comments == {}
    ours.activate(order, params("canny:0.5"))  # the next batch
    first = hooks(unet)
    ours.at(3, 20)
    ours.deactivate(order)
    assert hooks(unet) == 0 and first > 10
    ours.activate(Order(SdModel()), [])  # the next order has none
    assert hooks(unet) == 0


def test_an_order_that_fails_or_is_followed_by_one_without_tags(
    control: tuple[WebUIControl, Any],
) -> None:
    ours, unet = control
    model = SdModel()
    order = Order(model)
    ours.take_picture(order, drawn())
    ours.activate(order, params("canny"))
    order.close()  # without its deactivate
    assert hooks(unet) == 0 and order.closed == 1
    ours.activate(order, params("canny"))
    assert hooks(unet)
    ours.activate(Order(model), [])
    assert hooks(unet) == 0
    order.close()
    assert order.closed == 2


@pytest.mark.parametrize("form", ["picture", "base64", "data url"])
def test_what_an_order_gives_as_its_picture(control: tuple[WebUIControl, Any], form: str) -> None:
    buffer = io.BytesIO()
    drawn().save(buffer, "PNG")
    text = base64.b64encode(buffer.getvalue()).decode()
    given = {"picture": drawn(), "base64": text, "data url": f"data:image/png;base64,{text}"}
    order = Order(SdModel())
    control[0].take_picture(order, given[form])
    control[0].activate(order, params("canny"))
    assert order.comments == {} and hooks(control[1])
    control[0].deactivate(order)


def test_what_is_said_at_the_picture(control: tuple[WebUIControl, Any]) -> None:
    ours, unet = control

    def said(picture: object, *tags: str) -> str:
        order = Order(SdModel())
        ours.take_picture(order, picture)
        ours.activate(order, params(*tags))
        ours.deactivate(order)
        assert hooks(unet) == 0
        return "\n".join(order.comments)

    assert "no control picture, so it has no effect" in said(None, "canny")
    assert said(drawn()) == UNUSED
    assert "no ControlNet-LLLite named 'nowhere'" in said(drawn(), "nowhere")
    assert "'x' is not a number" in said(drawn(), "canny:x")
    assert "it is neither a picture nor base64 text" in said("§", "canny")
    assert said(drawn(), "canny:1:step=0-2") == said(None) == ""


def test_a_model_of_none_of_ours(
    control: tuple[WebUIControl, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def foreign(_: object) -> None:
        raise NetworkProblem("this one is built in another way")

    monkeypatch.setattr(control[0]._session(), "model", foreign)
    order = Order(SdModel())
    control[0].take_picture(order, drawn())
    control[0].activate(order, params("canny"))
    assert list(order.comments) == ["this one is built in another way"]


def test_another_checkpoint_in_the_same_modules(
    control: tuple[WebUIControl, Any], hosts: Callable[[str], StandaloneHost]
) -> None:
    ours, unet = control
    sd_model = SdModel()
    order = Order(sd_model)
    ours.take_picture(order, drawn())
    ours.activate(order, params("canny"))
    ours._session().model = lambda _: hosts("SD1").model()  # type: ignore[method-assign, attr-defined]
    ours.activate(order, params("canny"))
    assert hooks(unet) == 0
    assert "made for another model, so it was left out; 20 of 32" in "".join(order.comments)
    ours.deactivate(order)
