"""Captioners on tiny random models: the same words as transformers' own generate(), picture by
picture, whatever lies beside it; and what is said of folders that cannot be used."""

from __future__ import annotations

import gc
import json
import os
import pickle
import shutil
import subprocess
import sys
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from extensions_lib.errors import CrucibleError, FileProblem, Stopped
from extensions_lib.options import OptionProblem, checked, table
from extensions_lib.tagging import captioners, interrogator, pretrained
from extensions_lib.tagging.captioners import Captioner, CaptionOptions, entries, load_captioner
from tests.tagging.tiny_captioners import tiny_captioner

ROOT = Path(__file__).resolve().parents[2]
KINDS = ("blip", "git", "blip-2", "blip-2-t5", "vision-encoder-decoder")


def pictures(count: int = 9) -> list[Image.Image]:
    """Random pictures of several shapes."""
    random = np.random.default_rng(7)
    found = []
    for _ in range(count):
        width, height = (int(side) for side in random.integers(20, 90, 2))
        blocks = random.integers(0, 256, (4, 4, 3), dtype=np.uint8)
        found.append(Image.fromarray(blocks).resize((width, height), Image.Resampling.NEAREST))
    return found


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models") / "captioners"
    return {kind: tiny_captioner(root / kind, kind) for kind in KINDS}


@pytest.fixture
def models(folders: dict[str, Path]) -> Path:
    return folders["blip"].parents[1]


def made(folder: Path, **options: Any) -> Captioner:
    return Captioner(folder.name, folder, checked(CaptionOptions, {"device": "cpu", **options}))


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


# --- folders ----------------------------------------------------------------------------------


@pytest.fixture
def broken(folders: dict[str, Path], tmp_path: Path) -> Path:
    """A copy of the GIT folder, to break."""
    return Path(shutil.copytree(folders["git"], tmp_path / "captioners" / "mine"))


def test_pickles_and_parts_say_the_same(folders: dict[str, Path], broken: Path) -> None:
    images = pictures(3)
    expected = made(broken, beams=1).caption(images)
    weights = pretrained.read_weights([broken / "model.safetensors"])
    (broken / "model.safetensors").unlink()
    torch.save(weights, broken / "pytorch_model.bin")
    assert made(broken, beams=1).caption(images) == expected
    (broken / "pytorch_model.bin").unlink()
    names = sorted(weights)
    parts = {"a.bin": names[::2], "b.bin": names[1::2]}
    for part, held in parts.items():
        torch.save({name: weights[name] for name in held}, broken / part)
    index = {"weight_map": {name: part for part, held in parts.items() for name in held}}
    (broken / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    assert made(broken, beams=1).caption(images) == expected
    (broken / "b.bin").unlink()
    with pytest.raises(FileProblem, match=r"mine: 1 of 2 files of weights are missing: b\.bin"):
        made(broken)
    index["weight_map"][names[0]] = "../a.bin"
    (broken / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    with pytest.raises(FileProblem, match=r"names '\.\./a\.bin', which is not a file beside it"):
        made(broken)


@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.999])
@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_weights_cut_off_are_named(broken: Path, name: str, share: float) -> None:
    if name.endswith(".bin"):
        weights = pretrained.read_weights([broken / "model.safetensors"])
        (broken / "model.safetensors").unlink()
        torch.save(weights, broken / name)
    size = (broken / name).stat().st_size
    with open(broken / name, "r+b") as stream:
        stream.truncate(int(size * share))
    with pytest.raises(FileProblem, match=f"mine/{name}: is damaged or cut off .*; get it again"):
        made(broken)


class Evil:
    def __reduce__(self) -> Any:
        return os.mkdir, ("evil-was-here",)


def test_pickles_that_do_more_than_hold_tensors_are_refused(
    broken: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    (broken / "model.safetensors").unlink()
    torch.save({"weight": Evil()}, broken / "pytorch_model.bin")
    with pytest.raises(FileProblem, match="holds more than tensors, and is not opened"):
        made(broken)
    (broken / "pytorch_model.bin").write_bytes(pickle.dumps(Evil()))
    with pytest.raises(FileProblem, match=r"pytorch_model\.bin"):
        made(broken)
    assert not (tmp_path / "evil-was-here").exists()


def config(folder: Path, **changed: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changed))


