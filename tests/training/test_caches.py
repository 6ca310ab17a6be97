"""Latents and states that are kept: sound, found again, made again when they are not."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

from extensions_lib.errors import CrucibleError, FileProblem, Stopped
from extensions_lib.training.caches import OnDisk, text_identity, vae_identity
from tests.training.drawn import Counting, batches, counting, data_of, draw, drawn_set, same
from tests.training.small import checkpoint


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Counting:
    return counting(tmp_path_factory.mktemp("models"))


def files(root: Path) -> list[Path]:
    return sorted(root.rglob(".crucible/latents/*"))


def encoded(model: Counting, root: Path, **options: object) -> int:
    """How many pictures a run's preparation encodes."""
    before = model.pictures
    data_of(root, cache_latents_to_disk=True, **options).prepare(model)
    return model.pictures - before


def test_a_file_is_kept_whole(tmp_path: Path) -> None:
    cache = OnDisk(None, "latents")
    tensors = {"mean": torch.randn(4, 3, 5), "b": torch.arange(3)}
    label = str(tmp_path / "a b.png")
    cache.put("c0ffee-1234", label, tensors)
    assert cache.path("c0ffee-1234", label) == (
        tmp_path / ".crucible/latents/a b.png-c0ffee-1234.safetensors"
    )
    got = cache.get("c0ffee-1234", label)
    assert got is not None and all(torch.equal(got[name], tensors[name]) for name in tensors)
    assert cache.get("c0ffee-1235", label) is None and not cache.notes


def test_cached_and_fresh_latents_are_the_same_to_the_bit(tmp_path: Path, model: Counting) -> None:
    root = drawn_set(tmp_path)
    options = {"flip_aug": True, "shuffle_caption": True}
    fresh = data_of(root, cache_latents=False, **options)
    in_memory = data_of(root, vae_batch_size=1, **options)
    on_disk = data_of(root, cache_latents_to_disk=True, **options)
    for data in (fresh, in_memory, on_disk):
        data.prepare(model)
    for one, two, three in zip(*map(batches, (fresh, in_memory, on_disk)), strict=True):
        assert same(one, two) and same(two, three)


def test_a_sample_is_drawn_anew_each_time(tmp_path: Path, model: Counting) -> None:
    data = data_of(drawn_set(tmp_path, 1, "1_x"))
    data.prepare(model)
    drawn = [data.batch(0, 0, torch.Generator().manual_seed(seed)).latents for seed in (1, 1, 2)]
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])


def test_what_is_on_disk_is_not_encoded_again(tmp_path: Path, model: Counting) -> None:
    root = drawn_set(tmp_path)
    assert encoded(model, root) == 5
    assert encoded(model, root) == 0
    assert encoded(model, root, flip_aug=True) == 10  # the mirrored ones are another entry
    assert encoded(model, root, resolution="96") == 5
    assert encoded(model, root, resize_interpolation="bicubic") == 5
    assert encoded(model, root) == 0
    inside = {path.parent for path in files(root)}
    assert inside == {root / "2_sls thing/.crucible/latents"}


def test_pictures_are_encoded_in_batches_of_one_size(tmp_path: Path, model: Counting) -> None:
    root = drawn_set(tmp_path)
    sizes: list[tuple[int, ...]] = []
    plain = model.encode_pictures
    model.encode_pictures = lambda pixels: sizes.append(tuple(pixels.shape)) or plain(pixels)  # type: ignore[method-assign]
    try:
        progress: list[tuple[int, int]] = []
        data_of(root, vae_batch_size=2).prepare(model, lambda *told: progress.append(told))
    finally:
        del model.encode_pictures  # type: ignore[method-assign]
    assert [size[0] for size in sizes] == [1, 2, 2]
    assert len({size[2:] for size in sizes}) == 3
    assert progress == [(1, 5), (3, 5), (5, 5)]


