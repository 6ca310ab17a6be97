"""Network files, spoilt in every way that a download, a disk or an enemy may spoil them."""

from __future__ import annotations

import io
import json
import os
import pickle
import pickletools
import random
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

Q = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
K = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_k"
C = "lora_unet_down_blocks_0_resnets_0_conv1"
T = "lora_te_text_model_encoder_layers_3_mlp_fc1"
N = "lora_unet_conv_norm_out"
D = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"

LORA = {"lora_up.weight": (8, 2), "lora_down.weight": (2, 6), "alpha": ()}
CONV = {"lora_up.weight": (8, 2, 1, 1), "lora_down.weight": (2, 6, 3, 3), "alpha": ()}
TUCKER = CONV | {"lora_down.weight": (2, 6, 1, 1), "lora_mid.weight": (2, 2, 3, 3)}
LOHA = {"hada_w1_a": (8, 2), "hada_w1_b": (2, 6), "hada_w2_a": (8, 2), "hada_w2_b": (2, 6), "alpha": ()}  # fmt: skip  # noqa: E501
LOHA_T = {"hada_w1_a": (2, 8), "hada_w1_b": (2, 6), "hada_w2_a": (2, 8), "hada_w2_b": (2, 6), "hada_t1": (2, 2, 3, 3), "hada_t2": (2, 2, 3, 3), "alpha": ()}  # fmt: skip  # noqa: E501
LOKR = {"lokr_w1": (2, 3), "lokr_w2_a": (4, 2), "lokr_w2_b": (2, 2), "alpha": ()}
LOKR_T = {"lokr_w1": (2, 3), "lokr_w2_a": (2, 4), "lokr_w2_b": (2, 2), "lokr_t2": (2, 2, 3, 3)}
GLORA = {"a1.weight": (6, 2), "a2.weight": (2, 6), "b1.weight": (8, 2), "b2.weight": (2, 6), "alpha": ()}  # fmt: skip  # noqa: E501
IA3 = {"weight": (8, 1), "on_input": ()}
OFT = {"oft_blocks": (2, 4, 4), "alpha": ()}
BOFT = {"oft_blocks": (2, 2, 4, 4), "rescale": (8, 1), "alpha": ()}
FULL = {"diff": (8, 6), "diff_b": (8,)}
NORM = {"w_norm": (8,), "b_norm": (8,)}
SPARSE = LORA | {"bias_indices": (2, 3), "bias_values": (3,), "bias_size": (2,)}
DORA = LORA | {"dora_scale": (8, 1)}
PEFT = {"lora_A.weight": (2, 6), "lora_B.weight": (8, 2), "lora_magnitude_vector": (8,)}
TURNS = {"oft_in": (3, 2, 2), "rescale": (8, 1)}
PEFT_BOFT = {"boft_R": (1, 3, 2, 2), "boft_s": (8, 1)}
PEFT_IA3 = {"ia3_l": (1, 6)}
EMBEDDED = {"lora_embedding_A": (2, 20), "lora_embedding_B": (6, 2)}

ONETRAINER = {"oft_R.weight": (3, 1), "oft_R.scaled_oft": ()}
ONETRAINER_LOHA = {"hada_w1_a": (8, 2, 1, 1), "hada_w1_b": (2, 6, 3, 3), "hada_w2_a": (8, 2, 1, 1), "hada_w2_b": (2, 6, 3, 3), "alpha": ()}  # fmt: skip  # noqa: E501
COMFYUI = {"lora_up.weight": (8, 2), "lora_down.weight": (2, 54), "alpha": ()}
F = "diffusion_model.input_blocks.1.0.in_layers.2"

