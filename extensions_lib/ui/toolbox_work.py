"""A button, Stop, and the place below where progress, errors and results stand."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import gradio as gr

from extensions_lib.api.toolbox import Pace, Work
from extensions_lib.errors import CrucibleError
from extensions_lib.ui import pieces, toolbox_result
from extensions_lib.ui.compat import side_by_side, window_of
from extensions_lib.ui.jobs import Jobs

PREFIX = "crucible-toolbox"
WINDOWS = 16  # inside one event at a time
Changes = dict[Any, Any]


def said(name: str) -> gr.HTML:
    """A place for what is to be said, which takes no room while that is nothing."""
    return gr.HTML(elem_id=f"{PREFIX}-{name}", elem_classes=["crucible-toolbox-said"])


@dataclass(frozen=True)
class WorkFields:
    """The components. `doing` is what the bar says."""

    name: str
    doing: str
    go: gr.Button
    stop: gr.Button
    told: gr.HTML


def work_fields(name: str, label: str, doing: str, *, main: bool = True) -> WorkFields:
    """Builds the row of a button, and the place below. `main`: it is what the tab is for."""
    variant = "primary" if main else "secondary"
    with gr.Row(elem_classes=[f"crucible-toolbox-{'actions' if main else 'more'}"]):
        go = gr.Button(label, variant=variant, scale=4, elem_id=f"{PREFIX}-{name}-go")
        stop = gr.Button(
            "Stop", variant="stop", scale=1, min_width=90, interactive=False,
            elem_id=f"{PREFIX}-{name}-stop",
        )  # fmt: skip
    return WorkFields(name, doing, go, stop, said(f"{name}-told"))


def wire_work(
    fields: WorkFields,
    jobs: Jobs,
    read: Callable[[tuple[Any, ...]], Work],
    show: Callable[[Any], str],
    inputs: Sequence[Any],
) -> None:
    """Runs what `read` makes of the fields when the button is pressed; `show` makes the result."""

    def run(request: gr.Request, *values: Any) -> Iterator[Changes]:
        try:
            work = read(values)
        except CrucibleError as problem:
            yield {fields.told: pieces.messages([str(problem)], "error")}
            return
        # before Stop can be pressed
        updates = jobs.run(f"{window_of(request)}-{fields.name}", work)
        yield {
            fields.go: gr.update(interactive=False),
            fields.stop: gr.update(interactive=True),
            fields.told: pieces.bar(None, "Starting …"),
        }
        rest: Changes = {
            fields.go: gr.update(interactive=True),
            fields.stop: gr.update(interactive=False),
        }
        pace = Pace()
        for update in updates:
            if update.state == "done":
                yield {**rest, fields.told: show(update.result)}
            elif update.state == "stopped":
                stopped = "Stopped; nothing was written."
                yield {**rest, fields.told: pieces.messages([stopped])}
            elif update.state == "failed":
                yield {**rest, fields.told: pieces.messages([update.message], "error")}
            else:
                yield {fields.told: toolbox_result.under_way(update, pace, fields.doing)}

    def stop(request: gr.Request) -> None:
        jobs.stop(f"{window_of(request)}-{fields.name}")

    outputs = [fields.go, fields.stop, fields.told]
    running: dict[str, Any] = {"show_progress": "hidden", **side_by_side(WINDOWS)}
    fields.go.click(run, list(inputs), outputs, **running)
    fields.stop.click(stop, None, None, queue=False, show_progress="hidden")
