"""Whole pictures: repeatable, the same alone and in company, with networks, and stoppable."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from PIL import Image

from extensions_lib.errors import CrucibleError, FileProblem, Stopped
from extensions_lib.hosts.base import Progress
from extensions_lib.hosts.standalone import StandaloneHost
from extensions_lib.hosts.standalone.png import png_bytes, read_png_infotext, save_png
from extensions_lib.hosts.standalone.samplers import SAMPLERS
from extensions_lib.prompts.infotext import read_infotext
from tests.hosts.conftest import SIZE, order, tiny_lora

# numpy's, about how diffusers converts its tensors
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

Hosts = Callable[[str], StandaloneHost]


@pytest.fixture(scope="session")
def loras(root: Path) -> Path:
    """Two networks that fit SD1, one for SDXL, one cut short and one that is no network."""
    folder = root / "models" / "Lora"
    tiny_lora(folder / "one.safetensors", 1)
    whole = tiny_lora(folder / "two.safetensors", 2).read_bytes()
    tiny_lora(folder / "for xl.safetensors", 3, "SDXL")
    (folder / "cut.safetensors").write_bytes(whole[: len(whole) // 2])
    (folder / "text.safetensors").write_text("no network at all")
    return folder


def picture(host: StandaloneHost, prompt: str = "a cat", **other: object) -> bytes:
    result = host.generate(order(prompt, **other))
    assert result.messages == []
    return result.images[0].tobytes()


def furthest(one: Image.Image, other: Image.Image) -> int:
    """The largest difference of two pictures, in steps of 255."""
    pixels = [numpy.asarray(each).astype(int) for each in (one, other)]
    return int(abs(pixels[0] - pixels[1]).max())


@pytest.mark.parametrize("name", [*SAMPLERS, "DPM++ 2M Karras"])
def test_every_sampler_repeats_itself_for_both_predictions(hosts: Hosts, name: str) -> None:
    for checkpoint in ("SD1", "SD1v"):
        pictures = [picture(hosts(checkpoint), sampler=name, steps=3) for _ in range(2)]
        assert pictures[0] == pictures[1]
        assert len(set(pictures[0])) > 20  # not one flat colour


@pytest.mark.parametrize("family", ["SD2", "SDXL"])
def test_the_other_families(hosts: Hosts, family: str) -> None:
    host = hosts(family)
    first = picture(host)
    assert first == picture(host) and first != picture(host, "a dog")


def test_the_picture_follows_prompt_negative_seed_and_cfg(host: StandaloneHost) -> None:
    plain = picture(host)
    others: list[dict[str, Any]] = [
        {"prompt": "a dog"},
        {"prompt": "a (cat:1.4)"},
        {"prompt": "a [cat:dog:0.25]"},
        {"prompt": "a cat AND a dog :0.5"},
        {"prompt": "a cat BREAK long"},
        {"negative": "other"},
        {"negative": "bad BREAK long"},
        {"seed": 8},
        {"cfg": 3.0},
        {"clip_skip": 2},
        {"schedule": "Karras"},
    ]
    pictures = [picture(host, **other) for other in others]
    assert len({plain, *pictures}) == len(others) + 1


def test_at_cfg_1_the_negative_prompt_is_left_out(host: StandaloneHost) -> None:
    assert picture(host, cfg=1.0) == picture(host, cfg=1.0, negative="other")
    two = "a cat AND a dog :0.5"  # here it still counts
    assert picture(host, two, cfg=1.0) != picture(host, two, cfg=1.0, negative="other")


@pytest.mark.parametrize("name", ["Euler a", "DPM2 a", "DPM++ 2M"])
def test_a_picture_is_the_same_alone_and_in_a_batch(host: StandaloneHost, name: str) -> None:
    batch = host.generate(order(sampler=name, batch_size=2, batch_count=2))
    assert batch.seeds == [7, 8, 9, 10]
    for seed, image, text in zip(batch.seeds, batch.images, batch.infotexts, strict=True):
        alone = host.generate(order(sampler=name, seed=seed))
        assert furthest(alone.images[0], image) <= 1
        assert alone.infotexts[0] == text


@pytest.mark.parametrize("checkpoint", ["SD1", "SD1v"])
@pytest.mark.parametrize("name", ["Euler", "DDIM"])
def test_diffusers_own_pipeline_makes_the_same_picture(
    hosts: Hosts, name: str, checkpoint: str
) -> None:
    from diffusers import DDIMScheduler, EulerDiscreteScheduler, StableDiffusionPipeline

    from extensions_lib.hosts.standalone.samplers import Levels
    from extensions_lib.hosts.standalone.text import load_tokenizer

    host, steps = hosts(checkpoint), 5
    model = host.model()
    shared: dict[str, Any] = {
        "steps_offset": 1,
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "prediction_type": model.schedule.prediction,
    }
    options: dict[str, Any] = {"num_inference_steps": steps}
    if name == "Euler":
        scheduler = EulerDiscreteScheduler(**shared)
        sigmas = Levels(model.schedule.alphas_cumprod).spaced("Uniform", steps).tolist()
        options = {"sigmas": [*sigmas, 0.0]}
    else:
        scheduler = DDIMScheduler(**shared, clip_sample=False, set_alpha_to_one=False)
    pipeline = StableDiffusionPipeline(
        model.vae,
        model.text_encoders[0],
        load_tokenizer(),
        model.unet,
        scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    latents = []
    shape = (4, SIZE // 8, SIZE // 8)
    pipeline(
        "a red cat",
        negative_prompt="bad",
        guidance_scale=7.0,
        latents=torch.randn(shape, generator=torch.Generator().manual_seed(7)).unsqueeze(0),
        output_type="latent",
        callback_on_step_end=lambda _p, _i, _t, now: latents.append(now["latents"]) or {},
        **options,
    )
    # WebUI's DDIM does not evaluate at the last timestep, 1.
    latent = latents[-1] if name == "Euler" else latents[-2]
    ours = host.generate(order("a red cat", sampler=name, steps=steps)).images[0]
    with torch.inference_mode():
        assert furthest(host._ready().decode(latent), ours) <= 1


def test_networks_change_the_picture_and_leave_it_again(host: StandaloneHost, loras: Path) -> None:
    plain = picture(host)
    one, both = picture(host, "a cat<lora:one:1>"), picture(host, "a cat<lora:one:1><lora:two:1>")
    assert len({plain, one, both}) == 3
    assert picture(host, "a cat<lora:two:1><lora:one:1>") == both
    assert picture(host, "a cat<lora:one:0>") == plain
    unet_only, text_only = (picture(host, f"a cat<lora:one:{w}>") for w in ("0:1", "1:0"))
    assert len({plain, one, unet_only, text_only}) == 4
    assert picture(host, "a cat<lora:one:1>") == one
    assert picture(host) == plain


def test_what_is_wrong_with_a_network_is_said_and_the_others_apply(
    host: StandaloneHost, loras: Path
) -> None:
    one = picture(host, "a cat<lora:one:1>")
    names = ["nothing", "cut", "text", "for xl"]
    tags = "".join(f"<lora:{name}:1>" for name in names)
    result = host.generate(order(f"a cat{tags}<lora:one:1>", batch_size=2))
    assert result.images[0].size == (SIZE, SIZE) and len(result.images) == 2
    assert furthest(result.images[0], Image.frombytes("RGB", (SIZE, SIZE), one)) <= 1
    for name in names:
        said = [message for message in result.messages if f"<lora:{name}:1>" in message]
        assert len(said) == 1, name
    assert "te2, which SD1 has not" in result.messages[-1]
    assert host.generate(order("a cat<hypernet:x:1>")).messages


def test_a_network_of_another_family_is_left_out(
    host: StandaloneHost, loras: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the shapes of full-size models; small ones have none to tell them by."""
    from extensions_lib.hosts import networks
    from extensions_lib.models.families import Family

    def read_as_sdxl(path: Path, **options: Any) -> Any:
        network = read_network(path, **options)
        network.family = Family.SDXL
        return network

    read_network = networks.read_network
    tiny_lora(loras / "foreign.safetensors", 8)
    monkeypatch.setattr(networks, "read_network", read_as_sdxl)
    result = host.generate(order("a cat<lora:foreign:1>"))
    assert result.messages == [
        "<lora:foreign:1>: made for SDXL, but the loaded checkpoint SD1 is SD1; left out."
    ]
    assert result.images[0].tobytes() == picture(host)


