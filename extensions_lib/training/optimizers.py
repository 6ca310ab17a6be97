"""Optimizers by the names that people know; their packages are imported when they are chosen."""

from __future__ import annotations

import ast
import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from extensions_lib.errors import CrucibleError

if TYPE_CHECKING:
    from torch.optim import Optimizer


@dataclass(frozen=True)
class Known:
    """Where an optimizer lives, and what it is always given."""

    path: str
    package: str = ""
    fixed: Mapping[str, Any] = field(default_factory=dict)


_NESTEROV = {"momentum": 0.9, "nesterov": True}
KNOWN: dict[str, Known] = {
    "AdamW": Known("torch.optim.AdamW"),
    "Adam": Known("torch.optim.Adam"),
    "SGDNesterov": Known("torch.optim.SGD", fixed=_NESTEROV),
    "Adafactor": Known("transformers.optimization.Adafactor", "transformers"),
    "AdamW8bit": Known("bitsandbytes.optim.AdamW8bit", "bitsandbytes"),
    "PagedAdamW": Known("bitsandbytes.optim.PagedAdamW", "bitsandbytes"),
    "PagedAdamW8bit": Known("bitsandbytes.optim.PagedAdamW8bit", "bitsandbytes"),
    "PagedAdamW32bit": Known("bitsandbytes.optim.PagedAdamW32bit", "bitsandbytes"),
    "Lion8bit": Known("bitsandbytes.optim.Lion8bit", "bitsandbytes"),
    "PagedLion8bit": Known("bitsandbytes.optim.PagedLion8bit", "bitsandbytes"),
    "SGDNesterov8bit": Known("bitsandbytes.optim.SGD8bit", "bitsandbytes", _NESTEROV),
    "Lion": Known("pytorch_optimizer.Lion", "pytorch-optimizer"),
    "CAME": Known("pytorch_optimizer.CAME", "pytorch-optimizer"),
    "Prodigy": Known("prodigyopt.Prodigy", "prodigyopt"),
    "DAdaptation": Known("dadaptation.experimental.DAdaptAdamPreprint", "dadaptation"),
    "DAdaptAdamPreprint": Known("dadaptation.experimental.DAdaptAdamPreprint", "dadaptation"),
    "DAdaptAdam": Known("dadaptation.DAdaptAdam", "dadaptation"),
    "DAdaptAdaGrad": Known("dadaptation.DAdaptAdaGrad", "dadaptation"),
    "DAdaptAdan": Known("dadaptation.DAdaptAdan", "dadaptation"),
    "DAdaptAdanIP": Known("dadaptation.experimental.DAdaptAdanIP", "dadaptation"),
    "DAdaptLion": Known("dadaptation.DAdaptLion", "dadaptation"),
    "DAdaptSGD": Known("dadaptation.DAdaptSGD", "dadaptation"),
    "AdamWScheduleFree": Known("schedulefree.AdamWScheduleFree", "schedulefree"),
    "SGDScheduleFree": Known("schedulefree.SGDScheduleFree", "schedulefree"),
    "RAdamScheduleFree": Known("schedulefree.RAdamScheduleFree", "schedulefree"),
}


def make_optimizer(
    name: str,
    groups: Sequence[Mapping[str, Any]],
    rate: float,
    arguments: Sequence[str] = (),
) -> Optimizer:
    """The optimizer `name`, or that of a dotted path such as "package.module.Class".

    Args:
        groups: torch's parameter groups; "params", and "lr" where it is not `rate`.
        arguments: "key=value", the values as Python writes them.

    Raises CrucibleError where there is none of that name, its package is missing, or it refuses.
    """
    known = _known(name)
    options = {**known.fixed, **parsed(arguments)}
    if known.path.endswith("Adafactor") and options.setdefault("relative_step", True):
        # It sets its own rates; one from outside is refused.
        groups = [{**group, "lr": None} for group in groups]
        given: dict[str, Any] = {"lr": None}
    else:
        given = {"lr": rate}
    if known.path.startswith("torch.optim.Adam") and _fuses(groups):
        options.setdefault("fused", True)
    sort = _class(name, known)
    try:
        made: Optimizer = sort([dict(group) for group in groups], **given, **options)
    except (TypeError, ValueError) as error:
        raise CrucibleError(f"optimizer_type {name} refuses its arguments: {error}") from error
    return made


def treats_each_number_alone(name: str) -> bool:
    """Whether what the optimizer does to a number depends on that number's gradients alone."""
    return _known(name).path in ("torch.optim.AdamW", "torch.optim.Adam", "torch.optim.SGD")


def schedules_itself(name: str) -> bool:
    """Whether its method takes the place of a course of the learning rate (schedule-free)."""
    return name.lower().endswith("schedulefree")


def _fuses(groups: Sequence[Mapping[str, Any]]) -> bool:
    """Whether torch has the update in one operation for where these parameters are."""
    import torch

    devices = {each.device.type for group in groups for each in group["params"]}
    newer = tuple(int(part) for part in torch.__version__.split(".")[:2]) >= (2, 4)
    return devices == {"cuda"} or (devices == {"cpu"} and newer)


def parsed(arguments: Sequence[str]) -> dict[str, Any]:
    """ "weight_decay=0.01" and "betas=0.9,0.99" as keyword arguments. Raises CrucibleError."""
    options = {}
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if not equals or not key.strip().isidentifier():
            raise CrucibleError(f"optimizer_args: {argument!r} is not of the form name=value.")
        try:
            options[key.strip()] = ast.literal_eval(value.strip())
        except (ValueError, SyntaxError):
            raise CrucibleError(
                f"optimizer_args: {value!r} of {key.strip()} is no number, True, False, None or "
                "list of these."
            ) from None
    return options


def _known(name: str) -> Known:
    lower = {each.lower(): known for each, known in KNOWN.items()}
    if name.lower() in lower:
        return lower[name.lower()]
    if "." in name:
        return Known(name, name.partition(".")[0])
    if path := _of_torch(name):
        return Known(path)
    raise CrucibleError(
        f"optimizer_type {name!r}: there is none of that name; known are {', '.join(KNOWN)}, or "
        "give a class by its whole path, package.module.Class."
    )


def _of_torch(name: str) -> str:
    """The path of torch's own optimizer of that name, "" where there is none."""
    import torch

    found = getattr(torch.optim, name, None)
    is_one = isinstance(found, type) and issubclass(found, torch.optim.Optimizer)
    return f"torch.optim.{name}" if is_one and name != "Optimizer" else ""


def _class(name: str, known: Known) -> Any:
    module, _, last = known.path.rpartition(".")
    try:
        return getattr(importlib.import_module(module), last)
    except ImportError as error:
        raise CrucibleError(
            f"optimizer_type {name} is in the package {known.package}, which cannot be imported "
            f"({error}); install it into this Python with: pip install {known.package}"
        ) from error
    except AttributeError:
        raise CrucibleError(f"optimizer_type {name}: {module} has no {last}.") from None
