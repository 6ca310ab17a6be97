"""Products by oneDNN: torch's answers and gradients, and when torch's own way is gone."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from extensions_lib.adapters import products
from extensions_lib.adapters.products import convolution, linear, plus_product, product

onednn = pytest.mark.skipif(
    not hasattr(torch.ops.mkldnn, "_linear_pointwise"), reason="a torch without oneDNN's products"
)


@pytest.fixture(autouse=True)
def _any_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sizes that a test can afford."""
    for name in ("_WORK", "_WORK_OF_NODE", "_ROWS"):
        monkeypatch.setattr(products, name, 1)
    monkeypatch.setattr(products, "_onednn", lambda: hasattr(torch.ops.mkldnn, "_linear_pointwise"))


def off(found: Tensor, wanted: Tensor) -> float:
    """The largest difference, as a share of the largest value."""
    return float((found - wanted).detach().abs().max() / wanted.detach().abs().max())


def exact(*tensors: Tensor | None) -> list[Tensor | None]:
    return [None if each is None else each.detach().double() for each in tensors]


@onednn
@pytest.mark.parametrize("turned", [False, True])
def test_a_product_of_any_strides(turned: bool) -> None:
    a, b = torch.randn(33, 20), torch.randn(20, 17)
    if turned:
        a, b = a.t().contiguous().t(), b.t().contiguous().t()
    assert off(product(a, b), a.double() @ b.double()) < 1e-6


@onednn
def test_a_part_of_a_matrix_is_never_multiplied_as_it_lies(monkeypatch: pytest.MonkeyPatch) -> None:
    """oneDNN knows no fast way for a weight with gaps between its rows."""
    told: list[Tensor] = []
    plain = torch.ops.mkldnn._linear_pointwise

    def noted(x: Tensor, weight: Tensor, *rest: object) -> Tensor:
        told.append(weight)
        done: Tensor = plain(x, weight, *rest)
        return done

    monkeypatch.setattr(torch.ops.mkldnn, "_linear_pointwise", noted)
    a, b = torch.randn(33, 20), torch.randn(20, 40)[:, :17]
    assert off(product(a, b), a.double() @ b.double()) < 1e-6
    wide = linear(a, torch.randn(9, 30)[:, :20])
    assert wide is not None
    assert all(each.is_contiguous() or each.t().is_contiguous() for each in told)
    assert len(told) == 2


@onednn
@pytest.mark.parametrize("into_itself", [False, True])
@pytest.mark.parametrize("piece", [10, 70, 1 << 19])
def test_a_product_is_added_in_pieces(
    monkeypatch: pytest.MonkeyPatch, piece: int, into_itself: bool
) -> None:
    monkeypatch.setattr(products, "PIECE", piece)
    total, up, down = torch.randn(30, 24), torch.randn(30, 5), torch.randn(5, 24)
    wanted = total.double() - 0.7 * up.double() @ down.double()
    out = total if into_itself else torch.empty_like(total)
    assert plus_product(total, up, down, -0.7, out) is out
    assert off(out, wanted) < 1e-6


@onednn
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", [(12, 20), (2, 6, 20), (2, 3, 4, 20)])
def test_linear_and_its_gradients(shape: tuple[int, ...], bias: bool) -> None:
    x = torch.randn(shape, requires_grad=True)
    weight = torch.randn(17, 20, requires_grad=True)
    shift = torch.randn(17, requires_grad=True) if bias else None
    y = linear(x, weight, shift)
    assert y is not None
    held = [each for each in (x, weight, shift) if each is not None]
    slope = torch.randn_like(y)
    found = torch.autograd.grad(y, held, slope)
    again = [each.detach().double().requires_grad_() for each in held]
    wanted = F.linear(again[0], again[1], again[2] if bias else None)
    assert off(y, wanted) < 1e-6
    for one, other in zip(found, torch.autograd.grad(wanted, again, slope.double()), strict=True):
        assert off(one, other) < 1e-6


def test_a_weight_that_stays_gets_no_gradient() -> None:
    x, weight = torch.randn(9, 20, requires_grad=True), torch.randn(17, 20)
    y = linear(x, weight)
    if y is not None:
        y.sum().backward()
        assert weight.grad is None
        assert off(x.grad, weight.sum(0).expand(9, -1)) < 1e-6  # type: ignore[arg-type]


CONVOLUTIONS = [
    (1, 3, 1, 1, (8, 8)),
    (2, 3, 1, 1, (4, 6)),
    (1, 3, 2, 1, (8, 8)),
    (1, 3, 2, 1, (7, 9)),
    (2, 3, 2, 0, (7, 8)),
    (1, 1, 1, 0, (20, 20)),
    (2, 1, 1, 0, (3, 4)),
    (1, 1, 2, 0, (8, 6)),
    (1, 4, 1, 2, (6, 5)),
]


