"""The condition picture and its `<lllite:…>` tags in whole pictures of the standalone host."""

from __future__ import annotations

import base64
import io
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from extensions_lib.cli import main
from extensions_lib.datasets.pictures import PictureProblem
from extensions_lib.errors import FileProblem, Stopped
from extensions_lib.hosts.base import GenerationResult, Progress
from extensions_lib.hosts.control import UNUSED, ControlTags
from extensions_lib.hosts.control_picture import ControlPicture, received
from extensions_lib.hosts.standalone import StandaloneHost
from extensions_lib.models.families import SDXL_BASE
from extensions_lib.prompts.tags import network_requests
from tests.hosts.conftest import order, tiny_lora
from tests.lllite import lllite_file, side_parts, targets
from tests.tiny import TINY

Hosts = Callable[[str], StandaloneHost]
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.fixture(scope="module")
def files(root: Path) -> Path:
    """Two that fit the small SDXL, one of the full size, and files of other kinds beside them."""
    folder = root / "models" / "ControlNet"
    lllite_file(folder / "canny.safetensors", TINY["SDXL"])
    lllite_file(root / "models" / "Lora" / "depth.safetensors", TINY["SDXL"], seed=50)
    _, name, width, depth = next(targets(SDXL_BASE))
    name = name.replace("transformer_blocks_0", "transformer_blocks_1")  # SD1 has no second
    parts = side_parts(width, depth)
    save_file({f"{name}.{part}": t for part, t in parts.items()}, folder / "full.safetensors")
    save_file({"control_model.out": torch.ones(2)}, folder / "whole.safetensors")
    tiny_lora(root / "models" / "Lora" / "plain lora.safetensors", 4, "SDXL")
    (folder / "cut.safetensors").write_bytes((folder / "canny.safetensors").read_bytes()[:4000])
    return folder


@pytest.fixture
def host(hosts: Hosts, files: Path) -> StandaloneHost:
    return hosts("SDXL")


def drawn(width: int = 64, height: int = 64, seed: int = 0) -> Image.Image:
    """A picture of few large squares."""
    pixels = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((width, height), Image.Resampling.NEAREST)


def made(host: StandaloneHost, prompt: str, **other: object) -> GenerationResult:
    return host.generate(order(prompt, **other))


def pixels(host: StandaloneHost, prompt: str, **other: object) -> bytes:
    result = made(host, prompt, **other)
    assert result.messages == [], result.messages
    return result.images[0].tobytes()


def test_pictures_change_with_picture_weight_and_file(host: StandaloneHost) -> None:
    plain = pixels(host, "a cat")
    answers = [
        pixels(host, f"a cat<lllite:{tag}>", control=drawn(seed=seed))
        for tag, seed in (
            ("canny", 0), ("canny", 1), ("canny:0.5", 0), ("depth:1", 0),
            ("canny:0.5><lllite:depth:0.5", 0),
        )
    ]  # fmt: skip
    assert len({plain, *answers}) == 6
    assert pixels(host, "a cat<lllite:canny:1>", control=drawn()) == answers[0]
    assert pixels(host, "a cat<lllite:canny:0>", control=drawn()) == plain
    assert pixels(host, "a cat") == plain
    assert (
        made(host, "a cat<lllite:canny>", control=drawn())
        .infotexts[0]
        .startswith("a cat<lllite:canny>\n")
    )


def test_the_weight_over_the_steps(host: StandaloneHost) -> None:
    def tagged(arguments: str) -> bytes:
        return pixels(host, f"a cat<lllite:canny:{arguments}>", control=drawn())

    plain, full = pixels(host, "a cat"), tagged("1")
    first_half, second_half = tagged("1:stop=0.5"), tagged("1:start=0.5")
    assert len({plain, full, first_half, second_half, tagged("0@0,1@1")}) == 5
    assert tagged("1:step=0-2") == first_half  # of 4 steps
    assert tagged("1:start=4") == plain and tagged("1:start=0:stop=4") == full


def test_prompt_and_negative_prompt_see_the_same_picture(host: StandaloneHost) -> None:
    """With one text for both, guidance has nothing to add: no row may differ from the other."""
    same = {"negative": "a cat", "control": drawn()}
    low = pixels(host, "a cat<lllite:canny:1>", cfg=2.0, **same)
    high = pixels(host, "a cat<lllite:canny:1>", cfg=9.0, **same)
    furthest = np.abs(np.frombuffer(low, np.uint8).astype(int) - np.frombuffer(high, np.uint8))
    assert furthest.max() <= 1
    assert low != pixels(host, "a cat", cfg=2.0, negative="a cat")


