"""Taggers end to end: tiny ONNX files of every contract, against the contract in float64."""

from __future__ import annotations

import io
import threading
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from PIL import Image

from extensions_lib.datasets.pictures import open_picture
from extensions_lib.errors import FileProblem
from extensions_lib.options import OptionProblem
from extensions_lib.tagging.hub import NotHere
from extensions_lib.tagging.manifest import contract_of
from extensions_lib.tagging.taggers import OnnxTagger, load_tagger, revision_of, sigmoid
from tests.tagging.tiny_taggers import (
    LABELS,
    padded,
    resampled,
    write_model,
    write_tagger,
    write_tags,
)

Array = np.ndarray[Any, Any]
SIDE = 24
CLOSE = 1e-3


def picture(width: int = 90, height: int = 61) -> Image.Image:
    """Smooth, as pictures are."""
    small = np.random.default_rng(3).integers(0, 256, (5, 7, 3), np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


def scores_of(tagger: Any, image: Image.Image) -> Array:
    return np.asarray(tagger.score(tagger.prepare(image)[None])[0])


def load(folder: Path, **how: Any) -> OnnxTagger:
    tagger = load_tagger(folder.name, folder.parent, device="cpu", threads=1, **how)
    assert isinstance(tagger, OnnxTagger)
    return tagger


# family: the layout, the largest pixel value, whether logits come out, the tag list, its kernel
FAMILIES = {
    "wd": ("NHWC", 255, False, "bicubic"),
    "timm": ("NCHW", 1, True, "bicubic"),
    "joytag": ("NCHW", 1, True, "bicubic"),
    "cl": ("NCHW", 1, True, "bicubic"),
    "ml-danbooru": ("NCHW", 1, True, "bilinear"),
    "pixai": ("NCHW", 1, False, "bilinear"),
    "camie": ("NCHW", 1, True, "lanczos"),
}


def expected_input(family: str, image: Image.Image) -> Array:
    """[1, S, S, 3] in the model's colour order, told from the family's facts in float64."""
    values = np.asarray(image).astype(np.float64)
    kernel = FAMILIES[family][3]
    if family in ("ml-danbooru", "pixai"):
        values = resampled(values, SIDE, SIDE, kernel)
    elif family == "camie":
        height = round(SIDE * image.height / image.width)
        values = padded(resampled(values, SIDE, height, kernel), (124, 116, 104))
    else:
        values = resampled(padded(values, (255, 255, 255)), SIDE, SIDE, kernel)
    if family in ("wd", "timm", "cl"):
        values = values[..., ::-1]
    if family == "wd":
        return values[None]
    means: dict[str, tuple[Any, Any]] = {
        "joytag": (
            (0.48145466, 0.4578275, 0.40821073),
            (0.26862954, 0.26130258, 0.27577711),
        ),
        "camie": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        "ml-danbooru": (0, 1),
    }
    mean, std = means.get(family, (0.5, 0.5))
    return np.asarray((values / 255 - mean) / std)[None]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("size", [(90, 61), (24, 24)])
def test_scores_are_the_models(family: str, size: tuple[int, int], tmp_path: Path) -> None:
    layout, largest, logits, _ = FAMILIES[family]
    entry: dict[str, Any] = {"family": family, "size": SIDE, "tags": "selected_tags.csv"}
    entry["model"] = "model.onnx"
    how: dict[str, Any] = {"pixai": {"output": "prediction", "before": ["embedding"]}}.get(
        family, {"before": ["initial"]} if family == "camie" else {}
    )
    tiny = write_tagger(
        tmp_path / "t", entry, size=SIDE, layout=layout, largest=largest, logits=logits, **how
    )
    tagger = load(tmp_path / "t")
    assert (tagger.size, tagger.batch, tagger.provider) == (SIDE, None, "CPU")
    image = picture(*size)
    exact = tiny.answer(expected_input(family, image))[0]
    assert exact.std() > 0.1  # it has something to say
    np.testing.assert_allclose(scores_of(tagger, image), exact, atol=CLOSE)


# --- files of every shape ---------------------------------------------------------------------


@pytest.mark.parametrize("batch", [None, 1, 4])
def test_scores_do_not_depend_on_the_batch(batch: int | None, tmp_path: Path) -> None:
    write_tagger(tmp_path / "t", size=SIDE, batch=batch)
    tagger = load(tmp_path / "t")
    assert tagger.batch == batch
    prepared = np.stack([tagger.prepare(picture(90 + 7 * i, 61)) for i in range(6)])
    together = tagger.score(prepared)
    assert together.shape == (6, len(LABELS)) and together.dtype == np.float32
    for i in range(6):
        np.testing.assert_allclose(tagger.score(prepared[i : i + 1])[0], together[i], atol=1e-6)
    assert tagger.score(prepared[:0]).shape == (0, len(LABELS))


def test_a_file_may_leave_its_size_open(tmp_path: Path) -> None:
    write_tagger(tmp_path / "t", {"size": SIDE}, size=SIDE, dynamic_size=True)
    assert load(tmp_path / "t").size == SIDE
    write_tagger(tmp_path / "u", size=16)
    assert load(tmp_path / "u").size == 16


@pytest.mark.parametrize("logits", [False, True])
@pytest.mark.parametrize("layout", ["NHWC", "NCHW"])
def test_a_folder_without_an_entry_is_understood(layout: str, logits: bool, tmp_path: Path) -> None:
    """Layout and logits are read off the file; NCHW is taken as timm exports WD."""
    largest = 255 if layout == "NHWC" else 1
    tiny = write_tagger(tmp_path / "t", size=SIDE, layout=layout, logits=logits, largest=largest)
    tagger = load(tmp_path / "t")
    assert tagger.contract.logits == logits
    exact = tiny.answer(expected_input("wd" if layout == "NHWC" else "timm", picture()))[0]
    np.testing.assert_allclose(scores_of(tagger, picture()), exact, atol=CLOSE)


def test_half_precision_files(tmp_path: Path) -> None:
    entry = {"family": "timm", "logits": True}
    how: dict[str, Any] = {"size": SIDE, "layout": "NCHW", "largest": 1, "logits": True}
    tiny = write_tagger(tmp_path / "t", entry, kind=np.float16, **how)
    exact = tiny.answer(expected_input("timm", picture()))[0]
    found = scores_of(load(tmp_path / "t"), picture())
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, exact, atol=0.02)