Seed = dict[str, dict[str, tuple[int, ...]]]
SEEDS: tuple[Seed, ...] = (
    {Q: LORA, C: CONV, T: DORA},
    {Q: LOHA, C: LOHA_T},
    {Q: LOKR, C: LOKR_T, N: NORM},
    {Q: GLORA, K: IA3},
    {Q: OFT, K: BOFT, C: TUCKER},
    {Q: FULL, N: NORM, K: SPARSE},
    {D: PEFT, "text_encoder.text_model.embeddings.token_embedding": EMBEDDED},
    {D: TURNS, D[:-1] + "k": PEFT_BOFT, D[:-1] + "v": PEFT_IA3},
    {"lora:" + D[5:] + ".___": {"layer.W_up": (8, 2), "layer.W_down": (2, 6), "alpha": ()}},
    {Q: ONETRAINER, C: ONETRAINER_LOHA, F.replace("in_layers.2", "out_layers.3"): COMFYUI},
    {F: {"oft_blocks": (2, 4, 4), "alpha": ()}, K: ONETRAINER},
    {Q: LORA, "bundle_emb.a.b": {"emb_params": (2, 6), "clip_l": (2, 6)}},
)
PART_NAMES = sorted({part for seed in SEEDS for parts in seed.values() for part in parts})
METADATA = {"lora_adapter_metadata": json.dumps({"unet.lora_alpha": 4, "unet.use_rslora": True})}


def valid_tensors(seed: Seed, generator: torch.Generator) -> dict[str, Tensor]:
    """A file's tensors by key, all of them right."""
    made: dict[str, Tensor] = {}
    for layer, parts in seed.items():
        for part, shape in parts.items():
            made[f"{layer}.{part}"] = {
                "bias_indices": torch.ones(shape, dtype=torch.long),
                "bias_size": torch.tensor([8, 6]),
                "on_input": torch.zeros(shape, dtype=torch.bool),
            }.get(part, torch.randn(shape, generator=generator))
    return made


def seed_tensors(rng: random.Random) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(rng.getrandbits(30))
    if rng.random() < 0.1:
        return {f"unet:{i}:{half}": torch.ones(8, 2) for i in range(3) for half in ("up", "down")}
    return valid_tensors(rng.choice(SEEDS), generator)


# --- tensors that are wrong, in files that are right ------------------------------------------


def _reshaped(rng: random.Random, tensor: Tensor) -> Tensor:
    ways: list[Callable[[Tensor], Tensor]] = [
        lambda t: t.flatten(),
        lambda t: t.unsqueeze(0),
        lambda t: t.unsqueeze(-1).unsqueeze(-1),
        lambda t: t.T if t.dim() == 2 else t.transpose(0, -1) if t.dim() else t,
        lambda t: t[:0] if t.dim() else t,
        lambda t: t[..., :0] if t.dim() else t,
        lambda t: torch.cat([t, t]) if t.dim() else torch.stack([t, t]),
        lambda t: torch.zeros(()),
        lambda t: torch.zeros(0),
        lambda t: torch.ones([rng.randint(0, 4) for _ in range(rng.randint(0, 6))]),
        lambda t: torch.zeros([1] * 12),
    ]
    return rng.choice(ways)(tensor)


def _valued(rng: random.Random, tensor: Tensor) -> Tensor:
    value = rng.choice([float("nan"), float("inf"), -float("inf"), 1e38, -1.0, 0.0, 1e-45])
    spoilt = tensor.float().contiguous().clone()
    if rng.random() < 0.5:
        return torch.full_like(spoilt, value)
    if spoilt.numel():
        spoilt.view(-1)[rng.randrange(spoilt.numel())] = value
    return spoilt


def _typed(rng: random.Random, tensor: Tensor) -> Tensor:
    types = (torch.int64, torch.bool, torch.uint8, torch.float8_e4m3fn, torch.float16, torch.bfloat16, torch.float64, torch.complex64, torch.int8)  # fmt: skip  # noqa: E501
    return tensor.to(rng.choice(types))


