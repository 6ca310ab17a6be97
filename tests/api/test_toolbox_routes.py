"""The toolbox by REST: what a file is, jobs and their results, refusals, who may name what."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from extensions_lib.api.auth import basic_dependencies
from extensions_lib.api.toolbox import PREFIX, Service, add_routes
from extensions_lib.api.toolbox_orders import Desk
from extensions_lib.files.networks import read_network
from extensions_lib.options import options_of
from extensions_lib.toolbox import sorts
from extensions_lib.toolbox.tools import TOOLS
from extensions_lib.toolbox.work import Output
from extensions_lib.training.cache_options import Caching
from extensions_lib.ui.jobs import Jobs
from tests.tiny import tiny_checkpoint
from tests.toolbox.networks import K, Q, lora, written

PATIENCE = 120.0  # seconds


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A folder as a WebUI's, with two networks."""
    folder = tmp_path / "data"
    networks = folder / "models" / "Lora"
    networks.mkdir(parents=True)
    written(networks / "one.safetensors", {Q: lora(Q, 4, 2.0, 1), K: lora(K, 4, 2.0, 3)})
    written(networks / "two.safetensors", {Q: lora(Q, 2, 1.0, 5)})
    return folder


class Shelves:
    """A place of which nothing but its list of files is needed."""

    def __init__(self) -> None:
        self.looked_through = 0

    def new_files(self) -> None:
        self.looked_through += 1


def desk(data: Path, only_below: Path | None = None) -> Desk:
    def folders(sort: str) -> Sequence[Path]:
        return [data / sorts.PLACES[sort]] if sort in sorts.PLACES else []

    shelves: Any = Shelves()
    return Desk(data, folders, lambda: None, lambda: shelves, data / "cache", only_below)


def client(data: Path, only_below: Path | None = None, auth: str = "") -> TestClient:
    app = FastAPI()
    service = Service(desk(data, only_below), Jobs())
    add_routes(app, service, dependencies=basic_dependencies(auth))
    return TestClient(app)


@pytest.fixture
def rest(data: Path) -> TestClient:
    return client(data)


def post(rest: TestClient, path: str, order: Any, status: int = 200) -> Any:
    answer = rest.post(f"{PREFIX}/{path}", json=order)
    assert answer.status_code == status, answer.text
    return answer.json()


def ended(rest: TestClient, key: str) -> dict[str, Any]:
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        told = dict(rest.get(f"{PREFIX}/jobs/{key}").json())
        if told["state"] in ("done", "stopped", "failed"):
            return told
        time.sleep(0.05)
    raise AssertionError(told)


def done(rest: TestClient, word: str, order: Any) -> Any:
    told = ended(rest, post(rest, word, order)["job"])
    assert told["state"] == "done", told
    return told["result"]


def test_a_file_is_told_by_path_and_by_name(rest: TestClient, data: Path) -> None:
    by_path = post(rest, "inspect", {"path": "models/Lora/one.safetensors"})
    assert by_path["what"] == "LoRA" and by_path["ranks"] == {"4": 2}
    assert set(by_path["hashes"]) >= {"sha256", "AutoV3"}
    by_name = post(rest, "inspect", {"path": "one", "hashes": False})
    assert by_name["path"] == by_path["path"] and by_name["hashes"] == {}
    checkpoint = tiny_checkpoint(data / "models" / "Stable-diffusion" / "tiny.safetensors")
    held = post(rest, "inspect", {"path": "one", "against": checkpoint.name})
    assert held["fitting"] is not None


def test_networks_become_one_and_smaller(rest: TestClient, data: Path) -> None:
    merged = done(rest, "merge", {"networks": ["one:0.5", "models/Lora/two.safetensors:-1:0.25"]})
    path = Path(merged["path"])
    assert path == data / "models" / "Lora" / "one-merged.safetensors"
    assert read_network(path).adapters[Q].rank == 6 and merged["kept"] == 1.0
    small = done(rest, "resize", {"file": str(path), "rank": 1, "out": "small"})
    assert Path(small["path"]) == path.with_name("small.safetensors")
    assert {each["rank"] for each in small["layers"]} == {1} and 0 < small["kept"] < 1
    curves = done(rest, "spectrum", {"path": "small"})
    assert [each["layer"] for each in curves] == [Q, K] and all(c["curve"] for c in curves)


