"""`run.py train`: our config, one of sd-scripts, the look ahead, and refusals."""

from __future__ import annotations

from pathlib import Path

import pytest

from extensions_lib.cli import main
from extensions_lib.files.networks import read_network
from tests.tiny import tiny_checkpoint
from tests.training.drawn import drawn_set

KOHYA = """
pretrained_model_name_or_path = "{root}/models/Stable-diffusion/SD1.safetensors"
train_data_dir = "{set}"
output_name = "theirs"
network_module = "networks.lora"
network_dim = 2
network_alpha = 1
network_args = ["conv_dim=1", "conv_alpha=1"]
network_train_unet_only = true
resolution = "64,64"
caption_extension = ".txt"
train_batch_size = 2
max_train_epochs = 1
learning_rate = 1e-3
xformers = true
"""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    tiny_checkpoint(tmp_path / "models" / "Stable-diffusion" / "SD1.safetensors", "SD1")
    drawn_set(tmp_path / "set")
    return tmp_path


def run(root: Path, *arguments: str) -> int:
    return main(["train", *arguments, "--data", str(root), "--threads", "1"])


def config(root: Path, more: str = "") -> str:
    path = root / "config.toml"
    path.write_text(KOHYA.format(root=root, set=root / "set") + more)
    return str(path)


def test_a_config_of_sd_scripts_runs_as_it_is(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(root, config(root), "--sample-prompts", "a thing --s 1 --w 64 --h 64") == 0
    said = capsys.readouterr()
    assert "5 pictures (10 in an epoch)" in said.out and "5 steps, 1.0 epochs" in said.out
    assert "use it as <lora:theirs:1>" in said.out
    assert "note: Without a meaning here: xformers." in said.err
    network = read_network(root / "models" / "Lora" / "theirs.safetensors")
    assert network.metadata["ss_network_args"] == '{"conv_dim": 1, "conv_alpha": 1.0}'
    assert all(layer.startswith("unet.") for layer in network.adapters)
    assert run(root, config(root)) == 1  # it exists now
    assert "theirs_2 is free" in capsys.readouterr().err


def test_the_look_ahead_trains_nothing(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(root, config(root), "--check", "--network-dim", "4") == 0
    said = capsys.readouterr().out
    assert "numbers are trained; about" in said and "GB more memory" in said
    assert not (root / "models" / "Lora").exists() and not (root / "outputs").exists()


def test_presets_are_begun_with(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    more = ["--train-data-dir", str(root / "set"), "--resolution", "64", "--min-bucket-reso", "32"]
    more += ["--bucket-reso-steps", "32", "--check", "--max-train-steps", "7"]
    assert run(root, "--preset", "new shape", *more) == 0
    assert "7 steps" in capsys.readouterr().out
    assert run(root, "--preset", "Character", *more) == 1  # for large models alone
    assert "is none of New shape, Embedding" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "train_data_dir: name the folder"),
        (("--train-data-dir", "/no/such"), "/no/such"),
        (("--network-dim", "0"), "network_dim: takes"),
        (("no.toml",), "no.toml"),
        (("--resume", "../x"), "there is no such run"),
        (("--output-name", "a<b", "--train-data-dir", "x"), "cannot be the name"),
        (("--output-name", "a" * 240, "--train-data-dir", "x"), "is 240 signs long"),
    ],
)
def test_wrong_orders_are_refused(
    root: Path, arguments: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(root, *arguments) == 1
    assert said in capsys.readouterr().err


def test_an_unknown_argument_of_theirs_is_refused_by_name(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(root, config(root, "made_up = 3\n")) == 1
    assert "made_up: is not known here" in capsys.readouterr().err
