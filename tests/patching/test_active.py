"""The set in force: exactly what was asked for, and back to the same objects and bits."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from extensions_lib.adapters import merge as merge_module
from extensions_lib.adapters import merged
from extensions_lib.patching import ActiveSet, Wanted
from extensions_lib.patching.wanted import combined
from tests.adapters.factors import random_lora
from tests.patching.standin import Bits, Net, StandIn, network

NETS = [network(0), network(1), network(2, ["unet.linear", "te2.v"]), network(3, ["te1.text"])]


def wanted_sets() -> st.SearchStrategy[list[Wanted]]:
    weights = st.sampled_from([0.0, 0.5, 1.0, -0.7])
    one = st.builds(Wanted, st.sampled_from(NETS), weights, weights, st.sampled_from([None, 2]))
    return st.lists(one, max_size=4)


def expected(model: StandIn, clean: dict[str, torch.Tensor], wanted: list[Wanted], name: str):
    """The definition in float64: every share added to the clean weight."""
    total = clean[name].double()
    for each in wanted:
        adapter = each.network.adapters.get(name)
        if adapter is not None:
            share = adapter if each.dyn is None else adapter.first_ranks(each.dyn)
            multiplier = each.te if name.startswith("te") else each.unet
            total = total + multiplier * share.delta(clean[name]).double()
    return total


class Failing:
    """Lets `merged` fail at the n-th call from now; 0 or less: never."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.left = 0
        patch.setattr(merge_module, "merged", self)

    def __call__(self, base: torch.Tensor, stack: object, **rest: object) -> torch.Tensor:
        self.left -= 1
        if self.left == 0:
            rest["out"].fill_(torch.nan)
            raise RuntimeError("injected")
        return merged(base, stack, **rest)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(wanted_sets(), st.integers(-3, 9)), min_size=1, max_size=6), st.booleans()
)
def test_any_sequence_gives_the_set_and_then_the_same_objects_and_bits(
    steps: list[tuple[list[Wanted], int]], half: bool
) -> None:
    model = StandIn(torch.float16 if half else torch.float32)
    before = Bits(model.tree)
    clean = {name: model.weight(name).clone() for name in model.layers}
    active = ActiveSet(model)
    with pytest.MonkeyPatch.context() as patch:
        failing = Failing(patch)
        for wanted, failing.left in steps:
            try:
                report = active.apply(wanted)
            except RuntimeError as error:
                assert str(error) == "injected"
                assert before.untouched()
                continue
            assert not report.unfit
            assert before.bases_untouched()
            for name in model.layers:
                truth = expected(model, clean, wanted, name)
                slack = torch.finfo(clean[name].dtype).eps / 2 * truth.abs() + 3e-6
                assert ((model.weight(name).double() - truth).abs() <= slack).all(), name
    active.clear()
    assert before.untouched()


def test_the_untouched_rows_of_a_fused_weight_stay() -> None:
    model = StandIn()
    whole = model.tree.fused.in_proj_weight.detach().clone()
    ActiveSet(model).apply([Wanted(network(1, ["te2.q", "te2.v"]))])
    now = model.tree.fused.in_proj_weight
    assert torch.equal(now[8:16], whole[8:16])
    assert not torch.equal(now[:8], whole[:8])
    assert not torch.equal(now[16:], whole[16:])
    other = StandIn()
    whole = other.tree.fused.in_proj_weight.detach().clone()
    ActiveSet(other).apply([Wanted(network(1, ["te2.q"]))])
    assert torch.equal(other.tree.fused.in_proj_weight[8:], whole[8:])


def test_the_module_computes_with_what_is_in_force() -> None:
    model = StandIn()
    x = torch.randn(2, 10)
    clean = model.tree.linear(x)
    active = ActiveSet(model)
    lora = NETS[0].adapters["unet.linear"]
    active.apply([Wanted(NETS[0], unet=0.5)])
    torch.testing.assert_close(
        model.tree.linear(x), clean + 0.5 * x @ lora.delta(torch.zeros(12, 10)).t()
    )
    active.clear()
    assert torch.equal(model.tree.linear(x), clean)


