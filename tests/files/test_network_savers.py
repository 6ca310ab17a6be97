"""Files that diffusers, peft and lycoris-lora write themselves mean here what they mean there."""

from __future__ import annotations

import copy
import functools
import itertools
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from extensions_lib.adapters import merged
from extensions_lib.files.networks import Network, read_network, write_network
from extensions_lib.hosts.standalone.load import load_checkpoint
from extensions_lib.models.loaded import LoadedModel
from tests.tiny import TINY, tiny_checkpoint

ATTENTION = ["to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "conv1", "proj_in"]
TEXT = ["q_proj", "k_proj", "v_proj", "out_proj", "fc1"]
ROOTS = ("text_encoder", "text_encoder_2")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("models")

    @functools.cache
    def load(family: str) -> LoadedModel:
        path = tiny_checkpoint(folder / f"{family}.safetensors", family)
        return load_checkpoint(path, device="cpu", dtype=torch.float32)

    return load


def parts_of(model: LoadedModel) -> dict[str, nn.Module]:
    """Component -> a copy of its module, for the peer to change."""
    names = ("unet", *model.structure.text_components)
    own = (model.unet, *model.text_encoders)
    return {name: copy.deepcopy(module) for name, module in zip(names, own, strict=True)}


def random_weights(module: nn.Module, mark: tuple[str, ...], seed: int = 0) -> None:
    """Also those that training starts at zero or one."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if any(text in name for text in mark):
                noise = torch.randn(parameter.shape, generator=generator)
                factors = ("magnitude", "dora_scale", "boft_s", "ia3_l")
                magnitude = any(text in name for text in factors)
                parameter.copy_(parameter + 0.1 * noise if magnitude else 0.1 * noise)


def same(network: Network, component: str, before: nn.Module, after: dict[str, Tensor]) -> int:
    """Each weight that the peer changed is changed alike here, and no other; returns how many."""
    changed = 0
    for name, weight in before.named_parameters():
        if not name.endswith(".weight") or name.removesuffix(".weight") not in after:
            continue
        path = name.removesuffix(".weight")
        layer = f"{component}.{path}"
        expected = after[path]
        if torch.equal(expected, weight):
            assert layer not in network.adapters
            continue
        changed += 1
        found = merged(weight.detach(), [(network.adapters[layer], 1.0)])
        error, change = (found - expected).norm(), (expected - weight).norm()
        assert error <= 1e-5 * change + 1e-6 * weight.norm(), layer
    return changed


def peft_weights(model: nn.Module) -> dict[str, Tensor]:
    """Module path -> weight after PEFT's own merge."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    found: dict[str, Tensor] = {}
    for path, module in model.named_modules():
        if isinstance(module, BaseTunerLayer):
            module.merge()
            found[path] = module.get_base_layer().weight.detach()
    return found


def same_biases(network: Network, component: str, before: nn.Module, after: nn.Module) -> bool:
    """Each bias that the peer changed is changed alike here, no other; whether there are any."""
    changed = 0
    for path, module in after.named_modules():
        own = getattr(module, "base_layer", None)
        bias = None if own is None else own.bias
        if bias is None:
            continue
        layer, clean = f"{component}.{path}", before.get_submodule(path).bias
        assert isinstance(clean, Tensor)
        delta = network.adapters[layer].bias_delta(clean.detach())
        expected = bias.detach() - clean.detach()
        assert torch.equal(bias, clean) if delta is None else torch.allclose(delta, expected), layer
        changed += delta is not None
    return changed > 0


# --- diffusers --------------------------------------------------------------------------------


OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {"r": 4, "lora_alpha": 4},
    "patterns": {"r": 4, "lora_alpha": 8, "alpha_pattern": {"attn1.to_q": 3}, "rank_pattern": {"to_k": 2}},  # noqa: E501
    "rslora": {"r": 4, "lora_alpha": 6, "use_rslora": True},
    "dora": {"r": 4, "lora_alpha": 8, "use_dora": True},
}  # fmt: skip


def crossed(*axes: list[str]) -> list[Any]:
    """Every combination; each value of the longest axis once, the others slow (a second each)."""
    longest = max(map(len, axes))
    quick = {tuple(axis[i % len(axis)] for axis in axes) for i in range(longest)}
    return [
        pytest.param(*each, marks=() if each in quick else pytest.mark.slow)
        for each in itertools.product(*axes)
    ]


