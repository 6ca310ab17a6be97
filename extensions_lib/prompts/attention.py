r"""Attention: how strongly each part of a prompt counts.

`(a)` multiplies by 1.1, `(a:1.3)` by 1.3, `[a]` divides by 1.1; brackets nest and multiply;
`\( \) \[ \] \\` are the characters themselves; an unclosed bracket reaches to the end. The word
BREAK stands alone as `("BREAK", -1.0)`. These are the rules of AUTOMATIC1111 WebUI 1.10.1, down
to the rounding: factors are multiplied one at a time, the innermost first.
"""

from __future__ import annotations

import re

ROUND = 1.1
SQUARE = 1 / 1.1
BREAK = ("BREAK", -1.0)

_TOKEN = re.compile(r"\\[()\[\]\\]?|[()\[\]]|:\s*([+-]?[.\d]+)\s*\)|[^\\()\[\]:]+|:")
_BREAK = re.compile(r"\bBREAK\b\s*")


class _Weighing:
    """The pieces read so far, and where the open brackets began."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.weights: list[float] = []
        self.open: dict[str, list[int]] = {"(": [], "[": []}

    def add(self, text: str, weight: float = 1.0) -> None:
        self.texts.append(text)
        self.weights.append(weight)

    def add_plain(self, text: str) -> None:
        *ended, last = _BREAK.split(text)
        for part in ended:
            self.add(part.rstrip())
            self.add(*BREAK)
        self.add(last)

    def scale(self, start: int, factor: float) -> None:
        self.weights[start:] = [weight * factor for weight in self.weights[start:]]

    def scale_open(self, bracket: str, factor: float) -> None:
        """Brackets left open reach to the end; a piece gets the factor once for each before it.

        The products are shared between pieces, so a long row of open brackets stays cheap.
        """
        starts = self.open[bracket]
        products: dict[float, list[float]] = {}
        depth = 0
        for index in range(starts[0] if starts else len(self.weights), len(self.weights)):
            while depth < len(starts) and starts[depth] <= index:
                depth += 1
            chain = products.setdefault(self.weights[index], [self.weights[index]])
            while len(chain) <= depth:
                chain.append(chain[-1] * factor)
            self.weights[index] = chain[depth]

    def close(self, bracket: str, factor: float) -> bool:
        """Ends the innermost open bracket of this kind; False when none is open."""
        if not self.open[bracket]:
            return False
        self.scale(self.open[bracket].pop(), factor)
        return True

    def take(self, token: str, number: str | None) -> None:
        if token.startswith("\\"):
            self.add(token[1:])
        elif token in self.open:
            self.open[token].append(len(self.texts))
        elif number is not None:
            self._close_with(token, number)
        elif not (
            (token == ")" and self.close("(", ROUND)) or (token == "]" and self.close("[", SQUARE))
        ):
            self.add_plain(token)

    def _close_with(self, token: str, number: str) -> None:
        """`:1.3)`; a number such as `1.2.3` is text, and its bracket an ordinary one."""
        try:
            factor: float | None = float(number)
        except ValueError:
            factor = None
        if factor is None:
            self.add_plain(token[:-1])
            self.take(")", None)
        elif not self.close("(", factor):
            self.add_plain(token)

    def merged(self) -> list[tuple[str, float]]:
        """The pieces, with neighbours of one weight joined."""
        pieces: list[tuple[list[str], float]] = []
        for text, weight in zip(self.texts, self.weights, strict=True):
            if pieces and pieces[-1][1] == weight:
                pieces[-1][0].append(text)
            else:
                pieces.append(([text], weight))
        return [("".join(texts), weight) for texts, weight in pieces] or [("", 1.0)]


def parse_attention(text: str) -> list[tuple[str, float]]:
    """The pieces of a prompt with their weights, in order; never empty.

    BREAK is `("BREAK", -1.0)`. As in the WebUI, a BREAK inside a weighted bracket carries another
    weight and is then an ordinary word.
    """
    weighing = _Weighing()
    for match in _TOKEN.finditer(text):
        weighing.take(match.group(), match.group(1))
    weighing.scale_open("(", ROUND)
    weighing.scale_open("[", SQUARE)
    return weighing.merged()
