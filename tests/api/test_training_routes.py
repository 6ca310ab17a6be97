"""Training by REST on a small checkpoint: a whole run, steering, the past, who may ask for what."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fastapi import FastAPI
from fastapi.testclient import TestClient
from PIL import Image

from extensions_lib.api.auth import basic_dependencies
from extensions_lib.api.training import PREFIX, Service, add_routes
from extensions_lib.errors import CrucibleError
from extensions_lib.hosts.base import GenerationRequest
from extensions_lib.hosts.standalone import StandaloneHost
from extensions_lib.hosts.standalone.place import StandalonePlace
from extensions_lib.training.options import TrainingOptions
from tests.tiny import tiny_checkpoint

PATIENCE = 120.0


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StandaloneHost]:
    """A host with two small checkpoints, the first in use."""
    root = tmp_path_factory.mktemp("host")
    for name in ("first", "second"):
        tiny_checkpoint(root / "models" / "Stable-diffusion" / f"{name}.safetensors", "SD1")
    made = StandaloneHost("first", root)
    yield made
    made.close()


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    for number in range(4):
        shade = (60 * number, 90, 255 - 60 * number)
        Image.new("RGB", (64, 64), shade).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(f"a thing, number {number}\n", encoding="utf-8")
    return folder


@pytest.fixture
def service(host: StandaloneHost, tmp_path: Path) -> Iterator[Service]:
    made = Service(lambda: StandalonePlace(host), tmp_path / "training", lambda: "first")
    yield made
    runs = made.runs()
    if runs.current is not None:
        runs.current.stop()
        runs.current.join(PATIENCE)


@pytest.fixture
def client(service: Service) -> TestClient:
    app = FastAPI()
    add_routes(app, service)
    return TestClient(app)


@pytest.fixture
def order(pictures: Path, request: pytest.FixtureRequest) -> dict[str, Any]:
    """A short run under the test's own name."""
    return {
        "train_data_dir": str(pictures),
        "output_name": request.node.name.partition("[")[0],
        "network_dim": 2,
        "max_train_steps": 3,
        "resolution": "64",
        "min_bucket_reso": 32,
        "bucket_reso_steps": 32,
        "learning_rate": 0.01,
        "sample_prompts": ["a thing, large --s 1 --w 64 --h 64"],
        "sample_every_n_steps": 1000,
        "max_validation_steps": 1,
        "save_every_n_steps": 2,
    }


def post(client: TestClient, path: str, told: Any = None) -> Any:
    return client.post(f"{PREFIX}/{path}", json={} if told is None else told)


