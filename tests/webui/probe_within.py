"""Runs inside a WebUI under test: an order within an order, as extensions that mend faces have."""

import base64
import io

import gradio as gr
from modules import processing, script_callbacks, scripts, shared

made = []


class Within(scripts.Script):
    """After each picture of an order another picture, by the prompt that the order has for it."""

    def title(self):
        return "Within"

    def show(self, is_img2img):
        return scripts.AlwaysVisible

    def ui(self, is_img2img):
        return [gr.Textbox(visible=False)]

    def postprocess_image(self, p, pp, prompt):
        if not prompt:
            return
        inner = processing.StableDiffusionProcessingTxt2Img(
            sd_model=shared.sd_model, prompt=prompt, seed=5, sampler_name=p.sampler_name,
            steps=p.steps, cfg_scale=p.cfg_scale, width=p.width, height=p.height,
            do_not_save_samples=True, do_not_save_grid=True,
        )  # fmt: skip
        inner.scripts = inner.script_args = None
        done = processing.process_images(inner)
        inner.close()
        buffer = io.BytesIO()
        done.images[0].save(buffer, "PNG")
        made.append(base64.b64encode(buffer.getvalue()).decode())


def _made() -> list:
    found = made[:]
    made.clear()
    return found


script_callbacks.on_app_started(
    lambda _, app: app.add_api_route("/probe/within", _made, methods=["GET"])
)
