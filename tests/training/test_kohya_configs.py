"""Configs as people have them: of kohya_ss, of Colab notebooks, of LoRA_Easy_Training_Scripts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from extensions_lib.cli import main
from extensions_lib.datasets.dataset_file import read_dataset_file
from extensions_lib.errors import CrucibleError
from extensions_lib.files.networks import read_network
from extensions_lib.training.kohya import KohyaConfig, read_kohya
from extensions_lib.training.schedulers import SchedulerOptions, factor
from extensions_lib.ui.training_options import from_toml
from tests.tiny import tiny_checkpoint
from tests.training.drawn import drawn_set

KOHYA_SS = """
bucket_no_upscale = false
bucket_reso_steps = 32
cache_latents = true
caption_extension = ".txt"
clip_skip = 1
dynamo_backend = "no"
enable_bucket = true
epoch = 1
gradient_accumulation_steps = 1
huber_c = 0.1
huber_scale = 1
huber_schedule = "snr"
keep_tokens_separator = ""
learning_rate = 0.0001
loss_type = "l2"
lr_scheduler = "cosine"
lr_scheduler_args = []
lr_scheduler_num_cycles = 1
lr_scheduler_power = 1
lr_scheduler_type = ""
lr_warmup_steps = 1
max_bucket_reso = 2048
max_data_loader_n_workers = 0
max_grad_norm = 1
max_timestep = 1000
max_token_length = 75
max_train_steps = 2
min_bucket_reso = 32
mixed_precision = "bf16"
multires_noise_iterations = 0
network_alpha = 1
network_args = [ "preset=full", "conv_dim=4", "conv_alpha=1", "use_tucker=False", \
"rank_dropout=0", \
"bypass_mode=False", "dora_wd=False", "module_dropout=0", "use_tucker=False", "use_scalar=False", \
"rank_dropout_scale=False", "algo=locon", "train_norm=False",]
network_dim = 8
network_module = "lycoris.kohya"
noise_offset_type = "Original"
optimizer_args = []
optimizer_type = "AdamW"
output_dir = "{root}/out"
output_name = "of_the_gui"
pretrained_model_name_or_path = "{root}/models/Stable-diffusion/SD1.safetensors"
prior_loss_weight = 1
resolution = "64,64"
sample_prompts = "{root}/prompt.txt"
sample_sampler = "euler_a"
save_every_n_epochs = 1
save_last_n_epochs = 0
save_model_as = "safetensors"
save_precision = "fp16"
text_encoder_lr = [ 0.0001, 0.0001,]
train_batch_size = 1
train_data_dir = "{root}/set"
unet_lr = 0.0001
vae = ""
vae_batch_size = 1
wandb_run_name = "of_the_gui"
xformers = true
"""

COLAB = """
[additional_network_arguments]
unet_lr = 0.0005
text_encoder_lr = 0.0001
network_dim = 16
network_alpha = 8
network_module = "networks.lora"
network_args = [ "conv_dim=8", "conv_alpha=1",]

[optimizer_arguments]
learning_rate = 0.0005
lr_scheduler = "cosine"
lr_scheduler_type = "LoraEasyCustomOptimizer.RexAnnealingWarmRestarts.RexAnnealingWarmRestarts"
lr_scheduler_args = [ "min_lr=1e-5", "gamma=0.9", "d=0.9", "first_cycle_max_steps=300",]
lr_warmup_steps = 20
optimizer_type = "LoraEasyCustomOptimizer.came.CAME"
optimizer_args = [ "weight_decay=0.04",]

[training_arguments]
max_train_epochs = 10
save_n_epoch_ratio = 3
train_batch_size = 2
clip_skip = 2
min_snr_gamma = 5.0
weighted_captions = false
seed = 42
max_token_length = 225
lowram = true
mixed_precision = "fp16"
output_name = "of_colab"
train_data_dir = "/unused"
dataset_config = "{root}/dataset.toml"

[model_arguments]
pretrained_model_name_or_path = "/content/model.safetensors"
v2 = false

[dreambooth_arguments]
prior_loss_weight = 1.0
"""

EASY = """
[[subsets]]
num_repeats = 3
keep_tokens = 1
caption_extension = ".txt"
shuffle_caption = true
flip_aug = false
name = "subset 1"
image_dir = "{root}/set/2_sls thing"

[train_mode]
train_mode = "lora"

[noise_args]

[general_args.args]
pretrained_model_name_or_path = "/models/nai.safetensors"
seed = 23
clip_skip = 2
max_token_length = 225
max_train_epochs = 2
sdxl = false

