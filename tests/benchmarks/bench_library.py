"""How long a library of 10,000 network files takes to index, refresh, search and show.

The files have the headers that kohya's trainer writes for SD1.5 (some 50 to 190 kB each, 1 GB in
all), in a few dozen layouts, with metadata of their own; their data is a hole. Beside each time
stands its goal and, where there is one, the bound measured in the same round: a bare walk with
`os.scandir` and `stat`, and a bare read of every header.

    python run.py bench library [--count N] [--rounds N] [--no-browser]
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import struct
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from extensions_lib.library import Library
from extensions_lib.models.families import SD15
from extensions_lib.models.names import canonical_layers, kohya_names
from extensions_lib.ui.cards import cards_html
from extensions_lib.ui.completions import Sources, answer
from extensions_lib.ui.networks_panel import FINDER, Shelf
from tests.benchmarks.timing import Clock, load

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = 40
RANKS = (4, 8, 16, 32, 64, 128)
SETS = (("_attn1_", "_attn2_"), ("_attn", "_ff_", "_proj_", "_fc"), ("_",))
KOHYA = ("lora_te_text", "lora_unet_down", "lora_unet_mid", "lora_unet_up")
# what, its goal in seconds, its bound
ROWS: tuple[tuple[str, float | None, str | None], ...] = (
    ("first index", 5.0, "bare read of every header"),
    ("later start", 0.3, "bare walk"),
    ("refresh, nothing new", 0.1, "bare walk"),
    ("refresh, one new file", 0.1, "bare walk"),
    ("refresh, one changed file", 0.1, "bare walk"),
    ("a name in a prompt", None, None),
    ("all cards as HTML", None, None),
    ("all names for completion", None, None),
    ("browser: a key in the search", 0.05, None),
    ("browser: a key in the prompt", 0.05, None),
)


# --- the files --------------------------------------------------------------------------------


def layouts() -> list[tuple[str, int]]:
    """The tensors of networks as JSON without its last brace, and the bytes of their data."""
    made = []
    shapes = _layers()
    for words in SETS:
        for rank in RANKS:
            tensors: dict[str, Any] = {}
            reached = 0
            for flat, (out, inputs, *kernel) in shapes.items():
                if not any(word in flat for word in words):
                    continue
                ones = [1] * len(kernel)
                for part, shape in (
                    ("alpha", []),
                    ("lora_down.weight", [rank, inputs, *kernel]),
                    ("lora_up.weight", [out, rank, *ones]),
                ):
                    size = 2
                    for each in shape:
                        size *= each
                    offsets = [reached, reached + size]
                    tensors[f"{flat}.{part}"] = {
                        "dtype": "F16", "shape": shape, "data_offsets": offsets
                    }  # fmt: skip
                    reached += size
            made.append((json.dumps(tensors, separators=(",", ":"))[1:], reached))
    return made


def _layers() -> dict[str, tuple[int, ...]]:
    """Shapes of the weights that kohya's trainer knows, by its names."""
    known = canonical_layers(SD15)
    return {
        flat: known[name].shape
        for flat, name in kohya_names(SD15).items()
        if known[name].kind in ("linear", "conv") and flat.startswith(KOHYA)
    }


def write_network(path: Path, number: int, layout: tuple[str, int]) -> None:
    """A header with metadata of its own, and a hole of the size of its data."""
    tensors, size = layout
    frequency = json.dumps({f"tag {number} {each}": each for each in range(60)})
    metadata = {"ss_output_name": f"alias {number}", "ss_tag_frequency": frequency}
    head = f'{{"__metadata__":{json.dumps(metadata)},{tensors}'.encode()
    head += b" " * (-len(head) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(head)) + head)
        file.truncate(8 + len(head) + size)


def make(folder: Path, count: int) -> None:
    """The library: every second file with a preview, every third with notes."""
    made = layouts()
    for number in range(count):
        place = folder / f"folder {number % FOLDERS:02}"
        place.mkdir(parents=True, exist_ok=True)
        stem = place / f"network {number:05}"
        write_network(stem.with_suffix(".safetensors"), number, made[number * 7 % len(made)])
        if number % 2 == 0:
            stem.with_suffix(".png").write_bytes(b"a picture")
        if number % 3 == 0:
            stem.with_suffix(".json").write_text('{"activation text": "words"}')


# --- the bounds -------------------------------------------------------------------------------


def bare_walk(folder: Path) -> int:
    """Every file's name, size and time; how many there are."""
    count, waiting = 0, [str(folder)]
    while waiting:
        with os.scandir(waiting.pop()) as listing:
            for item in listing:
                if item.is_dir():
                    waiting.append(item.path)
                else:
                    item.stat()
                    count += 1
    return count


def bare_read(paths: Sequence[str]) -> None:
    """Every header's bytes."""
    for path in paths:
        with open(path, "rb") as file:
            file.read(struct.unpack("<Q", file.read(8))[0])


# --- the measurements -------------------------------------------------------------------------


