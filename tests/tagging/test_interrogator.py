"""The CLIP interrogator on a tiny random CLIP: features, the modes' promises, lists and cache."""

from __future__ import annotations

import gc
import shutil
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from extensions_lib.errors import CrucibleError, FileProblem, Stopped
from extensions_lib.options import checked
from extensions_lib.tagging import hub, pretrained
from extensions_lib.tagging.captioners import Captioner, CaptionOptions
from extensions_lib.tagging.interrogator import (
    MODES,
    InterrogateOptions,
    Interrogator,
    entries,
    load_interrogator,
)
from extensions_lib.tagging.text_features import TextFeatures
from extensions_lib.tagging.word_lists import NEGATIVE, SHIPPED, WordList, read_lists
from tests.tagging.tiny_captioners import config, pictures, tiny_captioner, tiny_clip


def words(name: str, text: str, top: int = 1) -> WordList:
    return WordList(name, tuple(text.split()), top)


LISTS = {
    "mediums": words("mediums", "oil ink chalk photo etching"),
    "artists": WordList("artists", ("by hokusai", "by vermeer", "by klee")),
    "movements": words("movements", "baroque cubism dada", top=2),
    "flavors": words("flavors", "red green blue dark bright foggy sharp round sad calm", top=3),
    "sites": words("sites", "museum street"),
    "negative": words("negative", "blurry ugly cropped noise"),
}
ALL = {word for name, each in LISTS.items() if name != NEGATIVE for word in each.words}


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("models")
    tiny_clip(root / "interrogator" / "small")
    tiny_captioner(root / "captioners" / "git", "git")
    return root


Make = Callable[..., Interrogator]


@pytest.fixture
def make(models: Path) -> Make:
    def made(mode: str = "fast", *, writer: bool = False, **options: Any) -> Interrogator:
        cache = options.pop("cache", None)
        captioner = None
        if writer:
            told = CaptionOptions(device="cpu", max_length=8)
            captioner = Captioner("git", models / "captioners" / "git", told)
        told = checked(InterrogateOptions, {"mode": mode, "device": "cpu", **options})
        folder = models / "interrogator" / "small"
        return Interrogator("small", folder, told, LISTS, captioner=captioner, cache=cache)

    return made


# --- features ---------------------------------------------------------------------------------


def test_features_are_those_of_transformers(models: Path, make: Make) -> None:
    from transformers import CLIPModel

    folder = models / "interrogator" / "small"
    model = CLIPModel.from_pretrained(folder).eval()
    tokenizer = pretrained.load_tokenizer(folder)
    found = make(batch=3)
    texts = ["a cat", "the sea at night, oil", "x", "a much longer text about a house on a hill"]
    ours = found.text_features(texts)
    for text, row in zip(texts, ours, strict=True):
        ids = tokenizer([text], return_tensors="pt")["input_ids"]
        with torch.no_grad():
            expected = model.get_text_features(input_ids=ids)[0]
        assert torch.allclose(row, expected / expected.norm(), atol=1e-5)
    pixels = pretrained.load_image_processor(folder)
    for image in pictures(3):
        values = pixels(images=[image], return_tensors="pt")["pixel_values"]
        with torch.no_grad():
            expected = model.get_image_features(pixel_values=values)[0]
        assert torch.allclose(found.picture_features(image), expected / expected.norm(), atol=1e-5)


