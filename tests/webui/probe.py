"""Runs inside a WebUI under test: asks Crucible's own objects there what no button asks yet."""

import threading

import torch
from modules import script_callbacks
from probe_training import train

from extensions_lib.errors import CrucibleError
from extensions_lib.hosts.base import GenerationRequest
from extensions_lib.hosts.webui_turns import WebUITurns
from extensions_lib.ui import webui


def _pictures(asked: dict) -> dict:
    order, stop_at = asked["order"], asked.get("stop_at")
    seen, stop = [], threading.Event()

    def note(progress) -> None:
        seen.append(progress.step)
        if stop_at is not None and [progress.image, progress.step] >= stop_at:
            stop.set()

    try:
        made = webui.host().generate(GenerationRequest(**order), note, stop)
    except CrucibleError as error:
        return {"error": type(error).__name__, "message": str(error)}
    return {
        "infotexts": made.infotexts,
        "seeds": made.seeds,
        "messages": made.messages,
        "pixels": [list(image.tobytes()) for image in made.images],
        "steps": seen,
    }


def _held() -> dict:
    with webui.host().exclusive() as model:
        weight = model.layer("unet.mid_block.attentions.0.proj_in")[0].weight
        total = float(weight.double().sum())
        return {"name": model.name, "family": str(model.family), "sum": total}


def _train(asked: dict) -> dict:
    return train(WebUITurns(webui.host()), webui.session(), asked)


def _encode(asked: dict) -> dict:
    with WebUITurns(webui.host()).turn() as model:
        mean, deviation = model.encode_pictures(torch.zeros(1, 3, asked["side"], asked["side"]))
        return {
            "device": mean.device.type,
            "finite": bool(torch.isfinite(mean).all() & torch.isfinite(deviation).all()),
        }


def _routes(_: object, app) -> None:
    app.add_api_route("/probe/pictures", _pictures, methods=["POST"])
    app.add_api_route("/probe/held", _held, methods=["GET"])
    app.add_api_route("/probe/encode", _encode, methods=["POST"])
    app.add_api_route("/probe/train", _train, methods=["POST"])


script_callbacks.on_app_started(_routes)
