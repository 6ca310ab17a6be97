"""Tag lists of every kind that the field has, and such as are none."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from extensions_lib.errors import FileProblem
from extensions_lib.tagging.labels import DANBOORU, Label, find_list, read_labels


def write(path: Path, content: str | list[object] | dict[str, object]) -> Path:
    text = content if isinstance(content, str) else json.dumps(content)
    path.write_text(text, encoding="utf-8")
    return path


EXPECTED = (
    Label("general", "rating"),
    Label("long_hair", "general"),
    Label("saber_(fate)", "character"),
)
MAPPING = {
    "idx_to_tag": {"0": "rating_general", "1": "long_hair", "2": "saber_(fate)"},
    "tag_to_category": {
        "rating_general": "rating",
        "long_hair": "general",
        "saber_(fate)": "character",
    },
}
LISTS: dict[str, tuple[str, str | list[object] | dict[str, object]]] = {
    "WD": (
        "selected_tags.csv",
        "tag_id,name,category,count\n9999999,general,9,5\n1,long_hair,0,4\n2,saber_(fate),4,3\n",
    ),
    "columns in another order, with a mark": (
        "tags-selected.csv",
        "\ufeffid,category,name\n1,9,general\n2,0,long_hair\n3,4,saber_(fate)\n",
    ),
    "CL": (
        "tag_mapping.json",
        {
            "0": {"tag": "general", "category": "Rating"},
            "1": {"tag": "long_hair", "category": "General"},
            "2": {"tag": "saber_(fate)", "category": "Character"},
        },
    ),
    "Camie": ("x-metadata.json", {"dataset_info": {"tag_mapping": MAPPING}}),
    "CL's second": ("tag_mapping.json", MAPPING),
}


@pytest.mark.parametrize("kind", LISTS)
def test_lists_with_categories(kind: str, tmp_path: Path) -> None:
    name, content = LISTS[kind]
    assert read_labels(write(tmp_path / name, content)) == EXPECTED


def test_lists_of_names_alone(tmp_path: Path) -> None:
    names = ["1girl", "long_hair", "rating:safe"]
    expected = (
        Label("1girl", "general"),
        Label("long_hair", "general"),
        Label("safe", "rating"),
    )
    lines = write(tmp_path / "tags.txt", "1girl\n long_hair\r\n\nrating:safe\n")
    assert read_labels(lines) == expected
    assert read_labels(write(tmp_path / "classes.json", list(names))) == expected


def test_names_with_commas_and_quotes(tmp_path: Path) -> None:
    path = write(tmp_path / "t.csv", 'name,category\n"a,b",0\n"say ""hi""",0\n')
    assert [label.name for label in read_labels(path)] == ["a,b", 'say "hi"']


def test_the_numbers_of_another_board(tmp_path: Path) -> None:
    path = write(tmp_path / "t.csv", "name,category\nfox,5\nold,6\n")
    assert [label.category for label in read_labels(path)] == ["meta", "6"]
    own = {**DANBOORU, "5": "species"}
    assert [label.category for label in read_labels(path, own)] == ["species", "6"]


BROKEN: dict[str, str | list[object] | dict[str, object]] = {
    "empty.csv": "",
    "header.csv": "name,category\n",
    "other.csv": "id,label\n1,x\n",
    "empty.txt": "\n\n",
    "broken.json": "{",
    "number.json": "3",
    "numbers.json": [1, 2],
    "empty.json": [],
    "gap.json": {"0": "a", "2": "b"},
    "names.json": {"a": 0, "b": 1},
    "short.csv": "tag_id,name,category\n1,hat,0\n2\n",
    "categories.json": {"idx_to_tag": {"0": "a"}, "tag_to_category": ["general"]},
    "deep.json": "[" * 100_000,
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_no_list_is_refused(name: str, tmp_path: Path) -> None:
    path = write(tmp_path / name, BROKEN[name])
    with pytest.raises(FileProblem, match=f"{name}: "):
        read_labels(path)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(FileProblem, match=r"gone\.csv: there is no such file"):
        read_labels(tmp_path / "gone.csv")
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9\n")
    with pytest.raises(FileProblem, match=r"latin\.txt: is no text in UTF-8"):
        read_labels(tmp_path / "latin.txt")
    with open(tmp_path / "huge.txt", "wb") as stream:
        stream.truncate(65 << 20)
    with pytest.raises(FileProblem, match=r"huge\.txt: is too large"):
        read_labels(tmp_path / "huge.txt")


def test_the_surest_list_of_a_folder_is_found(tmp_path: Path) -> None:
    assert find_list(tmp_path) is None
    for name in ("readme.txt", "tags.txt", "selected_tags.csv"):
        write(tmp_path / name, "name\n1girl\n")
    assert find_list(tmp_path) == tmp_path / "selected_tags.csv"
    other = tmp_path / "camie"
    other.mkdir()
    write(other / "camie-tagger-v2-metadata.json", "{}")
    assert find_list(other) == other / "camie-tagger-v2-metadata.json"