def test_features_are_those_of_open_clip(models: Path, make: Make) -> None:
    """The same weights in open_clip's own layout give the same features, where it is installed."""
    CLIP = pytest.importorskip("open_clip.model").CLIP

    weights = load_file(models / "interrogator" / "small" / "model.safetensors")
    vision = {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8}
    text = {"context_length": 77, "vocab_size": 514, "width": 32, "heads": 2, "layers": 2}
    model = CLIP(24, vision, text, quick_gelu=True)
    left = model.load_state_dict(_as_open_clip(weights), strict=False)
    assert set(left.missing_keys) <= {"attn_mask"} and not left.unexpected_keys
    found = make()
    tokenizer = pretrained.load_tokenizer(models / "interrogator" / "small")
    texts = ["a cat", "the sea at night, oil"]
    ids = torch.zeros(2, 77, dtype=torch.long)
    for row, text in zip(ids, texts, strict=True):
        tokens = tokenizer(text)["input_ids"]
        row[: len(tokens)] = torch.tensor(tokens)
    image = pictures(1)[0]
    pixels = pretrained.load_image_processor(models / "interrogator" / "small")
    with torch.no_grad():
        text_rows = model.eval().encode_text(ids, normalize=True)
        values = pixels(images=[image], return_tensors="pt")["pixel_values"]
        picture = model.encode_image(values, normalize=True)[0]
    assert torch.allclose(found.text_features(texts), text_rows, atol=1e-5)
    assert torch.allclose(found.picture_features(image), picture, atol=1e-5)


