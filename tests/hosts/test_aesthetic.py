"""Aesthetic gradients: a copy of the encoder turns towards the pictures, the encoder does not."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch.nn.functional import cosine_similarity, normalize

from extensions_lib.errors import FileProblem
from extensions_lib.files.aesthetics import aesthetic_width, find_projection, read_aesthetic
from extensions_lib.hosts.standalone import StandaloneHost
from tests.hosts.conftest import order

Hosts = Callable[[str], StandaloneHost]


@pytest.fixture
def files(root: Path) -> Iterator[Path]:
    """An aesthetic embedding and a projection for the small SD1, in the host's folders."""
    vector = torch.randn(1, 16, generator=torch.Generator().manual_seed(3)) * 5
    folder, clip = root / "models" / "aesthetic_embeddings", root / "models" / "CLIP"
    for each in (folder, clip):
        each.mkdir(exist_ok=True)
    torch.save(vector, folder / "calm.pt")
    projection = torch.randn(16, 32, generator=torch.Generator().manual_seed(4))
    save_file({"text_projection.weight": projection}, clip / "clip_l.safetensors")
    yield folder
    (folder / "calm.pt").unlink()
    (clip / "clip_l.safetensors").unlink(missing_ok=True)


def test_pictures_change_with_weight_steps_and_rate(hosts: Hosts, files: Path) -> None:
    host = hosts("SD1")
    encoder = host.model().text_encoders[0]
    before = {key: tensor.clone() for key, tensor in encoder.state_dict().items()}

    def picture(tag: str) -> bytes:
        made = host.generate(order(f"a cat{tag}"))
        assert made.messages == [], made.messages
        return made.images[0].tobytes()

    plain = picture("")
    tags = [
        "<aesthetic:calm:0.9:steps=5:rate=0.01>",
        "<aesthetic:calm:0.3:steps=5:rate=0.01>",
        "<aesthetic:calm:0.9:steps=10:rate=0.01>",
        "<aesthetic:calm:0.9:steps=5:rate=0.02>",
        "<aesthetic:calm:0.9:steps=5:rate=0.01:slerp=1>",
    ]
    made = [picture(tag) for tag in tags]
    assert len({plain, *made}) == 6
    assert picture(tags[0]) == made[0] and picture("") == plain
    assert picture("<aesthetic:calm:0>") == plain == picture("<aesthetic:calm:steps=0:weight=1>")
    assert all(torch.equal(before[key], each) for key, each in encoder.state_dict().items())
    assert not any(each.requires_grad for each in encoder.parameters())


def test_the_steps_turn_the_prompt_towards_the_pictures(hosts: Hosts, files: Path) -> None:
    from contextlib import nullcontext

    from extensions_lib.hosts.standalone.aesthetic import Aesthetic, blended, turned

    encoder = hosts("SD1").model().text_encoders[0]
    vector = read_aesthetic(files / "calm.pt")
    projection = torch.randn(16, 32)
    ids = [[49406, 320, 2368, *[49407] * 74]]

    def likeness(steps: int) -> float:
        wish = Aesthetic(vector, projection, 1.0, steps, 1e-3, False, ())
        twin = turned(encoder, wish, ids, lambda _: nullcontext())
        pooled = twin(input_ids=torch.tensor(ids)).pooler_output
        return float(cosine_similarity(pooled @ projection.T, vector[None]))

    found = [likeness(steps) for steps in (0, 2, 8)]
    assert found == sorted(found) and found[2] > found[0] + 0.05
    one, two = torch.randn(2, 1, 3, 8)
    wish = Aesthetic(vector, projection, 0.5, 1, 1, True, ())
    middle = normalize(blended(normalize(one, dim=-1), normalize(two, dim=-1), wish), dim=-1)
    assert torch.allclose(
        middle, normalize(normalize(one, dim=-1) + normalize(two, dim=-1), dim=-1)
    )
    assert torch.allclose(blended(one, one, wish), one, atol=1e-5)


def test_the_same_words_are_turned_once(
    hosts: Hosts, files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from extensions_lib.hosts.standalone import text

    turns = []

    def counted(*told: object) -> torch.nn.Module:
        turns.append(told)
        return original(*told)  # type: ignore[arg-type]

    original = text.turned
    monkeypatch.setattr(text, "turned", counted)
    host = hosts("SD1")
    prompt = "a dog of its own<aesthetic:calm:0.9:steps=2:rate=0.01>"
    first = host.generate(order(prompt)).images[0].tobytes()
    assert len(turns) == 1
    assert host.generate(order(prompt)).images[0].tobytes() == first
    assert len(turns) == 1
    host.generate(order(prompt.replace("a dog", "a cow")))
    assert len(turns) == 2


@pytest.mark.parametrize(
    ("tag", "said"),
    [
        ("<aesthetic:nowhere>", "no aesthetic embedding in"),
        ("<aesthetic:calm:much>", "weight 'much' is no number"),
        ("<aesthetic:calm:1:steps=2.5>", "steps '2.5' is not a whole number"),
        ("<aesthetic:calm:1:steps=1000>", "steps '1000' is no number from 0 to 100"),
        ("<aesthetic:calm:1:speed=2>", "'speed' has no meaning here"),
    ],
)
def test_what_is_wrong_is_said(hosts: Hosts, files: Path, tag: str, said: str) -> None:
    (message,) = hosts("SD1").generate(order(f"a cat{tag}")).messages
    assert message.startswith(tag) and said in message


def test_what_is_missing_is_said(hosts: Hosts, root: Path, files: Path) -> None:
    (message,) = hosts("SDXL").generate(order("a cat<aesthetic:calm>")).messages
    assert "works on SD1 checkpoints alone" in message
    (root / "models" / "CLIP" / "clip_l.safetensors").unlink()
    (message,) = hosts("SD1").generate(order("a cat<aesthetic:calm>")).messages
    assert "needs CLIP's text projection [16, 32]" in message


def test_files(tmp_path: Path) -> None:
    torch.save(torch.zeros(1, 4), tmp_path / "zero.pt")
    assert aesthetic_width(tmp_path / "zero.pt") == 4
    with pytest.raises(FileProblem, match="no direction"):
        read_aesthetic(tmp_path / "zero.pt")
    torch.save({"a": torch.ones(1), "b": torch.ones(1)}, tmp_path / "two.pt")
    with pytest.raises(FileProblem, match="is no aesthetic embedding"):
        read_aesthetic(tmp_path / "two.pt")
    (tmp_path / "broken.safetensors").write_text("no")
    assert find_projection([tmp_path, tmp_path / "nowhere"], 4, 4) is None
