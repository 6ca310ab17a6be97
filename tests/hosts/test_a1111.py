"""The WebUI's model and its moments, on a tree built as its hijack leaves it."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from extensions_lib.errors import NetworkProblem
from extensions_lib.hosts import webui
from extensions_lib.hosts.a1111 import clear_before_loading, loaded_model
from extensions_lib.hosts.a1111_trainable import whole_pictures
from extensions_lib.models.structures import structure_of
from extensions_lib.patching import ActiveSet
from tests.hosts.conftest import tiny_lora
from tests.tiny import tiny_tensors

# Where the hijack of AUTOMATIC1111 1.10.1 puts a module inside another.
WRAPPED = {
    "SD1": ("cond_stage_model", "transformer.text_model.embeddings.token_embedding"),
    "SD2": ("cond_stage_model", "model.token_embedding"),
    "SDXL": ("conditioner.embedders.0", "transformer.text_model.embeddings.token_embedding"),
}


def sd_model(family: str, wrapped: bool = True) -> Any:
    """Modules under the names of a checkpoint's keys, some of them wrapped."""
    root = nn.Module()
    for key, tensor in tiny_tensors(family).items():
        *path, name = key.split(".")
        module = root
        for part in path:
            if part not in module._modules:
                module.add_module(part, nn.Module())
            module = module.get_submodule(part)
        module.register_parameter(name, nn.Parameter(tensor, requires_grad=False))
    if wrapped:
        outer, inner = WRAPPED[family]
        _wrap(root, f"{outer}.{inner}")
        _wrap(root, outer)
    if family == "SDXL":
        numbered = root.get_submodule("conditioner.embedders")
        embedders = nn.ModuleList(numbered._modules[name] for name in sorted(numbered._modules))
        embedders.append(nn.Module())  # one of the embedders of sizes: no weights
        root.conditioner.embedders = embedders
        root.conditioner.wrapped = nn.Module()  # an empty one, as the WebUI itself puts there
    made: Any = root
    made.alphas_cumprod = torch.linspace(0.99, 0.01, 1000)
    made.parameterization = "v" if family == "SD2" else "eps"
    made.sd_checkpoint_info = SimpleNamespace(
        name="some.safetensors", filename="/models/some.safetensors", sha256="ab", metadata={"a": 1}
    )
    return made


def _wrap(root: nn.Module, path: str) -> None:
    parent, _, name = path.rpartition(".")
    outer = nn.Module()
    outer.wrapped = root.get_submodule(path)
    root.get_submodule(parent)._modules[name] = outer


@pytest.mark.parametrize("family", WRAPPED)
@pytest.mark.parametrize("wrapped", [True, False])
def test_every_layer_of_the_hijacked_model_is_found(family: str, wrapped: bool) -> None:
    model = loaded_model(sd_model(family, wrapped))
    tensors = tiny_tensors(family)
    assert model.structure == structure_of({k: tuple(t.shape) for k, t in tensors.items()})
    assert model.schedule.prediction == ("v_prediction" if family == "SD2" else "epsilon")
    assert model.name == "some.safetensors" and model.hash == "ab"
    for canonical, place in model.layers.items():
        module, parameter, rows = model.layer(canonical)
        weight = module._parameters[parameter]
        assert weight is not None
        expected = tensors[place.key]
        assert torch.equal(weight, expected), canonical
        assert rows == place.rows


def test_another_kind_of_model_is_refused_by_name() -> None:
    other: Any = nn.Module()
    other.sd_checkpoint_info = SimpleNamespace(name="sd3.safetensors", filename="x", sha256=None)
    with pytest.raises(NetworkProblem, match=r"sd3\.safetensors.*SD1, SD2 and SDXL"):
        loaded_model(other)


class Host:
    """The WebUI without its builtin handler."""

    name = "a WebUI"
    samples: Any = None  # the checkpoint that does

    def sampling(self) -> Any:
        return self.samples

    def loaded_model(self, sd_model: Any) -> Any:
        return loaded_model(sd_model)

    def in_force(self, sd_model: Any, model: Any) -> ActiveSet:
        networks = ActiveSet(model)
        clear_before_loading(sd_model, networks)
        return networks

    def forget_builtin(self) -> None:
        pass