def test_order_does_not_show_and_a_history_leaves_no_trace() -> None:
    def bits(*sets: list[Wanted]) -> list[torch.Tensor]:
        model = StandIn()
        active = ActiveSet(model)
        for wanted in sets:
            active.apply(wanted)
        return [model.weight(name).clone() for name in model.layers]

    one, two = Wanted(NETS[0], 0.7, 0.3), Wanted(NETS[1], 0.4, 1.0, 2)
    straight = bits([one, two])
    history = [[Wanted(NETS[2], i / 7, i / 3), Wanted(NETS[0], i / 5)] for i in range(1, 20)]
    for other in (bits([two, one]), bits(*history, [two, one]), bits([one], [], [one, two])):
        assert all(map(torch.equal, straight, other))


def test_a_multiplier_of_zero_leaves_that_part_alone() -> None:
    model = StandIn()
    before = Bits(model.tree)
    active = ActiveSet(model)
    report = active.apply([Wanted(NETS[0], te=0.0, unet=1.0)])
    assert report.layers == 3
    touched = {n for n, p in model.tree.named_parameters() if p is not before.objects[n]}
    assert touched == {"linear.weight", "other.weight", "conv.weight"}
    active.apply([Wanted(NETS[0], te=1.0, unet=0.0)])
    touched = {n for n, p in model.tree.named_parameters() if p is not before.objects[n]}
    assert touched == {
        "text.weight",
        "fused.in_proj_weight",
        "fused.out_proj.weight",
        "project.text_projection",
    }
    assert active.apply([Wanted(NETS[0], 0, 0)]).layers == 0
    assert before.untouched()


def test_the_same_network_twice_adds_up() -> None:
    sums = []
    for parts in ([0.1, 0.2, 0.3], [0.3, 0.2, 0.1], [0.6]):
        model = StandIn()
        report = ActiveSet(model).apply([Wanted(NETS[0], part, part) for part in parts])
        assert report.networks == ["net0"]
        sums.append(model.weight("unet.linear").clone())
    assert torch.equal(sums[0], sums[1])
    orders = [[Wanted(NETS[0], w, w) for w in ws] for ws in ([0.1, 0.2, 0.3], [0.3, 0.2, 0.1])]
    assert combined(orders[0]) == combined(orders[1])
    torch.testing.assert_close(sums[0], sums[2])
    model = StandIn()
    before = Bits(model.tree)
    ActiveSet(model).apply([Wanted(NETS[0], 0.5, 0.5), Wanted(NETS[0], -0.5, -0.5)])
    assert before.untouched()


def test_identity_is_the_content_not_the_name() -> None:
    model = StandIn()
    active = ActiveSet(model)
    old = network(1, key="old")
    new = Net(old.name, "new", network(5).adapters)
    active.apply([Wanted(old)])
    first = model.weight("unet.linear").clone()
    assert active.apply([Wanted(new)]).changed == 7
    assert not torch.equal(model.weight("unet.linear"), first)
    renamed = Net("moved", "new", new.adapters)
    assert active.apply([Wanted(renamed)]).changed == 0


