"""The loop on a small model: it learns, repeats to the bit, resumes to the bit, leaves no trace."""

from __future__ import annotations

import math
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch

from extensions_lib.adapters import DoRA
from extensions_lib.errors import CrucibleError, FileProblem
from extensions_lib.training import ranks
from extensions_lib.training.looking import is_due
from extensions_lib.training.loop import Exploded, Loop, LoopOptions, Step
from extensions_lib.training.option_groups import KINDS
from extensions_lib.training.options import TrainingOptions
from extensions_lib.training.preflight import steps_of
from extensions_lib.training.recipes.network import NetworkRecipe, NetworkTraining
from extensions_lib.training.state import load_state, save_state, states
from tests.patching.standin import Bits
from tests.training.small import Few, trainable


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


def run(folder: Path, steps: int, resume: Path | None = None, **options: object) -> Loop:
    """A loop that has done `steps` steps, the model clean again."""
    names = LoopOptions.__dataclass_fields__
    of_loop = {name: value for name, value in options.items() if name in names}
    others = {name: value for name, value in options.items() if name not in names}
    model = trainable(folder)
    kept = [Bits(each) for each in (model.loaded.unet, *model.loaded.text_encoders)]
    settings = LoopOptions(**{"learning_rate": 1e-3, "max_train_steps": 8, **of_loop})
    training = NetworkTraining(**{"network_dim": 2, **others})
    recipe = NetworkRecipe(model, training, settings.learning_rate)
    loop = Loop(recipe, Few(), settings)
    if resume is not None:
        loop.restore(load_state(resume)[0])
    recipe.put_in()
    try:
        loop.steps = [loop.step() for _ in range(steps - loop.done)]
    finally:
        recipe.take_out()
    assert all(each.untouched() for each in kept)
    return loop


def same(one: Loop, other: Loop) -> bool:
    pairs = zip(one.recipe.tensors().items(), other.recipe.tensors().items(), strict=True)
    return all(a == b and torch.equal(x, y) for (a, x), (b, y) in pairs)


def test_it_learns_and_a_second_run_is_the_same(folder: Path) -> None:
    first, second = run(folder, 8), run(folder, 8)
    assert same(first, second)
    assert [step.loss for step in first.steps] == [step.loss for step in second.steps]
    moved = [n for n, t in first.recipe.tensors().items() if "lora_up" in n and t.any()]
    ups = [n for n in first.recipe.tensors() if "lora_up" in n]
    assert moved == ups and len(ups) > 20
    assert not same(first, run(folder, 8, seed=1))


@pytest.mark.parametrize(
    "options",
    [
        {"optimizer_type": "AdamW", "ema_decay": 0.9, "network_dropout": 0.2, "rank_dropout": 0.2},
        {"optimizer_type": "SGDNesterov", "kind": "dylora", "unit": 1, "module_dropout": 0.3},
        {"optimizer_type": "Adafactor", "noise_offset": 0.1, "gradient_accumulation_steps": 2},
    ],
    ids=["adamw", "sgd", "adafactor"],
)
def test_a_resumed_run_ends_in_the_same_bits(
    folder: Path, tmp_path: Path, options: dict[str, object]
) -> None:
    whole = run(folder, 6, **options)
    half = run(folder, 3, **options)
    path = save_state(tmp_path, half.state(), {"name": "x"}, keep=2)
    resumed = run(folder, 6, resume=path, **options)
    assert same(whole, resumed)
    assert [step.loss for step in whole.steps[3:]] == [step.loss for step in resumed.steps]
    assert whole.ema.keys() == resumed.ema.keys()
    assert all(torch.equal(whole.ema[name], resumed.ema[name]) for name in whole.ema)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_trains(folder: Path, kind: str) -> None:
    loop = run(folder, 2, kind=kind, network_dim=4, conv_dim=4, dora_wd=kind in ("lora", "lokr"))
    learnt = loop.recipe.learnt()
    assert learnt and all(step.norm > 0 for step in loop.steps)
    fresh = run(folder, 0, kind=kind, network_dim=4, conv_dim=4, dora_wd=kind in ("lora", "lokr"))
    before = fresh.recipe.tensors()
    changed = [
        name for name, t in loop.recipe.tensors().items() if not torch.equal(t, before[name])
    ]
    assert changed
    if kind == "lora-fa":
        assert not any("lora_down" in name for name in changed)


