"""Embeddings and hypernetworks in prompts of the standalone host, by what the encoders answer."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from extensions_lib.files.embeddings import Embedding
from extensions_lib.files.networks import Network
from extensions_lib.hosts.embeddings import Embeddings, bundled_of
from extensions_lib.hosts.standalone import StandaloneHost
from extensions_lib.hosts.standalone.text import TextEncoder, tokens
from extensions_lib.library import EMBEDDINGS, Library
from extensions_lib.models.loaded import LoadedModel
from extensions_lib.prompts.chunks import token_count
from extensions_lib.prompts.infotext import read_hashes, read_infotext
from tests.hosts.conftest import order
from tests.hyper import hyper_file

Hosts = Callable[[str], StandaloneHost]
FAMILIES = ["SD1", "SD2", "SDXL"]


@pytest.fixture(autouse=True)
def no_gradients() -> Iterator[None]:
    with torch.inference_mode():
        yield


def rows(model: LoadedModel, text: str) -> dict[str, torch.Tensor]:
    """The vectors that the model itself has for a text's tokens, as an embedding's parts."""
    parts = ("",) if len(model.text_encoders) == 1 else ("clip_l", "clip_g")
    found = {}
    for part, encoder in zip(parts, model.text_encoders, strict=True):
        table = encoder.get_input_embeddings().weight
        found[part] = table[tokens([text])[0]].clone()
    return found


def put(path: Path, parts: dict[str, torch.Tensor]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({part or "emb_params": tensor for part, tensor in parts.items()}, path)
    return path


def encoder(model: LoadedModel, folder: Path) -> tuple[TextEncoder, Embeddings]:
    embeddings = Embeddings(model.structure, Library([folder], None, EMBEDDINGS), tokens)
    embeddings.begin()
    return TextEncoder(model, embeddings), embeddings


def same(text: TextEncoder, one: str, other: str) -> bool:
    (a,), (b,) = text.encode([one]), text.encode([other])
    alike = a.context.shape == b.context.shape and torch.allclose(a.context, b.context, atol=1e-6)
    if a.pooled is not None and b.pooled is not None:
        alike &= torch.allclose(a.pooled, b.pooled, atol=1e-6)
    return alike


# --- what is encoded ------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_its_vectors_stand_where_its_name_stood(hosts: Hosts, tmp_path: Path, family: str) -> None:
    """Vectors copied from words of the vocabulary must mean just those words."""
    model = hosts(family).model()
    put(tmp_path / "thing.safetensors", rows(model, "red cat"))
    put(tmp_path / "thing-two.safetensors", rows(model, "dog"))
    text, embeddings = encoder(model, tmp_path)
    assert same(text, "a thing here", "a red cat here")
    assert same(text, "a (thing:1.3) here", "a (red cat:1.3) here")
    assert same(text, "a [[thing]] AND", "a [[red cat]] AND")
    assert same(text, "THING", "red cat")  # names are read as the tokenizer reads them
    assert same(text, "a thing-two", "a dog")  # the longest name
    assert same(text, "thing thing", "red cat red cat")
    assert not same(text, "something", "some red cat")
    assert not same(text, "a thing", "a")
    assert embeddings.messages == [] and embeddings.used.keys() == {"thing", "thing-two"}
    plain = TextEncoder(model)
    assert torch.equal(plain.encode(["a cat"])[0].context, text.encode(["a cat"])[0].context)


@pytest.mark.parametrize("family", FAMILIES)
def test_one_that_does_not_fit_begins_the_next_chunk(
    hosts: Hosts, tmp_path: Path, family: str
) -> None:
    model = hosts(family).model()
    put(tmp_path / "thing.safetensors", rows(model, "red cat dog"))
    text, _ = encoder(model, tmp_path)
    before = "mat " * 73
    assert same(text, before + "thing", before + "BREAK red cat dog")
    chunks = text.chunks(before + "thing")
    assert [chunk.fixes[0][0] if chunk.fixes else None for chunk in chunks] == [None, 0]
    assert token_count(chunks) == 78
    assert token_count(text.chunks("a thing")) == 4


def test_what_was_encoded_follows_the_file(hosts: Hosts, tmp_path: Path) -> None:
    model = hosts("SD1").model()
    path = put(tmp_path / "sub" / "thing.safetensors", rows(model, "cat"))
    text, embeddings = encoder(model, tmp_path)
    assert same(text, "thing", "cat")
    assert text.encode(["thing"]) is text.encode(["thing"])
    put(path, rows(model, "dog"))
    os.utime(path, ns=(1, time.time_ns()))
    put(tmp_path / "other.safetensors", rows(model, "mat"))
    embeddings.begin()
    assert same(text, "thing other", "dog mat")
    path.unlink()
    embeddings.begin()
    assert not same(text, "thing", "dog") and embeddings.used == {}


# --- what is said ---------------------------------------------------------------------------------


def test_what_does_not_fit_is_said(hosts: Hosts, tmp_path: Path) -> None:
    model = hosts("SD1").model()
    put(tmp_path / "wide.safetensors", {"": torch.randn(2, 768)})
    put(tmp_path / "pair.safetensors", rows(hosts("SDXL").model(), "cat"))
    put(tmp_path / "long.safetensors", {"": torch.randn(76, 32)})
    (tmp_path / "broken.pt").write_text("nothing")
    text, embeddings = encoder(model, tmp_path)
    for name in ("wide", "pair", "long", "broken"):
        embeddings.begin()
        text.encode([f"a {name}", f"a {name} again"])
        assert embeddings.used == {}
        (message,) = embeddings.messages
        assert message.startswith(f"Embedding '{name}': ") and message.endswith("It is not used.")
        expected = {
            "wide": "768 wide, the loaded checkpoint needs 32",
            "pair": "32 (clip_l) + 48 (clip_g) wide",
            "long": "76 vectors",
            "broken": "broken.pt",
        }[name]
        assert expected in message
    # another of the same name that fits is used, and nothing is to be said
    put(tmp_path / "sd1" / "wide.safetensors", rows(model, "cat"))
    embeddings.begin()
    assert same(text, "wide", "cat") and embeddings.messages == []


def test_the_other_half_is_offered_for_the_negative_prompt(hosts: Hosts, tmp_path: Path) -> None:
    model = hosts("SD1").model()
    for name in ("dream", "dream-neg", "apt", "apt-uc"):
        put(tmp_path / f"{name}.safetensors", rows(model, "cat"))
    text, embeddings = encoder(model, tmp_path)
    text.encode(["dream and apt"])
    assert embeddings.partners() == ["dream-neg", "apt-uc"]
    text.encode(["dream-neg"], negative=True)
    assert embeddings.partners() == ["apt-uc"]


def test_one_inside_a_network_in_use(hosts: Hosts, tmp_path: Path) -> None:
    model = hosts("SD1").model()
    network = Network("net", Path("net.safetensors"), {}, key=("net", 1, 2))
    network.embeddings = {
        "thing": {"string_to_param.*": rows(model, "cat")[""]},
        "wrong": {"a": torch.zeros(1, 2, 3)},
    }
    bundled, messages = bundled_of([network])
    assert len(messages) == 1 and messages[0].startswith("net: embedding 'wrong'")
    text, embeddings = encoder(model, tmp_path)
    assert not same(text, "thing", "cat")
    embeddings.begin(bundled)
    assert same(text, "thing", "cat") and embeddings.used == {"thing": ""}
    put(tmp_path / "thing.safetensors", rows(model, "dog"))
    embeddings.begin(bundled)
    assert same(text, "thing", "dog")  # the folder comes first
    assert embeddings.messages == ["Embedding 'thing': the file is used, not the network's."]
    (tmp_path / "thing.safetensors").unlink()
    embeddings.begin()
    assert not same(text, "thing", "cat") and isinstance(bundled["thing"], Embedding)


# --- whole pictures -------------------------------------------------------------------------------


@pytest.fixture
def clean(root: Path) -> Iterator[Path]:
    """The host's root, without what a test put into its folders."""
    yield root
    for folder in (root / "embeddings", root / "models" / "hypernetworks"):
        for path in folder.rglob("*") if folder.is_dir() else ():
            path.unlink()


