"""The result of an inspection, for people and for programs."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path

from extensions_lib.models.families import Family
from extensions_lib.toolbox.metadata import Page

_LISTED = 20  # lines of a long list in the text, unless all are asked for; the JSON has them all
_LONG = 200  # characters of one metadata value in the text


@dataclass
class Report:
    """What a file is, and what of it would not load."""

    path: Path
    size: int  # bytes
    sort: str = ""  # one of toolbox.sorts
    place: str = ""  # where it belongs, below a WebUI's folder
    what: str = "Unknown"  # "LoRA", "Checkpoint SDXL", "VAE", "Embedding (textual inversion)", …
    format: str = ""
    family: Family | None = None
    details: list[str] = field(default_factory=list)
    tensors: int = 0
    dtypes: dict[str, int] = field(default_factory=dict)  # dtype -> tensors
    kinds: dict[str, int] = field(default_factory=dict)  # algorithm -> layers
    ranks: dict[int, int] = field(default_factory=dict)  # rank -> layers
    alphas: dict[float, int] = field(default_factory=dict)  # alpha -> layers
    components: dict[str, int] = field(default_factory=dict)  # "unet", "te1", … -> layers
    names: dict[str, int] = field(default_factory=dict)  # whose way of naming -> layers
    dora: int = 0  # layers with a DoRA magnitude
    embeddings: list[str] = field(default_factory=list)  # that came along in a network
    foreign: str | None = None  # a family unknown here that it was made for
    matched: int = 0  # layers that load
    unmatched: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)  # what was decided; nothing is left out
    hashes: dict[str, str] = field(default_factory=dict)
    fitting: int | None = None  # layers that change the checkpoint it was held against
    strange: list[str] = field(default_factory=list)  # those that do not, and why
    metadata: dict[str, str] = field(default_factory=dict)
    page: Page = field(default_factory=Page)  # the metadata, to be read

    def to_json(self) -> str:
        """Everything, as a JSON object."""
        fields = dict(vars(self))
        fields["path"] = str(self.path)
        fields["family"] = self.family.value if self.family else None
        fields["page"] = dataclasses.asdict(self.page)
        return json.dumps(fields, indent=2, ensure_ascii=False)

    def text(self, *, everything: bool = False) -> str:
        """Everything that matters, a line each; long lists are cut and say so, or are not cut."""
        most = None if everything else _LISTED
        network = bool(self.kinds or self.matched)
        lines = [
            f"File:      {self.path}",
            f"Is:        {self.what}" + (f" for {self.family}" if self._say_family() else ""),
            f"Format:    {self.format}, {self.size:,} bytes, {self.tensors} tensors"
            f" ({_counts(self.dtypes)})",
        ]
        lines += [f"           {detail}" for detail in self.details]
        lines += [f"Belongs:   in {self.place}"] if self.place else []
        if network:
            lines += [
                f"Algorithm: {_counts(self.kinds) or 'none'} (layers)"
                + (f", DoRA in {self.dora}" if self.dora else ""),
                f"Names:     {_counts(self.names) or 'none'}",
                f"Rank:      {_counts(self.ranks) or 'none'}",
                f"Alpha:     {_counts(self.alphas) or 'none: scale 1'}",
                f"Layers:    {self.matched} load ({_counts(self.components)}),"
                f" {len(self.unmatched)} not known, {len(self.problems)} problems",
            ]
        if self.fitting is not None:
            lines.append(f"Fits:      {self.fitting} layers, {len(self.strange)} do not")
        lines += [f"{name + ': ':<11}{value}" for name, value in self.hashes.items()]
        lines += _listed("Problems", self.problems, most)
        lines += _listed("Not known", self.unmatched, most)
        lines += _listed("Do not fit", self.strange, most)
        lines += _listed("Notes", self.notes, most)
        lines += _listed("Embeddings in it", self.embeddings, most)
        lines += self.page.lines(None if everything else _LISTED)
        lines += _listed(
            "Metadata", [f"{key}: {_cut(text)}" for key, text in sorted(self.metadata.items())], 200
        )
        return "\n".join(lines)

    def _say_family(self) -> bool:
        return self.family is not None and str(self.family) not in self.what


def _counts(counts: dict[str, int] | dict[int, int] | dict[float, int]) -> str:
    return ", ".join(f"{name} × {count}" for name, count in counts.items())


def _cut(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= _LONG else f"{text[:_LONG]}… ({len(text)} characters)"


def _listed(title: str, items: list[str], most: int | None) -> list[str]:
    if not items:
        return []
    cut = most is not None and len(items) > most
    more = [f"  … and {len(items) - (most or 0)} more (--all)"] if cut else []
    return [f"{title}:", *(f"  {item}" for item in items[:most]), *more]