def test_a_picture_alone_and_in_a_batch(host: StandaloneHost) -> None:
    prompt = "a cat<lllite:canny:1>"
    both = made(host, prompt, control=drawn(), batch_size=2)
    for seed, image in zip(both.seeds, both.images, strict=True):
        alone = made(host, prompt, control=drawn(), seed=seed).images[0]
        apart = np.abs(np.asarray(image).astype(int) - np.asarray(alone)).max()
        assert apart <= 1


@pytest.mark.parametrize(
    ("tag", "word"),
    [
        ("nowhere", "no ControlNet-LLLite named 'nowhere' was found in "),
        ("whole", "is no ControlNet-LLLite: it looks like a ControlNet"),
        ("plain lora", "is no ControlNet-LLLite: it looks like a network"),
        ("cut", "cut.safetensors"),
        ("full", "made for another model, so it was left out; 1 of 1 layers do not fit"),
        ("canny:much", "'much' is not a number"),
        ("canny:1:lbw=MIDD", "'lbw=MIDD' has no meaning here"),
    ],
)
def test_what_is_said_at_the_picture(host: StandaloneHost, tag: str, word: str) -> None:
    result = made(host, f"a cat<lllite:{tag}>", control=drawn())
    (message,) = (each for each in result.messages if each != UNUSED)
    assert message.startswith(f"<lllite:{tag}>: ") and word in message
    assert result.images


def test_a_tag_without_a_picture_and_a_picture_without_a_tag(host: StandaloneHost) -> None:
    (message,) = made(host, "a cat<lllite:canny:1>").messages
    assert "there is no control picture" in message
    assert made(host, "a cat", control=drawn()).messages == [UNUSED]


def test_one_asked_for_as_a_network_says_how_it_is_used(host: StandaloneHost) -> None:
    (message,) = made(host, "a cat<lora:depth:1>").messages
    assert "was made for ControlNet-LLLite; write <lllite:depth:1> and choose a" in message
    host.library.refresh()
    entry = host.library.find("depth")
    assert entry is not None and "write <lllite:depth:1>" in (entry.problem or "")


def test_a_network_for_another_family(hosts: Hosts, files: Path) -> None:
    result = made(hosts("SD1"), "a cat<lllite:full>", control=drawn())
    (message,) = result.messages
    assert "made for SDXL, but the loaded checkpoint SD1 is SD1; left out." in message
    assert made(hosts("SD1"), "a cat").images[0] == result.images[0]


def test_a_file_that_appears_is_found(host: StandaloneHost, files: Path) -> None:
    path = lllite_file(files / "sub" / "late.safetensors", TINY["SDXL"], seed=9)
    first = pixels(host, "a cat<lllite:late>", control=drawn())
    assert pixels(host, "a cat<lllite:sub/late>", control=drawn()) == first
    raw = load_file(path)
    save_file({key: tensor * 2 for key, tensor in raw.items()}, path)
    assert pixels(host, "a cat<lllite:late>", control=drawn()) != first


