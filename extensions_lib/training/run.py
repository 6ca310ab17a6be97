"""A training run, from its options to a file: what is done, in order, and how it is steered.

run = Run(place, options, folder)
run.start()                      # in a thread of its own; `run()` in this one
run.pause(), run.go_on(), run.save_now(), run.stop()
run.status(), run.record         # for whoever looks on
"""

from __future__ import annotations

import gc
import math
import tempfile
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch

from extensions_lib.datasets.folders import subsets_of
from extensions_lib.errors import CrucibleError, FileProblem, Stopped
from extensions_lib.models.place import Place, Snapshot
from extensions_lib.patching.checkpointing import Checkpointing
from extensions_lib.patching.passes import FastPasses
from extensions_lib.training import ranks
from extensions_lib.training.board import Board
from extensions_lib.training.data import Run as DataRun
from extensions_lib.training.data import TrainingData, read_training_data
from extensions_lib.training.kinds import kind_of
from extensions_lib.training.looking import Looking, is_due, on_the_model
from extensions_lib.training.loop import Exploded, Loop, Step, batches_of_step, loop_on
from extensions_lib.training.options import TrainingOptions, check
from extensions_lib.training.outputs import Outputs
from extensions_lib.training.pace import Pace, seldom_searched
from extensions_lib.training.preflight import facts_of, steps_of, text_options
from extensions_lib.training.recipes.network import NetworkRecipe
from extensions_lib.training.record import Record
from extensions_lib.training.state import load_state, save_state, states

State = Literal["preparing", "training", "paused", "done", "stopped", "failed"]
ENDED = ("done", "stopped", "failed")


@dataclass(frozen=True)
class Status:
    """Where a run stands. `doing` is what it does besides steps; `loss` is smoothed."""

    name: str
    state: State
    step: int = 0
    steps: int = 0
    epoch: int = 0
    epochs: int = 0
    loss: float | None = None
    per_second: float | None = None
    seconds_left: float | None = None
    doing: str = ""
    done: int = 0
    of: int = 0
    message: str = ""


