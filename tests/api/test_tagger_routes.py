"""The tagger's REST in a real server: shapes of both kinds of clients, limits, who may ask."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

import pytest
from fastapi import Depends, FastAPI, HTTPException
from fastapi.testclient import TestClient
from PIL import Image

from extensions_lib.api import tagger as tagger_routes
from extensions_lib.api.auth import basic_dependencies, host_dependencies
from extensions_lib.api.tagger import Service, add_routes
from extensions_lib.datasets.pictures import open_picture
from extensions_lib.errors import CrucibleError
from extensions_lib.tagging.pool import Pool
from tests.tagging.sets import NAMES, write_pictures, write_tagger

RATINGS = {name for name, category in NAMES if category == 9}


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Pool:
    models = tmp_path_factory.mktemp("models")
    write_tagger(models / "colours")
    return Pool(models, threads=1)


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    [path] = write_pictures(tmp_path_factory.mktemp("pictures"), 1)
    return path.read_bytes()


@pytest.fixture
def client(pool: Pool) -> TestClient:
    app = FastAPI()
    add_routes(app, Service(pool))
    return TestClient(app)


def encoded(picture: bytes) -> str:
    return base64.b64encode(picture).decode()


def scores(pool: Pool, picture: bytes) -> dict[str, float]:
    tagger = pool.tagger("colours")
    [values] = tagger.score(tagger.prepare(open_picture(picture))[None])
    return {label.name: float(v) for label, v in zip(tagger.labels, values, strict=True)}


def ask(client: TestClient, path: str = "/tagger/v1/interrogate", **order: Any) -> Any:
    answer = client.post(path, json={"model": "colours", **order})
    assert answer.status_code == 200, answer.text
    return answer.json()


# --- shapes -----------------------------------------------------------------------------------


def test_flat_answers(client: TestClient, pool: Pool, picture: bytes) -> None:
    found = ask(client, image=encoded(picture), threshold=0.5)
    known = scores(pool, picture)
    assert list(found) == ["caption"]
    caption = found["caption"]
    assert set(caption) == {n for n, v in known.items() if v >= 0.5 or n in RATINGS}
    assert caption == {name: pytest.approx(known[name]) for name in caption}
    names = list(caption)
    assert set(names[:2]) == RATINGS
    assert [caption[n] for n in names[2:]] == sorted((caption[n] for n in names[2:]), reverse=True)
    by_default = ask(client, image=encoded(picture))["caption"]
    assert min(v for n, v in by_default.items() if n not in RATINGS) >= 0.35


def test_nested_answers(client: TestClient, pool: Pool, picture: bytes) -> None:
    order = {"image": encoded(picture), "threshold": 0.5, "queue": "", "name_in_queue": ""}
    caption = ask(client, **order)["caption"]
    assert set(caption) == {"tag", "rating"}
    assert set(caption["rating"]) == RATINGS
    known = scores(pool, picture)
    assert set(caption["tag"]) == {n for n, v in known.items() if v > 0.5 and n not in RATINGS}
    every = ask(client, image=encoded(picture), queue="")["caption"]["tag"]
    assert len(every) == len(NAMES) - len(RATINGS)


def test_the_shape_can_be_chosen(pool: Pool, picture: bytes) -> None:
    app = FastAPI()
    add_routes(app, Service(pool, shape=lambda: "nested"))
    client = TestClient(app)
    assert set(ask(client, image=encoded(picture))["caption"]) == {"tag", "rating"}
    path = "/tagger/v1/interrogate?shape=flat"
    assert "safe" in ask(client, path, image=encoded(picture))["caption"]
    assert client.post("/tagger/v1/interrogate?shape=x", json={}).status_code == 422


def test_queues(client: TestClient, picture: bytes) -> None:
    image = encoded(picture)
    order = {"image": image, "threshold": 0.5, "queue": "q"}
    assert ask(client, name_in_queue="a", **order) == {"caption": {"colours": {"q": 1.0}}}
    assert ask(client, name_in_queue="a", **order) == {"caption": {"colours": {"q": 2.0}}}
    ask(client, name_in_queue="<sha256>", **order)
    [named] = ask(client, image=image, name_in_queue="b")["caption"]["colours"].keys() - {"q"}
    found = ask(client, **order)["caption"]
    assert set(found) >= {"a", "a#0"} and len(found) == 3
    assert {"rating:safe", "rating:explicit"} <= set(found["a"])
    assert ask(client, **order) == {"caption": {}}
    assert set(ask(client, queue=named)["caption"]) == {"b"}


def test_a_caption_by_selection_options(client: TestClient, picture: bytes) -> None:
    options = {"general": 0.5, "trigger": "smith", "max_tags": 2, "exclude": ["tag 1"]}
    found = ask(client, image=encoded(picture), options=options)
    assert found["text"].startswith("smith, ")
    assert len(found["text"].split(", ")) == 3
    answer = client.post(
        "/tagger/v1/interrogate",
        json={"model": "colours", "image": encoded(picture), "options": {"genral": 1}},
    )
    assert (answer.status_code, "did you mean general?" in answer.text) == (422, True)


def test_models_are_listed_and_unloaded(client: TestClient, pool: Pool, picture: bytes) -> None:
    assert client.get("/tagger/v1/interrogators").json() == {"models": ["colours", "demo-tagger"]}
    ask(client, image=encoded(picture))
    assert client.post("/tagger/v1/unload-interrogators").json() == "1 models unloaded"
    assert client.post("/tagger/v1/unload-interrogators").json() == "0 models unloaded"
    ask(client, image=encoded(picture))


def test_the_webuis_own_order(client: TestClient, picture: bytes) -> None:
    path = "/sdapi/v1/interrogate"
    for model in ("colours", "deepdanbooru"):
        caption = ask(client, path, image=encoded(picture), model=model)["caption"]
        assert isinstance(caption, str)
        assert "tag " in caption
    answer = client.post(path, json={"image": encoded(picture)})
    assert answer.status_code == 404
    assert "is not on this machine" in answer.json()["detail"]


def test_routes_of_the_host_stay(pool: Pool) -> None:
    app = FastAPI()
    app.add_api_route("/sdapi/v1/interrogate", lambda: "the host's own", methods=["POST"])
    add_routes(app, Service(pool))
    assert TestClient(app).post("/sdapi/v1/interrogate").json() == "the host's own"


# --- what is refused --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("order", "status", "said"),
    [
        ({"image": None}, 404, "Image not found"),
        ({"image": ""}, 404, "Image not found"),
        ({"image": 5}, 422, "base64"),
        ({"image": "%%%"}, 422, "no picture"),
        ({"image": encoded(b"not a picture")}, 422, "no picture"),
        ({"image": "http://127.0.0.1/a.png"}, 422, "addresses are not fetched"),
        ({"image": "file:///etc/passwd"}, 422, "addresses are not fetched"),
        ({"model": "nobody"}, 404, "Model not found"),
        ({"model": "/etc"}, 404, "Model not found"),
        ({"model": "../colours"}, 404, "Model not found"),
        ({"model": None}, 404, "Model not found"),
        ({"model": "wd-vit-tagger-v3"}, 404, "is not on this machine"),
        ({"threshold": 1.5}, 422, "threshold"),
        ({"threshold": "high"}, 422, "threshold"),
        ({"queue": 7}, 422, "queue"),
        ({"options": "none"}, 422, "options"),
    ],
)
def test_wrong_orders(
    client: TestClient, picture: bytes, order: dict, status: int, said: str
) -> None:
    sent = {"model": "colours", "image": encoded(picture), **order}
    answer = client.post("/tagger/v1/interrogate", json=sent)
    assert answer.status_code == status
    assert said in answer.json()["detail"]


def test_a_folder_is_no_model(pool: Pool, tmp_path: Path, picture: bytes) -> None:
    """The shell takes a folder for a model's name; clients cannot name one outside models/."""
    outside = write_tagger(tmp_path / "outside")
    app = FastAPI()
    add_routes(app, Service(pool))
    sent = {"model": str(outside), "image": encoded(picture)}
    answer = TestClient(app).post("/tagger/v1/interrogate", json=sent)
    assert (answer.status_code, answer.json()["detail"]) == (404, "Model not found")