def test_what_comes_from_elsewhere_goes_where_it_is_found(
    rest: TestClient, data: Path, tmp_path: Path
) -> None:
    away = written(tmp_path / "away.safetensors", {Q: lora(Q, 4, 1.0, 9)})
    small = done(rest, "resize", {"file": str(away), "rank": 2})
    assert Path(small["path"]) == data / "models" / "Lora" / "away-r2.safetensors"
    assert sorted(each.name for each in tmp_path.iterdir()) == ["away.safetensors", "data"]


def test_a_file_is_moved_where_it_belongs_and_over_no_other(
    rest: TestClient, data: Path, tmp_path: Path
) -> None:
    away = written(tmp_path / "new.safetensors", {Q: lora(Q, 4, 1.0, 9)})
    away.with_suffix(".png").write_bytes(b"a picture")
    content = away.read_bytes()
    moved = Path(post(rest, "move", {"path": str(away)})["path"])
    assert moved == data / "models" / "Lora" / "new.safetensors" and moved.read_bytes() == content
    assert moved.with_suffix(".png").exists() and not away.exists()
    assert Path(post(rest, "move", {"path": "new"})["path"]) == moved
    again = written(tmp_path / "new.safetensors", {Q: lora(Q, 2, 1.0, 9)})
    assert "is there already" in post(rest, "move", {"path": str(again)}, 404)["detail"]
    assert moved.read_bytes() == content and again.exists()
    (tmp_path / "note.safetensors").write_text("<!doctype html>")
    post(rest, "move", {"path": str(tmp_path / "note.safetensors")}, 404)


def test_a_name_that_is_taken_is_refused_or_numbered(rest: TestClient, data: Path) -> None:
    order = {"file": "one", "rank": 1}
    first = Path(done(rest, "resize", order)["path"])
    before = first.read_bytes()
    told = ended(rest, post(rest, "resize", order)["job"])
    assert told["state"] == "failed" and "exists" in told["message"]
    numbered = Path(done(rest, "resize", {**order, "number": True})["path"])
    assert numbered.name == "one-r1-2.safetensors" and first.read_bytes() == before