def spoilt_tensors(rng: random.Random) -> dict[str, Tensor]:
    tensors = seed_tensors(rng)
    for _ in range(rng.randint(1, 3)):
        key = rng.choice(list(tensors))
        way = rng.randrange(8)
        if way < 3:
            tensors[key] = (_reshaped, _valued, _typed)[way](rng, tensors[key])
        elif way == 3 and len(tensors) > 1:
            del tensors[key]
        elif way == 4:
            layer = key.rsplit(".", 2)[0]
            tensors[f"{layer}.{rng.choice(PART_NAMES)}"] = _reshaped(rng, tensors[key])
        elif way == 5:
            other = rng.choice(list(tensors))
            tensors[key], tensors[other] = tensors[other], tensors[key]
        elif way == 6:
            tensors[key + rng.choice(["", ".", ".weight", "\x00", "é", "." * 300])] = tensors[key]
        else:
            name = rng.choice(["lora_unet_nowhere.alpha", "0", "unet:7:up", "x" * 3000, "."])
            tensors[name] = torch.ones(2, 2)
    return {key: tensor.contiguous().clone() for key, tensor in tensors.items()}


# --- files that are wrong ---------------------------------------------------------------------


def _header_edited(rng: random.Random, raw: bytes) -> bytes:
    """The header told again with a lie in it; the data as they were."""
    length = int.from_bytes(raw[:8], "little")
    header, data = json.loads(raw[8 : 8 + length]), raw[8 + length :]
    key = rng.choice([name for name in header if name != "__metadata__"])
    lies: list[Any] = [
        -1, [-1, 2], [2**62, 2], [2**62, 0], [0, 2**40], [1e9], ["2"], None, {}, [True], [[2]],
        [1] * 40, 2**200, "F32", "F99", "F8_E8M0", [0, 0], [5, 1], [0, 2**64], [-5, 5],
    ]  # fmt: skip
    header[key][rng.choice(["dtype", "shape", "data_offsets"])] = rng.choice(lies)
    if rng.random() < 0.2:
        header["__metadata__"] = rng.choice([None, [], {"a": 1}, {"a": {"b": []}}, "x"])
    text = json.dumps(header)
    if rng.random() < 0.2:
        text = text[:-1] + f', "{key}": ' + json.dumps(header[key]) + "}"  # a duplicate
    if rng.random() < 0.1:
        text = text.replace("[", "[" * rng.choice([10, 5000]), 1)
    new = text.encode()
    return len(new).to_bytes(8, "little") + new + data


def _cut(rng: random.Random, raw: bytes) -> bytes:
    return raw[: rng.randrange(len(raw))]


def _flipped(rng: random.Random, raw: bytes) -> bytes:
    spoilt = bytearray(raw)
    for _ in range(rng.choice([1, 1, 3, 30])):
        spoilt[rng.randrange(len(spoilt))] = rng.randrange(256)
    return bytes(spoilt)


def _early(rng: random.Random, raw: bytes) -> bytes:
    """Only the first bytes: lengths, magic, the start of the header."""
    spoilt = bytearray(raw)
    spoilt[rng.randrange(min(40, len(spoilt)))] = rng.randrange(256)
    return bytes(spoilt)


def _longer(rng: random.Random, raw: bytes) -> bytes:
    return raw + rng.randbytes(rng.choice([1, 8, 1000]))


def _claims(rng: random.Random, raw: bytes) -> bytes:
    length = rng.choice([0, 1, 2, 2**31, 2**40, 2**63, 2**64 - 1, len(raw), 99_999_999])
    return struct.pack("<Q", length) + raw[8:]


def _joined(rng: random.Random, raw: bytes) -> bytes:
    at = rng.randrange(len(raw))
    return raw[:at] + raw[rng.randrange(len(raw)) :]


SPOILS = (_cut, _flipped, _early, _longer, _claims, _joined)