def test_what_is_no_json_object(client: TestClient) -> None:
    path = "/tagger/v1/interrogate"
    json_type = {"content-type": "application/json"}
    assert client.post(path, content="[1]", headers=json_type).status_code == 422
    assert client.post(path, content="{", headers=json_type).status_code == 422
    assert client.post(path, content="[" * 100_000, headers=json_type).status_code == 422
    # what a page of another site can send without being asked
    assert (
        client.post(path, content="{}", headers={"content-type": "text/plain"}).status_code == 415
    )
    assert client.post(path, data={"model": "colours"}).status_code == 415


def test_large_orders(client: TestClient, monkeypatch: pytest.MonkeyPatch, picture: bytes) -> None:
    most = len(json.dumps({"model": "colours", "image": encoded(picture)}))
    monkeypatch.setattr(tagger_routes, "MOST_BYTES", most)
    ask(client, image=encoded(picture))
    sent = {"model": "colours", "image": encoded(picture) + "=" * 100}
    assert client.post("/tagger/v1/interrogate", json=sent).status_code == 413


def test_a_picture_of_giant_size(client: TestClient) -> None:
    raw = io.BytesIO()
    Image.new("1", (20_000, 20_000)).save(raw, "PNG")
    sent = {"model": "colours", "image": encoded(raw.getvalue())}
    answer = client.post("/tagger/v1/interrogate", json=sent)
    assert answer.status_code == 422
    assert "image: " in answer.json()["detail"]


# --- who may ask ------------------------------------------------------------------------------

ROUTES = (
    ("POST", "/tagger/v1/interrogate"),
    ("GET", "/tagger/v1/interrogators"),
    ("POST", "/tagger/v1/unload-interrogators"),
    ("POST", "/sdapi/v1/interrogate"),
)


def test_passwords(pool: Pool) -> None:
    app = FastAPI()
    add_routes(app, Service(pool), basic_dependencies("ann:secret, bob:other:with:colons"))
    client = TestClient(app)
    for method, path in ROUTES:
        assert client.request(method, path).status_code == 401
        for wrong in (("ann", "other"), ("carl", "secret"), ("carl", ""), ("ann", "sécret")):
            assert client.request(method, path, auth=wrong).status_code == 401
    for right in (("ann", "secret"), ("bob", "other:with:colons")):
        assert client.get("/tagger/v1/interrogators", auth=right).status_code == 200
    assert basic_dependencies("") == []
    with pytest.raises(CrucibleError, match="user:password"):
        basic_dependencies("ann")


def test_the_hosts_own_check_is_used(pool: Pool) -> None:
    def check(key: str = "") -> None:
        if key != "let me in":
            raise HTTPException(401)

    app = FastAPI()
    assert host_dependencies(app) is None
    app.add_api_route(
        "/sdapi/v1/txt2img", lambda: 1, methods=["POST"], dependencies=[Depends(check)]
    )
    found = host_dependencies(app)
    assert found
    add_routes(app, Service(pool), found)
    client = TestClient(app)
    for method, path in ROUTES:
        assert client.request(method, path).status_code == 401
    assert client.get("/tagger/v1/interrogators?key=let me in").status_code == 200