def test_the_output_that_has_a_score_for_each_tag_is_taken(tmp_path: Path) -> None:
    tiny = write_tagger(tmp_path / "t", size=SIDE, square_output=True)
    exact = tiny.answer(expected_input("wd", picture()))[0]
    np.testing.assert_allclose(scores_of(load(tmp_path / "t"), picture()), exact, atol=CLOSE)
    write_tagger(tmp_path / "u", {"output": "tags"}, size=SIDE)
    with pytest.raises(FileProblem, match="has no output 'tags', only scores"):
        load(tmp_path / "u")
    write_tagger(tmp_path / "v", {"output": 3}, size=SIDE)
    with pytest.raises(FileProblem, match="has no output 3"):
        load(tmp_path / "v")


# --- files that lie ---------------------------------------------------------------------------


def test_a_tag_list_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    write_tagger(tmp_path / "t", size=SIDE)
    write_tags(tmp_path / "t" / "selected_tags.csv", LABELS[:-2])
    with pytest.raises(FileProblem, match=r"lists 18 tags, and model\.onnx gives 20 scores; put"):
        load(tmp_path / "t")


def test_wrongly_declared_scores_are_noticed(tmp_path: Path) -> None:
    write_tagger(tmp_path / "t", {"logits": False}, size=SIDE, logits=True)
    tagger = load(tmp_path / "t")
    with pytest.raises(FileProblem, match='which are no probabilities; set "logits": true in'):
        scores_of(tagger, picture())
    write_tagger(tmp_path / "u", {"logits": True}, size=SIDE)
    tagger = load(tmp_path / "u")
    with pytest.raises(FileProblem, match='which are no logits; set "logits": false in'):
        scores_of(tagger, picture())


