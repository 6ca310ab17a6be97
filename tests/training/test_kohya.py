"""Config files of sd-scripts: followed, or refused by name."""

from __future__ import annotations

from pathlib import Path

import pytest

from extensions_lib.datasets.dataset_file import read_toml
from extensions_lib.errors import CrucibleError
from extensions_lib.training.kohya import is_kohya, read_kohya

CONFIG = """
pretrained_model_name_or_path = "/models/v1-5.safetensors"
train_data_dir = "/data/train"
reg_data_dir = "/data/reg"
output_dir = "/out"
output_name = "smith_v1"

[network]
network_module = "lycoris.kohya"
network_args = ["algo=loha", "conv_dim=4", "conv_alpha=1", "preset=full", "dora_wd=True"]
network_dim = 16
network_alpha = 8
network_train_unet_only = true

[optimizer]
optimizer_type = "AdamW8bit"
optimizer_args = ["weight_decay=0.1", "betas=0.9,0.99"]
unet_lr = 1e-4
lr_scheduler = "cosine_with_restarts"
lr_scheduler_num_cycles = 3
lr_warmup_steps = 100

[data]
resolution = "768,512"
enable_bucket = true
shuffle_caption = true
keep_tokens = 1
caption_extension = ".txt"
train_batch_size = 2
max_train_epochs = 10
cache_latents = true

[rest]
mixed_precision = "fp16"
xformers = true
max_data_loader_n_workers = 8
min_snr_gamma = 5.0
noise_offset = 0.05
v2 = false
save_model_as = "safetensors"
save_precision = "fp16"
save_every_n_epochs = 1
seed = 42
"""


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "config.toml"
    path.write_text(text)
    return path


def test_a_config_runs_as_it_is(tmp_path: Path) -> None:
    path = written(tmp_path, CONFIG)
    assert is_kohya(read_toml(path))
    found = read_kohya(path)
    assert found.checkpoint == "/models/v1-5.safetensors"
    o = found.options
    assert (o.kind, o.network_dim, o.network_alpha, o.conv_dim, o.conv_alpha) == (
        "loha", 16, 8.0, 4, 1.0,
    )  # fmt: skip
    assert o.dora_wd and not o.train_text_encoder and o.train_unet
    assert o.optimizer_type == "AdamW8bit" and o.optimizer_args[0] == "weight_decay=0.1"
    assert (o.resolution, o.enable_bucket, o.max_train_epochs, o.seed) == ("768,512", True, 10, 42)
    assert (o.mixed_precision, o.save_precision, o.min_snr_gamma) == ("fp16", "fp16", 5.0)
    assert found.notes == [
        "Without a meaning here: max_data_loader_n_workers, output_dir, xformers.",
        "Taken from the loaded checkpoint: v2.",
    ]


def test_what_is_not_named_is_as_sd_scripts_has_it() -> None:
    o = read_kohya({"pretrained_model_name_or_path": "a", "train_data_dir": "b"}).options
    assert (o.network_dim, o.network_alpha, o.learning_rate, o.max_train_steps) == (
        4,
        1,
        2e-6,
        1600,
    )
    assert not o.enable_bucket and not o.cache_latents and o.lr_scheduler == "constant"
    assert (o.caption_extension, o.max_token_length, o.output_name) == (".caption", 75, "last")


def test_all_that_is_not_known_is_named_at_once(tmp_path: Path) -> None:
    text = CONFIG + 'unknown_thing = 3\nlearning_rat = 1e-3\nresume = "/state"\nvae = "x.pt"\n'
    with pytest.raises(CrucibleError) as problem:
        read_kohya(written(tmp_path, text))
    said = str(problem.value)
    assert "unknown_thing: is not known here" in said
    assert "learning_rat: is not known here; did you mean learning_rate?" in said
    assert "resume: their states cannot be read" in said and "vae: training uses" in said


@pytest.mark.parametrize(
    "wrong",
    [
        {"network_module": "networks.control_net_lllite"},
        {"network_args": ["algo=magic"]},
        {"network_args": ["just words"]},
        {"network_args": ["up_lr_weight=sine"]},
        {"network_args": ["down_lr_weight=1,2"]},
        {"save_model_as": "ckpt"},
        {"sample_prompts": "prompts.json"},
        {"sample_sampler": "plms"},
    ],
)
def test_what_cannot_be_followed_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(CrucibleError, match=next(iter(wrong))):
        read_kohya(wrong)


def test_false_and_empty_arguments_say_nothing() -> None:
    read_kohya({"unknown_thing": False, "vae": "", "resume": ""})


def test_block_weights_become_25() -> None:
    arguments = ["down_lr_weight=0,0,0,0,0,0,1,1,1,1,1,1", "mid_lr_weight=0.5", "conv_dim=2"]
    o = read_kohya({"network_args": arguments}).options
    assert o.block_lr_weight == (0,) * 6 + (1,) * 6 + (0.5,) + (1,) * 12
    assert o.conv_dim == 2


def test_sample_prompts_are_read(tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_text("a cat --d 1\n\n# no\na dog\n")
    o = read_kohya({"sample_prompts": str(path), "sample_sampler": "euler_a"}).options
    assert o.sample_prompts == ("a cat --d 1", "# no", "a dog") and o.sample_sampler == "Euler a"


def test_configs_of_the_programs_that_train_checkpoints() -> None:
    told = {"pretrained_model_name_or_path": "a.safetensors", "train_data_dir": "/data"}
    rates = [0.0] * 3 + [1e-6] * 10 + [4e-6] * 10
    found = read_kohya({**told, "block_lr": rates, "learning_rate": 2e-6})
    assert found.options.train == "checkpoint" and not found.options.train_text_encoder
    assert found.options.unet_lr == 4e-6
    assert found.options.block_lr_weight == (0.0,) * 3 + (0.25,) * 10 + (1.0,) * 10
    assert any("block_lr" in note for note in found.notes)
    rates = {"learning_rate_te1": 1e-6, "learning_rate_te2": 5e-7}
    found = read_kohya({**told, **rates})  # sdxl_train.py has a switch for them besides
    assert found.options.train == "checkpoint" and not found.options.train_text_encoder
    assert any("without train_text_encoder" in note for note in found.notes)
    found = read_kohya({**told, "train_text_encoder": True, "learning_rate_te2": 5e-7})
    assert found.options.text_encoder_lr == (2e-6, 5e-7)  # the usual rate for the first
    found = read_kohya({**told, "train_text_encoder": True, **rates})
    assert found.options.train == "checkpoint" and found.options.train_text_encoder
    assert found.options.text_encoder_lr == (1e-6, 5e-7)


def test_configs_of_textual_inversion() -> None:
    found = read_kohya({"token_string": "smith", "init_word": "man", "num_vectors_per_token": 4})
    assert found.options.train == "embedding"
    assert (found.options.token_string, found.options.num_vectors_per_token) == ("smith", 4)