@pytest.mark.parametrize("where", [0.02, 0.5, 0.98])
def test_a_damaged_file_is_made_again(tmp_path: Path, model: Counting, where: float) -> None:
    root = drawn_set(tmp_path)
    encoded(model, root)
    sound = [path.read_bytes() for path in files(root)]
    victim = files(root)[1]
    raw = bytearray(victim.read_bytes())
    raw[int(where * len(raw))] ^= 0x40
    victim.write_bytes(raw)
    files(root)[2].write_bytes(sound[2][:-10])
    files(root)[3].write_bytes(b"")
    before = model.pictures
    data = data_of(root, cache_latents_to_disk=True)
    data.prepare(model)
    assert model.pictures - before == 3 and len(data.notes) == 3
    assert victim.name in "\n".join(data.notes)
    assert [path.read_bytes() for path in files(root)] == sound


def test_a_file_lost_during_the_run_is_made_again(tmp_path: Path, model: Counting) -> None:
    root = drawn_set(tmp_path)
    data = data_of(root, cache_latents_to_disk=True)
    data.prepare(model)
    wanted = batches(data, 1)
    for path in files(root):
        path.unlink()
    assert all(same(*pair) for pair in zip(batches(data, 1), wanted, strict=True))


def test_a_changed_picture_is_encoded_again_and_its_old_entry_goes(
    tmp_path: Path, model: Counting
) -> None:
    root = drawn_set(tmp_path)
    encoded(model, root)
    old = set(files(root))
    draw(root / "2_sls thing/1.png", (96, 48), seed=99)
    assert encoded(model, root) == 1
    new = set(files(root))
    assert len(new) == 5 and len(old - new) == 1
    assert next(iter(old - new)).name.startswith("1.png-")


def test_another_vae_has_entries_of_its_own(tmp_path: Path, model: Counting) -> None:
    root = drawn_set(tmp_path)
    encoded(model, root)
    weight = next(model.loaded.vae.parameters())
    kept = weight.detach().clone()
    before = vae_identity(model.loaded)
    with torch.no_grad():
        weight.flatten()[0] += 1e-3
    try:
        assert vae_identity(model.loaded) != before
        assert encoded(model, root) == 5
    finally:
        with torch.no_grad():
            weight.copy_(kept)
    assert vae_identity(model.loaded) == before
    assert encoded(model, root) == 0


def test_a_folder_for_all_caches(tmp_path: Path, model: Counting) -> None:
    """Pictures of one name in folders of one name do not meet."""
    for name in ("a/2_x", "b/2_x"):
        draw(tmp_path / name / "0.png", seed=len(name))
    draw(tmp_path / "b/2_x/0.png", seed=5)
    cache = tmp_path / "cache"
    for name in ("a", "b"):
        assert encoded(model, tmp_path / name, cache_dir=str(cache)) == 1
    for name in ("a", "b"):
        assert encoded(model, tmp_path / name, cache_dir=str(cache)) == 0
    assert not list(tmp_path.rglob(".crucible")) and len(list(cache.rglob("*.safetensors"))) == 2


def test_a_folder_that_cannot_be_written(tmp_path: Path, model: Counting) -> None:
    root = drawn_set(tmp_path)
    (root / "2_sls thing/.crucible").write_text("in the way")
    with pytest.raises(FileProblem, match="Name another folder as cache_dir"):
        encoded(model, root)


def test_stopped_and_gone_on(tmp_path: Path, model: Counting) -> None:
    root = drawn_set(tmp_path)
    stop = threading.Event()
    before = model.pictures
    data = data_of(root, cache_latents_to_disk=True)
    with pytest.raises(Stopped):
        data.prepare(model, lambda done, _: stop.set() if done == 2 else None, stop)
    assert model.pictures - before == 2
    assert encoded(model, root) == 3


_KILLED = """
import os, signal, sys
from pathlib import Path
from tests.training.drawn import counting, data_of
from extensions_lib.training import caches

def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)

count = 0
plain = caches.serialised
def serialised(*told):
    global count
    count += 1
    for number, chunk in enumerate(plain(*told)):
        if count == 3 and number == 1:
            yield bytes(chunk)[:100]
            die()
        yield chunk
caches.serialised = serialised
data_of(Path(sys.argv[2]), cache_latents_to_disk=True).prepare(counting(Path(sys.argv[1])))
"""