def test_a_tag_that_is_wrong_is_said(host: StandaloneHost, loras: Path) -> None:
    result = host.generate(order("a cat<lora:one:much>"))
    assert len(result.images) == 1 and "much" in result.messages[0]


def test_a_network_saved_a_moment_ago_is_found_and_an_edited_one_read_again(
    host: StandaloneHost, loras: Path
) -> None:
    picture(host)
    tiny_lora(loras / "new.safetensors", 5)
    first = picture(host, "a cat<lora:new:1>")
    tiny_lora(loras / "new.safetensors", 6, rank=3)
    assert picture(host, "a cat<lora:new:1>") != first


def test_the_infotext_says_how_it_was_made(host: StandaloneHost, loras: Path) -> None:
    prompt, negative = "a cat, (red:1.2)\n<lora:one:0.5>", "bad, worse"
    request = order(prompt, negative=negative, sampler="DPM++ 2M", clip_skip=2, cfg=7.5)
    text = host.generate(request).infotexts[0]
    start = f"{prompt}\nNegative prompt: {negative}\nSteps: 4, Sampler: DPM++ 2M, "
    assert text.startswith(f"{start}Schedule type: Karras, CFG scale: 7.5, Seed: 7, Size: 64x64, ")
    found = read_infotext(text)
    assert (found["Prompt"], found["Negative prompt"]) == (prompt, negative)
    assert found["Model hash"] == host.model().hash[:10] and found["Model"] == "SD1"
    assert found["Clip skip"] == "2" and found["Version"].startswith("Crucible ")
    name, _, short = found["Lora hashes"].partition(": ")
    assert name == "one" and len(short) == 12
    assert list(found)[-1] == "Version" or "Lora hashes" in found


