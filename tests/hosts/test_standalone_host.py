"""The host: its checkpoints, sizes, its queue, and no torch before it is needed."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import pytest

from extensions_lib.errors import FileProblem, Stopped
from extensions_lib.hosts.standalone import StandaloneHost
from tests.hosts.conftest import order
from tests.tiny import tiny_checkpoint, tiny_tensors

# numpy's, about how diffusers converts its tensors
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def test_checkpoints_are_found_by_path_name_and_stem(root: Path) -> None:
    host = StandaloneHost(root=root)
    assert [path.stem for path in host.checkpoints()] == ["SD1", "SD1v", "SD2", "SDXL"]
    assert host.checkpoint.stem == "SD1"
    for name in ("SD2", "sd2.safetensors", host.checkpoints()[2]):
        assert host.find_checkpoint(name).stem == "SD2"
    with pytest.raises(FileProblem, match=r"there are: SD1\.safetensors, SD1v"):
        StandaloneHost("SD3", root)


def test_without_a_checkpoint_it_says_where_one_goes(tmp_path: Path) -> None:
    with pytest.raises(FileProblem, match="Stable-diffusion: no checkpoint found"):
        StandaloneHost(root=tmp_path).model()


def test_the_demo_comes_first(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    demo = tmp_path / "models" / "demo" / "demo.safetensors"
    demo.parent.mkdir(parents=True)
    tensors = {key: tensor.half() for key, tensor in tiny_tensors().items()}
    for text, size in (("128", (128, 128)), ("128x96", (128, 96)), ("big", (512, 512))):
        save_file(tensors, demo, metadata={"crucible.size": text})
        host = StandaloneHost(root=tmp_path)
        assert host.checkpoint == demo and host.default_size() == size
        if text == "128x96":
            host.model()
            assert host.default_size() == size
            made = host.generate(order(width=None, height=None, steps=1))
            assert made.images[0].size == size


def test_a_checkpoint_may_state_the_cfg_that_suits_it(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    demo = tmp_path / "models" / "demo" / "demo.safetensors"
    demo.parent.mkdir(parents=True)
    tensors = {key: tensor.half() for key, tensor in tiny_tensors().items()}
    for text, cfg in (("3", 3.0), ("4.5", 4.5), ("high", 7.0), ("", 7.0)):
        save_file(tensors, demo, metadata={"crucible.cfg": text})
        assert StandaloneHost(root=tmp_path).default_cfg() == cfg


def test_sizes_go_by_family(root: Path) -> None:
    host = StandaloneHost(root=root)
    for name, side in (("SD1", 512), ("SD2", 768), ("SDXL", 1024)):
        host.use_checkpoint(name)
        assert host.default_size() == (side, side)


def test_switching_frees_the_old_model_and_loads_the_new_when_needed(root: Path) -> None:
    import gc
    import weakref

    host = StandaloneHost("SD1", root)
    model = host.model()
    assert host.model() is model
    host.use_checkpoint("SD1")
    assert host.model() is model
    gone = weakref.ref(model.unet)
    del model
    host.use_checkpoint("SDXL")
    gc.collect()
    assert gone() is None
    assert host.model().name == "SDXL"
    with pytest.raises(FileProblem):
        host.use_checkpoint("not there")
    assert host.model().name == "SDXL"


def test_a_broken_checkpoint_is_refused_and_another_still_loads(tmp_path: Path) -> None:
    folder = tmp_path / "models" / "Stable-diffusion"
    whole = tiny_checkpoint(folder / "whole.safetensors")
    (folder / "cut.safetensors").write_bytes(whole.read_bytes()[:5000])
    host = StandaloneHost("cut", tmp_path)
    with pytest.raises(FileProblem, match=r"cut\.safetensors"):
        host.generate(order())
    host.use_checkpoint("whole")
    assert host.generate(order(steps=1)).images


def test_two_users_queue(host: StandaloneHost) -> None:
    host.model()
    running: list[int] = []
    most: list[int] = []

    def heard(_: object) -> None:
        most.append(len(running))

    def user() -> None:
        host.generate(order(), heard)

    with host.exclusive() as model:
        assert model is host.model()
        threads = [threading.Thread(target=user) for _ in range(2)]
        for thread in threads:
            thread.start()
        threads[0].join(0.3)
        assert not most
    for thread in threads:
        thread.join(60)
    assert len(most) == 8


def test_a_stop_while_waiting_ends_the_wait(host: StandaloneHost) -> None:
    host.model()
    stop, ended = threading.Event(), []

    def user() -> None:
        with pytest.raises(Stopped):
            host.generate(order(), None, stop)
        ended.append(True)

    with host.exclusive():
        thread = threading.Thread(target=user)
        thread.start()
        stop.set()
        thread.join(10)
        assert ended


def test_the_exclusive_model_has_no_networks_on(root: Path, host: StandaloneHost) -> None:
    import torch

    from tests.hosts.conftest import tiny_lora

    tiny_lora(root / "models" / "Lora" / "worn.safetensors", 9)
    before = {name: each.clone() for name, each in host.model().unet.named_parameters()}
    host.generate(order("a <lora:worn:1>", steps=1))
    changed = [n for n, p in host.model().unet.named_parameters() if not torch.equal(p, before[n])]
    assert changed
    with host.exclusive() as model:
        for name, parameter in model.unet.named_parameters():
            assert torch.equal(parameter, before[name]), name


def test_a_host_costs_no_torch_until_it_is_used() -> None:
    code = (
        "import sys; from extensions_lib.hosts.standalone import StandaloneHost; "
        "import extensions_lib.hosts.standalone.samplers, extensions_lib.hosts.base; "
        "StandaloneHost().checkpoints(); "
        "assert not {'torch', 'diffusers', 'transformers'} & set(sys.modules), 'loaded'"
    )
    folder = Path(__file__).resolve().parents[2]
    subprocess.run([sys.executable, "-c", code], cwd=folder, check=True)