def test_nothing_is_left_after_an_error_or_a_stop(
    host: StandaloneHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    unet = host.model().unet
    before = {key: each.clone() for key, each in unet.state_dict().items()}

    def hooks() -> int:
        return sum(len(module._forward_pre_hooks) for module in unet.modules())

    plain = pixels(host, "a cat")
    seen: list[int] = []
    stop = threading.Event()

    def watch(_: Progress) -> None:
        seen.append(hooks())
        stop.set()

    with pytest.raises(Stopped):
        host.generate(order("a cat<lllite:canny:1>", control=drawn()), watch, stop)

    def broken(*_: object) -> None:
        seen.append(hooks())
        raise ZeroDivisionError

    monkeypatch.setattr("extensions_lib.hosts.standalone.generate.Generator.decode", broken)
    with pytest.raises(ZeroDivisionError):
        made(host, "a cat<lllite:canny:1>", control=drawn())
    monkeypatch.undo()
    assert min(seen) > 10 and hooks() == 0
    assert all(torch.equal(before[key], each) for key, each in unet.state_dict().items())
    assert pixels(host, "a cat") == plain


def test_other_weights_in_the_hires_pass(host: StandaloneHost, files: Path) -> None:
    tags = ControlTags(host.model(), host.lllites)
    requests = network_requests("<lllite:canny:1:hr=0.25><lllite:depth:0.5:stop=3>")[1]
    weighed: list[list[float]] = []
    tags._active.weigh = weighed.append  # type: ignore[method-assign, assignment]
    for hires in (False, True):
        assert tags.apply(requests, drawn(), hires=hires) == []
        tags.at(3, 10)
    tags.release()
    assert weighed == [[1, 0.5], [1, 0], [0.25, 0.5], [0.25, 0]]


def test_from_the_shell(
    root: Path, files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    drawn().save(tmp_path / "edges.png")
    arguments = [
        "generate", "--data", str(root), "--prompt", "a cat<lllite:canny:1>", "--steps", "2",
        "--checkpoint", str(root / "models" / "Stable-diffusion" / "SDXL.safetensors"),
        "--size", "64x64", "--seed", "1", "--out",
    ]  # fmt: skip
    control = ["--control", str(tmp_path / "edges.png")]
    assert main([*arguments, str(tmp_path / "with.png"), *control]) == 0
    assert "note:" not in capsys.readouterr().err
    assert main([*arguments, str(tmp_path / "without.png")]) == 0
    assert "there is no control picture" in capsys.readouterr().err
    made = [Image.open(tmp_path / name).tobytes() for name in ("with.png", "without.png")]
    assert made[0] != made[1]
    missing = str(tmp_path / "nowhere.png")
    assert main([*arguments, str(tmp_path / "no.png"), "--control", missing]) == 1
    assert f"crucible: {missing}: cannot be read" in capsys.readouterr().err
    assert not (tmp_path / "no.png").exists()


# --- the picture ------------------------------------------------------------------------------


def test_a_picture_is_scaled_and_what_sticks_out_is_cut_and_said(host: StandaloneHost) -> None:
    wide = Image.new("RGB", (300, 100))
    wide.paste((255, 0, 0), (100, 0, 200, 100))
    wide.paste((0, 255, 0), (0, 0, 100, 100))
    control = ControlPicture(wide)
    tensor = control(64, 64)
    assert tensor.shape == (1, 3, 64, 64) and tensor.dtype == torch.float32
    middle = tensor[0, :, :, 8:-8]
    assert middle[0].min() > 0.97 and middle[1:].max() < -0.97  # red alone: the left is cut off
    assert control(64, 64) is tensor
    (message,) = made(host, "a cat<lllite:canny>", control=wide).messages
    assert "The control picture is 300 × 100, the picture 64 × 64" in message
    fitting = ControlPicture(wide)
    assert fitting(192, 64).shape == (1, 3, 64, 192) and fitting.note is None


def saved(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def test_depth_of_16_bits_keeps_its_range() -> None:
    deep = Image.fromarray(np.array([[0, 257 * 100], [257 * 200, 65535]], dtype=np.uint16))
    for given in (deep, base64.b64encode(saved(deep)).decode()):
        picture = received(given)
        assert picture is not None and picture.mode == "RGB"
        assert np.asarray(picture)[..., 0].tolist() == [[0, 100], [200, 255]]  # not all white
    assert ControlPicture(deep)(2, 2).min() == -1


def test_pictures_from_a_page_and_over_rest() -> None:
    text = base64.b64encode(saved(drawn())).decode()
    for given in (drawn(), text, f"data:image/png;base64,{text}"):
        picture = received(given)
        assert picture is not None and picture.tobytes() == drawn().tobytes()
    assert received(None) is None and received("") is None
    floats = Image.fromarray(np.ones((2, 2), dtype=np.float32))
    dropped = PictureProblem("what somebody dropped")
    asked = ("§", "data:image/png;base64,%%%", text[:40], "/etc/hostname", 5, b"x")
    for wrong in (*asked, floats, dropped):
        with pytest.raises(FileProblem, match="The control picture"):
            received(wrong)


def test_the_shelf_holds_these_files_alone(host: StandaloneHost, root: Path) -> None:
    host.lllites.refresh()
    usable = {each.relative for each in host.lllites.entries if not each.problem}
    assert {"canny", "depth", "full"} <= usable
    assert not {"whole", "plain lora"} & {each.relative for each in host.lllites.entries}
    canny = host.lllites.find("canny")
    assert canny is not None and canny.kind == "LLLite" and canny.path.parent.name == "ControlNet"
