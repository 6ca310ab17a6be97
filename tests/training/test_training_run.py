"""A run from its options to its file: what it leaves, how it is steered, and what can go wrong."""

from __future__ import annotations

import hashlib
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from extensions_lib.errors import CrucibleError
from extensions_lib.files.hashes import legacy_hash
from extensions_lib.files.networks import read_network
from extensions_lib.hosts.base import GenerationRequest
from extensions_lib.hosts.standalone import StandaloneHost
from extensions_lib.hosts.standalone.place import StandalonePlace
from extensions_lib.training.record import read_record
from extensions_lib.training.run import Run
from extensions_lib.training.runs import Runs
from extensions_lib.training.state import states
from tests.tiny import tiny_checkpoint
from tests.training import runner
from tests.training.drawn import drawn_set

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return drawn_set(tmp_path_factory.mktemp("set"))


@pytest.fixture
def host(tmp_path: Path) -> Iterator[StandaloneHost]:
    tiny_checkpoint(tmp_path / "models" / "Stable-diffusion" / "SD1.safetensors", "SD1")
    made = StandaloneHost("SD1", tmp_path, threads=1)
    yield made
    made.close()


@pytest.fixture
def runs(host: StandaloneHost, tmp_path: Path) -> Runs:
    return Runs(StandalonePlace(host), tmp_path / "outputs")