@onednn
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("batch", "kernel", "stride", "padding", "size"), CONVOLUTIONS)
def test_convolution_and_its_gradient(
    batch: int, kernel: int, stride: int, padding: int, size: tuple[int, int], bias: bool
) -> None:
    x = torch.randn(batch, 6, *size, requires_grad=True)
    weight = torch.randn(10, 6, kernel, kernel)
    shift = torch.randn(10) if bias else None
    y = convolution(x, weight, shift, (stride, stride), (padding, padding))
    assert y is not None
    slope = torch.randn_like(y)
    (found,) = torch.autograd.grad(y, [x], slope)
    again, kept, moved = exact(x, weight, shift)
    assert again is not None
    again.requires_grad_()
    wanted = F.conv2d(again, kept, moved, stride, padding)
    assert off(y, wanted) < 1e-6
    assert off(found, torch.autograd.grad(wanted, [again], slope.double())[0]) < 1e-6


@onednn
def test_answers_may_be_changed_in_place() -> None:
    x, weight = torch.randn(2, 3, 4, 20, requires_grad=True), torch.randn(17, 20)
    y = linear(x, weight)
    assert y is not None
    y += 1
    for pictures in (1, 2):
        picture = torch.randn(pictures, 6, 4, 4, requires_grad=True)
        z = convolution(picture, torch.randn(4, 6, 3, 3), None, (1, 1), (1, 1))
        assert z is not None
        z += 1
        (y.sum() + z.sum()).backward(retain_graph=True)
        assert picture.grad is not None


def test_many_pixels_are_left_to_torch() -> None:
    weight = torch.randn(4, 6, 3, 3)
    assert convolution(torch.randn(1, 6, 12, 12), weight, None, (1, 1), (1, 1)) is None
    assert convolution(torch.randn(3, 6, 8, 8), weight, None, (1, 1), (1, 1)) is None


def test_a_convolution_that_is_learnt_is_left_to_torch() -> None:
    weight = torch.randn(4, 6, 3, 3, requires_grad=True)
    assert convolution(torch.randn(1, 6, 4, 4), weight, None, (1, 1), (1, 1)) is None


class Marked(torch.nn.Parameter):
    """A weight that some host holds in a way of its own."""


@pytest.mark.parametrize(
    ("x", "weight"),
    [
        (torch.randn(9, 20).double(), torch.randn(17, 20).double()),
        (torch.randn(9, 20), torch.randn(17, 20).half()),
        (torch.randn(9, 20).bfloat16(), torch.randn(17, 20).bfloat16()),
        (torch.randn(9, 20), Marked(torch.randn(17, 20))),
        (torch.randn(9, 20, device="meta"), torch.randn(17, 20, device="meta")),
    ],
)
def test_anything_else_goes_torchs_way(x: Tensor, weight: Tensor) -> None:
    assert linear(x, weight) is None


def test_small_ones_and_single_rows_go_torchs_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "_ROWS", 8)
    assert linear(torch.randn(7, 20), torch.randn(17, 20)) is None
    monkeypatch.setattr(products, "_WORK_OF_NODE", 9 * 20 * 17 + 1)
    assert linear(torch.randn(9, 20), torch.randn(17, 20)) is None


def test_autocast_and_less_precise_products_are_left_to_torch() -> None:
    x, weight = torch.randn(9, 20), torch.randn(17, 20)
    with torch.autocast("cpu", torch.bfloat16):
        assert linear(x, weight) is None
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        assert linear(x, weight) is None
    finally:
        torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize(
    ("told", "wanted"),
    [("vendor_id\t: AuthenticAMD", True), ("AMD64 Family 25, AuthenticAMD", True),
     ("vendor_id\t: GenuineIntel", False), ("", False)],
)  # fmt: skip
@onednn
def test_by_the_maker_of_the_processor(
    monkeypatch: pytest.MonkeyPatch, told: str, wanted: bool
) -> None:
    monkeypatch.undo()
    monkeypatch.setattr(products, "_processor", lambda: told)
    assert products._onednn.__wrapped__() is wanted
    assert isinstance(products._onednn(), bool)


def test_a_torch_without_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "_onednn", lambda: False)
    a, b = torch.randn(9, 20), torch.randn(20, 17)
    assert linear(a, b.t()) is None
    assert torch.equal(product(a, b), a @ b)
    out = torch.randn(9, 17)
    wanted = torch.addmm(out, a, b, alpha=0.5)
    assert torch.equal(plus_product(out, a, b, 0.5, out), wanted)
    x, weight = torch.randn(1, 6, 4, 4), torch.randn(4, 6, 3, 3)
    y = convolution(x, weight, None, (1, 1), (1, 1))
    assert y is not None
    assert off(y, F.conv2d(x.double(), weight.double(), padding=1)) < 1e-6


def test_a_product_by_a_number() -> None:
    a, b = torch.randn(9, 20), torch.randn(20, 17)
    assert off(product(a, b, 0.3), 0.3 * (a.double() @ b.double())) < 1e-6
    a, b = a.double(), b.double()  # torch's own way
    assert off(product(a, b, 0.3), 0.3 * (a @ b)) < 1e-12


def test_a_product_that_autograd_is_to_know_of() -> None:
    a, b = torch.randn(9, 20, requires_grad=True), torch.randn(20, 17)
    product(a, b).sum().backward()
    assert a.grad is not None
    assert off(a.grad, b.sum(1).expand(9, -1)) < 1e-6