def begun(client: TestClient, order: dict[str, Any]) -> dict[str, Any]:
    answer = post(client, "start", order)
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def until(client: TestClient, reached: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    """Looks until it is so."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        status = client.get(f"{PREFIX}/status").json()
        if reached(status):
            return dict(status)
        time.sleep(0.05)
    raise AssertionError(status)


def over(status: dict[str, Any]) -> bool:
    return not status["busy"]


# --- a run ------------------------------------------------------------------------------------


def test_a_run_from_start_to_the_next_picture(
    client: TestClient, host: StandaloneHost, order: dict[str, Any]
) -> None:
    assert client.get(f"{PREFIX}/status").json() == {
        "run": "", "busy": False, "next": 0, "base": "first",
    }  # fmt: skip
    ask = GenerationRequest("a thing", steps=2, seed=3, width=64, height=64)
    before = np.asarray(host.generate(ask).images[0])
    first = begun(client, order)
    assert first["busy"] and first["name"] == order["output_name"]
    done = until(client, over)
    assert (done["state"], done["step"], done["steps"]) == ("done", 3, 3), done["message"]
    assert [step for step, *_ in done["loss"]] == [1, 2, 3]
    assert all(loss > 0 and rate >= 0 for _, loss, rate in done["loss"])
    assert [step for step, _ in done["validation"]] == [0, 1, 2, 3]
    assert [(each["step"], each["number"]) for each in done["samples"]] == [(0, 0), (3, 0)]
    assert [(each["step"], each["final"]) for each in done["saved"]] == [(2, False), (3, True)]
    assert np.array_equal(np.asarray(host.generate(ask).images[0]), before)
    tagged = GenerationRequest(
        f"a thing <lora:{order['output_name']}:4>", steps=2, seed=3, width=64, height=64
    )
    made = host.generate(tagged)
    assert made.messages == [] and not np.array_equal(np.asarray(made.images[0]), before)


def test_only_what_is_new_is_told(client: TestClient, order: dict[str, Any]) -> None:
    begun(client, order)
    done = until(client, over)
    asked = {"run": done["run"], "since": "2"}
    rest = client.get(f"{PREFIX}/status", params=asked).json()
    assert [step for step, *_ in rest["loss"]] == [3] and rest["next"] == 3
    other = client.get(f"{PREFIX}/status", params={"run": "another", "since": "2"}).json()
    assert [step for step, *_ in other["loss"]] == [1, 2, 3]
    assert client.get(f"{PREFIX}/status?since=x").status_code == 422


def test_the_stream_ends_with_the_run(client: TestClient, order: dict[str, Any]) -> None:
    begun(client, order)
    with client.stream("GET", f"{PREFIX}/events") as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        told = [json.loads(line[6:]) for line in answer.iter_lines() if line.startswith("data: ")]
    assert told[0]["busy"] and told[-1]["state"] == "done"
    steps = [step for each in told for step, *_ in each["loss"]]
    assert steps == [1, 2, 3]


def test_pictures_of_the_run(client: TestClient, order: dict[str, Any]) -> None:
    begun(client, order)
    done = until(client, over)
    path = f"{PREFIX}/runs/{done['folder']}/samples/{done['samples'][0]['file']}"
    answer = client.get(path)
    assert answer.status_code == 200 and answer.headers["content-type"] == "image/png"
    for wrong in ("options.toml", "..%2Foptions.toml", "step-00000000-9.png"):
        path = f"{PREFIX}/runs/{done['folder']}/samples/{wrong}"
        assert client.get(path).status_code == 404


# --- steering ---------------------------------------------------------------------------------


def test_pause_go_on_save_and_stop(
    client: TestClient, service: Service, order: dict[str, Any]
) -> None:
    begun(client, {**order, "max_train_steps": 100_000, "save_every_n_steps": None})
    until(client, lambda told: told.get("step", 0) >= 1)
    assert post(client, "pause").status_code == 200
    paused = until(client, lambda told: told["state"] == "paused")
    time.sleep(0.3)
    assert client.get(f"{PREFIX}/status").json()["step"] == paused["step"]
    assert post(client, "go-on").status_code == 200
    until(client, lambda told: told["step"] > paused["step"])
    assert post(client, "save-now").status_code == 200
    saved = until(client, lambda told: bool(told["saved"]))["saved"][0]
    assert post(client, "stop").status_code == 200
    ended = until(client, over)
    assert ended["state"] == "stopped" and ended["saved"][-1]["final"]
    name = ended["folder"]
    used = post(client, f"runs/{name}/use", {"step": saved["step"]}).json()["network"]
    assert (service.here().folder("network") / f"{used}.safetensors").is_file()
    assert post(client, f"runs/{name}/use", {"step": 99_999}).status_code == 404
    assert post(client, f"runs/{name}/use", {"step": "1"}).status_code == 422


def test_nothing_to_steer(client: TestClient) -> None:
    for act in ("pause", "go-on", "save-now", "stop"):
        answer = post(client, act)
        assert answer.status_code == 409 and "No training" in answer.json()["detail"]


def test_a_second_run_and_another_checkpoint_are_refused(
    client: TestClient, host: StandaloneHost, order: dict[str, Any]
) -> None:
    begun(client, {**order, "max_train_steps": 100_000})
    until(client, lambda told: told.get("step", 0) >= 1)
    second = post(client, "start", {**order, "output_name": "second"})
    assert second.status_code == 409 and order["output_name"] in second.json()["detail"]
    with pytest.raises(CrucibleError, match="stop it before you switch"):
        host.use_checkpoint("second")
    live = GenerationRequest(
        f"a thing <lora:{order['output_name']}:1>", steps=2, seed=3, width=64, height=64
    )
    made = host.generate(live)
    assert made.messages == [] and client.get(f"{PREFIX}/status").json()["busy"]


# --- the past ---------------------------------------------------------------------------------


def test_a_stopped_run_goes_on_and_is_deleted(client: TestClient, order: dict[str, Any]) -> None:
    begun(client, {**order, "max_train_steps": 100_000, "save_every_n_steps": None})
    until(client, lambda told: told.get("step", 0) >= 2)
    post(client, "stop")
    stopped = until(client, over)
    [told] = client.get(f"{PREFIX}/runs").json()["runs"]
    assert told["state"] == told["step"] == stopped["step"] and told["steps"] == 100_000
    name = told["name"]
    about = client.get(f"{PREFIX}/runs/{name}").json()
    assert about["options"]["network_dim"] == 2
    assert [step for step, *_ in about["loss"]] == list(range(1, stopped["step"] + 1))
    again = post(client, f"runs/{name}/resume").json()
    assert again["run"] != stopped["run"]
    until(client, lambda told: told["step"] > stopped["step"])
    assert client.delete(f"{PREFIX}/runs/{name}").status_code == 409
    post(client, "stop")
    until(client, over)
    assert client.delete(f"{PREFIX}/runs/{name}").json() == {"deleted": name}
    assert client.get(f"{PREFIX}/runs").json() == {"runs": []}
    assert client.delete(f"{PREFIX}/runs/{name}").status_code == 404


@pytest.mark.parametrize("name", ["..", "%2e%2e", "..%2F..%2Fmodels", ".hidden", "nothing"])
def test_names_lead_nowhere_else(client: TestClient, service: Service, name: str) -> None:
    service.folder.mkdir(parents=True)
    # were it to follow a name upwards, it would find a run there
    (service.folder.parent / "options.toml").write_text('output_name = "x"\n', encoding="utf-8")
    for answer in (
        client.get(f"{PREFIX}/runs/{name}"),
        post(client, f"runs/{name}/resume"),
        client.delete(f"{PREFIX}/runs/{name}"),
        client.get(f"{PREFIX}/runs/{name}/samples/step-00000000-0.png"),
    ):
        assert answer.status_code in (404, 405)
    assert (service.folder.parent / "options.toml").is_file()


# --- what is refused --------------------------------------------------------------------------


def test_bad_orders_are_refused_with_a_reason(
    client: TestClient, order: dict[str, Any], tmp_path: Path
) -> None:
    for wrong, status, said in (
        ({"network_dimm": 4}, 422, "did you mean network_dim?"),
        ({"network_dim": 0}, 422, "network_dim: takes"),
        ({"output_name": "../up"}, 409, "output_name"),
        ({"train_data_dir": str(tmp_path / "none")}, 409, "none"),
        ({"cache_text_encoder_outputs": True}, 409, "cache_text_encoder_outputs"),
    ):
        answer = post(client, "start", {**order, **wrong})
        assert answer.status_code == status and said in answer.json()["detail"], answer.text
    assert client.get(f"{PREFIX}/status").json()["run"] == ""
    plain = client.post(f"{PREFIX}/stop", content="{}", headers={"content-type": "text/plain"})
    assert plain.status_code == 415


def test_a_network_of_the_name_is_not_replaced(
    client: TestClient, service: Service, order: dict[str, Any]
) -> None:
    path = service.here().folder("network") / f"{order['output_name']}.safetensors"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"somebody's")
    answer = post(client, "start", order)
    assert answer.status_code == 409 and "is free" in answer.json()["detail"]
    assert path.read_bytes() == b"somebody's"
    path.unlink()


def test_paths_are_those_that_may_be_named(host: StandaloneHost, tmp_path: Path) -> None:
    def allowed(options: TrainingOptions) -> TrainingOptions:
        raise CrucibleError("only folders below")

    service = Service(lambda: StandalonePlace(host), tmp_path, allowed=allowed)
    app = FastAPI()
    add_routes(app, service)
    answer = post(TestClient(app), "start", {"train_data_dir": "/etc"})
    assert answer.status_code == 409 and "only folders below" in answer.json()["detail"]


def test_who_may_ask(service: Service) -> None:
    app = FastAPI()
    add_routes(app, service, dependencies=basic_dependencies("ann:secret"))
    client = TestClient(app)
    paths = [
        ("GET", "status"), ("GET", "events"), ("GET", "options"), ("GET", "runs"),
        ("GET", "runs/x"),
        ("GET", "runs/x/samples/y"), ("POST", "start"), ("POST", "stop"), ("POST", "pause"),
        ("POST", "runs/x/resume"), ("POST", "runs/x/use"), ("DELETE", "runs/x"),
    ]  # fmt: skip
    for method, path in paths:
        assert client.request(method, f"{PREFIX}/{path}").status_code == 401, path
    assert client.get(f"{PREFIX}/status", auth=("ann", "secret")).status_code == 200


def test_options_by_schema(client: TestClient) -> None:
    told = client.get(f"{PREFIX}/options").json()
    assert told["properties"]["network_dim"]["default"] == 16
    assert told["additionalProperties"] is False


def test_orders_at_the_same_moment_begin_one_run(client: TestClient, order: dict[str, Any]) -> None:
    long = {**order, "max_train_steps": 100_000}
    answers: list[int] = []
    threads = [
        threading.Thread(target=lambda: answers.append(post(client, "start", long).status_code))
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(answers) == [200, 409, 409]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
