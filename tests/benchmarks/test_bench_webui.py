"""What the bench in a WebUI prepares, on small models; the bench itself needs a WebUI."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from extensions_lib import cli
from extensions_lib.files.checkpoints import checkpoint_structure
from extensions_lib.files.networks import read_network
from tests.benchmarks import bench_webui, webui_models
from tests.tiny import TINY


def test_it_says_what_it_needs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("WEBUI_DIR", raising=False)
    assert cli.main(["bench", "webui"]) == 1
    assert "WEBUI_DIR" in capsys.readouterr().err


def test_checkpoint_and_its_config_agree(tmp_path: Path) -> None:
    path = tmp_path / "checkpoints" / "small.safetensors"
    webui_models.write_checkpoint(path, TINY["SD1"])
    assert checkpoint_structure(path) == TINY["SD1"]
    config = yaml.safe_load(path.with_suffix(".yaml").read_text("utf-8"))
    unet = config["model"]["params"]["unet_config"]["params"]
    assert (unet["model_channels"], unet["attention_resolutions"]) == (32, [2, 4])
    assert (path.parent / "clip" / "vocab.json").is_file()


def test_network_reaches_every_layer_that_it_names(tmp_path: Path) -> None:
    touched = webui_models.layers(TINY["SD1"])
    path = tmp_path / "n0.safetensors"
    webui_models.write_lora(path, touched, rank=4, seed=0)
    network = read_network(path, structure=TINY["SD1"], name="n0")
    assert set(network.adapters) == set(touched)
    assert (network.unmatched, network.problems) == ([], [])
    some = webui_models.layers(TINY["SD1"], (".attn1.",))
    assert 0 < webui_models.weights(some) < webui_models.weights(touched)


def test_cost_is_what_an_order_takes_beyond_an_unchanged_one() -> None:
    handler = bench_webui.Handler()
    first = {name: 3.0 if ":" in name else 1.0 for name, _ in bench_webui.ORDERS}
    handler.note({n: bench_webui.Timed(s, s, [0.5], None) for n, s in first.items()})
    assert handler.cost["one: first time"] == handler.cpu["five: change one"] == [2.0]
    assert handler.cost["nothing, five"] == [0.0]