def measure_round(folder: Path, cache: Path, clock: Clock) -> Library:
    """All that happens in Python, once, from an empty cache."""

    def start() -> Library:
        made = Library([folder], cache)
        made.refresh()
        return made

    shutil.rmtree(cache, ignore_errors=True)
    clock("bare walk", lambda: bare_walk(folder))
    entries = clock("first index", start).entries
    clock("bare read of every header", lambda: bare_read([e.found.path for e in entries]))
    library = clock("later start", start)
    clock("refresh, nothing new", library.refresh)
    new = folder / "folder 07" / "a new one.safetensors"
    write_network(new, len(entries), layouts()[0])
    clock("refresh, one new file", library.refresh)
    os.utime(new, ns=(1, 1))
    clock("refresh, one changed file", library.refresh)
    assert library.find("a new one") is not None and len(library.entries) == len(entries) + 1
    new.unlink()
    library.refresh()
    names = [f"alias {number}" for number in range(0, len(entries), 100)]
    found = clock("a name in a prompt", lambda: [library.find(name) for name in names])
    clock.times["a name in a prompt"][-1] /= len(names)
    assert all(found) and not any(entry.problem for entry in library.entries)
    clock("all cards as HTML", lambda: cards(library))
    none = Library([])
    clock("all names for completion", lambda: answer(Sources(library, none, none)))
    return library


def cards(library: Library) -> str:
    """The panel of the standalone page."""
    return cards_html(Shelf(library).cards("SD1"), library.folders)


KEYS = """async ([box, texts]) => {
    const frame = () => new Promise((go) => requestAnimationFrame(() => setTimeout(go)));
    const times = [];
    for (const text of texts) {
        await frame();
        const field = document.querySelector(box);
        const start = performance.now();
        field.value = text;
        field.dispatchEvent(new Event("input", {bubbles: true}));
        document.body.offsetHeight; // styles and layout
        const worked = performance.now() - start;
        await frame(); // what was put off to the next frame, and painting
        times.push(Math.max(worked, performance.now() - start - 1000 / 60));
    }
    return times;
}"""


def measure_browser(library: Library, chromium: str, folder: Path, clock: Clock) -> None:
    """The panel alone in a real browser: from a key to its frame, less the wait for a frame."""
    from playwright.sync_api import sync_playwright

    page = folder / "page.html"
    page.write_text(
        '<!doctype html><meta charset="utf-8"><script>window.crucible_page ='
        ' {"version": "bench", "lang": "en", "texts": {}};</script>'
        f"<script>{(ROOT / 'javascript' / 'crucible.js').read_text('utf-8')}</script>"
        f"<style>{(ROOT / 'style.css').read_text('utf-8')}</style>"
        '<div id="crucible-generate"><div id="crucible-prompt"><textarea></textarea></div>'
        f'{FINDER}<div id="crucible-networks">{cards(library)}</div></div>',
        "utf-8",
    )
    search = ["n", "ne", "net", "network", "network 0", "network 00", "network 000", "network", ""]
    prompt = ["a", "a c", "a cat <lora:network 00001:1>", "a cat <lora:alias 77:1>", "a"]
    with sync_playwright() as playwright:
        flags = ["--no-sandbox", "--disable-gpu", "--no-first-run"]
        browser = playwright.chromium.launch(executable_path=chromium, args=flags)
        view = browser.new_page(viewport={"width": 1280, "height": 860})
        view.goto(page.as_uri())
        view.locator(".crucible-slot[hidden]").first.wait_for(state="attached")
        for name, box, texts in (
            ("browser: a key in the search", "#crucible-search", search),
            ("browser: a key in the prompt", "#crucible-prompt textarea", prompt),
        ):
            times = view.evaluate(KEYS, [box, texts])
            clock.times[name] = [each / 1000 for each in times]
        browser.close()


def report(clock: Clock) -> None:
    """Each time beside its goal and its bound."""
    print(f"\n{'milliseconds':32}{'median':>10}{'most':>10}{'goal':>8}{'x bound':>9}")
    for name, goal, bound in ROWS:
        if name not in clock.times:
            continue
        most = 1e3 * max(clock.times[name])
        line = f"{name:32}{1e3 * clock.seconds(name):10.2f}{most:10.2f}"
        line += f"{1e3 * goal:8.0f}" if goal else " " * 8
        if bound:
            line += f"{clock.ratio(name, bound):9.2f}  {bound}"
        print(line)
    for name in ("bare walk", "bare read of every header"):
        print(f"{name:32}{1e3 * clock.seconds(name):10.2f}{1e3 * max(clock.times[name]):10.2f}")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="bench library", description=__doc__.split("\n")[0])
    parser.add_argument("--count", type=int, default=10_000, help="network files (default 10000)")
    parser.add_argument("--rounds", type=int, default=5, help="(default 5)")
    parser.add_argument("--no-browser", action="store_true", help="leave the browser out")
    options = parser.parse_args(argv)
    clock = Clock()
    with tempfile.TemporaryDirectory(prefix="crucible-bench-") as where:
        folder = Path(where)
        make(folder / "networks", options.count)
        bare_walk(folder)
        for _ in range(options.rounds):
            library = measure_round(folder / "networks", folder / "cache", clock)
        chromium = None if options.no_browser else find_chromium()
        if chromium:
            measure_browser(library, chromium, folder, clock)
    print(f"{options.count} networks, {options.rounds} rounds, {load()}")
    report(clock)
    return 0


def find_chromium() -> str | None:
    """Where a Chromium is; None, and a line about it, if there is none or no playwright."""
    try:
        import playwright  # noqa: F401

        from tests.conftest import find_chromium as found
    except ImportError as missing:
        print(f"{missing.name} is not installed: the browser is left out", file=sys.stderr)
        return None
    if not (path := found()):
        print("no Chromium found: the browser is left out", file=sys.stderr)
    return path


if __name__ == "__main__":
    raise SystemExit(main())