def _as_open_clip(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """transformers' names of CLIP's weights to open_clip's."""
    found = {
        "logit_scale": weights["logit_scale"],
        "token_embedding.weight": weights["text_model.embeddings.token_embedding.weight"],
        "positional_embedding": weights["text_model.embeddings.position_embedding.weight"],
        "text_projection": weights["text_projection.weight"].T,
        "visual.proj": weights["visual_projection.weight"].T,
        "visual.class_embedding": weights["vision_model.embeddings.class_embedding"],
        "visual.conv1.weight": weights["vision_model.embeddings.patch_embedding.weight"],
        "visual.positional_embedding": weights["vision_model.embeddings.position_embedding.weight"],
    }
    for end in ("weight", "bias"):
        found[f"ln_final.{end}"] = weights[f"text_model.final_layer_norm.{end}"]
        found[f"visual.ln_pre.{end}"] = weights[f"vision_model.pre_layrnorm.{end}"]
        found[f"visual.ln_post.{end}"] = weights[f"vision_model.post_layernorm.{end}"]
        for side, stem in (("text_model", ""), ("vision_model", "visual.")):
            for layer in range(2):
                old = f"{side}.encoder.layers.{layer}"
                new = f"{stem}transformer.resblocks.{layer}"
                parts = [weights[f"{old}.self_attn.{each}_proj.{end}"] for each in "qkv"]
                found[f"{new}.attn.in_proj_{end}"] = torch.cat(parts)
                found[f"{new}.attn.out_proj.{end}"] = weights[f"{old}.self_attn.out_proj.{end}"]
                found[f"{new}.ln_1.{end}"] = weights[f"{old}.layer_norm1.{end}"]
                found[f"{new}.ln_2.{end}"] = weights[f"{old}.layer_norm2.{end}"]
                found[f"{new}.mlp.c_fc.{end}"] = weights[f"{old}.mlp.fc1.{end}"]
                found[f"{new}.mlp.c_proj.{end}"] = weights[f"{old}.mlp.fc2.{end}"]
    return found


# --- modes ------------------------------------------------------------------------------------


def cosine(found: Interrogator, text: str, image: Image.Image) -> float:
    return float((found.text_features([text]) @ found.picture_features(image))[0])


def test_fast_takes_the_nearest_words_of_all_lists(make: Make) -> None:
    found = make("fast", count=6)
    for image in pictures(4):
        near = sorted(ALL, key=lambda word: -cosine(found, word, image))[:6]
        assert found.caption([image])[0].split(", ") == near


def test_classic_takes_one_of_each_and_some_flavors(make: Make) -> None:
    found = make("classic", writer=True)
    texts = found.caption(pictures(4))
    assert len(set(texts)) > 1
    for image, text in zip(pictures(4), texts, strict=True):
        near = {
            name: sorted(each.words, key=lambda word: -cosine(found, word, image))
            for name, each in LISTS.items()
        }
        start = found._captioner.caption([image])[0]
        expected = [
            start,
            f"{near['mediums'][0]} {near['artists'][0]}",
            *near["movements"][:2],
            near["sites"][0],
            *near["flavors"][:3],
        ]
        assert text == ", ".join(expected)


def test_best_is_nearest_to_the_picture(make: Make) -> None:
    best, fast, classic = (make(mode, writer=True, count=5) for mode in ("best", "fast", "classic"))
    followed = 0
    for image in pictures(4):
        [text] = best.caption([image])
        reached = cosine(best, text, image)
        others = [fast.caption([image])[0], classic.caption([image])[0]]
        start = best._captioner.caption([image])[0]
        assert text.startswith(start)
        for other in [*others, start]:
            assert reached >= cosine(best, other, image) - 1e-5
        if text not in others:
            added = text[len(start) :].strip(", ").split(", ")
            assert 0 < len(added) <= 5 and set(added) <= ALL and len(set(added)) == len(added)
            # Each word was the one that helped most, when it was added.
            grown = start
            for word in added:
                steps = {each: cosine(best, f"{grown}, {each}", image) for each in ALL}
                left = {e: s for e, s in steps.items() if f" {e} " not in f" {grown} "}
                assert steps[word] >= max(left.values()) - 1e-5
                grown = f"{grown}, {word}"
            followed += 1
    assert followed


def test_negative_leads_away_and_has_its_own_list(make: Make) -> None:
    found = make("negative", count=5, candidates=8)
    for image in pictures(6):
        [text] = found.caption([image])
        added = text.split(", ")
        assert len(added) <= 5
        assert set(added) <= ALL | set(LISTS[NEGATIVE].words)
        lone = min(cosine(found, word, image) for word in LISTS[NEGATIVE].words)
        assert cosine(found, text, image) <= lone + 1e-5
    found._features.clear()
    found._lists = {NEGATIVE: LISTS[NEGATIVE], "flavors": words("flavors", "red")}
    for text in found.caption(pictures(3)):
        assert set(text.split(", ")) & set(LISTS[NEGATIVE].words)
    for mode in ("fast", "best", "classic"):
        said = make(mode).caption(pictures(2))
        assert not any(word in text for word in LISTS[NEGATIVE].words for text in said)


@pytest.mark.parametrize("mode", MODES)
def test_a_text_does_not_depend_on_its_neighbours(make: Make, mode: str) -> None:
    found = make(mode, writer=True, count=4)
    together = found.caption(pictures(5))
    assert len(set(together)) > 1
    assert [found.caption([image])[0] for image in pictures(5)] == together


def test_a_text_stays_within_what_clip_reads(make: Make) -> None:
    found = make("best", count=100)
    for text in found.caption(pictures(2)):
        # One word may lead over the end of the 77 tokens, none is added after it.
        assert found._length(text.rpartition(", ")[0]) < 77


def test_ranked_tells_words_with_their_cosine(make: Make) -> None:
    found = make()
    image = pictures(1)[0]
    told = found.ranked(image, 3)
    assert set(told) == set(LISTS)
    for pairs in told.values():
        assert [value for _, value in pairs] == sorted((v for _, v in pairs), reverse=True)
        for word, value in pairs:
            assert value == pytest.approx(cosine(found, word, image), abs=2e-3)  # float16


def test_stops_and_closes(make: Make) -> None:
    found = make("best", writer=True)
    with pytest.raises(Stopped):
        found.caption(pictures(1), stop=lambda: True)
    found.caption(pictures(1))
    models = [weakref.ref(found._model), weakref.ref(found._captioner._model)]
    found.close()
    gc.collect()
    assert [model() for model in models] == [None, None]
    with pytest.raises(CrucibleError, match="unloaded"):
        found.caption(pictures(1))


@pytest.mark.gpu
def test_on_cuda_and_freed(models: Path) -> None:
    before = torch.cuda.memory_allocated()
    options = InterrogateOptions(mode="best", captioner="git")
    found = load_interrogator("small", models, options)
    assert found.device.startswith("cuda") and found.caption(pictures(2))
    found.close()
    assert torch.cuda.memory_allocated() <= before + (9 << 20)  # cuBLAS keeps a workspace


def test_the_revision_tells_what_decides_a_text(make: Make) -> None:
    seen = {make(mode).revision for mode in MODES}
    seen |= {make(count=3).revision, make(writer=True).revision}
    assert len(seen) == len(MODES) + 2
    assert make().revision == make(batch=2).revision


# --- the cache of text features ---------------------------------------------------------------


def rows(texts: Sequence[str]) -> torch.Tensor:
    """Stand-in features that tell the words apart."""
    return torch.tensor([[float(len(text)), float(ord(text[0]))] for text in texts])


def test_only_new_words_are_computed(tmp_path: Path) -> None:
    asked: list[str] = []

    def encode(texts: Sequence[str]) -> torch.Tensor:
        asked.extend(texts)
        return rows(texts)

    def of(listed: str, revision: str = "r1") -> torch.Tensor:
        asked.clear()
        return TextFeatures(encode, revision, tmp_path, 2).of("flavors", listed.split())

    first = of("red green blue")
    assert sorted(asked) == ["blue", "green", "red"]
    assert torch.equal(first, rows(["red", "green", "blue"]).half())
    assert torch.equal(of("red green blue"), first) and asked == []
    more = of("blue violet red")
    assert asked == ["violet"] and torch.equal(more, rows(["blue", "violet", "red"]).half())
    of("green")
    assert asked == ["green"], "what is no longer listed is not kept"
    of("green", revision="r2")
    assert asked == ["green"], "another model's features are not taken"
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "flavors-r1.safetensors",
        "flavors-r2.safetensors",
    ]