class Order:
    """What the WebUI hands to a handler: its StableDiffusionProcessing, as far as it is used."""

    def __init__(self, model: Any) -> None:
        self.sd_model = model
        self.extra_generation_params: dict[str, str] = {}
        self.comments: dict[str, int] = {}
        self.cached_c: list[object] = ["key", "states"]
        self.cached_uc: list[object] = ["key", "states"]
        self.closed = self.encoded = 0

    def comment(self, text: str) -> None:
        self.comments[text] = 1

    def close(self) -> None:
        self.closed += 1

    def setup_conds(self) -> None:
        self.encoded += 1


def tags(*tags: str) -> list[Any]:
    return [SimpleNamespace(items=tag.split(":")) for tag in tags]


@pytest.fixture
def session(tmp_path: Path) -> webui.Session:
    folder = tmp_path / "Lora"
    folder.mkdir()
    tiny_lora(folder / "one.safetensors", 1)
    (folder / "cut.safetensors").write_bytes((folder / "one.safetensors").read_bytes()[:300])
    return webui.Session(Host(), [folder], tmp_path / "cache")


def bits(model: nn.Module) -> dict[str, tuple[int, torch.Tensor]]:
    return {name: (id(p), p.detach().clone()) for name, p in model.named_parameters()}


def same(one: dict[str, tuple[int, torch.Tensor]], model: nn.Module) -> bool:
    here = bits(model)
    return all(
        here[name][0] == number and torch.equal(here[name][1], value)
        for name, (number, value) in one.items()
    )


def options(**other: Any) -> Any:
    return SimpleNamespace(sd_lora="None", lora_add_hashes_to_infotext=True, **other)


def test_networks_are_in_force_from_activation_to_the_end(session: webui.Session) -> None:
    model = sd_model("SD1")
    before = bits(model)
    order = Order(model)
    webui.activate(session, order, tags("one:0.8"), options())
    assert not same(before, model)
    assert list(order.extra_generation_params) == ["Lora hashes"]
    assert order.extra_generation_params["Lora hashes"].startswith("one: ")
    assert order.cached_c[0] is order.cached_uc[0] is None and order.comments == {}
    merged = bits(model)
    session.park()
    assert same(before, model)
    again = Order(model)
    webui.activate(session, again, tags("one:0.8"), options())
    assert same(merged, model)  # the very same merged weights: nothing was computed
    assert again.cached_c[0] == "key"  # and the encoded prompts still hold
    webui.activate(session, again, [], options())
    assert same(before, model) and again.cached_c[0] is None


def test_an_order_that_fails_leaves_the_model_clean(session: webui.Session) -> None:
    model = sd_model("SD1")
    before = bits(model)
    order = Order(model)
    for _ in range(2):  # two batches
        webui.activate(session, order, tags("one:0.8"), options())
    order.close()
    assert same(before, model) and order.closed == 1


def test_what_cannot_be_used_is_said_at_the_picture_and_the_rest_applies(
    session: webui.Session,
) -> None:
    model = sd_model("SD1")
    before = bits(model)
    order = Order(model)
    webui.activate(session, order, tags("nowhere:1", "cut:1", "one:much", "one:1"), options())
    said = " ".join(order.comments)
    assert len(order.comments) == 3
    assert "nowhere" in said and "cut.safetensors" in said and "much" in said
    assert not same(before, model)


def test_a_model_of_another_kind_gets_pictures_without_networks(session: webui.Session) -> None:
    other: Any = nn.Module()
    other.sd_checkpoint_info = SimpleNamespace(name="sd3", filename="x", sha256=None)
    order = Order(other)
    webui.activate(session, order, tags("one:1"), options())
    assert any("SD1, SD2 and SDXL" in text for text in order.comments)


def test_another_checkpoint_in_the_same_modules_gets_its_own_merge(session: webui.Session) -> None:
    model = sd_model("SD1")
    webui.activate(session, Order(model), tags("one:1"), options())
    session.park()
    other = {name: p + 1 for name, p in model.named_parameters()}
    model.load_state_dict(other)
    session.forget_model()
    webui.activate(session, Order(model), tags("one:1"), options())
    session.park()
    assert all(torch.equal(p, other[name]) for name, p in model.named_parameters())


def test_networks_go_on_in_a_refiner(session: webui.Session) -> None:
    """It is read into the same modules in the middle of an order."""
    model = sd_model("SD1")
    other = {name: p + 1 for name, p in model.named_parameters()}
    for weight in ("one:1", "one:0.5"):  # and again, with what the first has left
        webui.activate(session, Order(model), tags(weight), options())
        model.load_state_dict(other)
        session.model_loaded(model)
        made = bits(model)
        session.park()
        assert all(torch.equal(p, other[name]) for name, p in model.named_parameters())
        fresh = sd_model("SD1")
        fresh.load_state_dict(other)
        webui.activate(session, Order(fresh), tags(weight), options())
        for name, parameter in fresh.named_parameters():
            assert torch.equal(made[name][1], parameter), name
        session.park()