def test_rates_follow_component_and_schedule(folder: Path) -> None:
    loop = run(
        folder,
        4,
        unet_lr=1e-3,
        text_encoder_lr=(5e-4,),
        loraplus_lr_ratio=4.0,
        lr_scheduler="linear",
        lr_warmup_steps=2,
        max_train_steps=6,
    )
    rates = [step.rates for step in loop.steps]
    assert rates[0] == dict.fromkeys(rates[0], 0.0)
    assert rates[2] == {"unet": 1e-3, "unet up": 4e-3, "te1": 5e-4, "te1 up": 2e-3}
    assert rates[3]["unet"] == pytest.approx(0.75e-3)


def test_text_encoders_are_left_alone_when_asked(folder: Path) -> None:
    loop = run(folder, 1, train_text_encoder=False)
    assert not loop.recipe.reads
    assert all(name.startswith("unet.") for name in loop.recipe.tensors())
    with pytest.raises(CrucibleError, match="train_unet and train_text_encoder"):
        run(folder, 1, train_text_encoder=False, train_unet=False)


@pytest.mark.parametrize(
    "kind",
    [
        {},
        {"dora_wd": True},
        {"conv_dim": 2, "use_tucker": True},
        {"kind": "loha"},
        {"kind": "loha", "conv_dim": 2, "use_tucker": True},
        {"kind": "lokr"},
        {"kind": "lokr", "decompose_both": True},
    ],
    ids=str,
)
def test_norms_stay_within_their_limit(folder: Path, kind: dict[str, Any]) -> None:
    told = {"learning_rate": 0.1, "lr_scheduler": "constant", **kind}
    free = run(folder, 3, **told)
    bound = run(folder, 3, scale_weight_norms=0.05, **told)

    def longest(loop: Loop) -> float:
        adapters = loop.recipe.learnt().values()
        inner = [a.inner if isinstance(a, DoRA) else a for a in adapters]
        return max(float(a.delta(torch.zeros(a.shape)).norm()) for a in inner)

    assert longest(free) > 0.1
    assert longest(bound) <= 0.05 * 1.001


def test_a_loss_that_is_no_number_changes_nothing_and_names_the_picture(folder: Path) -> None:
    model = trainable(folder)
    recipe = NetworkRecipe(model, NetworkTraining(network_dim=2), 1e-3)
    data = Few()
    data.latents[3] = float("nan")
    loop = Loop(recipe, data, LoopOptions(max_train_steps=8))
    recipe.put_in()
    with pytest.raises(Exploded, match=r"step \d: the loss of 3\.png \(nan\) is no number"):
        for _ in range(3):
            before = {name: tensor.clone() for name, tensor in recipe.tensors().items()}
            loop.step()
    recipe.take_out()
    assert all(torch.equal(before[name], tensor) for name, tensor in recipe.tensors().items())
    assert all(tensor.grad is None for tensor in recipe.tensors().values())


def test_a_step_that_overflows_in_fp16_is_left_out(folder: Path) -> None:
    model = trainable(folder)
    recipe = NetworkRecipe(model, NetworkTraining(network_dim=2), 1e-3)
    data = Few()
    data.latents[3] = float("inf")
    loop = Loop(recipe, data, LoopOptions(max_train_steps=80), scaled=True)
    recipe.put_in()
    moved = {}  # by whether the loss was a number
    for _ in range(6):
        before = bits(loop)
        step = loop.step()
        after = bits(loop)
        moved[math.isfinite(step.loss)] = any(
            not torch.equal(before[name], each) for name, each in after.items()
        )
    assert moved == {True: True, False: False} and loop.done == 6
    data.latents[:] = float("inf")
    with pytest.raises(Exploded, match="step 16: the loss of"):
        for _ in range(20):
            loop.step()
    recipe.take_out()


def test_states_are_kept_and_others_refused(folder: Path, tmp_path: Path) -> None:
    loop = run(folder, 1)
    for _ in range(3):
        save_state(tmp_path, loop.state(), {}, keep=2)
        loop.done += 1
    assert [path.name for path in states(tmp_path)] == [
        "step-00000002.state",
        "step-00000003.state",
    ]
    torch.save({"weights": torch.ones(2)}, tmp_path / "other.state")
    with pytest.raises(FileProblem, match="is no state of a training run"):
        load_state(tmp_path / "other.state")
    with pytest.raises(CrucibleError, match="state is of another run"):
        run(folder, 2, resume=states(tmp_path)[0], network_dim=3)


def test_a_step_says_what_it_was(folder: Path) -> None:
    loop = run(folder, 2, gradient_accumulation_steps=2)
    assert [type(step) for step in loop.steps] == [Step, Step]
    assert loop.data.asked == [(0, 0), (0, 1), (0, 2), (1, 0)]
    assert loop.epoch == 1