@pytest.mark.parametrize("family", FAMILIES)
def test_a_picture_with_an_embedding(hosts: Hosts, clean: Path, family: str) -> None:
    host = hosts(family)
    before = host.generate(order("a thing"))
    put(clean / "embeddings" / "thing.safetensors", rows(host.model(), "red cat"))
    put(clean / "embeddings" / "thing-neg.safetensors", rows(host.model(), "mat"))
    made = host.generate(order("a thing"))
    assert made.images[0].tobytes() != before.images[0].tobytes()
    assert made.images[0].tobytes() == host.generate(order("a red cat")).images[0].tobytes()
    entry = host.embeddings.find("thing")
    assert entry is not None
    stated = read_infotext(made.infotexts[0])
    assert read_hashes(stated["TI hashes"]) == {"thing": entry.hash[:12]}
    assert any("'thing-neg' belongs in the negative prompt" in each for each in made.messages)
    both = host.generate(order("a thing", negative="bad thing-neg"))
    assert both.messages == []
    assert set(read_hashes(read_infotext(both.infotexts[0])["TI hashes"])) == {"thing", "thing-neg"}
    assert "TI hashes" not in host.generate(order("a cat")).infotexts[0]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_picture_with_hypernetworks(hosts: Hosts, clean: Path, family: str) -> None:
    host = hosts(family)
    width = host.model().structure.unet.context_dim
    folder = clean / "models" / "hypernetworks"
    plain = host.generate(order()).images[0].tobytes()
    hyper_file(folder / "one.pt", [width], activation="relu")
    hyper_file(folder / "two.pt", [width, 64], seed=5)
    hyper_file(folder / "far.pt", [768])

    def picture(prompt: str) -> bytes:
        made = host.generate(order(prompt))
        assert made.messages == []
        return made.images[0].tobytes()

    one, both = picture("a cat<hypernet:one>"), picture("a cat<hypernet:one:1><hypernet:two:0.5>")
    assert len({plain, one, both, picture("a cat<hypernet:one:0.5>")}) == 4
    assert picture("a cat<hypernet:one:1>") == one
    assert picture("a cat") == plain
    made = host.generate(order("a cat<hypernet:nowhere><hypernet:far>"))
    assert made.images[0].tobytes() == plain
    assert "no hypernetwork named 'nowhere'" in made.messages[0]
    assert "made for contexts 768 wide" in made.messages[1]
    host.generate(order("a cat<hypernet:one>"))
    with host.exclusive() as model:
        assert not any(module._forward_pre_hooks for module in model.unet.modules())


def test_a_counter_counts_vectors(root: Path, clean: Path) -> None:
    from extensions_lib.hosts.standalone.text import tokens as numbers
    from extensions_lib.prompts.chunks import chunk_tokens

    host = StandaloneHost("SD1", root)  # not loaded: its header is enough
    put(clean / "embeddings" / "thing.safetensors", {"": torch.randn(5, 32)})
    ids = numbers(["a thing"])[0]
    counted = chunk_tokens([(ids, 1.0)], find_embedding=host.embedding_finder())
    assert token_count(counted) == 6