def test_networks_go_on_in_a_refiner_that_was_in_memory(session: webui.Session) -> None:
    model, refiner = sd_model("SD1"), sd_model("SD1")
    refiner.load_state_dict({name: p + 1 for name, p in model.named_parameters()})
    before = bits(model), bits(refiner)
    step = SimpleNamespace(sampling_step=3, total_sampling_steps=9)
    session.host.samples = model  # type: ignore[attr-defined]
    for _ in range(2):
        webui.activate(session, Order(model), tags("one:1"), options())
        session.step(step)
        assert same(before[1], refiner) and not same(before[0], model)
        session.host.samples = refiner  # type: ignore[attr-defined]
        session.step(step)
        assert same(before[0], model) and not same(before[1], refiner)
        made = bits(refiner)
        session.park()
        session.step(step)
        assert same(before[0], model) and same(before[1], refiner)
        webui.activate(session, Order(refiner), tags("one:1"), options())
        assert all(torch.equal(p, made[name][1]) for name, p in refiner.named_parameters())
        session.park()
        session.host.samples = model  # type: ignore[attr-defined]


def test_networks_go_on_in_a_refiner_in_modules_of_its_own(session: webui.Session) -> None:
    model, refiner = sd_model("SD1"), sd_model("SD1")
    before = bits(model), bits(refiner)
    order = Order(model)
    webui.activate(session, order, tags("one:1"), options())
    order.setup_conds()
    session.model_loaded(refiner)
    assert same(before[0], model)
    session.host.samples = refiner  # type: ignore[attr-defined]
    order.setup_conds()  # its own text encoders have the networks by then
    assert order.encoded == 2
    assert same(before[0], model) and not same(before[1], refiner)
    session.park()
    assert same(before[1], refiner)


def test_what_does_not_fit_a_refiner_is_said_at_the_picture(session: webui.Session) -> None:
    model, refiner = sd_model("SD1"), sd_model("SDXL")
    step = SimpleNamespace(sampling_step=3, total_sampling_steps=9)
    order = Order(model)
    session.host.samples = model  # type: ignore[attr-defined]
    webui.activate(session, order, tags("one:1", "nowhere:1"), options())
    session.step(step)
    (missing,) = order.comments
    assert "nowhere" in missing
    session.host.samples = refiner  # type: ignore[attr-defined]
    for _ in range(2):
        session.step(step)
    said = [text for text in order.comments if text != missing]
    assert len(said) == 1 and said[0].startswith("In the refiner: ") and "one" in said[0]
    session.park()
    session.tell("between orders")
    assert len(order.comments) == 2


def test_networks_do_not_follow_into_a_checkpoint_between_orders(session: webui.Session) -> None:
    model, another = sd_model("SD1"), sd_model("SD1")
    webui.activate(session, Order(model), tags("one:1"), options())
    session.park()
    before = bits(model), bits(another)
    session.model_loaded(model)
    assert same(before[0], model)
    webui.activate(session, Order(model), tags("one:1"), options())
    session.model_loaded(another)
    assert same(before[0], model) and same(before[1], another)


def test_a_hires_pass_adds_its_hashes_to_the_first(session: webui.Session, tmp_path: Path) -> None:
    tiny_lora(tmp_path / "Lora" / "two.safetensors", 2)
    order: Any = Order(sd_model("SD1"))
    webui.activate(session, order, tags("one:1"), options())
    order.is_hr_pass = True
    webui.activate(session, order, tags("two:1"), options())
    assert set(order.lora_hashes) == {"one", "two"}
    webui.activate(session, Order(order.sd_model), [], options())


def test_no_tiles_of_an_order_in_a_turn_of_training() -> None:
    layers = nn.Sequential(nn.Linear(1, 1), nn.Linear(1, 1), nn.Linear(1, 1))
    told = [SimpleNamespace(enabled=on) for on in (True, False)]
    for layer, each in zip(layers, told, strict=False):
        setattr(layer, "__webui_hypertile_params", each)
    with pytest.raises(ZeroDivisionError), whole_pictures([layers]):
        assert not any(each.enabled for each in told)
        _ = 1 / 0
    assert [each.enabled for each in told] == [True, False]