def test_png_files_are_equal_and_give_the_infotext_back(
    host: StandaloneHost, tmp_path: Path
) -> None:
    files = []
    for name in ("a.png", "b.png"):
        result = host.generate(order("Katze – 猫"))
        save_png(result.images[0], result.infotexts[0], tmp_path / name)
        files.append((tmp_path / name).read_bytes())
    assert files[0] == files[1] == png_bytes(result.images[0], result.infotexts[0])
    assert read_png_infotext(tmp_path / "a.png") == result.infotexts[0]
    with Image.open(tmp_path / "a.png") as image:
        assert image.tobytes() == result.images[0].tobytes()


def test_progress_counts_every_step_and_measures(host: StandaloneHost) -> None:
    heard: list[Progress] = []
    host.generate(order(sampler="Heun", steps=3, batch_count=2), heard.append)
    assert [(each.step, each.steps) for each in heard] == [(1, 3), (2, 3), (3, 3)] * 2
    assert [each.image for each in heard] == [0, 0, 0, 1, 1, 1]
    assert all(each.images == 2 for each in heard)
    assert heard[-1].eta_seconds is not None and 0 < heard[-1].eta_seconds < 60


def test_previews_are_small_pictures(host: StandaloneHost, monkeypatch: pytest.MonkeyPatch) -> None:
    from extensions_lib.hosts.standalone import generate

    monkeypatch.setattr(generate, "PREVIEW_PAUSE", 0.0)
    monkeypatch.setattr(generate, "PREVIEW_SHARE", 0)
    monkeypatch.setattr(generate, "PREVIEW_SIDE", 4)
    heard: list[Progress] = []
    host.generate(order(steps=3, width=128), heard.append)
    previews = [each.preview for each in heard]
    assert previews[-1] is None  # the picture itself is about to come
    assert [each.size for each in previews if each is not None] == [(32, 16)] * 2