def test_scores_that_are_no_numbers_are_noticed(tmp_path: Path) -> None:
    path = write_tagger(tmp_path / "t", {"family": "wd"}, size=SIDE).path
    model = onnx.load(path)
    bias = next(each for each in model.graph.initializer if each.name == "bias")
    broken = np.full(len(LABELS), np.nan, np.float32)
    bias.CopyFrom(onnx.numpy_helper.from_array(broken, "bias"))
    onnx.save(model, path)
    with pytest.raises(FileProblem, match="gives scores that are no numbers on CPU"):
        scores_of(load(tmp_path / "t"), picture())


def test_another_layout_than_declared_is_noticed(tmp_path: Path) -> None:
    write_tagger(tmp_path / "t", {"layout": "NCHW"}, size=SIDE, layout="NHWC")
    with pytest.raises(FileProblem, match="no square of three channels as NCHW; name the right"):
        load(tmp_path / "t")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "cannot be loaded"),
        (b"not a model", "cannot be loaded"),
        (b"version https://git-lfs.github.com/spec/v1\n", "is a Git LFS pointer"),
    ],
)
def test_files_that_are_no_model(content: bytes, said: str, tmp_path: Path) -> None:
    write_tagger(tmp_path / "t", size=SIDE)
    (tmp_path / "t" / "model.onnx").write_bytes(content)
    with pytest.raises(FileProblem, match=said) as caught:
        load(tmp_path / "t")
    assert str(caught.value).startswith(str(tmp_path / "t" / "model.onnx"))


def test_a_cut_model_is_refused(tmp_path: Path) -> None:
    whole = write_tagger(tmp_path / "t", size=SIDE).path
    whole.write_bytes(whole.read_bytes()[:-5000])
    with pytest.raises(FileProblem, match="cannot be loaded"):
        load(tmp_path / "t")


