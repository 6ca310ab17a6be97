"""Arguments of sd-scripts' networks and of LyCORIS: the same layers, ranks and rates as there."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from extensions_lib.errors import CrucibleError
from extensions_lib.models.names import flat
from extensions_lib.options import checked
from extensions_lib.training.kohya import read_kohya
from extensions_lib.training.networks import fresh_network, rate_groups
from extensions_lib.training.option_groups import NetworkTraining
from extensions_lib.training.options import TrainingOptions
from tests.training.small import trainable

LYCORIS = "lycoris.kohya"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


def read(module: str, *arguments: str, **others: object) -> TrainingOptions:
    given = {"network_dim": 4, "network_alpha": 2.0, "network_module": module, **others}
    return read_kohya({**given, "network_args": list(arguments)}).options


def ranks(folder: Path, options: TrainingOptions, family: str = "SD1") -> Mapping[str, Any]:
    """Rank and alpha of each layer of a new network, by kohya's name."""
    model = trainable(folder, family).loaded
    wanted = checked(
        NetworkTraining,
        {name: getattr(options, name) for name in NetworkTraining.__dataclass_fields__},
    )
    made = fresh_network(model, wanted, torch.Generator())
    return {
        flat(name, model.family): (a.rank, getattr(a, "alpha", None)) for name, a in made.items()
    }


