"""A batch in a real WebUI whose prompts have tags of their own: as if made one by one."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from extensions_lib.models import canonical_layers, flat
from extensions_lib.models.structures import structure_of
from tests.webui.conftest import HOST, PROMPT, SIZE, WebUI, furthest, limit
from tests.webui.ways import options, wait

pytestmark = [pytest.mark.webui, pytest.mark.slow]

# Samples side by side are summed in another order than one by one: a step or two of 255. In half
# precision the sums beside a layer are rounded where those merged into its weight are not.
CLOSE = limit(3, half=8)
PLAIN, STAR = PROMPT, f"{PROMPT} <lora:star:0.8>"
HEART = f"{PROMPT} <lora:heart-linear:0.9:0.7>"
OTHER = f"green star AND small, left :0.7 <lora:star:0.3> <lora:heart-linear:{-0.4}>"


def made(webui: WebUI, prompts: list[str], seed: int = 1, **other: Any) -> dict[str, Any]:
    """What Crucible's Host in the WebUI made of one batch of these prompts."""
    order = {"prompt": prompts[0], "prompts": prompts, "batch_size": len(prompts), "steps": 4,
             "width": SIZE[HOST], "height": SIZE[HOST], "seed": seed, "cfg": 4.0,
             "sampler": "Euler", **other}  # fmt: skip
    answer = webui.call("/probe/pictures", {"order": order})
    assert "error" not in answer, answer
    answer["pictures"] = [np.array(each, dtype=np.uint8) for each in answer["pixels"]]
    return dict(answer)


def check(webui: WebUI, prompts: list[str], seeds_differ: int = 1, **other: Any) -> dict[str, Any]:
    """The batch, whose pictures are to be those of single orders, and differ from one another."""
    batch = made(webui, prompts, **other)
    for number, (prompt, picture) in enumerate(zip(prompts, batch["pictures"], strict=True)):
        alone = made(webui, [prompt], seed=1 + number * seeds_differ, **other)
        assert furthest(alone["pictures"][0], picture) <= CLOSE, (number, prompt)
        assert hashes(alone["infotexts"][0]) == hashes(batch["infotexts"][number])
    return batch


def hashes(infotext: str) -> str:
    """The value of "Lora hashes"; "" where there is none."""
    _, found, rest = infotext.partition('Lora hashes: "')
    return rest.partition('"')[0] if found else ""


@pytest.fixture(autouse=True)
def clean(webui: WebUI) -> Iterator[None]:
    """After each test the checkpoint is as it was, and the console has no failure of ours."""
    before = webui.call("/probe/held")["sum"]
    yield
    assert webui.call("/probe/held")["sum"] == before
    assert "extensions_lib" not in webui.said()


def test_each_picture_has_its_own_networks(webui: WebUI) -> None:
    batch = check(webui, [STAR, PLAIN, HEART, STAR])
    named = [hashes(text) for text in batch["infotexts"]]
    assert named[0].startswith("star: ") and named[1] == "" and "heart-linear: " in named[2]
    assert named[0] == named[3] and batch["messages"] == []
    same = made(webui, [PLAIN] * 4)
    for number in (0, 2, 3):
        assert furthest(same["pictures"][number], batch["pictures"][number]) > 20


def test_weights_in_the_text_encoders_alone(webui: WebUI) -> None:
    prompts = [f"{PROMPT} <lora:star:{te}:0>" for te in (0.0, 1.0, -0.8)]
    batch = check(webui, prompts)
    plain = made(webui, [PLAIN] * 3)
    assert furthest(batch["pictures"][1], plain["pictures"][1]) > 5


def test_weights_over_the_steps(webui: WebUI) -> None:
    check(
        webui,
        [f"{PROMPT} <lora:star:0:0@0,1@1>", f"{PROMPT} <lora:star:0:start=2>", PLAIN, HEART],
        steps=5,
    )


def test_several_batches_of_different_prompts(webui: WebUI) -> None:
    prompts = [PLAIN, STAR, HEART, HEART, STAR, PLAIN]
    batch = made(webui, prompts, batch_size=2, batch_count=3)
    for number, prompt in enumerate(prompts):
        alone = made(webui, [prompt], seed=1 + number)
        assert furthest(alone["pictures"][0], batch["pictures"][number]) <= CLOSE
        assert hashes(alone["infotexts"][0]) == hashes(batch["infotexts"][number])


