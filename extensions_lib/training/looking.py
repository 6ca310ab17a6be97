"""What is looked at on the way: samples, and the loss on fixed noise."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import replace
from fractions import Fraction
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from extensions_lib.datasets.options import resolution_of
from extensions_lib.datasets.pictures import open_picture
from extensions_lib.errors import CrucibleError, Stopped
from extensions_lib.models.place import Place, Sample
from extensions_lib.training.kinds import Kind
from extensions_lib.training.sample_prompts import read_samples
from extensions_lib.training.validation import Validation

if TYPE_CHECKING:
    from extensions_lib.patching.forwards import Standing
    from extensions_lib.training.data import TrainingData
    from extensions_lib.training.loop import Loop
    from extensions_lib.training.options import TrainingOptions
    from extensions_lib.training.outputs import Outputs
    from extensions_lib.training.record import Record
    from extensions_lib.training.step import Recipe

_MEASURED = 32  # pictures
_SAMPLES = 5  # times that samples are made where nothing is said
_MEASURES = 10  # likewise
Say = Callable[..., None]  # doing=, done=, of=


def is_due(done: int, per_epoch: Fraction, steps: int | None, epochs: int | None) -> bool:
    """Whether something that comes every so many steps, or epochs, comes after step `done`."""
    if steps and done % steps == 0:
        return True
    if not epochs:
        return False
    return int(done / per_epoch / epochs) > int((done - 1) / per_epoch / epochs)


class Looking:
    """Makes the samples of a run and measures it, both with what would be saved.

    `turn` has that on the model.
    """

    def __init__(
        self,
        place: Place,
        options: TrainingOptions,
        kind: Kind,
        loop: Loop,
        data: TrainingData,
        turn: Callable[[], AbstractContextManager[Any]],
    ) -> None:
        self._place, self._options, self._kind, self._loop = place, options, kind, loop
        self._turn = turn
        self._samples = (guided_samples_of if kind.guided else samples_of)(place, options, data)
        most = options.max_validation_steps or -(-_MEASURED // options.train_batch_size)
        self._validation = Validation(loop, data.validation or data, most)

    def at_first(self, outputs: Outputs, record: Record, say: Say, stop: threading.Event) -> bool:
        """Before the first step."""
        self._measure(record, say)
        if self._options.sample_at_first:
            self._make_samples(outputs, record, say, stop)
        return False

    def after_step(self, outputs: Outputs, record: Record, say: Say, stop: threading.Event) -> bool:
        """What is due after the last step that was done; whether samples were."""
        options, done, steps = self._options, self._loop.done, self._loop.options.max_train_steps
        per_epoch = self._loop.per_epoch
        measures, epochs = options.validate_every_n_steps, options.validate_every_n_epochs
        if measures is None and epochs is None:
            measures = _share(steps, _MEASURES)
        if done == steps or is_due(done, per_epoch, measures, epochs):
            self._measure(record, say)
        every = options.sample_every_n_steps
        if every is None and options.sample_every_n_epochs is None:
            every = _share(steps, _SAMPLES)
        if done < steps and not is_due(done, per_epoch, every, options.sample_every_n_epochs):
            return False
        self._make_samples(outputs, record, say, stop)
        return bool(self._samples)

    def _measure(self, record: Record, say: Say) -> None:
        losses = []
        for number in range(len(self._validation)):
            say(doing="measuring", done=number, of=len(self._validation))
            with self._turn():
                losses.append(self._validation.measure(number))
        record.add(self._loop.done, validation=sum(losses) / len(losses))

    def _make_samples(
        self, outputs: Outputs, record: Record, say: Say, stop: threading.Event
    ) -> None:
        """What fails here is said, and the run goes on. Raises Stopped."""
        step = self._loop.done
        for number, sample in enumerate(self._samples):
            if stop.is_set():
                raise Stopped("Stopped while samples were made.")
            say(doing="making samples", done=number, of=len(self._samples))
            try:
                picture = self._picture(sample, stop)
                path = outputs.write_sample(picture, step, number)
            except Stopped:
                raise
            except CrucibleError as problem:
                record.add(step, said=f"no sample of step {step}: {problem}")
                return
            record.add(step, sample=path.name, prompt=sample.prompt, number=number)

    def _picture(self, sample: Sample, stop: threading.Event) -> Any:
        name = self._options.output_name
        sample = replace(sample, prompt=self._kind.tagged(sample.prompt, name))
        if self._options.train == "network":
            return self._place.picture(sample, stop)  # by its tag, as in any prompt
        for tag in (f" <hypernet:{name}:1>", f" <lllite:{name}:1>"):
            sample = replace(sample, prompt=sample.prompt.replace(tag, ""))
        return self._place.picture(sample, stop, partial(self._on_the_model, sample))

    @contextmanager
    def _on_the_model(self, sample: Sample) -> Iterator[None]:
        recipe = self._loop.recipe
        with self._loop.as_saved(), on_the_model(recipe):
            if self._kind.guided:
                control = condition(sample)
                with torch.no_grad():
                    recipe.follow(control, [side // 8 for side in control.shape[-2:]])  # type: ignore[attr-defined]
            yield


@contextmanager
def on_the_model(
    recipe: Recipe, passes: Standing | None = None, checkpointing: Standing | None = None
) -> Iterator[None]:
    """What is trained is on the model while it lasts: around `passes`, inside `checkpointing`."""
    outwards: list[Standing | Recipe | None] = [passes, recipe, checkpointing]
    with ExitStack() as stack:
        for each in outwards:
            if each is not None:
                # also where it fails half way
                stack.callback(each.take_out)
                each.put_in()
        yield


def samples_of(place: Place, options: TrainingOptions, data: TrainingData) -> list[Sample]:
    """What is looked at: the prompts that are asked for, or two of the captions."""
    return read_samples(options.sample_prompts or _captions(data)[:2], _usual(place, options))


def _usual(place: Place, options: TrainingOptions) -> Sample:
    return Sample("", cfg=place.about()["cfg"], sampler=options.sample_sampler, seed=1)


def guided_samples_of(place: Place, options: TrainingOptions, data: TrainingData) -> list[Sample]:
    """The same, each with a condition picture: what `--cn` names, else one of the set in turn."""
    those = [each for each in data.pictures if each.guide and not each.subset.is_reg]
    if not those:
        return []  # the first step says what is missing
    width, height = (side // 64 * 64 for side in resolution_of(options))
    usual = replace(_usual(place, options), width=width, height=height)
    found = read_samples(options.sample_prompts, usual)
    found = found or [replace(usual, prompt=each.caption or "") for each in those[:2]]
    return [
        replace(each, control=each.control or those[number % len(those)].guide)
        for number, each in enumerate(found)
    ]


def condition(sample: Sample) -> torch.Tensor:
    """[1, 3, H, W] from −1 to 1: a sample's condition picture at its size, its middle kept.

    Raises PictureProblem.
    """
    from PIL import ImageOps

    assert sample.control is not None and sample.width is not None and sample.height is not None
    picture = ImageOps.fit(open_picture(sample.control), (sample.width, sample.height))
    pixels = torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8)
    pixels = pixels.view(1, sample.height, sample.width, 3).permute(0, 3, 1, 2)
    return pixels.float() / 127.5 - 1


def _captions(data: TrainingData) -> Sequence[str]:
    """The different captions of what is learnt, in order."""
    those = [picture for picture in data.pictures if not picture.subset.is_reg]
    texts = [picture.caption or picture.subset.class_tokens or "" for picture in those]
    return tuple(dict.fromkeys(text.splitlines()[0] for text in texts if text.strip()))


def _share(steps: int, parts: int) -> int:
    return max(1, steps // parts)
