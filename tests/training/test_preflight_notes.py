"""What the look ahead says of options that change nothing, cannot be, or would fail late."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from extensions_lib.errors import CrucibleError
from extensions_lib.hosts.standalone import StandaloneHost
from extensions_lib.hosts.standalone.place import StandalonePlace
from extensions_lib.models.place import Sample
from extensions_lib.options import checked
from extensions_lib.training import preflight
from extensions_lib.training.options import TrainingOptions
from extensions_lib.training.preflight import Cost, Preflight, look_ahead
from extensions_lib.training.sample_prompts import read_sample, read_samples
from tests.tiny import tiny_checkpoint
from tests.training.drawn import SMALL, drawn_set


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StandalonePlace]:
    root = tmp_path_factory.mktemp("root")
    drawn_set(root / "set")
    tiny_checkpoint(root / "models" / "Stable-diffusion" / "SD1.safetensors", "SD1")
    host = StandaloneHost("SD1", root, threads=1)
    yield StandalonePlace(host)
    host.close()


def ahead(place: StandalonePlace, **told: object) -> Preflight:
    usual = {"train_data_dir": str(place.host.root / "set"), "lr_scheduler": "constant", **SMALL}
    return look_ahead(place, checked(TrainingOptions, {**usual, **told}))


@pytest.mark.parametrize(
    ("told", "said"),
    [
        ({"lr_warmup_steps": 10}, "lr_warmup_steps: changes nothing with constant"),
        ({"optimizer_type": "AdamWScheduleFree"}, "needs no course of the learning rate"),
        ({"optimizer_type": "Prodigy", "learning_rate": 1e-4}, "0.0001 is little for Prodigy"),
        ({"kind": "loha", "network_dropout": 0.1}, "network_dropout: changes nothing for loha"),
        ({"dora_wd": True, "network_dropout": 0.1}, "nothing for lora with dora_wd"),
        ({"kind": "glora", "scale_weight_norms": 1.0}, "scale_weight_norms: changes nothing"),
        ({"network_weights": "a", "train_text_encoder": False}, "of the text encoder are left out"),
    ],
)
def test_what_changes_nothing_is_said(
    place: StandalonePlace, told: dict[str, object], said: str
) -> None:
    assert not any(said in note for note in ahead(place).notes)
    found = ahead(place, **told)
    assert any(said in note for note in found.notes), found.notes
    assert not found.problems


@pytest.mark.parametrize(
    ("told", "said"),
    [
        ({"lr_scheduler": "adafactor"}, "adafactor is for the optimizer of that name"),
        ({"sample_prompts": ["a cat --zz 3"]}, "--zz is unknown"),
        ({"kind": "loha", "loraplus_unet_lr_ratio": 4}, "loraplus_unet_lr_ratio: is for lora"),
    ],
)
def test_what_cannot_be_is_a_problem_before_the_start(
    place: StandalonePlace, told: dict[str, object], said: str
) -> None:
    assert any(said in problem for problem in ahead(place, **told).problems)


def test_there_are_no_steps_beyond_the_schedule() -> None:
    with pytest.raises(CrucibleError, match="max_timestep: takes a whole number from 1 to 1000"):
        checked(TrainingOptions, {"max_timestep": 2000})


def test_prompts_of_samples_as_sd_scripts_reads_them() -> None:
    usual = Sample("", seed=5)
    found = read_sample("a -- cat --N ugly --W 64 --h 128 --l 3.5 --S 4 --ss k_euler_a", usual)
    assert found == Sample(
        "a -- cat", "ugly", width=64, height=128, cfg=3.5, steps=4, sampler="Euler a", seed=5
    )
    # a flag with nothing after it does not swallow the next one
    assert read_sample("a cat --n --w 64", usual) == Sample("a cat", "", width=64, seed=5)
    assert read_sample("a cat --n", usual).negative == ""
    assert read_sample("a cat --ss DPM++ SDE", usual).sampler == "DPM++ SDE"
    assert [each.seed for each in read_samples(["a", "# b", "", "c", "d --d 1"], usual)] == [
        5,
        6,
        1,
    ]
    with pytest.raises(CrucibleError, match="--w takes a number"):
        read_sample("a --w", usual)


def test_the_step_that_is_tried_is_the_runs_own(place: StandalonePlace) -> None:
    usual = {"train_data_dir": str(place.host.root / "set"), "train_batch_size": 4, **SMALL}

    def cost(**told: object) -> Cost:
        found = look_ahead(place, checked(TrainingOptions, {**usual, **told}), measured=True).cost
        assert found is not None
        return found

    plain, again = cost(), cost(gradient_checkpointing=True)
    assert again.bytes_needed < plain.bytes_needed and again.trained == plain.trained
    smaller = cost(network_dim=2)
    assert smaller.trained < plain.trained


def test_memory_that_is_not_there_is_said(
    place: StandalonePlace, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> Cost:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(preflight, "_measured", full)
    usual = {"train_data_dir": str(place.host.root / "set"), **SMALL}
    found = look_ahead(place, checked(TrainingOptions, usual), measured=True)
    assert any("More memory is needed than is free" in note for note in found.notes)