def test_a_stopped_list_goes_on_where_it_was(tmp_path: Path) -> None:
    listed = [f"word{number}" for number in range(10)]
    counted: list[tuple[int, int]] = []
    features = TextFeatures(rows, "r1", tmp_path, 2)
    with pytest.raises(Stopped):
        features.of(
            "flavors",
            listed,
            stop=lambda: len(counted) == 3,
            on_progress=lambda done, total: counted.append((done, total)),
        )
    assert counted == [(2, 10), (4, 10), (6, 10)]
    asked: list[str] = []

    def encode(texts: Sequence[str]) -> torch.Tensor:
        asked.extend(texts)
        return rows(texts)

    TextFeatures(encode, "r1", tmp_path, 2).of("flavors", listed)
    assert len(asked) == 4


@pytest.mark.parametrize("wrong", ["cut", "empty", "other", "rows"])
def test_a_damaged_cache_is_computed_anew(tmp_path: Path, wrong: str) -> None:
    expected = TextFeatures(rows, "r1", tmp_path, 2).of("flavors", ["red", "green"])
    path = tmp_path / "flavors-r1.safetensors"
    if wrong == "cut":
        path.write_bytes(path.read_bytes()[:-3])
    elif wrong == "empty":
        path.write_bytes(b"")
    else:
        told = {"model": "r1" if wrong == "rows" else "r9", "words": '["red", "green", "blue"]'}
        save_file({"features": torch.zeros(2, 2).half()}, path, metadata=told)
    found = TextFeatures(rows, "r1", tmp_path, 2).of("flavors", ["red", "green"])
    assert torch.equal(found, expected)


