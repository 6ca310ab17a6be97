"""Options as gradio components: each with its name, its help, its range; groups as accordions.

form = OptionForm(Selection, "crucible-select")
form.row("general", "character")        # those that one always wants to see
with searchable():
    form.rest()                         # the others, in closed groups
go.click(run, form.inputs, …)           # run(*values): form.read(values) is a Selection
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Generic, TypeVar

import gradio as gr

from extensions_lib.options import Option, checked, options_of

T = TypeVar("T")
SEARCH = (
    '<input type="search" class="crucible-option-search" placeholder="Find an option"'
    ' aria-label="Find an option">'
    '<p class="crucible-option-none" hidden>None of these has such a name; the fields above are'
    " options too.</p>"
)
_FEW = 6  # choices that are shown side by side


class OptionForm(Generic[T]):
    """The components of a dataclass of options; their elem_ids are `prefix`-the-name.

    `initial` are values to begin with where they are not the defaults: a number that may be none
    is a slider if it has one, else an empty field. `lines` names lists of texts that may hold
    commas: they stand one a line.
    """

    def __init__(
        self,
        kind: type[T],
        prefix: str,
        initial: Mapping[str, Any] | None = None,
        lines: Sequence[str] = (),
    ) -> None:
        self.kind, self.prefix, self.lines = kind, prefix, lines
        self.options = {each.name: each for each in options_of(kind)}
        self.initial = {
            **{name: each.default for name, each in self.options.items()},
            **(initial or {}),
        }
        self.fields: dict[str, Any] = {}

    def field(self, name: str, **told: Any) -> Any:
        """Builds one option here; `told` goes before what the option says of itself."""
        each = self.options[name]
        told.setdefault("elem_id", f"{self.prefix}-{name.replace('_', '-')}")
        told.setdefault("elem_classes", ["crucible-option"])
        help = shown_help(each)
        if name in self.lines:
            told = {"label": each.label, "info": f"{help}; one a line", **told}
            value = self._shown(name, self.initial[name])
            self.fields[name] = gr.Textbox(value, lines=2, max_lines=12, **told)
        else:
            told = {"info": help, **told}
            self.fields[name] = _component(each, self.initial[name], told)
        return self.fields[name]

    def row(self, *names: str) -> None:
        """Builds some options side by side."""
        with gr.Row():
            for name in names:
                self.field(name, min_width=160)

    def rest(self, leave_out: Sequence[str] = ()) -> None:
        """Builds what is not built yet: options without a group here, the others in accordions."""
        names = [name for name in self.options if name not in (*self.fields, *leave_out)]
        groups: dict[str, list[str]] = {}
        for name in names:
            groups.setdefault(self.options[name].group, []).append(name)
        for name in groups.pop("", []):
            self.field(name)
        for group, members in groups.items():
            self.group(group, members)

    def group(self, label: str, names: Sequence[str]) -> None:
        """Builds some options in a closed accordion."""
        ident = f"{self.prefix}-group-{label.lower().replace(' ', '-')}"
        with gr.Accordion(label, open=False, elem_id=ident):
            for name in names:
                self.field(name)

    @property
    def inputs(self) -> list[Any]:
        """The components, in the order in which `read` takes their values."""
        return list(self.fields.values())

    def read(self, values: Sequence[Any], **more: Any) -> T:
        """The options as they stand in the fields. Raises OptionProblem."""
        given = dict(zip(self.fields, values, strict=True))
        told = {name: self._given(name, value) for name, value in given.items()}
        return checked(self.kind, {**told, **more})

    def defaults(self) -> list[Any]:
        """The values that the fields began with, in the order of `inputs`."""
        return self.shown(self.initial)

    def shown(self, values: Mapping[str, Any]) -> list[Any]:
        """Values of all options as the fields take them, in the order of `inputs`."""
        return [self._shown(name, values[name]) for name in self.fields]

    def _shown(self, name: str, value: Any) -> Any:
        return "\n".join(value) if name in self.lines else _shown(self.options[name], value)

    def _given(self, name: str, value: Any) -> Any:
        if name in self.lines:
            return [line.strip() for line in (value or "").splitlines() if line.strip()]
        return _given(self.options[name], value)


@contextmanager
def searchable() -> Iterator[None]:
    """Groups of options with a field above that finds them by name or help (see tagger.js)."""
    with gr.Column(elem_classes=["crucible-options"]):
        gr.HTML(SEARCH)
        yield


def shown_help(each: Option) -> str:
    """An option's help below its field, which knows no Markdown."""
    return each.help.replace("`", "")


def _component(each: Option, value: Any, told: dict[str, Any]) -> Any:
    """The component that suits an option."""
    label = f"{each.label} ({each.unit})" if each.unit else each.label
    told = {"label": label, "value": _shown(each, value), **told}
    if each.choices:
        return _chooser(each, told)
    if each.type is bool:
        return gr.Checkbox(**told)
    if each.many:
        return gr.Textbox(lines=1, max_lines=6, **told)
    if each.type is str:
        return gr.Textbox(max_lines=1, **told)
    bounded = each.low is not None and each.high is not None
    if bounded and value is not None and not (each.type is int and each.high > 512):  # type: ignore[operator]
        step = each.step or (1 if each.type is int else 0.01)
        return gr.Slider(each.low, each.high, step=step, **told)
    if each.optional:  # an empty number field is 0 to some versions of gradio
        return gr.Textbox(max_lines=1, placeholder="none", **told)
    whole = each.type is int
    step = each.step or (1 if whole else _nudge(value))
    return gr.Number(precision=0 if whole else None, step=step, **told)


def _nudge(value: float | None) -> float:
    """What an arrow key adds to a number: a unit of its second digit, 0.0001 at 0.002."""
    return 10.0 ** (math.floor(math.log10(abs(value))) - 1) if value else 0.01


def _chooser(each: Option, told: dict[str, Any]) -> Any:
    choices = list(each.choices)
    if each.many:
        told.pop("min_width", None)
        return gr.CheckboxGroup(choices, **told)
    if len(choices) <= _FEW:
        return gr.Radio(choices, **told)
    return gr.Dropdown(choices, **told)


def _shown(each: Option, value: Any) -> Any:
    """A value as its component takes it."""
    if each.many and not each.choices:
        return ", ".join(str(one) for one in value or ())
    if value is None and not each.choices:
        return ""
    return list(value) if isinstance(value, tuple) else value


def _given(each: Option, value: Any) -> Any:
    """What stands in a component as the option takes it; an empty field is none."""
    if each.optional and (value is None or (isinstance(value, str) and not value.strip())):
        return None
    return "" if value is None and each.type is str else value