def test_a_model_that_is_not_here_says_where_to_put_what(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    with pytest.raises(NotHere) as caught:
        load_tagger("wd-vit-tagger-v3", tmp_path)
    said = str(caught.value)
    assert "put model.onnx and selected_tags.csv from" in said
    assert "https://huggingface.co/SmilingWolf/wd-vit-tagger-v3" in said
    assert str(tmp_path / "wd-vit-tagger-v3") in said
    with pytest.raises(NotHere, match=r"get https://.*custom_v3\.pt and put it into"):
        load_tagger("deepbooru", tmp_path)


# --- the object -------------------------------------------------------------------------------


def test_devices(tmp_path: Path) -> None:
    write_tagger(tmp_path / "t", size=SIDE)
    with pytest.raises(OptionProblem, match="takes one of auto, gpu, cpu, not 'tpu'"):
        load_tagger("t", tmp_path, device="tpu")


def test_a_closed_tagger_says_so(tmp_path: Path) -> None:
    write_tagger(tmp_path / "t", size=SIDE)
    tagger = load(tmp_path / "t")
    tagger.close()
    with pytest.raises(FileProblem, match="t: was unloaded"):
        scores_of(tagger, picture())


def test_what_is_not_prepared_is_refused(tmp_path: Path) -> None:
    write_tagger(tmp_path / "t", size=SIDE)
    with pytest.raises(ValueError, match="takes uint8"):
        load(tmp_path / "t").score(np.zeros((1, 10, 10, 3), np.uint8))


def test_threads_share_a_tagger(tmp_path: Path) -> None:
    write_tagger(tmp_path / "t", size=SIDE)
    tagger = load(tmp_path / "t")
    images = [picture(60 + i, 50) for i in range(8)]
    alone = [scores_of(tagger, image) for image in images]
    found: dict[int, Array] = {}

    def work(i: int) -> None:
        for _ in range(5):
            found[i] = scores_of(tagger, images[i])

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i in range(8):
        np.testing.assert_array_equal(found[i], alone[i])


def test_a_revision_is_of_the_content(tmp_path: Path) -> None:
    first = write_tagger(tmp_path / "t", size=SIDE)
    write_tagger(tmp_path / "copy", size=SIDE)
    write_tagger(tmp_path / "other", size=SIDE, seed=1)
    names = ("t", "copy", "other")
    loaded = {name: load(tmp_path / name) for name in names}
    assert loaded["t"].revision == loaded["copy"].revision != loaded["other"].revision
    assert loaded["t"].preprocess == loaded["other"].preprocess
    write_tags(tmp_path / "copy" / "selected_tags.csv", [("x", "0")] * len(LABELS))
    assert load(tmp_path / "copy").revision != loaded["t"].revision
    content = bytearray(first.path.read_bytes())
    before = revision_of(first.path)
    content[len(content) // 2] ^= 1
    first.path.write_bytes(content)
    assert revision_of(first.path) != before


def test_another_way_of_preparing_has_another_name(tmp_path: Path) -> None:
    write_tagger(tmp_path / "t", size=SIDE)
    write_tagger(tmp_path / "u", {"fit": "squash"}, size=SIDE)
    one, other = load(tmp_path / "t"), load(tmp_path / "u")
    assert one.preprocess != other.preprocess
    assert (one.draft_side, other.draft_side) == (2 * SIDE, None)


def test_sigmoid_bears_any_number() -> None:
    values = np.array([-1e30, -80, -1, 0, 1, 80, 1e30], np.float32)
    exact = [0, np.exp(-80), 1 / (1 + np.e), 0.5, np.e / (1 + np.e), 1, 1]
    with np.errstate(all="raise", under="ignore"):
        np.testing.assert_allclose(sigmoid(values), exact, rtol=1e-6)


def test_a_draft_changes_scores_little(tmp_path: Path) -> None:
    write_tagger(tmp_path / "t", size=SIDE)
    tagger = load(tmp_path / "t")
    stream = io.BytesIO()
    picture(800, 600).save(stream, "JPEG", quality=95)
    exact = scores_of(tagger, open_picture(stream.getvalue()))
    draft = open_picture(stream.getvalue(), least=tagger.draft_side)
    assert draft.size == (100, 75)
    np.testing.assert_allclose(scores_of(tagger, draft), exact, atol=0.03)


def test_output_widths_that_are_told_late_are_checked_too(tmp_path: Path) -> None:
    """A file whose width is known only when it runs."""
    path = write_tagger(tmp_path / "t", {"family": "wd"}, size=SIDE).path
    model = onnx.load(path)
    nodes = model.graph.node
    nodes[-1].output[0] = "all"
    nodes.append(onnx.helper.make_node("NonZero", ["bias"], ["numbers"]))
    nodes.append(onnx.helper.make_node("Flatten", ["numbers"], ["places"], axis=0))
    nodes.append(onnx.helper.make_node("Gather", ["all", "places"], ["scores"], axis=1))
    shape = model.graph.output[0].type.tensor_type.shape
    shape.dim[1].dim_param = "some"
    onnx.save(model, path)
    write_tags(tmp_path / "t" / "selected_tags.csv", LABELS[:5])
    # by when it loads, if the runtime folds constants, else by when it runs
    with pytest.raises(FileProblem, match=r"lists 5 tags, and model\.onnx gives 20 scores"):
        scores_of(load(tmp_path / "t"), picture())


def test_the_contract_of_an_unknown_size_is_the_familys(tmp_path: Path) -> None:
    write_model(tmp_path / "t" / "model.onnx", size=SIDE, dynamic_size=True)
    write_tags(tmp_path / "t" / "selected_tags.csv")
    (tmp_path / "t" / "crucible-tagger.json").write_text('{"family": "wd"}', encoding="utf-8")
    assert load(tmp_path / "t").size == contract_of("wd").size == 448


def test_pictures_that_the_model_cannot_take_are_said(tmp_path: Path) -> None:
    write_tagger(tmp_path / "open", {"size": 32}, dynamic_size=True)
    tagger = load_tagger(str(tmp_path / "open"), tmp_path, device="cpu")
    with pytest.raises(FileProblem, match=r'cannot be run on pictures of \[1, 32, 32, 3\].*"size"'):
        scores_of(tagger, picture())
