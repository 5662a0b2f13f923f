"""What pictures to scale are made of, as SVG: boxes and an axis, rows, a legend.

Horizontal positions are percentages of the picture's width: a picture fits every screen and its text keeps its size.
A picture holds at most some hundred shapes, whatever the model says. Beyond that it shows a summary, and its caption
says so.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from .markup import Html, join, number, plain, tag

# Rows of segments or sequences that are drawn one by one.
MAX_ROWS = 12


@dataclass(frozen=True)
class Scale:
    """Tokens ``first .. first + tokens - 1`` over the whole width."""

    first: int
    tokens: int

    def x(self, token: float) -> str:
        return f"{plain(100 * (token - self.first) / self.tokens)}%"

    def width(self, tokens: float) -> str:
        return f"{plain(100 * tokens / self.tokens)}%"

    def box(self, kind: str, start: float, tokens: float, y: float, height: float, title: str = "") -> Html:
        return tag(
            "rect",
            tag("title", title) if title else None,
            class_=kind,
            x=self.x(start),
            y=float(y),
            width=self.width(tokens),
            height=float(height),
        )

    def ticks(self, y: int) -> Html:
        """An axis with two or three round numbers, and its end."""
        step = _round_step(self.tokens)
        marks = list(range(-(-self.first // step) * step, self.first + self.tokens, step))
        end = self.first + self.tokens
        marks = [m for m in marks if end - m > 0.25 * self.tokens]
        parts = []
        for mark in (*marks, end):
            anchor = "start" if mark == self.first else "end" if mark == end else "middle"
            parts.append(tag("line", class_="tick", x1=self.x(mark), x2=self.x(mark), y1=y, y2=y + 4))
            parts.append(tag("text", number(mark), class_="axis", x=self.x(mark), y=y + 15, text_anchor=anchor))
        return join(*parts)


def _round_step(tokens: int) -> int:
    rough = max(1, -(-tokens // 3))
    power: int = 10 ** (len(str(rough)) - 1)
    return next(m * power for m in (1, 2, 5, 10) if m * power >= rough)


def svg(height: float, label: str, *children: Html, tokens: int | None = None) -> Html:
    return tag("svg", *children, role="img", aria_label=label, height=float(height), data_tokens=tokens)


def figure(caption: str, *children: Html, note: str = "") -> Html:
    notes = tag("p", note, class_="note") if note else None
    return tag("figure", tag("figcaption", caption), *children, notes)


def legend(*entries: tuple[str, str]) -> Html:
    items = [
        tag("li", tag("svg", tag("rect", class_=kind, width=14, height=12), width=14, height=12, aria_hidden="true"), t)
        for kind, t in entries
    ]
    return tag("ul", *items, class_="legend")


def row_list(rows: Iterable[Html]) -> Html:
    return tag("ol", *rows, class_="rows")


def pick(total: int, special: Iterable[int]) -> list[int]:
    """All rows if they are few, else the first ones and the special ones."""
    if total <= MAX_ROWS:
        return list(range(total))
    first = list(range(MAX_ROWS - 4))
    others = [index for index in dict.fromkeys(special) if index >= len(first)][: MAX_ROWS - len(first)]
    return sorted(first + others)