def test_what_is_missing_is_said_once_and_the_rest_applies(webui: WebUI) -> None:
    prompts = [STAR, f"{PROMPT} <lora:absent:1> <lora:star:0.8>", f"{HEART} <lora:absent:1>"]
    batch = made(webui, prompts)
    right = made(webui, [STAR, STAR, HEART])
    for one, other in zip(batch["pictures"], right["pictures"], strict=True):
        assert furthest(one, other) == 0
    said = [line for line in batch["messages"] if "absent" in line]
    assert len(said) == 1 and "no network named 'absent'" in said[0]


@pytest.mark.skipif(HOST == "Forge", reason="its prompts of a batch must have equally many parts")
def test_parts_joined_by_and(webui: WebUI) -> None:
    check(webui, [STAR, OTHER, HEART])


@pytest.mark.skipif(HOST == "Forge", reason="it decides by itself how it stacks samples")
@pytest.mark.parametrize("together", [True, False])
def test_however_the_samples_are_stacked(webui: WebUI, together: bool) -> None:
    long = f"{PROMPT}, " + "red " * 90 + "<lora:star:0.8>"
    options(webui, batch_cond_uncond=together)
    try:
        check(webui, [STAR, OTHER, HEART])
        check(webui, [long, long.replace("star:0.8", "heart-linear:0.5")])
        check(webui, [STAR, HEART], negative="blue " * 90)
    finally:
        options(webui, batch_cond_uncond=True)


def test_kinds_without_a_low_rank_form(webui: WebUI, data: Path) -> None:
    path = data / "models" / "Lora" / "hada.safetensors"
    random_loha(path, data / "models" / "Stable-diffusion" / "demo.safetensors")
    webui.call("/sdapi/v1/refresh-loras", {})
    prompts = [f"{PROMPT} <lora:hada:1>", STAR, f"{PROMPT} <lora:hada:-0.5> <lora:star:0.4>"]
    batch = check(webui, prompts)
    plain = made(webui, [PLAIN] * 3)
    assert furthest(batch["pictures"][0], plain["pictures"][0]) > 5


def random_loha(path: Path, checkpoint: Path) -> None:
    """On the attention layers of the UNet."""
    with safe_open(checkpoint, "pt") as file:
        shapes = {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118
    draw = torch.Generator().manual_seed(5)
    found = {}
    for name, layer in canonical_layers(structure_of(shapes, label="demo")).items():
        if not name.startswith("unet") or ".attn" not in name or layer.kind != "linear":
            continue
        out, inputs = layer.shape[:2]
        for part, size in {"hada_w1_a": (out, 2), "hada_w1_b": (2, inputs),
                           "hada_w2_a": (out, 2), "hada_w2_b": (2, inputs)}.items():  # fmt: skip
            found[f"{flat(name)}.{part}"] = torch.randn(size, generator=draw) * 0.3
    save_file(found, path)


def test_a_script_that_varies_the_prompt_and_the_hires_pass(webui: WebUI) -> None:
    """The WebUI's own prompt matrix makes a batch of prompts that differ in their tags alone."""
    more: dict[str, Any] = {"enable_hr": True, "hr_scale": 1.5, "denoising_strength": 0.5}
    if HOST == "Forge":
        more |= {"hr_additional_modules": ["Use same choices"], "hr_cfg": 4}
    matrix = webui.pictures(
        f"{PROMPT}|<lora:star:0.8>|<lora:heart-linear:0.7:hr=0.2>",
        batch_size=4,
        script_name="prompt matrix",
        script_args=[False, False, "positive", "comma", 0],
        **more,
    )
    info = json.loads(webui.info["info"])
    assert len(matrix) == 5  # a grid before them
    for number, text in enumerate(info["infotexts"][1:], 1):
        prompt = text.splitlines()[0]
        alone = webui.pictures(prompt, **more)
        assert furthest(alone[0], matrix[number]) <= CLOSE, prompt
        assert hashes(webui.infotext()) == hashes(text)
    assert len({hashes(text) for text in info["infotexts"][1:]}) == 4


def test_a_stop_leaves_nothing_behind(webui: WebUI) -> None:
    order = {"prompt": STAR, "prompts": [STAR, HEART], "batch_size": 2, "steps": 40,
             "width": SIZE[HOST], "height": SIZE[HOST], "seed": 1}  # fmt: skip
    webui.call("/probe/pictures", {"order": order, "stop_at": [0, 3]})
    wait(lambda: not webui.call("/sdapi/v1/progress")["state"]["job"])
    plain = made(webui, [PLAIN])
    assert furthest(plain["pictures"][0], made(webui, [PLAIN, PLAIN])["pictures"][0]) <= CLOSE