class Calls:
    """Writes a file when unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return os.system, (f"echo ran > {self.marker}",)


class Spread:
    """A tensor of a few bytes that claims to be huge by its strides."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.shape = shape

    def __reduce__(self) -> Any:
        storage = torch.zeros(1).untyped_storage()
        typed = torch.storage.TypedStorage(wrap_storage=storage, dtype=torch.float32, _internal=True)  # fmt: skip  # noqa: E501
        strides = (0,) * len(self.shape)
        return torch._utils._rebuild_tensor_v2, (typed, 0, self.shape, strides, False, {})


def laughs(width: int = 10, depth: int = 12, leaf: object = 1) -> object:
    """A few lists that unfold to width ** depth entries."""
    for _ in range(depth):
        leaf = [leaf] * width
    return leaf


def pickled(rng: random.Random, marker: Path) -> bytes:
    """A PyTorch file of a network, hostile or spoilt or both."""
    tensors: Any = spoilt_tensors(rng)
    way = rng.randrange(10)
    if way == 0:
        tensors["evil"] = Calls(marker)
    elif way == 1:
        tensors[f"{Q}.lora_up.weight"] = Spread((2**20, 2**20))
    elif way == 2:
        tensors["more"] = laughs(rng.choice([2, 10]), rng.choice([3, 12, 40]))
    elif way == 3:
        tensors = list(tensors.values())
    elif way == 4:
        tensors = {"state_dict": {"lora": tensors, 5: [tensors] * 3}}
    elif way == 5:
        tensors[f"{Q}.alpha"] = rng.choice([10**400, float("nan"), -3, True, "x", b"x", None])
    stream = io.BytesIO()
    torch.save(tensors, stream, _use_new_zipfile_serialization=rng.random() < 0.6)
    raw = stream.getvalue()
    if rng.random() < 0.6:
        raw = _repacked(rng, raw) if raw[:2] == b"PK" and rng.random() < 0.6 else rng.choice(SPOILS)(rng, raw)  # fmt: skip  # noqa: E501
    return raw


def _repacked(rng: random.Random, raw: bytes) -> bytes:
    """The archive with a member changed, so that its checksums still hold."""
    stream = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(raw)) as old, zipfile.ZipFile(stream, "w") as new:
        names = old.namelist()
        chosen = rng.choice([n for n in names if n.endswith("data.pkl")] * 3 + names)
        for name in names:
            content = old.read(name)
            if name == chosen and content:
                content = _program_edited(rng, content) if name.endswith(".pkl") else _flipped(rng, content)  # fmt: skip  # noqa: E501
            if name != chosen or rng.random() < 0.9:
                new.writestr(name, content)
    return stream.getvalue()


def _program_edited(rng: random.Random, program: bytes) -> bytes:
    """An instruction of the pickle left out, doubled, or replaced."""
    places = [place for _, _, place in pickletools.genops(program) if place is not None]
    at = rng.randrange(len(places) - 1)
    start, end = places[at], places[at + 1]
    piece = program[start:end]
    new = rng.choice([b"", piece * 2, b"0", b"1", b"2", b"]", b"}", b"K\x07", b"cos\nsystem\n", b"R", b"J\xff\xff\xff\x7f", pickle.MARK + pickle.TUPLE])  # fmt: skip  # noqa: E501
    return program[:start] + new + program[end:]


def broken_file(number: int, folder: Path, marker: Path) -> Path:
    """The broken network file of this number; the same every time, whatever ran before."""
    rng = random.Random(number)
    if rng.random() < 0.3:
        path = folder / f"n{number}{rng.choice(['.pt', '.ckpt', '.bin'])}"
        path.write_bytes(pickled(rng, marker))
        return path
    path = folder / f"n{number}.safetensors"
    way = rng.random()
    raw = save(spoilt_tensors(rng) if way < 0.5 else seed_tensors(rng), rng.choice([None, METADATA]))  # fmt: skip  # noqa: E501
    if way > 0.75:
        raw = _header_edited(rng, raw)
    elif way > 0.5:
        raw = rng.choice(SPOILS)(rng, raw)
    path.write_bytes(raw)
    return path