def test_killed_in_the_middle_of_a_file(tmp_path: Path, model: Counting) -> None:
    root = drawn_set(tmp_path / "set")
    checkpoint(tmp_path, "SD1")
    done = subprocess.run(
        [sys.executable, "-c", _KILLED, str(tmp_path), str(root)],
        env={**os.environ, "PYTHONPATH": os.getcwd(), "OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert done.returncode == -signal.SIGKILL
    there = [path for path in files(root) if path.suffix == ".safetensors"]
    assert len(there) == 2
    data = data_of(root, cache_latents_to_disk=True)
    data.prepare(model)
    assert len([path for path in files(root) if path.suffix == ".safetensors"]) == 5
    assert not data.notes  # nothing was found broken
    fresh = data_of(root, cache_latents=False)
    fresh.prepare(model)
    assert all(same(*pair) for pair in zip(batches(data, 1), batches(fresh, 1), strict=True))


# --- prompts ----------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["SD1", "SDXL"])
@pytest.mark.parametrize("disk", [False, True])
def test_cached_states_are_those_of_the_prompts(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, family: str, disk: bool
) -> None:
    model = counting(tmp_path_factory.getbasetemp(), family)
    root = drawn_set(tmp_path)
    long = ", ".join(f"word {number}" for number in range(60))
    (root / "2_sls thing/0.txt").write_text(long)  # more than 75 tokens, unlike the others
    options = {"caption_dropout_rate": 0.4, "train_batch_size": 2}
    data = data_of(
        root,
        cache_text_encoder_outputs=not disk,
        cache_text_encoder_outputs_to_disk=disk,
        **options,
    )
    data.prepare(model)
    asked = model.prompts
    assert asked == 6  # four captions, the folder's words, and nothing
    got = batches(data, 3)
    assert model.prompts == asked
    assert any("" in batch.prompts for batch in got)
    for batch in got:
        wanted = model.encode_text(batch.prompts, chunks=3)
        assert batch.conditioning is not None
        assert torch.equal(batch.conditioning.states, wanted.states)
        assert (batch.conditioning.pooled is None) == (family == "SD1")
        if batch.conditioning.pooled is not None and wanted.pooled is not None:
            assert torch.equal(batch.conditioning.pooled, wanted.pooled)
    before = model.prompts
    data_of(root, cache_text_encoder_outputs_to_disk=True, **options).prepare(model)
    assert model.prompts - before == (0 if disk else 6)


def test_text_identity_follows_the_weights_and_the_settings(model: Counting) -> None:
    loaded = model.loaded
    assert text_identity(loaded) == text_identity(loaded) != text_identity(loaded, "emphasis off")
    weight = next(loaded.text_encoders[0].parameters())
    before, kept = text_identity(loaded), weight.detach().clone()
    with torch.no_grad():
        weight.flatten()[-1] += 1
        assert text_identity(loaded) != before
        weight.copy_(kept)
    assert text_identity(loaded) == before


def test_a_picture_changed_between_looking_and_encoding_is_named(
    tmp_path: Path, model: Counting
) -> None:
    root = drawn_set(tmp_path)
    data = data_of(root)
    draw(root / "2_sls thing/3.png", (200, 64))
    with pytest.raises(CrucibleError, match=r"3\.png: has changed meanwhile"):
        data.prepare(model)


@pytest.mark.parametrize("cached", [True, False])
def test_a_vae_that_makes_no_numbers_is_named_with_the_picture(
    tmp_path: Path, model: Counting, cached: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = model.encode_pictures

    def overflowing(pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        mean, deviation = plain(pixels)
        mean[-1, 0, 0, 0] = float("nan")
        return mean, deviation

    data = data_of(drawn_set(tmp_path, 1), cache_latents=cached)
    monkeypatch.setattr(model, "encode_pictures", overflowing)
    with pytest.raises(CrucibleError, match=r"0\.png: the VAE makes .* --no-half-vae"):
        data.prepare(model)
        batches(data, 1)
