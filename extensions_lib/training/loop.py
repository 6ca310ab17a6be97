"""The loop: one optimizer step after another, each a function of the run's seed and its number.

Nothing random is carried from step to step: a generator, and torch's own, are seeded anew from the
seed and that number. What a run needs in order to go on is what it trains, the state of the
optimizer, and a number.
"""

from __future__ import annotations

import hashlib
import math
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from extensions_lib.errors import CrucibleError
from extensions_lib.training import ranks
from extensions_lib.training.in_one import InOne
from extensions_lib.training.objective import check_for
from extensions_lib.training.optimizers import (
    make_optimizer,
    schedules_itself,
    treats_each_number_alone,
)
from extensions_lib.training.option_groups import LoopOptions
from extensions_lib.training.schedulers import factor
from extensions_lib.training.step import Batch, Data, Recipe

if TYPE_CHECKING:
    from extensions_lib.models.loaded import LoadedModel
    from extensions_lib.training.options import TrainingOptions


_OVERFLOWS = 10  # steps in a row whose loss fp16 does not hold
_DTYPES = {"no": None, "fp16": torch.float16, "bf16": torch.bfloat16}


class Exploded(CrucibleError):
    """The loss or a gradient is no number any more."""


@dataclass(frozen=True)
class Step:
    """What a step came to. `rates` are the learning rates by group; `norm` is the gradient's.

    `loss` is no number where fp16 did not hold it, and nothing was learnt in that step.
    """

    number: int
    loss: float
    norm: float
    rates: dict[str, float]
    seconds: float


class Loop:
    """Trains `recipe` on `data`; `step` does the next step, from `done` on.

    `precision`: of what is computed with autocast on `device`, a type; None: as the model is.
    `scaled`: gradients of fp16 are scaled up so that they are not lost.
    """

    def __init__(
        self,
        recipe: Recipe,
        data: Data,
        options: LoopOptions,
        *,
        precision: torch.dtype | None = None,
        device: str = "cpu",
        scaled: bool = False,
    ) -> None:
        self.recipe, self.data, self.options = recipe, data, options
        self._precision, self.device = precision, device
        self.done = 0
        self._worst = ""
        self._overflows = 0  # steps in a row
        groups = [{"lr": options.learning_rate, **group} for group in recipe.groups()]
        self._names = [str(group.pop("name", number)) for number, group in enumerate(groups)]
        self._rates = [group["lr"] for group in groups]
        self._in_one = InOne(groups, treats_each_number_alone(options.optimizer_type))
        self.optimizer = make_optimizer(
            options.optimizer_type,
            self._in_one.groups,
            options.learning_rate,
            options.optimizer_args,
        )
        if hasattr(self.optimizer, "train"):
            self.optimizer.train()
        self._scaler = _scaler(device, scaled)
        self._looked_at = threading.Lock()  # whoever reads `values` may be another thread
        self.ema = self._copies() if options.ema_decay else {}

    def values(self) -> dict[str, Tensor] | None:
        """What is to be saved where that is not what the tensors are: a mean of the steps."""
        if self.ema:
            return self.ema
        if not hasattr(self.optimizer, "train"):  # schedulefree's have two sets of weights
            return None
        with self._looked_at:
            trained = self._copies()
            self.optimizer.eval()  # type: ignore[attr-defined]
            held = self._copies()
            self.optimizer.train()
            self._become(trained)  # there and back is not the same to the bit
        return held

    @contextmanager
    def as_saved(self) -> Iterator[None]:
        """The tensors are what would be saved, and afterwards to the bit what is trained."""
        values = self.values()
        if values is None:
            yield
            return
        trained = self._copies()
        try:
            self._become(values)
            yield
        finally:
            self._become(trained)

    def _copies(self) -> dict[str, Tensor]:
        return {name: each.detach().clone() for name, each in self.recipe.tensors().items()}

    @torch.no_grad()
    def _become(self, values: Mapping[str, Tensor]) -> None:
        for name, tensor in self.recipe.tensors().items():
            tensor.copy_(values[name])

    @property
    def per_epoch(self) -> Fraction:
        """Steps of an epoch."""
        return Fraction(len(self.data), batches_of_step(self.options))

    @property
    def epoch(self) -> int:
        """The epoch of the next step, from 0."""
        return self.done * batches_of_step(self.options) // len(self.data)

    def step(self) -> Step:
        """The next step. Raises Exploded, with nothing changed, where a loss is no number."""
        started = time.perf_counter()
        options, number = self.options, self.done
        if options.lr_scheduler != "adafactor" and not schedules_itself(options.optimizer_type):
            share = factor(options, number, options.max_train_steps)
            for group, rate in zip(self.optimizer.param_groups, self._rates, strict=True):
                group["lr"] = rate * share
        loss = 0.0
        mine, accumulation = ranks.rank(), options.gradient_accumulation_steps
        for part in range(accumulation):
            loss += self._learn((number * accumulation + part) * mine.count + mine.index)
        trained = self._in_one.gather()
        ranks.average([each.grad for each in trained if each.grad is not None])
        loss = ranks.average_number(loss, trained[0].device)
        self._overflows = 0 if math.isfinite(loss) else self._overflows + 1
        # fp16 overflows now and then: the scaler leaves such a step out, and scales less
        if self._overflows > (_OVERFLOWS if self._scaler.is_enabled() else 0):
            self._forget()  # of another process: all of them stop at this step
            raise Exploded(f"step {number + 1}: {self._worst or 'a loss is no number'}; {_ADVICE}")
        norm = self._clip(trained)
        if not math.isfinite(norm) and not self._scaler.is_enabled():
            self._forget()
            raise Exploded(f"step {number + 1}: the gradient is {norm}; {_ADVICE}")
        self._in_one.step(lambda: self._scaler.step(self.optimizer), self.optimizer)
        self._scaler.update()
        self._forget()
        self.recipe.after_step()
        with torch.no_grad():
            for name, tensor in self.recipe.tensors().items() if self.ema else ():
                self.ema[name].lerp_(tensor, 1 - options.ema_decay)
        self.done += 1
        rates = [group["lr"] or 0.0 for group in self.optimizer.param_groups]
        seconds = time.perf_counter() - started
        return Step(number, loss, norm, dict(zip(self._names, rates, strict=True)), seconds)

    def _learn(self, number: int) -> float:
        """Adds the gradients of micro-batch `number`; its loss, as a share of the step's."""
        generator = seeded(self.options.seed, number, self.device)
        batch = self.data.batch(*divmod(number, len(self.data)), generator)
        with self.computing():
            losses = self.recipe.losses(batch, generator)
        mean = losses.mean() / self.options.gradient_accumulation_steps
        self._scaler.scale(mean).backward()
        loss = float(mean.detach())
        if not math.isfinite(loss):
            self._worst = _worst(batch, losses)
        return loss

    def computing(self) -> AbstractContextManager[Any]:
        """In which losses are computed."""
        if self._precision is None:
            return nullcontext()
        return torch.autocast(self.device, self._precision)

    def _clip(self, trained: Sequence[Tensor]) -> float:
        self._scaler.unscale_(self.optimizer)
        longest = self.options.max_grad_norm or math.inf
        return float(torch.nn.utils.clip_grad_norm_(trained, longest))

    def _forget(self) -> None:
        self._in_one.forget()

    def state(self) -> dict[str, Any]:
        """All that is needed to go on: tensors, numbers, and the optimizer's own."""
        two = hasattr(self.optimizer, "train")  # sets of weights: see `values`
        with self._looked_at:
            tensors = self.recipe.tensors()
            return {
                "done": self.done,
                "trained": self._copies() if two else {n: t.detach() for n, t in tensors.items()},
                "ema": self.ema,
                "optimizer": self._in_one.apart(self.optimizer.state_dict()),
                "scaler": self._scaler.state_dict(),
            }

    def restore(self, state: dict[str, Any]) -> None:
        """Goes on from there. Raises CrucibleError where it is the state of another run."""
        own = self.recipe.tensors()
        saved: dict[str, Tensor] = state["trained"]
        strange = sorted(own.keys() ^ saved.keys())
        strange += [n for n in own.keys() & saved.keys() if own[n].shape != saved[n].shape]
        if strange:
            raise CrucibleError(
                f"the saved state is of another run: {strange[0]} and {len(strange) - 1} others "
                "are not the same in both. Resume with the options that it was begun with."
            )
        self._become(saved)
        if self.options.ema_decay:
            means = state["ema"] or saved  # a run that begins to keep them begins with what it has
            self.ema = {n: means[n].to(t.device, t.dtype, copy=True) for n, t in own.items()}
        self.optimizer.load_state_dict(self._in_one.joined(state["optimizer"]))
        self._scaler.load_state_dict(state["scaler"])
        self.done = state["done"]