def test_stop_is_obeyed_within_a_step(host: StandaloneHost) -> None:
    stop, heard = threading.Event(), []

    def at_second_step(progress: Progress) -> None:
        heard.append(progress)
        if progress.step == 2:
            stop.set()

    with pytest.raises(Stopped):
        host.generate(order(steps=9), at_second_step, stop)
    assert len(heard) == 2


def test_stop_keeps_what_is_finished(host: StandaloneHost) -> None:
    stop = threading.Event()
    result = host.generate(order(batch_count=3), lambda p: p.image and stop.set(), stop)
    assert len(result.images) == len(result.infotexts) == len(result.seeds) == 1
    assert result.messages == ["Stopped: 1 of 3 pictures are finished."]
    assert result.images[0].tobytes() == picture(host)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"width": 60}, "Width 60 is not a multiple of 8; 64 would do"),
        ({"height": 8}, "Height 8 is out of range; choose 16 to 4096"),
        ({"steps": 0}, "Steps 0 is out of range; choose 1 to 150"),
        ({"cfg": 0.5}, "CFG scale 0.5"),
        ({"cfg": float("nan")}, "CFG scale nan"),
        ({"batch_size": 0}, "Batch size 0"),
        ({"seed": -2}, "Seed -2"),
        (
            {"seed": 10**20},
            "Seed 1" + "0" * 20 + " is out of range; choose -1 to 9223372036854775807",
        ),
        ({"clip_skip": 3}, "has 2 layers"),
        ({"sampler": "Magic"}, "Sampler 'Magic' is not known"),
    ],
)
def test_what_cannot_be_made_is_refused(
    host: StandaloneHost, wrong: dict[str, Any], said: str
) -> None:
    with pytest.raises(CrucibleError, match=said):
        host.generate(order(**wrong))


def test_an_option_without_effect_is_said(host: StandaloneHost) -> None:
    assert "timesteps" in host.generate(order(sampler="DDIM", schedule="Karras")).messages[0]


def test_a_seed_is_drawn_and_written_down(host: StandaloneHost) -> None:
    result = host.generate(order(seed=-1, batch_size=2))
    first, second = result.seeds
    assert first >= 0 and second == first + 1
    assert read_infotext(result.infotexts[1])["Seed"] == str(second)
    assert host.generate(order(seed=-1)).seeds != [first]


def test_numbers_that_are_none_are_said(
    host: StandaloneHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    unet: Any = host.model().unet
    monkeypatch.setattr(
        unet, "forward", lambda sample, *_, **__: (torch.full_like(sample, torch.nan),)
    )
    result = host.generate(order(batch_size=2))
    assert len(result.images) == 2 and len(result.messages) == 2
    assert "seed 7" in result.messages[0] and "NaN" in result.messages[0]


def test_odd_sizes_work(host: StandaloneHost) -> None:
    assert host.generate(order(width=88, height=40)).images[0].size == (88, 40)


def test_an_inpainting_checkpoint_makes_pictures_too(root: Path, tmp_path: Path) -> None:
    from dataclasses import replace

    from safetensors.torch import save_file

    from tests.tiny import TINY, random_tensors

    plan = TINY["SD1"]
    wide = replace(plan, unet=replace(plan.unet, in_channels=9))
    path = tmp_path / "inpainting.safetensors"
    save_file({k: v.half() for k, v in random_tensors(wide).items()}, path)
    host = StandaloneHost(path, root)
    assert picture(host) != picture(host, "a dog")
    host.close()


def test_a_missing_tokenizer_is_named(tmp_path: Path) -> None:
    from extensions_lib.hosts.standalone.text import load_tokenizer

    with pytest.raises(FileProblem, match=r"vocab\.json and merges\.txt"):
        load_tokenizer(tmp_path)