@pytest.mark.parametrize("arguments", [[], ["conv_dim=2", "conv_alpha=1"], ["conv_dim=0"]])
@pytest.mark.parametrize(
    "preset",
    ["full", "full-lin", "attn-mlp", "attn-only", "unet-only", "unet-transformer-only",
     "unet-convblock-only"],
)  # fmt: skip
def test_a_preset_of_lycoris_trains_the_layers_that_it_does(
    folder: Path, preset: str, arguments: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from lycoris import config
    from lycoris.kohya import create_network

    if preset == "unet-convblock-only" and arguments == ["conv_dim=0"]:
        with pytest.raises(CrucibleError, match="conv_dim 0"):
            read(LYCORIS, f"preset={preset}", *arguments)
        return
    # sd-scripts' attention has another class name than diffusers'; and a class of another model's
    # is called as a part of this UNet is.
    named = [
        "Attention" if name == "CrossAttention" else name
        for name in config.PRESET[preset]["unet_target_module"]
        if name != "TimestepEmbedding"
    ]
    monkeypatch.setitem(config.PRESET[preset], "unet_target_module", named)
    model = trainable(folder).loaded
    told = dict(each.split("=") for each in arguments)
    theirs = create_network(
        1.0, 4, 2.0, None, model.text_encoders[0], model.unet, preset=preset, **told
    )
    expected = {each.lora_name: (each.lora_dim, float(each.alpha)) for each in theirs.loras}
    assert ranks(folder, read(LYCORIS, "algo=locon", f"preset={preset}", *arguments)) == expected


def test_lycoris_trains_all_without_a_preset_and_networks_lora_does_not(folder: Path) -> None:
    of_lycoris, of_lora = read(LYCORIS, "algo=loha"), read("networks.lora")
    assert (of_lycoris.layers, of_lora.layers) == ("full", "attn-mlp")
    assert any("resnets" in name for name in ranks(folder, of_lycoris))
    assert not any("resnets" in name for name in ranks(folder, of_lora))


def test_the_alpha_of_convolutions_that_is_not_named(folder: Path) -> None:
    kernel = "lora_unet_down_blocks_0_resnets_0_conv1"
    assert ranks(folder, read("networks.lora", "conv_dim=2"))[kernel] == (2, 1.0)
    assert ranks(folder, read(LYCORIS, "conv_dim=2"))[kernel] == (2, 2.0)


def test_oft_of_sd_scripts_has_its_constraint_as_alpha_and_the_attention_of_the_unet(
    folder: Path,
) -> None:
    options = read("networks.oft", network_alpha=0.001)
    assert (options.kind, options.constraint, options.train_text_encoder) == ("oft", 0.001, False)
    names = ranks(folder, options)
    assert names and all("_attn" in name and name.startswith("lora_unet") for name in names)
    whole = read("networks.oft", "enable_all_linear=True", "enable_conv=True")
    found = ranks(folder, whole)
    assert any("_ff_" in name for name in found) and any("conv1" in name for name in found)


def test_what_differs_between_modules_where_it_is_not_named() -> None:
    assert read("networks.dylora").unit == 1 and read(LYCORIS, "algo=dylora").unit == 4
    assert read(LYCORIS, "algo=dylora", "block_size=2").unit == 2
    # so large a rank is how LoKr is told to split nothing
    lokr = read(LYCORIS, "algo=lokr", "factor=8", "conv_dim=100000", network_dim=100000)
    assert lokr.full_matrix and lokr.factor == 8
    strong = read(LYCORIS, "rs_lora=True")
    assert strong.network_alpha == strong.conv_alpha == 4.0  # 2 / √4 is 4 / 4


def test_arguments_at_their_defaults_say_nothing() -> None:
    """What kohya_ss writes of each network, used or not."""
    plain = read(LYCORIS, "algo=lokr", "preset=full")
    off = ["bypass_mode", "dora_wd", "use_cp", "use_scalar", "decompose_both", "train_norm",
           "rank_dropout_scale", "unbalanced_factorization"]  # fmt: skip
    told = [*(f"{name}=False" for name in off), "rank_dropout=0", "module_dropout=0", "factor=-1"]
    told += ["conv_dim=4", "conv_alpha=2"]
    written = read(LYCORIS, "algo=lokr", "preset=full", *told)
    assert (written.conv_dim, written.conv_alpha) == (4, 2.0)
    same = {**vars(written), "conv_dim": plain.conv_dim, "conv_alpha": plain.conv_alpha}
    assert same == vars(plain)


@pytest.mark.parametrize(
    ("module", "argument", "said"),
    [
        (LYCORIS, "use_scalar=True", "use_scalar"),
        (LYCORIS, "preset=mine.toml", "files are not read"),
        (LYCORIS, "enable_conv=True", "is of networks.oft"),
        ("networks.lora", "algo=loha", "is of lycoris.kohya"),
        ("networks.lora", "dora_wd=True", "is of lycoris.kohya"),
        ("networks.lora", "conv_rank=4", "conv_rank is not known"),
        ("networks.lora", "up_lr_weight=1,1,1", "SDXL 9, 3 and 9"),
    ],
)
def test_what_a_module_does_not_take_is_refused(module: str, argument: str, said: str) -> None:
    with pytest.raises(CrucibleError, match=f"network_args.*{said}"):
        read(module, argument)


def test_block_weights_of_sdxl_and_their_threshold() -> None:
    found = read(
        "networks.lora", "down_lr_weight=0.05,0.5,,1,1,1,1,1,1", "mid_lr_weight=1,0.5,1",
        "block_lr_zero_threshold=0.1",
    ).block_lr_weight  # fmt: skip
    assert found == (1, 0, 0.5, 0, *[1] * 6, 1, 0.5, 1, *[1] * 9, 1)


def test_loraplus_of_each_part(folder: Path) -> None:
    options = read(
        "networks.lora", "loraplus_lr_ratio=2", "loraplus_text_encoder_lr_ratio=8", unet_lr=1e-3,
        text_encoder_lr=[1e-4, 1e-4],
    )  # fmt: skip
    assert options.text_encoder_lr == (1e-4,)  # kohya_ss names two also for a single encoder
    model = trainable(folder).loaded
    wanted = NetworkTraining(
        network_dim=2, unet_lr=1e-3, text_encoder_lr=options.text_encoder_lr,
        loraplus_lr_ratio=options.loraplus_lr_ratio,
        loraplus_text_encoder_lr_ratio=options.loraplus_text_encoder_lr_ratio,
    )  # fmt: skip
    groups = rate_groups(model, fresh_network(model, wanted, torch.Generator()), wanted, 1.0)
    assert {group["name"]: group["lr"] for group in groups} == pytest.approx(
        {"unet": 1e-3, "unet up": 2e-3, "te1": 1e-4, "te1 up": 8e-4}
    )