def test_a_cache_that_cannot_be_written_is_done_without(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("in the way")
    found = TextFeatures(rows, "r1", tmp_path / "file", 2).of("flavors", ["red"])
    assert len(found) == 1 and "cannot be kept" in caplog.text


@pytest.mark.parametrize("mode", MODES)
def test_the_cache_changes_no_text(make: Make, tmp_path: Path, mode: str) -> None:
    plain = make(mode).caption(pictures(3))
    assert make(mode, cache=tmp_path).caption(pictures(3)) == plain
    kept = make(mode, cache=tmp_path)
    kept._cache._encode = None  # type: ignore[assignment]
    assert kept.caption(pictures(3)) == plain
    assert len(list((tmp_path / "interrogator").glob("*.safetensors"))) == len(LISTS)


# --- lists and folders ------------------------------------------------------------------------


def test_shipped_lists_are_there_and_clean() -> None:
    lists = read_lists(None)
    assert set(lists) == {"artists", "flavors", "mediums", "movements", "negative"}
    for file in SHIPPED.glob("*.txt"):
        lines = [line for line in file.read_text("utf-8").splitlines() if line[:1] != "#"]
        assert len(lines) == len(set(lines)) == len(lists[file.stem].words) > 50
        assert all(line == " ".join(line.split()) for line in lines)
    assert all(word.startswith("by ") for word in lists["artists"].words)


def test_own_lists_stand_in_for_shipped_ones(tmp_path: Path) -> None:
    (tmp_path / "flavors.top2.txt").write_text(
        "\ufeffmy  word\n\n# a note\nother\nmy word\n", "utf-8"
    )
    (tmp_path / "artists.txt").write_text("Hokusai\nby Klee\n")
    (tmp_path / "cameras.txt").write_text("pinhole\n")
    (tmp_path / "notes.md").write_text("no list")
    lists = read_lists(tmp_path)
    assert lists["flavors"] == WordList("flavors", ("my word", "other"), 2)
    assert lists["artists"].words == ("by Hokusai", "by Klee")
    assert lists["cameras"].words == ("pinhole",) and lists["cameras"].top == 1
    assert lists["mediums"] == read_lists(None)["mediums"] and "notes" not in lists
    assert read_lists(tmp_path / "none") == read_lists(None)
    (tmp_path / "flavors.txt").write_bytes("größe".encode("latin-1"))
    with pytest.raises(FileProblem, match=r"flavors\.txt: is no text in UTF-8"):
        read_lists(tmp_path)


def test_empty_lists_are_left_out(models: Path) -> None:
    lists = {"flavors": words("flavors", "red blue"), "mediums": WordList("mediums", ())}
    folder = models / "interrogator" / "small"
    for mode in MODES:
        found = Interrogator("small", folder, InterrogateOptions(mode, device="cpu"), lists)
        assert set(found.caption(pictures(1))[0].split(", ")) <= {"red", "blue"}
    found = Interrogator("small", folder, InterrogateOptions("fast", device="cpu"), {})
    assert found.caption(pictures(1)) == [""]


def test_loads_by_name_with_its_captioner(models: Path, tmp_path: Path) -> None:
    options = InterrogateOptions(captioner="git", device="cpu", count=2)
    found = load_interrogator("small", models, options, CaptionOptions(max_length=6, device="cpu"))
    assert "small" in [each.name for each in entries(models)]
    start = found._captioner.caption(pictures(1))[0]
    assert found.caption(pictures(1))[0].startswith(f"{start}, ")
    alone = load_interrogator("small", models, InterrogateOptions(captioner="", device="cpu"))
    assert alone.caption(pictures(1))
    with pytest.raises(hub.NotHere, match=r"clip-vit-h-14 is not on this machine.*3\.94 GB"):
        load_interrogator("clip-vit-h-14", tmp_path)
    with pytest.raises(FileProblem, match="words: there is no folder /nowhere"):
        load_interrogator("small", models, InterrogateOptions(words="/nowhere", device="cpu"))


def test_another_model_is_refused_by_its_kind(models: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(models / "interrogator" / "small", tmp_path / "mine"))
    config(folder, model_type="siglip")
    with pytest.raises(FileProblem, match="kind of model 'siglip', not 'clip'"):
        Interrogator("mine", folder, InterrogateOptions(device="cpu"), LISTS)
