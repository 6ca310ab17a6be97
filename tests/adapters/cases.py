"""Random parts of every kind in every form, each with its formula written out in float64.

The formulas are taken from the papers and say nothing that the package says: loops and explicit
matrices instead of the short ways. `CASES[name]` is a Case.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from extensions_lib.adapters import Adapter, adapter_from

Parts = dict[str, Tensor]
Formula = Callable[[Parts, Tensor], Tensor]


@dataclass(frozen=True)
class Case:
    """A weight's shape, the shapes of the parts made for it and the change they stand for."""

    shape: tuple[int, ...]
    sizes: dict[str, tuple[int, ...]]
    formula: Formula
    numbers: dict[str, float]

    def parts(self, seed: int = 0, dtype: torch.dtype = torch.float32) -> Parts:
        draw = torch.Generator().manual_seed(seed)
        parts = {}
        for name, size in self.sizes.items():
            values = torch.randn(size, generator=draw, dtype=torch.float64)
            if name in ("oft_blocks", "oft_in", "weight"):
                values *= 0.2
            elif name == "oft_diag":
                values = torch.linalg.qr(values)[0]
            elif name in ("rescale", "dora_scale"):
                values = 3 + values if name == "dora_scale" else 1 + 0.2 * values
            parts[name] = values.to(dtype)
        for name, value in self.numbers.items():
            parts[name] = torch.tensor(value)
        if "bias_indices" in self.sizes:
            rows, columns = self.shape[0], math.prod(self.shape[1:])
            count = self.sizes["bias_values"][0]
            flat = torch.randperm(rows * columns, generator=draw)[:count]
            found = torch.stack([flat // columns, flat % columns])
            parts["bias_indices"] = found.to(torch.int16)
            parts["bias_size"] = torch.tensor([rows, columns], dtype=torch.int16)
        return parts

    def adapter(self, seed: int = 0, dtype: torch.dtype = torch.float32) -> Adapter:
        return adapter_from(self.parts(seed, dtype))

    def exact(self, parts: Parts, base: Tensor) -> Tensor:
        """The change at multiplier 1 in float64."""
        doubles = {name: part.double() for name, part in parts.items()}
        return self.formula(doubles, base.double()).reshape(base.shape)


def _scale(parts: Parts, rank: int) -> float:
    if "scale" in parts:
        return float(parts["scale"])
    return float(parts["alpha"]) / rank if "alpha" in parts else 1.0


def lora(p: Parts, base: Tensor) -> Tensor:
    up, down = p["lora_up.weight"].flatten(1), p["lora_down.weight"]
    if "lora_mid.weight" in p:
        change = torch.einsum("om,mnhw,ni->oihw", up, p["lora_mid.weight"], down.flatten(1))
    else:
        change = torch.einsum("or,r...->o...", up, down)
    if "bias_values" in p:
        change = change.reshape(len(up), -1).clone()
        rows, columns = p["bias_indices"].long()
        for row, column, value in zip(rows, columns, p["bias_values"], strict=True):
            change[row, column] += value
    return change * _scale(p, down.shape[0])


def loha(p: Parts, base: Tensor) -> Tensor:
    product = torch.ones(())
    for n in (1, 2):
        a, b = p[f"hada_w{n}_a"], p[f"hada_w{n}_b"]
        if f"hada_t{n}" in p:
            each = torch.einsum("ijhw,io,jc->ochw", p[f"hada_t{n}"], a, b)
        else:
            each = sum(torch.outer(a[:, r].flatten(), b[r].flatten()) for r in range(len(b)))
        product = product * each.reshape(base.shape)
    return product * _scale(p, len(p["hada_w1_b"]))


def lokr(p: Parts, base: Tensor) -> Tensor:
    ranks = [len(p[f"lokr_w{n}_b"]) for n in (2, 1) if f"lokr_w{n}_b" in p]
    w1 = p["lokr_w1"] if "lokr_w1" in p else p["lokr_w1_a"] @ p["lokr_w1_b"]
    if "lokr_w2" in p:
        w2 = p["lokr_w2"]
    elif "lokr_t2" in p:
        w2 = torch.einsum("ijhw,ib,jd->bdhw", p["lokr_t2"], p["lokr_w2_a"], p["lokr_w2_b"])
    else:
        w2 = p["lokr_w2_a"] @ p["lokr_w2_b"].flatten(1)
        columns = base.shape[1] // w1.shape[1]
        w2 = w2.reshape(len(w2), columns, *base.shape[2:])
    change = torch.zeros_like(base)
    rows, columns = w2.shape[:2]
    for a in range(w1.shape[0]):
        for c in range(w1.shape[1]):
            block = w1[a, c] * w2
            change[a * rows : (a + 1) * rows, c * columns : (c + 1) * columns] = block
    return change * (_scale(p, ranks[0]) if ranks or "scale" in p else 1.0)


def glora(p: Parts, base: Tensor) -> Tensor:
    return _glora(base, p, *(p[f"{name}.weight"] for name in ("a1", "a2", "b1", "b2")))


def glora_old(p: Parts, base: Tensor) -> Tensor:
    return _glora(base, p, *(p[f"{name}.weight"] for name in ("a2", "a1", "b2", "b1")))


def _glora(base: Tensor, p: Parts, a1: Tensor, a2: Tensor, b1: Tensor, b2: Tensor) -> Tensor:
    through = a1.flatten(1) @ a2.flatten(1)  # [in, in]
    own = torch.einsum("oi...,ij->oj...", base, through)
    if "bm.weight" in p:
        added = torch.einsum("om,mnhw,ni->oihw", b1.flatten(1), p["bm.weight"], b2.flatten(1))
    else:
        added = (b1.flatten(1) @ b2.flatten(1)).reshape(base.shape)
    return (own + added) * _scale(p, a2.shape[0])


def ia3(p: Parts, base: Tensor) -> Tensor:
    w = p["weight"].flatten()
    change = torch.zeros_like(base)
    for channel, factor in enumerate(w):
        here = (slice(None), channel) if p["on_input"] else (channel,)
        change[here] = base[here] * factor
    return change


def full(p: Parts, base: Tensor) -> Tensor:
    return p["diff"] if "diff" in p else p["w_norm"]


def oft(p: Parts, base: Tensor) -> Tensor:
    rotations = p["oft_diag"] if "oft_diag" in p else cayley(p["oft_blocks"], p, len(base))
    whole = torch.block_diag(*(each.T for each in rotations))
    turned = (whole @ base.flatten(1)).reshape(base.shape)
    return _rescaled(p, turned) - base


def boft(p: Parts, base: Tensor) -> Tensor:
    stages = p["oft_diag"] if "oft_diag" in p else cayley(p["oft_blocks"], p, len(base))
    turned, out = base.flatten(1), len(base)
    for stage, rotations in enumerate(stages):
        half = 2**stage * rotations.shape[-1] // 2
        order = []
        for group in range(0, out, 2 * half):
            for row in range(half):
                order += [group + row, group + half + row]
        permute = torch.eye(out, dtype=base.dtype)[order]
        turned = permute.T @ torch.block_diag(*rotations) @ permute @ turned
    return _rescaled(p, turned.reshape(base.shape)) - base


def oft_in(p: Parts, base: Tensor) -> Tensor:
    turn, rows = p["oft_in"], base.flatten(1)
    columns, size = rows.shape[1], turn.shape[-1]
    if turn.dim() == 2:
        turn = turn.expand(columns // size, size, size)
    for stage, blocks in enumerate(turn if turn.dim() == 4 else turn[None]):
        runs = [list(range(start, start + size // 2)) for start in range(0, columns, size // 2)]
        order = []
        for group in range(0, len(runs) if stage else 0, 2 ** (stage + 1)):
            inside = runs[group : group + 2 ** (stage + 1)]
            order += [column for run in inside[::2] + inside[1::2] for column in run]
        permute = torch.eye(columns, dtype=base.dtype)[order or list(range(columns))]
        whole = torch.eye(columns, dtype=base.dtype) + torch.block_diag(*blocks)
        rows = rows @ (permute @ whole @ permute.T).T
    return _rescaled(p, rows.reshape(base.shape)) - base


def cayley(blocks: Tensor, p: Parts, out: int) -> Tensor:
    skew = blocks - blocks.transpose(-1, -2)
    limit = float(p.get("alpha", 0)) * out
    norm = float((skew**2).sum().sqrt())
    if 0 < limit < norm:
        skew = skew * limit / norm
    one = torch.eye(blocks.shape[-1], dtype=blocks.dtype)
    return (one + skew) @ torch.linalg.inv(one - skew)


def _rescaled(p: Parts, weight: Tensor) -> Tensor:
    if "rescale" not in p:
        return weight
    return p["rescale"].reshape(-1, *[1] * (weight.dim() - 1)) * weight


def dora(inner: Formula, axis: int) -> Formula:
    def formula(p: Parts, base: Tensor) -> Tensor:
        parts = {name: part for name, part in p.items() if name != "dora_scale"}
        whole = base + inner(parts, base).reshape(base.shape)
        result = torch.empty_like(whole)
        for channel, wanted in enumerate(p["dora_scale"].flatten()):
            here = (slice(None), channel) if axis else (channel,)
            result[here] = wanted * whole[here] / (whole[here] ** 2).sum().sqrt()
        return result - base

    return formula


LINEAR, POINT, CONV = (16, 12), (16, 12, 1, 1), (16, 12, 3, 3)
UP, DOWN, MID = "lora_up.weight", "lora_down.weight", "lora_mid.weight"


def _hada(out: int, inputs: int, r: int, *kernel: int) -> dict[str, tuple[int, ...]]:
    sizes: dict[str, tuple[int, ...]] = {}
    for n in (1, 2):
        sizes[f"hada_w{n}_a"] = (r, out) if kernel else (out, r)
        sizes[f"hada_w{n}_b"] = (r, inputs)
        if kernel:
            sizes[f"hada_t{n}"] = (r, r, *kernel)
    return sizes


def _glora_sizes(*names: str, kernel: tuple[int, ...] = ()) -> dict[str, tuple[int, ...]]:
    ones = (1,) * len(kernel)
    sizes = ((12, 3, *ones), (3, 12, *ones), (16, 3, *ones), (3, 12, *kernel))
    return {f"{name}.weight": size for name, size in zip(names, sizes, strict=True)}


NEW, OLD = ("a1", "a2", "b1", "b2"), ("a2", "a1", "b2", "b1")


def _kron(*, w1: bool, w2: bool, kernel: tuple[int, ...] = (), tucker: bool = False) -> dict:
    """For a weight of 24 x 20: w1 is 4 x 2, w2 is 6 x 10; pairs have rank 2."""
    sizes: dict[str, tuple[int, ...]] = {}
    if w1:
        sizes["lokr_w1"] = (4, 2)
    else:
        sizes["lokr_w1_a"], sizes["lokr_w1_b"] = (4, 2), (2, 2)
    if w2:
        sizes["lokr_w2"] = (6, 10, *kernel)
    elif tucker:
        sizes["lokr_w2_a"], sizes["lokr_w2_b"] = (2, 6), (2, 10)
        sizes["lokr_t2"] = (2, 2, *kernel)
    else:
        sizes["lokr_w2_a"], sizes["lokr_w2_b"] = (6, 2), (2, 10 * math.prod(kernel))
    return sizes


KR, KR1, KR3 = (24, 20), (24, 20, 1, 1), (24, 20, 3, 3)
ALPHA = {"alpha": 1.5}

CASES: dict[str, Case] = {
    "lora": Case(LINEAR, {UP: (16, 3), DOWN: (3, 12)}, lora, ALPHA),
    "lora 1x1": Case(POINT, {UP: (16, 3, 1, 1), DOWN: (3, 12, 1, 1)}, lora, ALPHA),
    "lora 3x3": Case(CONV, {UP: (16, 3, 1, 1), DOWN: (3, 12, 3, 3)}, lora, ALPHA),
    "lora tucker": Case(
        CONV, {UP: (16, 3, 1, 1), DOWN: (3, 12, 1, 1), MID: (3, 3, 3, 3)}, lora, ALPHA
    ),
    "lora scale": Case(LINEAR, {UP: (16, 3), DOWN: (3, 12)}, lora, {**ALPHA, "scale": 0.4}),
    "lora sparse": Case(
        CONV,
        {UP: (16, 3, 1, 1), DOWN: (3, 12, 3, 3), "bias_values": (40,), "bias_indices": (2, 40)},
        lora,
        ALPHA,
    ),
    "loha": Case(LINEAR, _hada(16, 12, 3), loha, ALPHA),
    "loha no alpha": Case(LINEAR, _hada(16, 12, 3), loha, {}),
    "loha 1x1": Case(POINT, _hada(16, 12, 3), loha, ALPHA),
    "loha 3x3": Case(CONV, _hada(16, 12 * 9, 3), loha, ALPHA),
    "loha 3x3 of onetrainer": Case(
        CONV,
        {
            f"hada_w{n}_{end}": size
            for n in (1, 2)
            for end, size in (
                ("a", (16, 3, 1, 1)),
                ("b", (3, 12, 3, 3)),
            )
        },
        loha,
        ALPHA,
    ),
    "loha tucker": Case(CONV, _hada(16, 12, 3, 3, 3), loha, ALPHA),
    "lokr whole": Case(KR, _kron(w1=True, w2=True), lokr, ALPHA),
    "lokr": Case(KR, _kron(w1=True, w2=False), lokr, ALPHA),
    "lokr small pair": Case(KR, _kron(w1=False, w2=True), lokr, ALPHA),
    "lokr pairs": Case(KR, _kron(w1=False, w2=False), lokr, ALPHA),
    "lokr 1x1": Case(KR1, _kron(w1=True, w2=False), lokr, ALPHA),
    "lokr whole 3x3": Case(KR3, _kron(w1=True, w2=True, kernel=(3, 3)), lokr, ALPHA),
    "lokr pairs 3x3": Case(KR3, _kron(w1=False, w2=False, kernel=(3, 3)), lokr, ALPHA),
    "lokr tucker": Case(KR3, _kron(w1=True, w2=False, kernel=(3, 3), tucker=True), lokr, ALPHA),
    "glora": Case(LINEAR, _glora_sizes(*NEW), glora, ALPHA),
    "glora 1x1": Case(POINT, _glora_sizes(*NEW, kernel=(1, 1)), glora, ALPHA),
    "glora 3x3": Case(CONV, _glora_sizes(*NEW, kernel=(3, 3)), glora, ALPHA),
    "glora tucker": Case(
        CONV, {**_glora_sizes(*NEW, kernel=(1, 1)), "bm.weight": (3, 3, 3, 3)}, glora, ALPHA
    ),
    "glora old": Case(LINEAR, _glora_sizes(*OLD), glora_old, ALPHA),
    "glora old 1x1": Case(POINT, _glora_sizes(*OLD, kernel=(1, 1)), glora_old, ALPHA),
    "ia3 out": Case(LINEAR, {"weight": (16,)}, ia3, {"on_input": 0}),
    "ia3 in": Case(LINEAR, {"weight": (12,)}, ia3, {"on_input": 1}),
    "ia3 out 3x3": Case(CONV, {"weight": (1, 16, 1, 1)}, ia3, {"on_input": 0}),
    "ia3 in 3x3": Case(CONV, {"weight": (1, 12, 1, 1)}, ia3, {"on_input": 1}),
    "full": Case(LINEAR, {"diff": LINEAR, "diff_b": (16,)}, full, {}),
    "full 3x3": Case(CONV, {"diff": CONV, "diff_b": (16,)}, full, {}),
    "norm": Case((16,), {"w_norm": (16,), "b_norm": (16,)}, full, {}),
    "oft": Case(LINEAR, {"oft_blocks": (4, 4, 4)}, oft, {"alpha": 1.0}),
    "oft held": Case(LINEAR, {"oft_blocks": (4, 4, 4)}, oft, {"alpha": 0.05}),
    "oft 3x3": Case(CONV, {"oft_blocks": (2, 8, 8)}, oft, {"alpha": 0.1}),
    "diag-oft": Case(LINEAR, {"oft_blocks": (8, 2, 2)}, oft, {"alpha": 0}),
    "diag-oft rescaled": Case(
        CONV, {"oft_blocks": (4, 4, 4), "rescale": (16, 1, 1, 1)}, oft, {"alpha": 0}
    ),
    "oft stored": Case(LINEAR, {"oft_diag": (4, 4, 4)}, oft, {}),
    "boft": Case(LINEAR, {"oft_blocks": (3, 4, 4, 4)}, boft, {"alpha": 0}),
    "boft held": Case(LINEAR, {"oft_blocks": (4, 8, 2, 2)}, boft, {"alpha": 0.05}),
    "boft 3x3": Case(
        CONV, {"oft_blocks": (3, 4, 4, 4), "rescale": (16, 1, 1, 1)}, boft, {"alpha": 0}
    ),
    "boft stored": Case(LINEAR, {"oft_diag": (3, 4, 4, 4)}, boft, {}),
    "oft in": Case(LINEAR, {"oft_in": (3, 4, 4)}, oft_in, {}),
    "oft in shared": Case(LINEAR, {"oft_in": (4, 4)}, oft_in, {}),
    "oft in 3x3": Case(CONV, {"oft_in": (36, 3, 3)}, oft_in, {}),
    "boft in": Case(LINEAR, {"oft_in": (2, 6, 2, 2), "rescale": (16,)}, oft_in, {}),
    "boft in 3x3": Case(CONV, {"oft_in": (2, 18, 6, 6), "rescale": (16, 1)}, oft_in, {}),
    "boft in deep": Case((16, 24), {"oft_in": (3, 4, 6, 6)}, oft_in, {}),
}
_WITH_DORA = (
    "lora", "lora 3x3", "lora tucker", "lora sparse", "loha 3x3", "lokr", "lokr pairs 3x3",
    "glora 3x3", "glora old", "ia3 out 3x3", "full 3x3", "oft held", "boft 3x3",
    "oft in 3x3",
)  # fmt: skip
for _name in _WITH_DORA:
    _case = CASES[_name]
    for _axis, _side in ((0, "out"), (1, "in")):
        _ones = [1] * len(_case.shape)
        _ones[_axis] = _case.shape[_axis]
        CASES[f"dora {_side} {_name}"] = Case(
            _case.shape,
            {**_case.sizes, "dora_scale": tuple(_ones)},
            dora(_case.formula, _axis),
            _case.numbers,
        )


def base_for(case: Case, seed: int = 99, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(case.shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def relative(found: Tensor, expected: Tensor) -> float:
    """The largest error beside the largest value."""
    return float((found.double() - expected.double()).abs().max() / expected.double().abs().max())