_ADVICE = (
    "nothing of this step was learnt. Lower the learning rate, or train in 32 bits if this was "
    "in 16."
)


def loop_on(model: LoadedModel, recipe: Recipe, data: Data, options: TrainingOptions) -> Loop:
    """A loop that computes in the precision that the options ask for, else in the model's.

    Raises CrucibleError for options that do not suit what the model predicts.
    """
    check_for(options, model.schedule)
    precision, device = _DTYPES[options.mixed_precision], model.device.type
    if precision is None and model.dtype in (torch.float16, torch.bfloat16):
        precision = model.dtype  # what is trained is in 32 bits all the same
    scaled = precision is torch.float16 and device == "cuda"
    return Loop(recipe, data, options, precision=precision, device=device, scaled=scaled)


def batches_of_step(options: LoopOptions) -> int:
    """How many batches all processes together learn from in a step."""
    return options.gradient_accumulation_steps * ranks.rank().count


def _scaler(device: str, scaled: bool) -> Any:
    if hasattr(torch.amp, "GradScaler"):
        return torch.amp.GradScaler(device, enabled=scaled)
    return torch.cuda.amp.GradScaler(enabled=scaled)  # before torch 2.3, where there was this alone


def seeded(seed: int, number: int, device: str) -> torch.Generator:
    """A generator for micro-batch `number` of a run; torch's own are seeded along with it."""
    digest = hashlib.blake2b(f"{seed}:{number}".encode(), digest_size=8).digest()
    value = int.from_bytes(digest, "little") >> 1
    if device == "cpu":
        # Those of devices that are not used take longer to seed than a small batch to draw.
        torch.default_generator.manual_seed(value)
    else:
        torch.manual_seed(value)
    return torch.Generator().manual_seed(value ^ 1)


def _worst(batch: Batch, losses: Tensor) -> str:
    """Which pictures have a loss that is no number."""
    pairs = zip(batch.names, losses.detach().tolist(), strict=True)
    named = [f"{name} ({loss})" for name, loss in pairs if not math.isfinite(loss)]
    return f"the loss of {', '.join(named[:3]) or 'the batch'} is no number"