@pytest.mark.parametrize(
    ("option", "family", "names"), crossed(list(OPTIONS), list(TINY), ["peft", "diffusers"])
)
def test_diffusers_saver(tmp_path: Path, models: Any, option: str, family: str, names: str) -> None:
    """names: PEFT's in the file, or diffusers', to which its training scripts bring them."""
    from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
    from diffusers.training_utils import _collate_lora_metadata
    from diffusers.utils import convert_state_dict_to_diffusers
    from peft import LoraConfig
    from peft.utils import get_peft_model_state_dict

    model = models(family)
    parts = parts_of(model)
    states: dict[str, Any] = {}
    for name, module in parts.items():
        targets = ATTENTION if name == "unet" else TEXT
        config = LoraConfig(target_modules=targets, init_lora_weights=False, **OPTIONS[option])
        module.add_adapter(config)  # type: ignore[operator]
        random_weights(module, ("lora_",))
        state = get_peft_model_state_dict(module)
        states[name] = convert_state_dict_to_diffusers(state) if names == "diffusers" else state
    spelled = {"unet": "unet", "te1": "text_encoder", "te2": "text_encoder_2"}
    layers = {f"{spelled[name]}_lora_layers": state for name, state in states.items()}
    metadata = _collate_lora_metadata({spelled[name]: module for name, module in parts.items()})
    pipeline = StableDiffusionXLPipeline if family == "SDXL" else StableDiffusionPipeline
    pipeline.save_lora_weights(tmp_path, **layers, **metadata)
    network = read_network(tmp_path / "pytorch_lora_weights.safetensors", structure=TINY[family])
    assert (network.unmatched, network.problems) == ([], [])
    for name, module in parts.items():
        before = model.unet if name == "unet" else model.text_encoders[int(name[2]) - 1]
        assert same(network, name, before, peft_weights(module)) > 5


# --- peft -------------------------------------------------------------------------------------


PEFT_KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "lora": ("LoraConfig", {"r": 4, "lora_alpha": 6}),
    "rslora": ("LoraConfig", {"r": 4, "lora_alpha": 6, "use_rslora": True}),
    "dora": ("LoraConfig", {"r": 4, "lora_alpha": 6, "use_dora": True}),
    "lora with biases": ("LoraConfig", {"r": 4, "lora_alpha": 6, "lora_bias": True}),
    "loha": ("LoHaConfig", {"r": 4, "alpha": 6}),
    "loha of kernels": ("LoHaConfig", {"r": 4, "alpha": 6, "use_effective_conv2d": True}),
    "lokr": ("LoKrConfig", {"r": 2, "alpha": 6}),
    "lokr whole": ("LoKrConfig", {"r": 999, "alpha": 500}),
    "lokr of kernels": ("LoKrConfig", {"r": 2, "alpha": 6, "use_effective_conv2d": True}),
    "oft": ("OFTConfig", {"oft_block_size": 8}),
    "oft exact": ("OFTConfig", {"oft_block_size": 4, "use_cayley_neumann": False}),
    "oft of three terms": ("OFTConfig", {"oft_block_size": 4, "num_cayley_neumann_terms": 3}),
    "oft of two terms": ("OFTConfig", {"oft_block_size": 4, "num_cayley_neumann_terms": 2}),
    "oft of eight terms": (
        "OFTConfig",
        {"r": 2, "oft_block_size": 0, "num_cayley_neumann_terms": 8},
    ),
    "oft shared": ("OFTConfig", {"oft_block_size": 8, "block_share": True}),
    "oft held": ("OFTConfig", {"oft_block_size": 8, "coft": True, "eps": 0.05}),
    "boft": ("BOFTConfig", {"boft_block_size": 8}),
    "boft of stages": ("BOFTConfig", {"boft_block_size": 4, "boft_n_butterfly_factor": 3}),
    "ia3": ("IA3Config", {"feedforward_modules": ["to_k", "conv1", "fc1"]}),
    "adalora": ("AdaLoraConfig", {"init_r": 6, "lora_alpha": 5, "total_step": 9}),
    "adalora without alpha": ("AdaLoraConfig", {"init_r": 6, "lora_alpha": 0, "total_step": 9}),
}
PEFT_MARKS = ("lora_", "hada_", "lokr_", "oft_", "boft_", "ia3_")


class _BlockDiagonals:
    """What PEFT's BOFT has in CUDA, which it needs for more stages than one."""

    @staticmethod
    def forward(blocks: Tensor) -> list[Tensor]:
        return [torch.stack([torch.block_diag(*stage) for stage in blocks])]