def test_a_job_is_stopped_and_leaves_nothing(
    rest: TestClient, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from extensions_lib.toolbox import resize as module

    plain: Callable[..., Any] = module._resized

    def slow(*given: Any) -> Any:
        time.sleep(0.5)
        return plain(*given)

    monkeypatch.setattr(module, "_resized", slow)
    before = sorted((data / "models" / "Lora").iterdir())
    key = post(rest, "resize", {"file": "one", "rank": 1})["job"]
    post(rest, f"jobs/{key}/stop", {})
    deadline = time.monotonic() + PATIENCE
    while post(rest, f"jobs/{key}/stop", {})["state"] != "stopped":
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert sorted((data / "models" / "Lora").iterdir()) == before
    listed = rest.get(f"{PREFIX}/jobs").json()["jobs"]
    assert [(each["job"], each["state"]) for each in listed] == [(key, "stopped")]


def test_a_folder_is_looked_through(rest: TestClient, data: Path) -> None:
    networks = data / "models" / "Lora"
    (networks / "copy.safetensors").write_bytes((networks / "one.safetensors").read_bytes())
    found = done(rest, "survey", {"path": "models"})
    assert found["duplicates"] == [["Lora/copy.safetensors", "Lora/one.safetensors"]]
    assert len(found["files"]) == 3


def test_the_files_of_the_host_are_listed(rest: TestClient, data: Path) -> None:
    tiny_checkpoint(data / "models" / "Stable-diffusion" / "tiny.safetensors")

    def listed(**asked: str) -> list[str]:
        return list(rest.get(f"{PREFIX}/files", params=asked).json()["files"])

    assert listed(sort="network") == ["models/Lora/one.safetensors", "models/Lora/two.safetensors"]
    assert listed(sort="checkpoint") == ["models/Stable-diffusion/tiny.safetensors"]
    assert listed(words="TWO lora") == ["models/Lora/two.safetensors"]
    assert listed(sort="nonsense") == []


@pytest.mark.parametrize("word", [*TOOLS, "cache"])
def test_the_schema_has_inputs_and_every_option(rest: TestClient, word: str) -> None:
    told = rest.get(f"{PREFIX}/{word}/options").json()
    names = {each.name for each in options_of(Caching)} if word == "cache" else None
    if names is None:
        tool = TOOLS[word]
        names = {each.name for each in (*options_of(tool.options), *options_of(Output))}
        names |= {each.name for each in tool.inputs}
        assert set(told["required"]) == {each.name for each in tool.inputs if each.least}
    assert set(told["properties"]) == names


@pytest.mark.parametrize(
    ("word", "order", "status", "said"),
    [
        ("resize", {"rank": 1}, 422, "file: name a network file"),
        ("resize", {"file": "one", "rank": 0}, 422, "rank: takes"),
        ("resize", {"file": "one", "rnak": 2}, 422, "did you mean rank?"),
        ("resize", {"file": ["one"]}, 422, "file: name"),
        ("merge", {"networks": "one"}, 422, "networks: takes a list"),
        ("merge", {"networks": [1]}, 422, "networks: takes a list"),
        ("merge", {"networks": []}, 422, "networks: name"),
        ("cache", {"resolution": 512}, 422, "resolution: takes"),
        ("survey", {"path": 3}, 422, "path: takes a text"),
        ("inspect", {"path": ""}, 409, "Name a file"),
        ("inspect", {"path": "gone"}, 404, "no such file"),
        ("inspect", {"path": "one", "hashes": "yes"}, 422, "hashes: takes"),
        ("jobs/unknown/stop", {}, 404, "there is no such job"),
    ],
)
def test_wrong_orders_are_refused(
    rest: TestClient, word: str, order: Any, status: int, said: str
) -> None:
    assert said in post(rest, word, order, status)["detail"]


def test_an_order_of_another_site_is_refused(rest: TestClient) -> None:
    answer = rest.post(f"{PREFIX}/move", content=b'{"path": "one"}')
    assert answer.status_code == 415


def test_strangers_name_nothing_outside(data: Path, tmp_path: Path) -> None:
    away = written(tmp_path / "away.safetensors", {Q: lora(Q, 4, 1.0, 9)})
    rest = client(data, only_below=data)
    for order in ({"path": str(away)}, {"path": "../away.safetensors"}, {"path": "/etc/passwd"}):
        assert "without a password" in post(rest, "inspect", order, 409)["detail"]
        post(rest, "move", order, 409)
    (data / "link.safetensors").symlink_to(away)
    post(rest, "inspect", {"path": "link.safetensors"}, 409)
    for word, order in (
        ("resize", {"file": str(away)}),
        ("resize", {"file": "one", "out": str(tmp_path / "x.safetensors")}),
        ("resize", {"file": "one", "base": str(away)}),
        ("resize", {"file": "one", "out": "../../../x"}),
        ("merge", {"networks": ["one:0.5", f"{away}:1"]}),
        ("survey", {"path": str(tmp_path)}),
        ("spectrum", {"path": str(away)}),
        ("cache", {"train_data_dir": str(tmp_path)}),
    ):
        told = ended(rest, post(rest, word, order)["job"])
        assert told["state"] == "failed" and "without a password" in told["message"], order
    assert sorted(each.name for each in tmp_path.iterdir()) == ["away.safetensors", "data"]
    assert done(rest, "resize", {"file": "one", "rank": 2})["path"].startswith(str(data))


def test_a_file_given_to_the_page_may_be_named(data: Path, tmp_path: Path) -> None:
    away = written(tmp_path / "away.safetensors", {Q: lora(Q, 4, 1.0, 9)})
    found = desk(data, only_below=data)
    found.dropped.add(away)
    assert found.inspect(str(away), hashes=False).what == "LoRA"
    assert found.move(str(away)) == data / "models" / "Lora" / "away.safetensors"
    assert found.here().looked_through == 1  # type: ignore[attr-defined]
    assert away not in found.dropped


def test_programs_need_the_password(data: Path) -> None:
    rest = client(data, auth="me:secret")
    assert rest.post(f"{PREFIX}/inspect", json={"path": "one"}).status_code == 401
    assert rest.get(f"{PREFIX}/files").status_code == 401
    answer = rest.post(f"{PREFIX}/inspect", json={"path": "one"}, auth=("me", "secret"))
    assert answer.status_code == 200