def count_merges(patch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    calls: list[tuple[int, ...]] = []

    def counted(base: torch.Tensor, *args: object, **rest: object) -> torch.Tensor:
        calls.append(tuple(base.shape))
        return merged(base, *args, **rest)

    patch.setattr(merge_module, "merged", counted)
    return calls


def test_only_changed_layers_are_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = count_merges(monkeypatch)
    active = ActiveSet(StandIn())
    everywhere, conv = Wanted(NETS[0]), network(7, ["unet.conv"])
    assert active.apply([everywhere]).changed == 7
    assert len(calls) == 8
    calls.clear()
    assert active.apply([everywhere]).changed == 0
    assert active.apply([everywhere, Wanted(NETS[1], 0.0, 0.0)]).changed == 0
    assert not calls
    assert active.apply([Wanted(conv), everywhere]).changed == 1
    assert calls == [(8, 6, 3, 3)]
    calls.clear()
    assert active.apply([Wanted(NETS[0], te=1.0, unet=0.5), Wanted(conv)]).changed == 3
    assert len(calls) == 3
    calls.clear()
    assert active.apply([Wanted(NETS[0], te=1.0, unet=0.0)]).changed == 3
    assert not calls


def test_memory_is_used_again_and_given_back() -> None:
    model = StandIn()
    active = ActiveSet(model)
    assert active.nbytes == 0

    def addresses() -> set[int]:
        return {model.layer(name)[0]._parameters[p].data_ptr() for name, p in places}

    places = [(name, StandIn.PLACES[name][1]) for name in StandIn.PLACES]
    clean = addresses()
    active.apply([Wanted(NETS[0])])
    used = addresses()
    weights = {module._parameters[p] for module, p in ((model.layer(n)[0], p) for n, p in places)}
    touched = sum(weight.nbytes for weight in weights)
    assert active.nbytes == touched
    active.apply([Wanted(NETS[0], 0.3, 0.2), Wanted(NETS[1])])
    assert addresses() == used
    active.clear()
    assert addresses() == clean
    assert active.nbytes == touched
    active.apply([Wanted(NETS[1])])
    assert addresses() == used
    active.apply([Wanted(NETS[2], te=0.0)])
    assert active.nbytes == 12 * 10 * 4
    active.release()
    assert active.nbytes == 0


def test_what_does_not_fit_is_reported_and_left_out_whole() -> None:
    model = StandIn()
    before = Bits(model.tree)
    net = network(1, ["unet.linear"])
    net.adapters["unet.other"] = random_lora((12, 11))
    net.adapters["unet.gone"] = random_lora((12, 10))
    net.adapters["te2.v"] = random_lora((24, 8))
    net.adapters["te2.project"] = random_lora((8, 12))
    report = ActiveSet(model).apply([Wanted(net)])
    assert report.layers == 1
    assert sorted(report.unfit) == [
        "net1: te2.project: expected [12, 8], found [8, 12]",
        "net1: te2.v: expected [8, 8], found [24, 8]",
        "net1: unet.gone: the model has no such layer",
        "net1: unet.other: expected [12, 10], found [12, 11]",
    ]
    touched = {n for n, p in model.tree.named_parameters() if p is not before.objects[n]}
    assert touched == {"linear.weight"}


def test_weights_that_cannot_be_merged_are_reported() -> None:
    model = StandIn()
    model.tree.linear.to("meta")
    model.tree.other.weight = torch.nn.Parameter(
        torch.zeros(12, 10, dtype=torch.uint8), requires_grad=False
    )
    report = ActiveSet(model).apply([Wanted(network(1, ["unet.linear", "unet.other"]))])
    assert report.layers == 0
    assert "found torch.float32 on meta" in report.unfit[0]
    assert "found torch.uint8 on cpu" in report.unfit[1]


def test_a_dyn_of_nothing_is_reported() -> None:
    model = StandIn()
    before = Bits(model.tree)
    report = ActiveSet(model).apply([Wanted(NETS[0], dyn=0)])
    assert report.unfit == ["net0: dyn=0 keeps no rank of it"]
    assert before.untouched()


def test_calls_from_inference_mode_leave_ordinary_tensors() -> None:
    model = StandIn()
    before = Bits(model.tree)
    active = ActiveSet(model)
    with torch.inference_mode():
        active.apply([Wanted(NETS[0])])
    assert not model.tree.linear.weight.is_inference()
    active.apply([Wanted(NETS[0], 0.5, 0.5)])
    model.tree.linear(torch.randn(2, 10, requires_grad=True)).sum().backward()
    with torch.inference_mode():
        active.clear()
    assert before.untouched()
    assert all(each.requires_grad for each in model.tree.parameters())


@pytest.mark.parametrize("change", [lambda tree: tree.half(), lambda tree: tree.to(torch.float64)])
def test_originals_follow_a_model_that_the_host_moved(change: Callable) -> None:
    model = StandIn()
    before = Bits(model.tree)
    active = ActiveSet(model)
    active.apply([Wanted(NETS[0])])
    change(model.tree)
    active.apply([Wanted(NETS[0], 0.5, 0.5)])
    dtype = model.tree.linear.bias.dtype
    clean = before.values["linear.weight"].to(dtype)
    adapter = NETS[0].adapters["unet.linear"]
    torch.testing.assert_close(model.weight("unet.linear"), merged(clean, [(adapter, 0.5)]))
    active.clear()
    assert dict(model.tree.named_parameters()).keys() == before.objects.keys()
    for name, parameter in model.tree.named_parameters():
        assert parameter is before.objects[name]
        assert torch.equal(parameter, before.values[name].to(dtype))


def test_any_exception_puts_all_back(monkeypatch: pytest.MonkeyPatch) -> None:
    model = StandIn()
    before = Bits(model.tree)
    active = ActiveSet(model)
    active.apply([Wanted(NETS[0])])

    def interrupted(*args: object, **rest: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(merge_module, "merged", interrupted)
        with pytest.raises(KeyboardInterrupt):
            active.apply([Wanted(NETS[1])])
    assert before.untouched()
    assert active.apply([Wanted(NETS[0])]).layers == 7


def test_layers_that_share_rows_are_an_error_not_a_guess() -> None:
    class Overlapping(StandIn):
        PLACES = StandIn.PLACES | {
            "te2.v": ("fused", "in_proj_weight", slice(4, 12), False, (8, 8))
        }

    model = Overlapping()
    before = Bits(model.tree)
    with pytest.raises(ValueError, match="share rows 4 to 8"):
        ActiveSet(model).apply([Wanted(network(1))])
    assert before.untouched()


def test_calls_from_many_threads_exclude_one_another() -> None:
    model = StandIn()
    before = Bits(model.tree)
    active = ActiveSet(model)
    errors: list[BaseException] = []

    def work(seed: int) -> None:
        try:
            for turn in range(25):
                active.apply([Wanted(NETS[(seed + turn) % 4], 0.1 * turn + 0.1, 0.5)])
                if turn % 5 == 0:
                    active.clear()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    final = [Wanted(NETS[1], 0.5, 0.5)]
    active.apply(final)
    now = [model.weight(name).clone() for name in model.layers]
    fresh = StandIn()
    ActiveSet(fresh).apply(final)
    assert all(torch.equal(one, fresh.weight(n)) for one, n in zip(now, fresh.layers, strict=True))
    active.clear()
    assert before.untouched()


def test_a_parked_set_leaves_the_model_clean_and_comes_back_without_computing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = StandIn()
    before = Bits(model.tree)
    active = ActiveSet(model)
    active.apply([Wanted(NETS[0])])
    merged_bits = model.weight("unet.linear").clone()
    memory = active.nbytes
    active.park()
    assert before.untouched() and active.nbytes == memory
    failing = Failing(monkeypatch)
    failing.left = 1  # the first merge raises
    report = active.apply([Wanted(NETS[0])])
    assert report.layers == report.changed > 0
    assert torch.equal(model.weight("unet.linear"), merged_bits)
    active.park()
    failing.left = 0
    active.apply([Wanted(NETS[0], unet=0.5)])
    assert not torch.equal(model.weight("unet.linear"), merged_bits)
    active.park()
    active.release()
    assert before.untouched() and active.nbytes == 0


@pytest.mark.parametrize("replaced", [False, True])
def test_a_parked_set_is_computed_anew_for_a_base_that_changed(replaced: bool) -> None:
    model = StandIn()
    active = ActiveSet(model)
    active.apply([Wanted(NETS[0])])
    active.park()
    other = torch.randn_like(model.tree.linear.weight)
    if replaced:
        model.tree.linear.weight = torch.nn.Parameter(other)
    else:
        model.tree.load_state_dict({**model.tree.state_dict(), "linear.weight": other})
    active.apply([Wanted(NETS[0])])
    truth = other.double() + NETS[0].adapters["unet.linear"].delta(other).double()
    assert torch.allclose(model.weight("unet.linear").double(), truth, atol=1e-5)
    active.clear()
    assert torch.equal(model.tree.linear.weight, other)


def test_a_parked_set_follows_a_model_that_the_host_moved_or_converted() -> None:
    model = StandIn()
    active = ActiveSet(model)
    active.apply([Wanted(NETS[0])])
    active.park()
    model.tree.half()
    active.apply([Wanted(NETS[0])])
    assert model.tree.linear.weight.dtype == torch.float16
    active.clear()
    assert model.tree.linear.weight.dtype == torch.float16
