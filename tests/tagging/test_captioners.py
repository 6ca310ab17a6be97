"""Captioners on tiny random models: the same words as transformers' own generate(), picture by
picture, whatever lies beside it."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from extensions_lib.errors import CrucibleError, Stopped
from extensions_lib.options import OptionProblem
from extensions_lib.tagging import captioners, pretrained
from extensions_lib.tagging.captioners import Captioner, CaptionOptions
from tests.tagging.tiny_captioners import KINDS, made, pictures, tiny_captioner

# --- the words --------------------------------------------------------------------------------


def by_transformers(
    folder: Path, kind: str, images: list[Image.Image], prompt: str = "", **arguments: Any
) -> list[str]:
    """Captions by the public generate() of the model's class, one by one; with the prompt in them.

    A prompt is given as transformers' documentation of BLIP and of GIT says.
    """
    import transformers

    names = {
        "blip": "BlipForConditionalGeneration",
        "git": "GitForCausalLM",
        "vision-encoder-decoder": "VisionEncoderDecoderModel",
    }
    model = getattr(transformers, names.get(kind, "Blip2ForConditionalGeneration")).from_pretrained(
        folder
    )
    if kind.startswith("blip-2"):
        text = model.config.text_config
        if [int(part) for part in transformers.__version__.split(".")[:2]] >= [4, 50]:
            # Their generate() puts the picture where this token stands, left out of the answer.
            model.config.image_token_index = model.config.image_token_id = text.pad_token_id
        text.bos_token_id = text.eos_token_id  # T5 has no bos token
    tokenizer = pretrained.load_tokenizer(folder)
    pixels = pretrained.load_image_processor(folder)
    if prompt and kind == "blip":
        arguments["input_ids"] = tokenizer(prompt, return_tensors="pt")["input_ids"]
    elif prompt:
        words = tokenizer(prompt, add_special_tokens=False)["input_ids"]
        arguments["input_ids"] = torch.tensor([[tokenizer.cls_token_id, *words]])
    said = []
    for image in images:
        values = pixels(images=[image], return_tensors="pt")["pixel_values"]
        with torch.no_grad():
            ids = model.eval().generate(pixel_values=values, **arguments)
        said.append(" ".join(tokenizer.batch_decode(ids, skip_special_tokens=True)[0].split()))
    return said


@pytest.mark.parametrize("beams", [1, 4])
@pytest.mark.parametrize("kind", KINDS)
def test_says_what_transformers_own_generate_says(
    folders: dict[str, Path], kind: str, beams: int
) -> None:
    images = pictures(5)
    expected = by_transformers(
        folders[kind], kind, images, num_beams=beams, max_new_tokens=14, min_new_tokens=3
    )
    assert len(set(expected)) > 2, "the tiny model must see what it is shown"
    found = made(folders[kind], beams=beams, max_length=14, min_length=3).caption(images)
    assert found == expected


WAYS = [{"beams": 1}, {"beams": 4}, {"top_p": 0.9}, {"beams": 3, "prompt": "the cat on"}]


@pytest.mark.parametrize("options", WAYS, ids=["greedy", "beams", "drawn", "prompt"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_caption_does_not_depend_on_its_neighbours(
    folders: dict[str, Path], kind: str, options: dict[str, Any]
) -> None:
    images = pictures()
    alone = made(folders[kind], batch=1, max_length=16, **options).caption(images)
    assert len(set(alone)) > 2
    for size in (4, len(images)):
        together = made(folders[kind], batch=size, max_length=16, **options)
        assert together.caption(images) == alone
        assert together.caption(images[::-1]) == alone[::-1]


@pytest.mark.parametrize("kind", ["blip", "git"])
def test_goes_on_from_a_prompt_as_transformers_does(folders: dict[str, Path], kind: str) -> None:
    images, prompt = pictures(5), "a picture of the sea"
    expected = by_transformers(
        folders[kind], kind, images, prompt, num_beams=2, max_new_tokens=6, min_new_tokens=6
    )
    captioner = made(
        folders[kind], beams=2, max_length=6, min_length=6, prompt=prompt, keep_prompt=True
    )
    assert captioner.caption(images) == expected
    # Also where the answer goes on within the prompt's last word.
    assert any(not text.startswith(f"{prompt} ") for text in expected)


@pytest.mark.parametrize("kind", KINDS)
def test_the_prompt_leads_and_is_left_out_unless_kept(folders: dict[str, Path], kind: str) -> None:
    images = pictures(6)
    plain = made(folders[kind], max_length=10).caption(images)
    led = made(folders[kind], max_length=10, prompt="a red house").caption(images)
    assert led != plain
    kept = made(folders[kind], max_length=10, prompt="a red house", keep_prompt=True)
    for text, rest in zip(kept.caption(images), led, strict=True):
        assert text in (f"a red house {rest}", f"a red house{rest}")


def test_draws_are_decided_by_seed_and_picture(folders: dict[str, Path]) -> None:
    images = pictures(4)
    drawn = [
        made(folders["git"], top_p=0.95, seed=seed, min_length=8).caption(images)
        for seed in (1, 1, 2)
    ]
    assert drawn[0] == drawn[1] != drawn[2]
    captioner = made(folders["git"], top_p=0.95)
    before = torch.get_rng_state()
    captioner.caption(images[:1])
    assert torch.equal(before, torch.get_rng_state()), "others draw from torch's generator too"


def test_draws_follow_the_models_chances() -> None:
    chances = torch.tensor([[0.5, 0.3, 0.15, 0.05]])
    draw = captioners._Draw([3])
    counts = torch.zeros(4)
    for _ in range(4000):
        counts[int(draw(torch.zeros(1, 1), chances.log()).argmax())] += 1
    # Four standard deviations of a share of 0.5 over 4000 draws are 0.032.
    assert torch.allclose(counts / 4000, chances[0], atol=0.032)
    never = torch.tensor([[0.0, -torch.inf, -torch.inf, -torch.inf]])
    assert int(captioners._Draw([3])(torch.zeros(1, 1), never).argmax()) == 0


def test_a_repetition_penalty_makes_fewer_repetitions(folders: dict[str, Path]) -> None:
    def repeated(penalty: float) -> int:
        captioner = made(
            folders["blip"], beams=1, max_length=24, min_length=24, repetition_penalty=penalty
        )
        texts = [text.split() for text in captioner.caption(pictures(6))]
        return sum(len(words) - len(set(words)) for words in texts)

    assert repeated(3.0) < repeated(1.0)


SIZES = [(1, 1), (3, 3), (1, 4000), (4000, 1), (3, 500), (500, 3)]


@pytest.mark.parametrize("kind", ["blip", "git"])
@pytest.mark.parametrize("size", SIZES)
def test_odd_pictures_have_captions(
    folders: dict[str, Path], kind: str, size: tuple[int, int]
) -> None:
    captioner = made(folders[kind], beams=1, max_length=8)
    assert captioner.caption([Image.new("RGB", size, "green")])[0]


def test_every_mode_of_picture_is_read_as_rgb(folders: dict[str, Path]) -> None:
    captioner = made(folders["git"], beams=1, max_length=8)
    image = pictures(1)[0].quantize(32)
    expected = captioner.caption([image.convert("RGB")])
    assert captioner.caption([image]) == expected
    grey = image.convert("L")
    assert captioner.caption([grey]) == captioner.caption([grey.convert("RGB")])
    assert captioner.caption([]) == []


# --- running ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_stops_within_a_layer(folders: dict[str, Path], kind: str) -> None:
    captioner = made(folders[kind], batch=1, beams=1, max_length=50, min_length=50)
    asked = []

    def stop() -> bool:
        asked.append(1)
        return len(asked) == when

    for when in (1, 3, 30, 300):  # in the first layer, the picture, the words
        asked.clear()
        with pytest.raises(Stopped):
            captioner.caption(pictures(3), stop=stop)
        assert len(asked) == when
    assert captioner.caption(pictures(1)), "it can go on afterwards"
    assert len(asked) == 300


def test_threads_take_turns(folders: dict[str, Path]) -> None:
    from concurrent.futures import ThreadPoolExecutor

    captioner = made(folders["git"], beams=2, max_length=12)
    images = pictures(8)
    expected = captioner.caption(images)

    def one(number: int) -> list[str] | None:
        try:
            return captioner.caption([images[number]], stop=lambda: number % 2 == 0)
        except Stopped:
            return None

    with ThreadPoolExecutor(8) as threads:
        said = list(threads.map(one, range(8)))
    assert said == [None if number % 2 == 0 else [expected[number]] for number in range(8)]


def test_close_frees_the_model(folders: dict[str, Path]) -> None:
    captioner = made(folders["blip"])
    captioner.caption(pictures(2))
    model = weakref.ref(captioner._model)
    captioner.close()
    captioner.close()
    gc.collect()
    assert model() is None
    with pytest.raises(CrucibleError, match="unloaded"):
        captioner.caption(pictures(1))


def test_halves_the_batch_when_memory_is_short(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    captioner = made(folders["git"], batch=8, beams=1, max_length=8)
    images = pictures(9)
    expected = captioner.caption(images)
    sizes, real, room = [], captioner._some, 2

    def some(part: list[Image.Image], stop: Any) -> list[str]:
        sizes.append(len(part))
        if len(part) > room:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory.")
        return real(part, stop)

    monkeypatch.setattr(captioner, "_some", some)
    assert captioner.caption(images) == expected
    assert sizes[:4] == [8, 4, 2, 2]
    room = 0
    with pytest.raises(CrucibleError, match=r"too small for one picture.*device=cpu"):
        captioner.caption(images)


def test_devices_and_types(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    assert made(folders["blip"]).device == "cpu"
    assert made(folders["blip-2"], dtype="bfloat16", beams=1, max_length=5).caption(pictures(1))[0]
    for options, said in (
        ({"dtype": "float16"}, "float16 runs on CUDA only"),
        ({"device": "cuda:77"}, "there is no 'cuda:77'"),
        ({"device": "gpu"}, "device: takes auto"),
        ({"device": "meta"}, "device: takes auto"),
    ):
        with pytest.raises(OptionProblem, match=said):
            made(folders["blip"], **options)


def test_a_gpu_without_room_is_left_and_said(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (100_000_000, 8_000_000_000))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda: 0)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda: 0)
    captioner = made(folders["blip"], device="auto")
    assert captioner.device == "cpu"
    assert captioner.why_not_gpu == "the GPU has 0.1 GB free and the model needs about 0.5 GB"


@pytest.mark.gpu
@pytest.mark.parametrize("kind", KINDS)
def test_on_cuda_in_float16_and_freed(folders: dict[str, Path], kind: str) -> None:
    import warnings

    warnings.simplefilter("ignore")
    before = torch.cuda.memory_allocated()
    captioner = Captioner(kind, folders[kind], CaptionOptions(max_length=12))
    assert captioner.device.startswith("cuda") and captioner.why_not_gpu is None
    assert next(captioner._model.parameters()).dtype == torch.float16
    together = captioner.caption(pictures())
    assert together == [captioner.caption([image])[0] for image in pictures()]
    captioner.close()
    assert torch.cuda.memory_allocated() <= before + (9 << 20)  # cuBLAS keeps a workspace


def test_the_revision_tells_what_decides_a_caption(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    one = made(folders["git"])
    assert one.revision == made(folders["git"], batch=2).revision
    assert one.revision != made(folders["git"], beams=2).revision
    other = tiny_captioner(tmp_path / "other", "git", seed=1)
    assert one.revision != made(other).revision
