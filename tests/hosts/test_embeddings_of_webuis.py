"""Embeddings put into a WebUI's databases, and hypernetworks in Forge, with stand-ins for both."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from extensions_lib.files.embeddings import embedding_of
from extensions_lib.hosts.standalone.text import tokens
from extensions_lib.hosts.webui_embeddings import Prepared, WebUIEmbeddings, databases_of
from extensions_lib.hosts.webui_hypernetworks import WebUIHypernetworks
from extensions_lib.library import EMBEDDINGS, HYPERNETWORKS, Library
from tests.hyper import hyper_file
from tests.tiny import TINY


class Theirs:
    """A WebUI's own Embedding."""

    def __init__(self, vec: Any, name: str, step: int | None = None) -> None:
        self.vec, self.name, self.step, self.shorthash = vec, name, step, None
        self.filename: str | None = None

    def set_hash(self, value: str) -> None:
        self.shorthash = value[:12]


class Database:
    """A WebUI's EmbeddingDatabase; `extra`: arguments that only A1111's functions take."""

    def __init__(self, extra: int) -> None:
        self.word_embeddings: dict[str, Theirs] = {}
        self.extra, self.calls = extra, 0

    def register_embedding_by_name(self, embedding: Theirs | None, *rest: Any) -> None:
        assert len(rest) == 1 + self.extra
        self.calls += 1
        if embedding is None:
            del self.word_embeddings[rest[-1]]
        else:
            self.word_embeddings[rest[-1]] = embedding


def module(name: str, **content: Any) -> ModuleType:
    made = ModuleType(name)
    made.__dict__.update(content)
    return made