def bits(host: StandaloneHost) -> str:
    """All weights of the checkpoint as they are in memory."""
    model, told = host.model(), hashlib.sha256()
    for module in (model.unet, *model.text_encoders, model.vae):
        for name, each in module.state_dict().items():
            told.update(name.encode())
            told.update(each.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
        assert not any(p.requires_grad and p.grad is not None for p in module.parameters())
    return told.hexdigest()


def ended(run: Run, state: str = "done") -> Run:
    run.join(120)
    assert run.status().state == state, run.status()
    return run


def until(told: Callable[[], bool]) -> None:
    for _ in range(6000):
        if told():
            return
        time.sleep(0.01)
    raise AssertionError("it never came")


def order(prompt: str) -> GenerationRequest:
    return GenerationRequest(prompt, steps=2, width=64, height=64, seed=3, sampler="Euler")


def test_a_run_leaves_a_network_and_the_model_as_it_was(
    host: StandaloneHost, runs: Runs, pictures: Path, tmp_path: Path
) -> None:
    before, plain = bits(host), host.generate(order("a thing")).images[0]
    run = ended(
        runs.start(replace(runner.options(pictures, 6), no_metadata=False, metadata_title="Things"))
    )
    assert bits(host) == before
    assert host.generate(order("a thing")).images[0].tobytes() == plain.tobytes()
    file = tmp_path / "models" / "Lora" / f"{runner.NAME}.safetensors"
    network = read_network(file)
    assert not (network.unmatched or network.problems)
    assert network.metadata["ss_steps"] == "6" and network.metadata["ss_num_train_images"] == "10"
    assert network.metadata["sshs_model_hash"]
    assert network.metadata["ss_sd_model_hash"] == legacy_hash(host.checkpoint)
    assert network.metadata["ss_huber_schedule"] == "snr"
    assert network.metadata["modelspec.title"] == "Things"
    assert file.with_suffix(".png").is_file()
    changed = host.generate(order(f"a thing <lora:{runner.NAME}:1>"))
    assert not changed.messages
    assert changed.images[0].tobytes() != plain.tobytes()
    assert [each["step"] for each in run.record.entries("loss")] == [1, 2, 3, 4, 5, 6]
    assert [each["step"] for each in run.record.entries("validation")] == [0, 6]
    assert host.library.find(runner.NAME) is not None


def test_the_network_can_be_named_while_it_is_trained(
    host: StandaloneHost, runs: Runs, pictures: Path
) -> None:
    run = runs.start(runner.options(pictures, 200))
    until(lambda: run.status().step >= 3)
    run.pause()
    until(lambda: run.status().state == "paused")
    plain = host.generate(order("a thing")).images[0]
    live = host.generate(order(f"a thing <lora:{runner.NAME}:1>"))
    assert not live.messages
    assert live.images[0].tobytes() != plain.tobytes()
    assert runs.is_busy()
    run.stop()
    ended(run, "stopped")
    file = host.generate(order(f"a thing <lora:{runner.NAME}:1>"))
    assert not file.messages
    assert file.images[0].tobytes() == live.images[0].tobytes()


def test_it_is_saved_in_a_pause(runs: Runs, pictures: Path) -> None:
    run = runs.start(runner.options(pictures, 200))
    until(lambda: run.status().step >= 2)
    run.pause()
    until(lambda: run.status().state == "paused")
    step = run.status().step
    run.save_now()
    until(lambda: bool(run.record.entries("saved")))
    assert run.record.entries("saved")[-1]["step"] == step == run.status().step
    assert run.status().state == "paused"
    run.stop()
    ended(run, "stopped")


def test_pictures_are_made_between_steps(host: StandaloneHost, runs: Runs, pictures: Path) -> None:
    run = runs.start(runner.options(pictures, 500))
    until(lambda: run.status().step >= 2)
    at = run.status().step
    host.generate(order("another thing"))
    # whoever asks is let in after the step under way: the run does not go on and on meanwhile
    assert run.status().step - at < 100
    until(lambda: run.status().step > at + 1)
    run.stop()
    ended(run, "stopped")


def test_a_second_run_and_another_checkpoint_are_refused(
    host: StandaloneHost, runs: Runs, pictures: Path, tmp_path: Path
) -> None:
    tiny_checkpoint(tmp_path / "models" / "Stable-diffusion" / "SD2.safetensors", "SD2")
    run = runs.start(runner.options(pictures, 500))
    until(lambda: run.status().step >= 1)
    with pytest.raises(CrucibleError, match="killed is being trained"):
        runs.start(replace(runner.options(pictures, 5), output_name="other"))
    with pytest.raises(CrucibleError, match="stop it before you switch"):
        host.use_checkpoint("SD2")
    run.stop()
    ended(run, "stopped")
    host.use_checkpoint("SD2")


def test_a_name_that_exists_is_refused_with_a_free_one(
    runs: Runs, pictures: Path, tmp_path: Path
) -> None:
    file = tmp_path / "models" / "Lora" / f"{runner.NAME}.safetensors"
    file.parent.mkdir(parents=True)
    file.write_bytes(b"kept")
    with pytest.raises(CrucibleError, match="killed_2"):
        runs.start(runner.options(pictures, 1))
    assert file.read_bytes() == b"kept"
    assert not runs.past()


def test_a_loss_that_is_no_number_stops_the_run_and_keeps_the_last_good_step(
    host: StandaloneHost, runs: Runs, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from extensions_lib.training.recipes.network import NetworkRecipe

    losses, count, before = NetworkRecipe.losses, [0], bits(host)

    def bad(self: NetworkRecipe, *args: object) -> torch.Tensor:
        count[0] += 1
        found = losses(self, *args)  # type: ignore[arg-type]
        return found * float("nan") if count[0] > 8 else found

    monkeypatch.setattr(NetworkRecipe, "losses", bad)
    run = ended(runs.start(runner.options(pictures, 50)), "failed")
    message = run.status().message
    assert "step 4" in message and "2_sls thing/" in message, message
    assert bits(host) == before
    assert states(run.folder / "states")[-1].name == "step-00000003.state"
    [saved] = run.record.entries("saved")
    assert Path(saved["saved"]).is_file()
    assert read_record(run.folder)[-1]["said"] == message


def test_an_error_in_the_middle_gives_the_model_back(
    host: StandaloneHost, runs: Runs, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from extensions_lib.hosts.standalone.trainable import StandaloneTrainable

    predict, count, before = StandaloneTrainable.predict, [0], bits(host)

    def bad(self: StandaloneTrainable, *args: object) -> torch.Tensor:
        count[0] += 1
        if count[0] > 5:
            raise torch.cuda.OutOfMemoryError("no more")
        return predict(self, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(StandaloneTrainable, "predict", bad)
    run = ended(runs.start(runner.options(pictures, 50)), "failed")
    assert "Out of memory: use smaller pictures" in run.status().message
    assert bits(host) == before
    assert not runs.is_busy()
    monkeypatch.undo()
    again = ended(runs.resume(run.folder.name))
    # how it ended before is not true any more
    (word,) = again.record.entries("said")
    assert word["said"] == again.status().message


def test_a_full_disk_at_the_end_waits_for_room(runs: Runs, pictures: Path, tmp_path: Path) -> None:
    folder = tmp_path / "models" / "Lora"
    folder.parent.mkdir(exist_ok=True)
    folder.write_text("in the way")  # what mkdir says then is an OSError as well
    run = runs.start(runner.options(pictures, 2))
    until(lambda: run.status().state == "paused")
    assert "Make room, then press Save now" in run.status().message
    folder.unlink()
    run.save_now()
    ended(run)
    assert (folder / f"{runner.NAME}.safetensors").is_file()


def test_checkpointing_changes_nothing_but_memory(
    runs: Runs, pictures: Path, tmp_path: Path
) -> None:
    plain = ended(runs.start(replace(runner.options(pictures, 2), output_name="plain")))
    kept = replace(runner.options(pictures, 2), output_name="kept", gradient_checkpointing=True)
    saved = ended(runs.start(kept))
    losses = [[e["loss"] for e in run.record.entries("loss")] for run in (plain, saved)]
    assert losses[0] == losses[1]


def test_logs_for_tensorboard(runs: Runs, pictures: Path, tmp_path: Path) -> None:
    wanted = replace(runner.options(pictures, 2), tensorboard=True)
    try:
        import tensorboard  # noqa: F401
    except ImportError:
        with pytest.raises(CrucibleError, match="pip install tensorboard"):
            runs.start(wanted)
        assert not runs.past()
        return
    run = ended(runs.start(wanted))
    [log] = (run.folder / "tensorboard").glob("events.*")
    assert b"validation" in log.read_bytes() and b"lr/unet" in log.read_bytes()


def test_broken_pictures_are_named_before_the_start(
    runs: Runs, pictures: Path, tmp_path: Path
) -> None:
    folder = drawn_set(tmp_path / "set2")
    (folder / "2_sls thing" / "bad.png").write_bytes(b"no picture")
    run = ended(runs.start(runner.options(folder, 2)), "failed")
    assert "bad.png" in run.status().message
    assert not run.record.entries("loss")


def test_a_network_that_is_gone_on_with_trains_what_is_asked_for(
    runs: Runs, pictures: Path, tmp_path: Path
) -> None:
    whole = replace(runner.options(pictures, 2), network_dropout=0.0, ema_decay=0.0)
    first = ended(runs.start(replace(whole, output_name="whole"))).outputs.final
    more = replace(whole, output_name="more", network_weights=str(first), learning_rate=1e-2)
    run = ended(runs.start(replace(more, train_text_encoder=False)))
    assert set(run.record.entries("rates")[-1]["rates"]) == {"unet"}
    layers = read_network(run.outputs.final).adapters
    assert layers and all(layer.startswith("unet.") for layer in layers)
    only = replace(more, output_name="none", train_unet=False, train_text_encoder=False)
    assert "train_unet and train_text_encoder" in ended(runs.start(only), "failed").status().message


@pytest.mark.parametrize(
    ("told", "kept"),
    [
        # those of the last two that are saved, every second epoch; an epoch is 3 steps
        ({"save_every_n_epochs": 2, "save_last_n_epochs": 2}, [12, 18]),
        # those of at most 4 steps ago
        ({"save_every_n_steps": 2, "save_last_n_steps": 4}, [14, 16, 18]),
        ({"save_every_n_steps": 5}, [5, 10, 15]),
    ],
)
def test_the_last_ones_are_kept_as_sd_scripts_counts(
    runs: Runs, pictures: Path, told: dict[str, int], kept: list[int]
) -> None:
    options = replace(
        runner.options(pictures, 19), train_batch_size=4, gradient_accumulation_steps=1,
        sample_every_n_steps=100, **told,
    )  # fmt: skip
    run = ended(runs.start(options))
    assert len(run._data) == 3
    saved = sorted((run.folder / "saved").glob("*.safetensors"))
    assert [int(path.stem[-8:]) for path in saved] == kept


def test_it_is_measured_by_epochs_where_that_is_asked(runs: Runs, pictures: Path) -> None:
    options = replace(runner.options(pictures, 7), validate_every_n_steps=None)
    options = replace(options, validate_every_n_epochs=2, gradient_accumulation_steps=1)
    run = ended(runs.start(replace(options, train_batch_size=4)))
    assert [each["step"] for each in run.record.entries("validation")] == [0, 6, 7]


@pytest.mark.slow
def test_killed_at_any_step_and_resumed_it_ends_in_the_same_bytes(
    pictures: Path, tmp_path: Path
) -> None:
    def root(name: str) -> Path:
        tiny_checkpoint(tmp_path / name / "models" / "Stable-diffusion" / "SD1.safetensors", "SD1")
        return tmp_path / name

    def begin(folder: Path, *more: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "tests.training.runner", str(folder), str(pictures)]
        env = {**os.environ, "OMP_NUM_THREADS": "1"}
        return subprocess.Popen([*command, "40", *more], cwd=ROOT, env=env)

    def written(folder: Path) -> bytes:
        """The file but for the time of day in its header, which has the same length always."""
        file = (folder / "models" / "Lora" / f"{runner.NAME}.safetensors").read_bytes()
        return re.sub(rb'"modelspec.date":"[^"]*"', b"", file)

    whole, cut = root("whole"), root("cut")
    assert begin(whole).wait(300) == 0
    drawn, process = random.Random(5), begin(cut)
    for _ in range(3):
        record, more = cut / "outputs" / runner.NAME, drawn.randint(4, 11)
        first = len([each for each in read_record(record) if "loss" in each])
        until(lambda r=record, n=first + more: sum("loss" in e for e in read_record(r)) >= n)
        process.send_signal(signal.SIGKILL)
        process.wait()
        process = begin(cut, "resume")
        time.sleep(0.5)
        until(lambda r=record: states(r / "states") != [])
    assert process.wait(300) == 0
    assert written(cut) == written(whole)
    for name in ("loss", "validation"):
        kept = [
            [(each["step"], each[name]) for each in read_record(folder / "outputs" / runner.NAME)
             if name in each]
            for folder in (cut, whole)
        ]  # fmt: skip
        assert kept[0] == kept[1]
    assert threading.active_count() < 50