class Run:
    """One run in `folder`; `resume`: goes on from the newest state there."""

    def __init__(
        self, place: Place, options: TrainingOptions, folder: Path, *, resume: bool = False
    ) -> None:
        check(options)
        self.place, self.options, self.folder = place, options, folder
        self.name = options.output_name
        self._writes = ranks.rank().is_first
        self.kind = kind_of(options)
        target = place.folder(options.train)
        self.outputs = Outputs(options, folder, target, self.kind.suffix)
        if not resume:
            self.outputs.refuse_to_replace()
        self._resume_from = self._newest() if resume else None
        first = 0 if self._resume_from is None else int(self._resume_from.stem.split("-")[1])
        own = folder if self._writes else Path(tempfile.mkdtemp(prefix="crucible-"))
        board = Board(own / "tensorboard") if options.tensorboard and self._writes else None
        self.record = Record(own, upto=first)
        if board is not None:
            self.record.heard.append(board)
        self._board = board
        if self._writes:
            self.outputs.write_options()
        self._stop, self._save = threading.Event(), threading.Event()
        self._going = threading.Event()
        self._going.set()
        self._status = Status(self.name, "preparing")
        self._pace = Pace()
        self._identity = ""
        self._passes: FastPasses | None = None
        self._checkpointing: Checkpointing | None = None
        self._thread: threading.Thread | None = None

    def _newest(self) -> Path:
        found = states(self.outputs.states)
        if not found:
            raise CrucibleError(f"{self.folder}: there is no state to go on from.")
        return found[-1]

    # --- steering, from any thread ------------------------------------------------------------

    def start(self) -> None:
        """Runs in a thread of its own."""
        name = f"training {self.name}"
        self._thread = threading.Thread(target=self.run, name=name, daemon=True)
        self._thread.start()

    def join(self, timeout: float | None = None) -> None:
        """Waits for its end."""
        if self._thread is not None:
            self._thread.join(timeout)

    def pause(self) -> None:
        """After the step that is under way."""
        self._going.clear()

    def go_on(self) -> None:
        """After a pause."""
        self._going.set()

    def save_now(self) -> None:
        """Writes the network and the state after the step that is under way."""
        self._save.set()

    def stop(self) -> None:
        """Ends after the step that is under way; what is learnt is saved."""
        self._stop.set()
        self._going.set()

    def status(self) -> Status:
        """Where it stands now."""
        return self._status

    def _say(self, **told: Any) -> None:
        self._status = replace(self._status, **told)

    # --- the run ------------------------------------------------------------------------------

    def run(self) -> Status:
        """All of it. What ends it early is said in the status, and the model is as it was."""
        try:
            with self.place.reserved(self.name):
                self._run()
        except Stopped:
            self._say(state="stopped", message="Stopped before the first step.")
        except CrucibleError as problem:
            self._say(state="failed", message=str(problem))
        except Exception as bug:
            traceback.print_exc()
            said = f"{type(bug).__name__}: {bug}"
            if isinstance(bug, torch.cuda.OutOfMemoryError):
                said = f"Out of memory: {_LESS}"
            self._say(state="failed", message=said)
        finally:
            if self._status.message:
                self.record.add(self._status.step, said=self._status.message, last_word=True)
            self.record.close()
            if self._board is not None:
                self._board.close()
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
        return self._status

    def _run(self) -> None:
        loop, data = self._prepared()
        if self._resume_from is not None:
            state, about = load_state(self._resume_from)
            loop.restore(state)
            if about.get("data") != data.identity:
                self.record.add(loop.done, said="The pictures or captions have changed since.")
        self._say(state="training", doing="", step=loop.done)
        turn = partial(self._turn, loop, as_saved=True)
        looking = Looking(self.place, self.options, self.kind, loop, data, turn)
        try:
            with self._shown(loop), seldom_searched():
                if loop.done == 0:
                    self._look(looking.at_first)
                self._steps(loop, looking)
            stopped = loop.done < loop.options.max_train_steps
            if loop.done:
                self._write_at_last(loop)
            self._say(state="stopped" if stopped else "done", message=self._last_word(loop))
        except Exception:
            # What was learnt up to the last whole step is kept, whatever went wrong after it.
            if loop.done:
                self._write_if_possible(loop)
            raise

    def _shown(self, loop: Loop) -> AbstractContextManager[None]:
        """A network can be named in prompts while it is trained."""
        recipe = loop.recipe
        if not isinstance(recipe, NetworkRecipe):
            return nullcontext()
        return self.place.shown(
            self.name, lambda: Snapshot(recipe.learnt(loop.values()), loop.done)
        )

    def _prepared(self) -> tuple[Loop, TrainingData]:
        options = self.options
        self._say(doing="looking at the pictures")
        batches = batches_of_step(options)
        how = DataRun(
            seed=options.seed,
            steps=options.max_train_steps,
            accumulation=batches,
        )
        data = read_training_data(
            subsets_of(options),
            options,
            how,
            text_options(self.place, options),
            facts=facts_of(self.place),
            on_progress=self._progress,
            stop=self._stop,
        )
        self._identity = data.identity
        if options.max_train_epochs:
            steps = steps_of(options, len(data))[0]
            options = self.options = replace(options, max_train_steps=steps)
            data.run = replace(data.run, steps=steps)
        self._say(
            steps=options.max_train_steps,
            epochs=-(-options.max_train_steps * batches // len(data)),
            doing="encoding the pictures",
        )
        with self.place.turn(self._stop) as model:
            data.prepare(model, self._progress, self._stop)
            file = Path(options.network_weights) if options.network_weights else None
            recipe = self.kind.make(model, options, file)
            loaded = model.loaded
            self._passes = FastPasses(loaded)
            if self.options.gradient_checkpointing:
                self._checkpointing = Checkpointing(loaded)
        self._data = data
        self.outputs.about(loaded)
        return loop_on(loaded, recipe, data, self.options), data

    # --- steps --------------------------------------------------------------------------------

    def _steps(self, loop: Loop, looking: Looking) -> None:
        steps = loop.options.max_train_steps
        self._pace.begin(loop.done)
        while loop.done < steps and not ranks.any_of(self._stop.is_set()):
            if not self._going.is_set():
                self._paused(loop)
                continue
            try:
                with self._turn(loop):
                    step = loop.step()
            except Stopped:
                break
            self._after(step, loop)
            saved = self._write_if_due(loop)
            if self._look(looking.after_step) and not saved:
                self._write_with_samples(loop)

    def _paused(self, loop: Loop) -> None:
        self._say(state="paused")
        while not self._going.wait(0.2):
            if self._save.is_set():
                self._save.clear()
                self._write_if_possible(loop)
        self._pace.begin(self._status.step)
        self._say(state="training")

    @contextmanager
    def _turn(self, loop: Loop, as_saved: bool = False) -> Iterator[None]:
        """The model for one step, with what is trained on it, or what would be saved of that."""
        with (
            self.place.turn(self._stop),
            loop.as_saved() if as_saved else nullcontext(),
            on_the_model(loop.recipe, self._passes, self._checkpointing),
        ):
            yield

    def _after(self, step: Step, loop: Loop) -> None:
        done = loop.done
        if not math.isfinite(step.loss):
            self.record.add(done, said=f"Step {done} was left out: it overflowed in fp16.")
        else:
            norm = {"norm": step.norm} if math.isfinite(step.norm) else {}  # no number in JSON
            self.record.add(done, loss=step.loss, **norm, rates=step.rates)
        self._pace.step(step.loss)
        left = (loop.options.max_train_steps - done) / self._pace.per_second
        self._say(
            step=done,
            epoch=int((done - 1) / loop.per_epoch) + 1,
            loss=self._pace.loss,
            per_second=self._pace.per_second,
            seconds_left=left,
        )

    def _look(self, what: Callable[..., bool]) -> bool:
        """Measures and makes samples, if this process is the one to; whether it made any."""
        if not self._writes:
            return False
        try:
            return what(self.outputs, self.record, self._say, self._stop)
        except Stopped:
            return False  # the loop sees the same wish
        finally:
            self._say(doing="", done=0, of=0)
            self._pace.rest()

    # --- writing ------------------------------------------------------------------------------

    def _write_with_samples(self, loop: Loop) -> None:
        wanted = self.options.save_with_samples and self.options.train != "checkpoint"
        if wanted and loop.done < loop.options.max_train_steps:
            self._write_if_possible(loop)

    def _write_if_due(self, loop: Loop) -> bool:
        """What is due after a step; whether what is learnt was written."""
        options, done = self.options, loop.done
        due = is_due(done, loop.per_epoch, options.save_every_n_steps, options.save_every_n_epochs)
        every = options.save_state_every_n_steps
        if self._save.is_set() or (due and done < loop.options.max_train_steps):
            self._save.clear()
            self._write_if_possible(loop)
            return True
        if every and done % every == 0:
            try:
                self._write_state(loop)
            except FileProblem as problem:
                self.record.add(done, said=f"The state of step {done} is not saved: {problem}")
        return False

    def _write_if_possible(self, loop: Loop) -> None:
        """On the way. A full disk loses this one alone, and the run goes on."""
        try:
            self._write(loop, final=False)
        except FileProblem as problem:
            self.record.add(loop.done, said=f"Step {loop.done} is not saved: {problem}")
            self._say(doing="", message=str(problem))

    def _write_at_last(self, loop: Loop) -> None:
        """At the end. Where it cannot be written, waits until there is room, or a stop."""
        self._stop.clear()
        while True:
            try:
                self._write(loop, final=True)
                self.place.new_files()
                return
            except FileProblem as problem:
                said = f"{problem} Make room, then press Save now; Stop gives it up."
                self._say(state="paused", doing="", message=said)
                self._save.clear()
                while not self._save.wait(0.2):
                    if self._stop.is_set():
                        raise

    def _write(self, loop: Loop, *, final: bool) -> None:
        """The network and the state."""
        if not self._writes:
            return
        self._say(doing="saving")
        path = self.outputs.write(loop, self._data, final=final)
        self.record.add(loop.done, saved=str(path), final=final)
        self._write_state(loop)
        self._say(doing="")
        self._pace.rest()

    def _write_state(self, loop: Loop) -> None:
        if not self._writes:
            return
        about = {"name": self.name, "data": self._identity}
        save_state(self.outputs.states, loop.state(), about, keep=2)

    def _progress(self, done: int, of: int) -> None:
        self._say(done=done, of=of)

    def _last_word(self, loop: Loop) -> str:
        steps = loop.options.max_train_steps
        if not loop.done:
            return "Stopped before the first step."
        tag = self.kind.tagged("", self.name).strip(" ,")
        said = f"{self.outputs.final}: " + (f"use it as {tag}." if tag else "it can be loaded.")
        return said if loop.done == steps else f"Stopped after step {loop.done}. {said}"


_LESS = (
    "use smaller pictures, a smaller batch, gradient_checkpointing, or a lower rank. What was "
    "learnt so far is saved."
)
__all__ = ["ENDED", "Exploded", "Run", "Status"]