[general_args.dataset_args]
resolution = 64
batch_size = 2

[network_args.args]
network_dim = 8
network_alpha = 1.0

[network_args.args.network_args]
conv_dim = 4
down_lr_weight = [0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1]

[optimizer_args.args]
optimizer_type = "AdamW"
lr_scheduler = "cosine"
learning_rate = 0.0001
warmup_ratio = 0.05

[optimizer_args.args.optimizer_args]
weight_decay = "0.1"
betas = "0.9,0.99"
amsgrad = "true"

[saving_args.args]
output_dir = "F:/Desktop"
easy_name = "smith"
output_name = "${{replace}}_v2"
tag_occurrence = true

[bucket_args.dataset_args]
enable_bucket = true
min_bucket_reso = 32
bucket_reso_steps = 32
"""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    drawn_set(tmp_path / "set")
    (tmp_path / "prompt.txt").write_text("a thing --n --w 64 --h 64 --S 1 --ss k_euler\n# off\n")
    return tmp_path


def config(root: Path, text: str) -> Path:
    path = root / "config.toml"
    path.write_text(text.format(root=root))
    return path


def read(root: Path, text: str) -> KohyaConfig:
    return read_kohya(config(root, text))


def test_what_kohya_ss_hands_on_trains_to_its_end(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny_checkpoint(root / "models" / "Stable-diffusion" / "SD1.safetensors", "SD1")
    path = str(config(root, KOHYA_SS))
    assert main(["train", path, "--data", str(root), "--threads", "1"]) == 0
    assert "use it as <lora:of_the_gui:1>" in capsys.readouterr().out
    network = read_network(root / "models" / "Lora" / "of_the_gui.safetensors")
    assert not (network.unmatched or network.problems)
    assert {"unet.conv_in", "unet.time_embedding.linear_1"} <= network.adapters.keys()
    told = json.loads(network.metadata["ss_network_args"])
    assert told == {"algo": "locon", "conv_dim": 4, "conv_alpha": 1.0, "preset": "full"}


def test_the_notebook_has_sections_and_classes_of_its_own(root: Path) -> None:
    found = read(root, COLAB)
    o = found.options
    assert (o.conv_dim, o.text_encoder_lr, o.unet_lr, o.clip_skip) == (8, (1e-4,), 5e-4, 2)
    assert (o.optimizer_type, o.optimizer_args) == ("CAME", ("weight_decay=0.04",))
    assert (o.lr_scheduler, o.lr_scheduler_rex_d, o.lr_warmup_steps) == ("rex", 0.9, 20)
    assert o.lr_scheduler_min_lr_ratio == pytest.approx(0.02)
    assert o.save_every_n_epochs == 3  # three files of ten epochs
    assert o.dataset_config and o.train_data_dir is None
    assert any("train_data_dir: not used" in note for note in found.notes)


def test_rex_is_theirs() -> None:
    """(1 − p) / (1 − d + d (1 − p)) between the rates; at half the way with d = 0.9, 0.5 / 0.55."""
    options = SchedulerOptions(lr_scheduler="rex", lr_scheduler_rex_d=0.9)
    assert factor(options, 50, 100) == pytest.approx(0.5 / 0.55)
    ended = SchedulerOptions(lr_scheduler="rex", lr_scheduler_min_lr_ratio=0.1)
    assert factor(ended, 50, 100) == pytest.approx(0.1 + 0.9 * 0.5 / 0.75)


def test_what_easy_training_scripts_saves(root: Path) -> None:
    found = read(root, EASY)
    o = found.options
    assert (o.network_dim, o.conv_dim, o.conv_alpha) == (8, 4, 1.0)
    assert o.block_lr_weight == (0,) * 4 + (1,) * 21
    assert o.optimizer_args == ("weight_decay=0.1", "betas=0.9,0.99", "amsgrad=True")
    assert (o.lr_warmup_steps, o.output_name, o.seed) == (0.05, "smith_v2", 23)
    (subset,) = read_dataset_file(o.dataset_config or "")
    settings = subset.settings(o)
    assert (settings.num_repeats, settings.keep_tokens, settings.train_batch_size) == (3, 1, 2)
    assert (settings.resolution, settings.bucket_reso_steps) == ("64", 32)
    assert any("tag_occurrence" in note for note in found.notes)
    with pytest.raises(CrucibleError, match="subsets: its folders are read from the file itself"):
        from_toml(EASY.format(root=root))


def test_a_network_of_easy_training_scripts_is_of_the_module_that_it_would_run(root: Path) -> None:
    def kind(network: str, part: str = "") -> str:
        text = EASY.replace("conv_dim = 4\n", network).replace("network_alpha = 1.0\n", part)
        return read(root, text.replace("down_lr_weight", "#")).options.kind

    assert kind('algo = "loha"\npreset = ""\n') == "loha"
    assert kind("unit = 2\n") == "dylora" and kind("", "fa = true\n") == "lora-fa"


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        ({"lr_scheduler": "cosine_with_min_lr", "lr_scheduler_min_lr_ratio": 0.1},
         {"lr_scheduler": "cosine", "lr_scheduler_min_lr_ratio": 0.1}),
        ({"lr_scheduler": "polynomial", "lr_scheduler_args": ["lr_end=5e-5"]},
         {"lr_scheduler": "polynomial", "lr_scheduler_min_lr_ratio": 0.5}),
        ({"sample_every_n_epochs": 1, "sample_every_n_steps": 5},
         {"sample_every_n_epochs": 1, "sample_every_n_steps": None}),
        ({"caption_extention": ".cap", "dataset_repeats": 4},
         {"caption_extension": ".cap", "num_repeats": 4}),
        ({"unet_lr": 0, "max_timestep": 0, "save_every_n_steps": 0, "scale_weight_norms": 0},
         {"unet_lr": 0.0, "max_timestep": 1000, "save_every_n_steps": None}),
        ({"use_8bit_adam": True, "optimizer_type": ""}, {"optimizer_type": "AdamW8bit"}),
    ],
)  # fmt: skip
def test_single_arguments(told: dict[str, object], expected: dict[str, object]) -> None:
    found = read_kohya({"learning_rate": 1e-4, "network_module": "networks.lora", **told}).options
    assert {name: getattr(found, name) for name in expected} == expected


@pytest.mark.parametrize(
    ("told", "said"),
    [
        ({"vae": "/x.safetensors"}, "vae: training uses the VAE of the checkpoint"),
        ({"base_weights": ["a.safetensors"]}, "base_weights: no network is merged"),
        ({"lr_scheduler_type": "CosineAnnealingLR"}, "lr_scheduler_type: .* is not known"),
        ({"lr_scheduler": "cosine_with_min_lr", "lr_scheduler_num_cycles": 2}, "lr_scheduler: "),
        ({"lr_scheduler_args": ["T_max=3"]}, "lr_scheduler_args: T_max"),
        ({"use_8bit_adam": True, "optimizer_type": "Lion"}, "use_8bit_adam: means AdamW8bit"),
        ({"stop_text_encoder_training": 50}, "stop_text_encoder_training: .*unet_only"),
        ({"save_n_epoch_ratio": 5}, "save_n_epoch_ratio: needs max_train_epochs"),
        ({"log_with": "wandb"}, "log_with: 'wandb'"),
        ({"network_module": "networks.lora_flux"}, "network_module: 'networks.lora_flux'"),
        ({"train_inpainting": True}, "train_inpainting"),
    ],
)
def test_what_is_refused_says_what_to_do(told: dict[str, object], said: str) -> None:
    with pytest.raises(CrucibleError, match=said):
        read_kohya(told)


def test_what_is_switched_off_is_not_said() -> None:
    notes = read_kohya({"network_module": "networks.lora", "xformers": False}).notes
    assert notes == []
    (note,) = read_kohya({"train_data_dir": "/data"}).notes
    assert "A LoRA is trained" in note


def test_prompts_of_samples_in_toml_and_json(tmp_path: Path) -> None:
    (tmp_path / "p.toml").write_text(
        "[prompt]\nwidth = 64\n[[prompt.subset]]\nprompt = 'a cat'\nnegative_prompt = 'a dog'\n"
        "[[prompt.subset]]\nprompt = 'a star'\nwidth = 128\nsample_sampler = 'euler_a'\n"
    )
    (tmp_path / "p.json").write_text('[{"prompt": "a cat", "seed": 3}, "a dog --d 1"]')
    (tmp_path / "bad.json").write_text('[{"prompt": "a cat", "colour": 3}]')

    def prompts(name: str) -> tuple[str, ...]:
        return read_kohya({"sample_prompts": str(tmp_path / name)}).options.sample_prompts

    assert prompts("p.toml") == ("a cat --w 64 --n a dog", "a star --w 128 --ss euler_a")
    assert prompts("p.json") == ("a cat --d 3", "a dog --d 1")
    with pytest.raises(CrucibleError, match=r"sample_prompts: .*colour is unknown"):
        prompts("bad.json")