def test_folders_that_cannot_be_used_are_said_by_name(broken: Path) -> None:
    def refused(said: str) -> None:
        with pytest.raises(FileProblem, match=said) as raised:
            made(broken)
        assert str(broken) in str(raised.value) and "\n" not in str(raised.value)

    config(broken, hidden_size=48)
    refused("its weights do not fit its config")
    config(broken, hidden_size=32, num_hidden_layers=3)
    refused(r"the weights lack 16 tensors that GitForCausalLM needs, as git\.encoder")
    config(broken, model_type="bert")
    refused("kind of model 'bert', which is no captioner")
    config(broken, model_type="nothing-like-it", auto_map={"AutoConfig": "evil.Config"})
    refused("kind of model 'nothing-like-it'")
    config(broken, model_type="git", num_hidden_layers=2)
    keep = (broken / "preprocessor_config.json").read_text()
    (broken / "preprocessor_config.json").unlink()
    refused(r"preprocessor_config\.json: is missing")
    (broken / "preprocessor_config.json").write_text(keep)
    (broken / "vocab.txt").unlink()
    refused("its tokenizer cannot be used")
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"
    (broken / "model.safetensors").write_text(pointer)
    refused("is a Git LFS pointer")
    (broken / "model.safetensors").unlink()
    refused(r"has no weights; put model\.safetensors or pytorch_model\.bin")
    (broken / "config.json").write_text("{")
    refused(r"config\.json: is not JSON")
    (broken / "config.json").unlink()
    refused(r"config\.json: is missing")


def test_a_class_that_is_not_there_is_said(broken: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import transformers
    from transformers.models.auto import modeling_auto

    config(broken, model_type="from-tomorrow")
    known = {"from-tomorrow": "TomorrowForConditionalGeneration"}
    monkeypatch.setattr(modeling_auto, "MODEL_FOR_VISION_2_SEQ_MAPPING_NAMES", known)
    said = rf"needs transformers with Tomorrow.*{transformers.__version__} is installed"
    with pytest.raises(FileProblem, match=said):
        made(broken)


def test_local_folders_are_offered_by_name(models: Path, tmp_path: Path) -> None:
    found = {each.name: each for each in entries(models)}
    assert set(KINDS) < set(found) and found["git"].folder == models / "captioners" / "git"
    assert found["blip-large"].gigabytes == 1.88 and found["blip-large"].folder is None
    assert load_captioner("git", models, CaptionOptions(beams=1)).caption(pictures(1))[0]
    empty = {each.name for each in entries(tmp_path)}
    assert "blip-base" in empty and "git" not in empty


def test_known_models_are_found_by_either_name(folders: dict[str, Path], tmp_path: Path) -> None:
    shelf = tmp_path / "captioners"
    shutil.copytree(folders["blip"], shelf / "blip-image-captioning-base")
    by_repo = load_captioner("Salesforce/blip-image-captioning-base", tmp_path)
    assert by_repo.revision == load_captioner("blip-base", tmp_path).revision
    assert [each.name for each in entries(tmp_path)].count("blip-base") == 1
    assert "blip-image-captioning-base" not in [each.name for each in entries(tmp_path)]


def test_unknown_names_are_refused_with_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(FileProblem, match="no model 'blip-lrage'; did you mean blip-large"):
        load_captioner("blip-lrage", tmp_path)
    for name in ("../captioners", "/", "."):
        with pytest.raises(FileProblem, match="There is no model"):
            load_captioner(name, tmp_path)


def test_the_documentation_has_every_option_and_model() -> None:
    page = (ROOT / "docs" / "captioning.md").read_text("utf-8")
    for kind in (CaptionOptions, interrogator.InterrogateOptions):
        assert table(kind) in page
    for shelf, module in (("captioners", captioners), ("interrogator", interrogator)):
        for model in module.KNOWN:
            folder = f"`models/{shelf}/{model.name}`"
            assert f"| `{model.name}` | {model.repo} | {model.gigabytes:g} | {folder} |" in page


def test_building_a_page_loads_no_runtime() -> None:
    code = (
        "import sys, extensions_lib.tagging.captioners, extensions_lib.tagging.interrogator;"
        "heavy = {'torch', 'transformers', 'safetensors', 'PIL', 'numpy', 'huggingface_hub'};"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