@pytest.mark.parametrize(("kind", "family"), crossed(list(PEFT_KINDS), list(TINY)))
def test_peft_saver(
    tmp_path: Path, models: Any, kind: str, family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import peft
    from peft import get_peft_model

    monkeypatch.setattr("peft.tuners.boft.layer.get_fbd_cuda", _BlockDiagonals)
    model = models(family)
    config, options = PEFT_KINDS[kind]
    last = len(model.text_encoders) - 1
    component = model.structure.text_components[last]
    for name, module, targets in (
        ("unet", model.unet, ATTENTION),
        (component, model.text_encoders[last], TEXT),
    ):
        if kind == "oft shared" and name == "te2":
            continue  # one block for all tells neither a width nor, of two layers, which encoder
        if kind == "lora with biases":
            targets = ["ff.net.0.proj", "conv1", "proj_in", *TEXT]  # others have none to change
        elif kind == "ia3":
            options = {"feedforward_modules": [e for e in ("to_k", "conv1", "fc1") if e in targets]}
        made = getattr(peft, config)(target_modules=targets, **options)
        wrapped = get_peft_model(copy.deepcopy(module), made)
        random_weights(wrapped, PEFT_MARKS)
        wrapped.save_pretrained(tmp_path / name)
        path = tmp_path / name / "adapter_model.safetensors"
        network = read_network(path, structure=TINY[family])
        assert (network.unmatched, network.problems, network.notes) == ([], [], [])
        assert same(network, name, module, peft_weights(wrapped.base_model.model)) > 5
        assert same_biases(network, name, module, wrapped.base_model.model) == (
            kind in ("ia3", "lora with biases")
        )


# --- lycoris-lora -----------------------------------------------------------------------------


def lycoris_weights(network: Any, module: nn.Module) -> dict[str, Tensor]:
    """Module path -> weight as lycoris' forward computes it at multiplier 1."""
    names = {id(child): path for path, child in module.named_modules()}
    found = {}
    for lora in network.loras:
        child = lora.org_module[0]
        path = names[id(child)]
        with torch.no_grad():
            found[path] = effective(lora, child)
    return found


def effective(lora: Any, child: nn.Module) -> Tensor:
    """The weight behind a module's forward: its answers to the unit inputs, minus the bias."""
    if "weight" not in dict(child.named_parameters()):  # "full" has taken it over
        return lora.weight.detach()
    weight = child.weight
    if weight.dim() == 2:
        unit = torch.eye(weight.shape[1])
        bias = 0 if child.bias is None else child.bias
        return (lora(unit) - bias).T
    inputs, kernel = weight.shape[1], weight.shape[2]
    unit = torch.zeros(inputs * kernel * kernel, inputs, kernel, kernel)
    unit.view(len(unit), -1).fill_diagonal_(1.0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        answer = lora(unit)
    middle = answer.shape[-1] // 2
    if child.bias is not None:
        answer = answer - child.bias[:, None, None]
    # with the kernel's padding the middle position sees the whole picture
    return answer[:, :, middle, middle].T.reshape(weight.shape)


@pytest.mark.parametrize(
    ("family", "algo", "more"),
    [
        ("SD1", "lora", {}),
        ("SD2", "lora", {"use_tucker": True}),
        ("SDXL", "lora", {"dora_wd": True, "wd_on_output": True}),
        ("SD1", "lora", {"dora_wd": True, "wd_on_output": False}),
        ("SD2", "loha", {}),
        ("SDXL", "loha", {"use_tucker": True}),
        ("SD1", "lokr", {"factor": 4}),
        ("SD2", "lokr", {"full_matrix": True}),
        ("SDXL", "lokr", {"factor": 4, "use_tucker": True, "decompose_both": True}),
        ("SDXL", "glora", {}),
        ("SD1", "ia3", {}),
        ("SD2", "full", {}),
        ("SDXL", "diag-oft", {"rescaled": True}),
        ("SD1", "boft", {}),
    ],
    ids=lambda value: value if isinstance(value, str) else "+".join(value) or "plain",
)
def test_lycoris_saver(
    tmp_path: Path, models: Any, family: str, algo: str, more: dict[str, Any]
) -> None:
    """The saver of the whole network, over a UNet: its own prefix `lycoris_`."""
    from lycoris import LycorisNetwork, create_lycoris

    model = models(family)
    module = copy.deepcopy(model.unet)
    LycorisNetwork.apply_preset(
        {
            "target_name": [],
            "target_module": ["Attention", "ResnetBlock2D"],
            "enable_conv": True,
            "exclude_name": ["up_blocks.*", r"down_blocks\.[01].*"],
        }
    )
    dim = 4 if algo not in ("diag-oft", "boft") else 8
    network = create_lycoris(module, 1.0, linear_dim=dim, linear_alpha=2, algo=algo, **more)
    network.apply_to()
    random_weights(network, ("",))
    if algo in ("diag-oft", "boft"):
        for lora in network.loras:
            if getattr(lora, "rescale", None) is not None:
                torch.nn.init.uniform_(lora.rescale, 0.9, 1.1)
    network.save_weights(tmp_path / "n.safetensors", torch.float32, {})
    expected = lycoris_weights(network, module)
    found = read_network(tmp_path / "n.safetensors", structure=TINY[family])
    assert (found.unmatched, found.problems) == ([], [])
    assert same(found, "unet", model.unet, expected) > 5
    # what we write again means the same
    write_network(tmp_path / "again.safetensors", found.adapters, family=TINY[family].family)
    again = read_network(tmp_path / "again.safetensors", structure=TINY[family])
    assert again.adapters.keys() == found.adapters.keys()
    for layer, adapter in found.adapters.items():
        back = again.adapters[layer].tensors()
        assert back.keys() == adapter.tensors().keys()
        assert all(torch.equal(back[part], t) for part, t in adapter.tensors().items())