class OneOfMyOwnScheduleFree(torch.optim.SGD):
    """An optimizer whose name says that it needs no course of the learning rate."""

    def train(self) -> None:
        """As those of schedulefree have it."""

    eval = train


def test_an_optimizer_that_is_schedule_free_has_its_rate_throughout(folder: Path) -> None:
    name = f"{__name__}.OneOfMyOwnScheduleFree"
    loop = run(folder, 3, optimizer_type=name, lr_scheduler="linear", lr_warmup_steps=2)
    assert [step.rates["unet"] for step in loop.steps] == [1e-3] * 3


def test_optimizers_of_torch_are_known_by_their_name(folder: Path) -> None:
    loop = run(folder, 1, optimizer_type="NAdam")
    assert type(loop.optimizer) is torch.optim.NAdam
    with pytest.raises(CrucibleError, match="there is none of that name"):
        run(folder, 1, optimizer_type="Optimizer")


def test_epochs_are_those_of_all_processes(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loop = run(folder, 2)
    assert (loop.per_epoch, loop.epoch) == (3.0, 0)
    monkeypatch.setattr(ranks, "rank", lambda: ranks.Rank(0, 3))
    assert (loop.per_epoch, loop.epoch) == (1.0, 2)
    options = TrainingOptions(max_train_epochs=4, gradient_accumulation_steps=2)
    assert steps_of(options, 12) == (8, 4.0)  # each step learns from 6 batches


# --- what is saved ----------------------------------------------------------------------------


class TwoSets(torch.optim.SGD):
    """Has two sets of weights, as the schedule-free optimizers do."""

    def train(self) -> None:
        self._move(1 / 0.7, -0.3 / 0.7)

    def eval(self) -> None:
        self._move(0.7, 0.3)

    @torch.no_grad()
    def _move(self, share: float, more: float) -> None:
        for each in self.param_groups[0]["params"]:
            mean = self.state[each].setdefault("mean", torch.full_like(each, 0.1))
            each.mul_(share).add_(mean, alpha=more)


TWO_SETS = f"{__name__}.TwoSets"


def bits(loop: Loop) -> dict[str, torch.Tensor]:
    return {name: each.detach().clone() for name, each in loop.recipe.tensors().items()}


@pytest.mark.parametrize("options", [{"ema_decay": 0.9}, {"optimizer_type": TWO_SETS}, {}], ids=str)
def test_what_is_saved_is_looked_at_and_what_is_trained_stays(
    folder: Path, options: dict[str, object]
) -> None:
    loop = run(folder, 4, **options)
    trained, saved = bits(loop), loop.values() or bits(loop)
    with loop.as_saved():
        assert all(torch.equal(each, saved[name]) for name, each in bits(loop).items())
    assert all(torch.equal(each, trained[name]) for name, each in bits(loop).items())
    assert any(not torch.equal(each, saved[name]) for name, each in trained.items()) == bool(
        options
    )


def test_means_begin_with_what_a_run_has(folder: Path, tmp_path: Path) -> None:
    path = save_state(tmp_path, run(folder, 3).state(), {}, keep=1)
    resumed = run(folder, 3, resume=path, ema_decay=0.9)
    assert resumed.ema and all(torch.equal(resumed.ema[n], t) for n, t in bits(resumed).items())


def test_what_is_gone_on_with_is_saved_where_it_does_not_learn(folder: Path) -> None:
    model, options = trainable(folder), NetworkTraining(network_dim=2)
    first = NetworkRecipe(model, options, 1e-3).adapters
    still = replace(options, text_encoder_lr=(0.0,))
    assert not any(name.startswith("te") for name in NetworkRecipe(model, still, 1e-3).learnt())
    assert NetworkRecipe(model, still, 1e-3, adapters=first).learnt().keys() == first.keys()


@pytest.mark.parametrize("batches", [3, 7])
@pytest.mark.parametrize("accumulation", [1, 3, 7])
@pytest.mark.parametrize("every", [1, 3])
def test_what_is_due_at_epochs_is_due_at_their_last_step(
    batches: int, accumulation: int, every: int
) -> None:
    due = [
        step for step in range(1, 100) if is_due(step, Fraction(batches, accumulation), None, every)
    ]
    ends = [-(-batches * epoch // accumulation) for epoch in range(every, 1000, every)]
    assert due == sorted({step for step in ends if step < 100})