@pytest.fixture(params=["A1111", "Forge"])
def host(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A model as each WebUI holds it, and its database."""

    def tokenise(texts: list[str]) -> list[list[int]]:
        return tokens(texts)

    if request.param == "Forge":
        own = module("backend.text_processing.textual_inversion", Embedding=Theirs)
        for name in ("backend", "backend.text_processing"):
            monkeypatch.setitem(sys.modules, name, module(name))
        monkeypatch.setitem(sys.modules, own.__name__, own)
        db = Database(0)
        engine = SimpleNamespace(embeddings=db, tokenize=tokenise)
        yield SimpleNamespace(model=SimpleNamespace(text_processing_engine=engine), db=db)
        return
    db = Database(1)
    hijack = module("modules.sd_hijack", model_hijack=SimpleNamespace(embedding_db=db))
    own = module("modules.textual_inversion.textual_inversion", Embedding=Theirs)
    devices = module("modules.devices", device=torch.device("cpu"))
    parts = {"sd_hijack": hijack, "devices": devices}
    monkeypatch.setitem(sys.modules, "modules", module("modules", **parts))
    for each in (hijack, own, devices, module("modules.textual_inversion")):
        monkeypatch.setitem(sys.modules, each.__name__, each)
    stage = SimpleNamespace(tokenize=tokenise)
    yield SimpleNamespace(model=SimpleNamespace(cond_stage_model=stage), db=db)


def put(path: Path, vectors: torch.Tensor) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({"emb_params": vectors}, path)
    return path


def prepare(ours: WebUIEmbeddings, host: Any, *prompts: str, bundled: Any = None) -> Prepared:
    p = SimpleNamespace(sd_model=host.model, prompts=list(prompts), negative_prompts=[""], steps=4)
    return ours.prepare(p, TINY["SD1"], bundled)


def test_what_the_webui_lacks_is_put_in(host: Any, tmp_path: Path) -> None:
    ours = WebUIEmbeddings(Library([tmp_path], None, EMBEDDINGS))
    assert prepare(ours, host, "a thing") == Prepared()
    path = put(tmp_path / "sub" / "thing.safetensors", torch.ones(2, 32))
    put(tmp_path / "unused.safetensors", torch.ones(2, 32))
    first = prepare(ours, host, "a [cat:(thing:1.2):0.5] <lora:x:1>")
    assert first.changed and first.messages == [] and set(first.hashes) == {"thing"}
    (name,) = host.db.word_embeddings
    theirs = host.db.word_embeddings[name]
    assert torch.equal(theirs.vec, torch.ones(2, 32)) and theirs.shorthash == first.hashes["thing"]
    assert (theirs.vectors, theirs.shape, theirs.filename) == (2, 32, str(path))
    assert not prepare(ours, host, "a thing").changed and host.db.calls == 1
    put(path, torch.zeros(3, 32))
    assert prepare(ours, host, "a thing").changed
    assert torch.equal(host.db.word_embeddings["thing"].vec, torch.zeros(3, 32))
    path.unlink()
    assert prepare(ours, host, "a thing").changed and not host.db.word_embeddings


def test_what_the_webui_has_is_left_alone(host: Any, tmp_path: Path) -> None:
    put(tmp_path / "thing.safetensors", torch.ones(2, 32))
    own = Theirs(torch.ones(2, 32), "thing")
    host.db.word_embeddings["thing"] = own
    prepare(WebUIEmbeddings(Library([tmp_path], None, EMBEDDINGS)), host, "a thing")
    assert host.db.word_embeddings["thing"] is own


def test_another_checkpoint_of_the_same_plan(host: Any, tmp_path: Path) -> None:
    """It has a tokenizer of its own; that of a checkpoint that was replaced may work no more."""
    put(tmp_path / "thing.safetensors", torch.ones(2, 32))
    ours = WebUIEmbeddings(Library([tmp_path], None, EMBEDDINGS))
    prepare(ours, host, "a thing")
    (part,) = vars(host.model).values()
    before = SimpleNamespace(**vars(part))
    (name,) = vars(host.model)
    setattr(host.model, name, before)

    def gone(texts: list[str]) -> list[list[int]]:
        raise AssertionError("no tokenizer available")

    part.tokenize = gone
    host.db.word_embeddings.clear()
    prepare(ours, host, "another thing")
    assert list(host.db.word_embeddings) == ["thing"]


def test_what_does_not_fit_is_said(host: Any, tmp_path: Path) -> None:
    put(tmp_path / "wide.safetensors", torch.ones(2, 768))
    put(tmp_path / "good-neg.safetensors", torch.ones(2, 32))
    put(tmp_path / "good.safetensors", torch.ones(2, 32))
    ours = WebUIEmbeddings(Library([tmp_path], None, EMBEDDINGS))
    messages = prepare(ours, host, "a wide good").messages
    assert "'wide': its vectors are 768 wide" in messages[0]
    assert "'good-neg' belongs in the negative prompt" in messages[1]
    assert list(host.db.word_embeddings) == ["good"]


def test_one_inside_a_network_leaves_after_the_batch(host: Any, tmp_path: Path) -> None:
    ours = WebUIEmbeddings(Library([tmp_path], None, EMBEDDINGS))
    bundled = {"thing": embedding_of("thing", {"emb_params": torch.ones(1, 32)}, ("net", 1, 2))}
    assert prepare(ours, host, "a thing", bundled=bundled).changed
    assert list(host.db.word_embeddings) == ["thing"]
    ours.take_back()
    assert not host.db.word_embeddings
    prepare(ours, host, "a cat", bundled=bundled)
    assert not host.db.word_embeddings
    assert prepare(ours, host, "a thing").hashes == {}


def test_a_pair_goes_to_both_of_forges_encoders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = module("backend.text_processing.textual_inversion", Embedding=Theirs)
    for name in ("backend", "backend.text_processing"):
        monkeypatch.setitem(sys.modules, name, module(name))
    monkeypatch.setitem(sys.modules, own.__name__, own)
    databases = [Database(0), Database(0)]
    engines = [SimpleNamespace(embeddings=db, tokenize=lambda t: tokens(t)) for db in databases]
    model = SimpleNamespace(
        text_processing_engine_l=engines[0], text_processing_engine_g=engines[1]
    )
    assert len(databases_of(model)) == 2
    save_file(
        {"clip_l": torch.ones(1, 32), "clip_g": torch.ones(1, 48)}, tmp_path / "thing.safetensors"
    )
    p = SimpleNamespace(sd_model=model, prompts=["thing"], negative_prompts=[], steps=1)
    ours = WebUIEmbeddings(Library([tmp_path], None, EMBEDDINGS))
    ours.prepare(p, TINY["SDXL"])
    for db in databases:
        assert set(db.word_embeddings["thing"].vec) == {"clip_l", "clip_g"}
        assert db.word_embeddings["thing"].shape == 80  # type: ignore[attr-defined]


def test_a_model_without_a_database_is_left_alone() -> None:
    assert databases_of(SimpleNamespace(cond_stage_model=object())) == []


# --- hypernetworks --------------------------------------------------------------------------------


class Order:
    """A WebUI's StableDiffusionProcessing."""

    def __init__(self, model: Any) -> None:
        self.sd_model, self.comments, self.closed = model, {}, 0
        self.all_prompts = ["a cat"]

    def comment(self, text: str) -> None:
        self.comments[text] = 1

    def close(self) -> None:
        self.closed += 1


class Engine:
    """What stands for Forge's `shared.sd_model`; can be referred to weakly."""


def test_hypernetworks_in_forge(
    hosts: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    params = SimpleNamespace
    extra = module("modules.extra_networks", ExtraNetworkParams=params)
    monkeypatch.setitem(sys.modules, "modules", module("modules", extra_networks=extra))
    monkeypatch.setitem(sys.modules, extra.__name__, extra)
    loaded = hosts("SD1").model()
    hyper_file(tmp_path / "one.pt", [32])
    session: Any = SimpleNamespace(model=lambda _: loaded)
    ours = WebUIHypernetworks(session, Library([tmp_path], None, HYPERNETWORKS))
    none = SimpleNamespace(sd_hypernetwork="None")

    def hooks() -> int:
        return sum(len(each._forward_pre_hooks) for each in loaded.unet.modules())

    engine = Engine()
    p = Order(engine)
    ours.activate(p, [SimpleNamespace(items=["one", "0.5"])], none)
    assert hooks() and not p.comments
    ours.clear()
    assert not hooks()
    ours.activate(p, [SimpleNamespace(items=["one"]), SimpleNamespace(items=["nowhere"])], none)
    assert hooks() and "no hypernetwork named 'nowhere'" in next(iter(p.comments))
    ours.activate(p, [], none)
    assert not hooks()
    ours.activate(p, [SimpleNamespace(items=["one", "much"])], none)
    assert not hooks() and any("'much' is not a number" in each for each in p.comments)
    chosen = SimpleNamespace(sd_hypernetwork="one", extra_networks_default_multiplier=1.0)
    ours.activate(p, [], chosen)
    assert hooks() and p.all_prompts == ["a cat<hypernet:one:1.0>"]
    p.close()  # an order that failed
    assert not hooks() and p.closed == 1
