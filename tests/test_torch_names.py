"""What is used of torch is in torch 2.1, which AUTOMATIC1111's WebUI brings.

`torch_2_1.txt` has the names that were found there. For a name that is new here: run this file with
a Python that has torch 2.1; it writes those that are there, and says which are not.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
KNOWN = Path(__file__).with_name("torch_2_1.txt")
# The standalone host brings its own torch.
OWN = ("hosts/standalone", "demo")
# Asked for before it is used; there with the package tensorboard.
GUARDED = {"torch.amp.GradScaler", "torch.utils.tensorboard.SummaryWriter"}


def used() -> dict[str, str]:
    """Dotted names of torch in our code, each with a file that has it."""
    found: dict[str, str] = {}
    for path in sorted((ROOT / "extensions_lib").rglob("*.py")):
        where = path.relative_to(ROOT / "extensions_lib").as_posix()
        if not where.startswith(OWN):
            for name in names(ast.parse(path.read_text(encoding="utf-8"))):
                found.setdefault(name, where)
    return found


def names(tree: ast.AST) -> Iterator[str]:
    """The dotted names of torch that a module says, by whatever name it knows torch's parts."""
    known = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for each in node.names:
                if each.name.partition(".")[0] == "torch":
                    known[each.asname or "torch"] = each.name if each.asname else "torch"
        elif isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "torch":
            for each in node.names:
                known[each.asname or each.name] = f"{node.module}.{each.name}"
                yield f"{node.module}.{each.name}"
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and (chain := dotted(node)):
            first, _, rest = chain.partition(".")
            if first in known:
                yield f"{known[first]}.{rest}"


def dotted(node: ast.expr) -> str | None:
    """ "a.b.c" of such an expression."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute) and (before := dotted(node.value)):
        return f"{before}.{node.attr}"
    return None


def is_there(name: str) -> bool:
    """Whether the torch that runs has it."""
    import torch

    found: object = torch
    path = "torch"
    for part in name.split(".")[1:]:
        path += f".{part}"
        if not hasattr(found, part):
            try:
                import_module(path)
            except ImportError:
                return False
        found = getattr(found, part)
    return True


def test_every_name_is_in_the_oldest_torch() -> None:
    known = set(KNOWN.read_text().split())
    new = {name: where for name, where in used().items() if name not in known | GUARDED}
    assert not new, f"run {Path(__file__).name} with torch 2.1, or ask for these first: {new}"


def test_names_are_found_by_any_way_of_import() -> None:
    code = "import torch.nn.functional as F\nfrom torch import nn as n\nimport torch\n"
    code += "F.pad(x)\nn.Linear\ntorch.cuda.amp.GradScaler()\ny.torch.z\n"
    wanted = {"torch.nn", "torch.nn.functional.pad", "torch.nn.Linear"}
    wanted |= {"torch.cuda", "torch.cuda.amp", "torch.cuda.amp.GradScaler"}
    assert set(names(ast.parse(code))) == wanted


if __name__ == "__main__":
    import torch

    every = used()
    there = sorted(name for name in every if is_there(name))
    print(torch.__version__, *(f"{n} ({every[n]})" for n in sorted(every.keys() - set(there))))
    if torch.__version__.startswith("2.1."):
        KNOWN.write_text("\n".join(there) + "\n")
    sys.exit(bool(every.keys() - set(there) - GUARDED))
