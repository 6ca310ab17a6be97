"""Dataset files of sd-scripts."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from extensions_lib.datasets.dataset_file import read_dataset_file, read_toml
from extensions_lib.datasets.folders import Subset
from extensions_lib.datasets.items import find_pictures
from extensions_lib.datasets.options import DataOptions
from extensions_lib.errors import CrucibleError, FileProblem
from tests.datasets.sets import make

WHOLE = """
[general]
shuffle_caption = true
caption_extension = '.txt'
keep_tokens = 1
cache_info = true

[[datasets]]
resolution = 768
batch_size = 4
keep_tokens = 2
min_bucket_reso = 128

  [[datasets.subsets]]
  image_dir = 'one'
  class_tokens = 'sls girl'
  num_repeats = 10
  keep_tokens = 3
  alpha_mask = true

  [[datasets.subsets]]
  is_reg = true
  image_dir = 'two'
  face_crop_aug_range = [2.0, 4.0]
  custom_attributes = {}

[[datasets]]
resolution = [512, 768]
validation_split = 0.1

  [[datasets.subsets]]
  image_dir = 'one'
"""


def written(folder: Path, text: str, name: str = "data.toml") -> Path:
    make(folder, {"one/a.png": "x", "two/a.png": None})
    (folder / name).write_text(text)
    return folder / name


def test_a_whole_file(tmp_path: Path) -> None:
    one, two, three = read_dataset_file(written(tmp_path, WHOLE))
    general = {"shuffle_caption": True, "caption_extension": ".txt"}
    first = {"resolution": "768", "train_batch_size": 4, "min_bucket_reso": 128}
    assert one == Subset(
        tmp_path / "one",
        10,
        "sls girl",
        overrides={**general, **first, "keep_tokens": 3, "alpha_mask": True},
    )
    assert two == Subset(
        tmp_path / "two",
        is_reg=True,
        overrides={**general, **first, "keep_tokens": 2, "face_crop_aug_range": (2.0, 4.0)},
    )
    assert three == Subset(
        tmp_path / "one",
        dataset=1,
        overrides={
            **general,
            "keep_tokens": 1,
            "resolution": "512,768",
            "validation_split": 0.1,
        },
    )
    settings = one.settings(DataOptions(flip_aug=True, keep_tokens=9))
    assert settings.flip_aug and settings.keep_tokens == 3 and settings.num_repeats == 10


def test_the_same_as_json(tmp_path: Path) -> None:
    path = written(tmp_path, WHOLE)
    other = tmp_path / "data.json"
    other.write_text(json.dumps(read_toml(path)))
    assert read_dataset_file(other) == read_dataset_file(path)


def test_folders_are_looked_for_beside_the_file_then_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(tmp_path / "here", {"pics/a.png": None})
    (tmp_path / "conf").mkdir()
    path = tmp_path / "conf/data.toml"
    path.write_text("[[datasets]]\n[[datasets.subsets]]\nimage_dir = 'pics'\n")
    with pytest.raises(FileProblem, match="names pics, which is not there"):
        read_dataset_file(path)
    monkeypatch.chdir(tmp_path / "here")
    assert read_dataset_file(path)[0].folder == Path("pics")
    make(tmp_path / "conf", {"pics/a.png": None})
    assert read_dataset_file(path)[0].folder == tmp_path / "conf/pics"


def subset(line: str, dataset: str = "", general: str = "") -> str:
    return (
        f"[general]\n{general}\n[[datasets]]\n{dataset}\n[[datasets.subsets]]\n"
        f"image_dir = 'one'\n{line}\n"
    )


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (subset("num_repeat = 3"), "num_repeat in subset 1 of data set 1.*mean num_repeats"),
        (subset("", dataset="batchsize = 2"), "batchsize in data set 1.*mean batch_size"),
        (subset("", general="shuffle_captions = true"), r"\[general\].*mean shuffle_caption"),
        (subset("xyzzy = 1"), "there is no such key.$"),
        (subset("batch_size = 2"), r"belongs in \[\[datasets\]\]"),
        (subset("", general="image_dir = 'one'"), r"belongs in \[\[datasets.subsets\]\]"),
        ("[data]\n", "data in the file.*mean datasets"),
        (subset("keep_tokens = 'two'"), "subset 1 of data set 1: keep_tokens: takes a whole"),
        (subset("shuffle_caption = 3"), "shuffle_caption: takes true or false"),
        (subset("caption_dropout_rate = 1.5"), "from 0 to 1, not 1.5"),
        (subset("is_reg = 1"), "is_reg of subset 1.*true or false"),
        (subset("class_tokens = 5"), "class_tokens of subset 1.*takes text"),
        (subset("custom_attributes = {a = 1}"), "custom_attributes.*not supported"),
        (subset("", dataset="network_multiplier = 0.5"), "network_multiplier.*not supported"),
        (subset("conditioning_data_dir = 'masks'"), "names masks, which is not there"),
        (subset("[[datasets.subsets]]\nimage_dir = 'one'"), "names .*one twice"),
        ("[general]\n", r"there is no \[\[datasets\]\]"),
        ("[[datasets]]\n", r"there is no \[\[datasets.subsets\]\] of data set 1"),
        ("[[datasets]]\n[[datasets.subsets]]\nnum_repeats = 2\n", "has no image_dir"),
        ("general = 3\n", r"\[general\] is to be a table"),
        ("[[datasets]\n", "is no valid TOML .*line 1"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, text: str, said: str) -> None:
    path = written(tmp_path, text)
    with pytest.raises(FileProblem, match=said) as caught:
        read_dataset_file(path)
    assert str(path) in str(caught.value)


def test_files_that_are_none(tmp_path: Path) -> None:
    for name, raw, said in [
        ("a.yaml", b"", "ends in .toml or .json"),
        ("a.json", b"{", "is no valid JSON"),
        ("a.json", b"[]", "is to be a table"),
        ("a.toml", b"\xff\xff", "is not UTF-8"),
    ]:
        (tmp_path / name).write_bytes(raw)
        with pytest.raises(FileProblem, match=said):
            read_dataset_file(tmp_path / name)
    with pytest.raises(FileProblem, match="cannot be read"):
        read_dataset_file(tmp_path / "missing.toml")


def test_every_option_of_the_file_is_one_of_ours(tmp_path: Path) -> None:
    """What sd-scripts takes in a dataset file, each with a value it may have."""
    general = """
    bucket_no_upscale = true
    bucket_reso_steps = 32
    caption_dropout_every_n_epochs = 2
    caption_dropout_rate = 0.1
    caption_extension = '.caption'
    caption_prefix = 'a'
    caption_separator = ';'
    caption_suffix = 'b'
    caption_tag_dropout_rate = 0.1
    class_tokens = 'girl'
    color_aug = true
    enable_bucket = true
    enable_wildcard = true
    flip_aug = true
    keep_tokens = 1
    keep_tokens_separator = '|||'
    max_bucket_reso = 2048
    network_multiplier = 1.0
    num_repeats = 2
    random_crop = true
    resize_interpolation = 'area'
    secondary_separator = ';;;'
    shuffle_caption = true
    token_warmup_min = 2
    token_warmup_step = 0.5
    validation_seed = 3
    validation_split = 0.2
    """
    [got] = read_dataset_file(written(tmp_path, subset("", general=general)))
    assert (got.num_repeats, got.class_tokens) == (2, "girl")
    assert got.overrides["token_warmup_step"] == 0.5 and got.overrides["bucket_reso_steps"] == 32
    assert len(got.overrides) == 24


# --- fine-tuning metadata ---------------------------------------------------------------------


def metadata(folder: Path, held: object, more: str = "", name: str = "meta.json") -> Path:
    make(folder, {"pics/a.png": "ignored", "pics/b.png": None})
    text = held if isinstance(held, str) else json.dumps(held)
    (folder / name).write_text(text)
    path = folder / "data.toml"
    path.write_text(
        f"[[datasets]]\n[[datasets.subsets]]\nmetadata_file = '{name}'\n"
        f"image_dir = 'pics'\n{more}\n"
    )
    return path


def captions(path: Path) -> dict[str, str | None]:
    found = find_pictures(read_dataset_file(path), DataOptions())
    assert not found.broken
    return {each.path.name: each.caption for each in found.pictures}


def test_captions_of_a_metadata_file(tmp_path: Path) -> None:
    held = {"a": {"caption": "a cat", "tags": "cat, mat"}, "b.png": {"tags": "dog"}}
    assert captions(metadata(tmp_path, held)) == {"a.png": "a cat,cat, mat", "b.png": "dog"}
    lines = [{"image_path": str(tmp_path / "pics/b.png"), "caption": "of a line"}]
    text = "\n".join(map(json.dumps, lines))
    assert captions(metadata(tmp_path, text, name="m.jsonl")) == {"b.png": "of a line"}
    wild = metadata(tmp_path, {"a": {"caption": "x\ny", "tags": "z"}}, "enable_wildcard = true")
    assert captions(wild) == {"a.png": "x,z\ny,z"}


def test_tags_of_a_metadata_file_may_be_a_list(tmp_path: Path) -> None:
    held = {"a": {"caption": "a cat", "tags": ["cat", "red mat"]}, "b": {"tags": []}}
    assert captions(metadata(tmp_path, held)) == {"a.png": "a cat,cat,red mat", "b.png": ""}
    for wrong in (3, {"cat": 0.9}, [["cat"]]):
        path = metadata(tmp_path, {"a": {"tags": wrong}})
        with pytest.raises(FileProblem, match=r"meta\.json: a: tags: takes text or a list"):
            find_pictures(read_dataset_file(path), DataOptions())


def test_a_metadata_file_that_names_what_is_not_there(tmp_path: Path) -> None:
    path = metadata(tmp_path, {"a": {"caption": "x"}, "gone": {"caption": "y"}})
    found = find_pictures(read_dataset_file(path), DataOptions())
    assert len(found.pictures) == 1
    assert "gone" in found.broken[0].name


@pytest.mark.parametrize("text", ["[]", "{", '{"a": 3}', '"x"'])
def test_a_metadata_file_that_is_none(tmp_path: Path, text: str) -> None:
    path = metadata(tmp_path, text)
    with pytest.raises(CrucibleError, match="is no metadata file"):
        find_pictures(read_dataset_file(path), DataOptions())


def test_relative_names_need_a_folder(tmp_path: Path) -> None:
    (tmp_path / "meta.json").write_text('{"a": {"caption": "x"}}')
    held = Subset(None, metadata_file=tmp_path / "meta.json")
    with pytest.raises(FileProblem, match="give image_dir"):
        find_pictures([held], DataOptions())
    assert os.path.basename(held.name) == "meta.json"
