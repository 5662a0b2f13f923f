"""How the sequences that a query token attends to are shown: what it reads of them, and their blocks."""

from __future__ import annotations

from ..operators.pictures import MAX_DRAWN_BLOCKS, Attended
from .drawing import Scale, figure, legend, pick, row_list, svg
from .markup import NOTHING, Html, count, number, tag
from .view import View

# Empty blocks are drawn while a sequence has at most as many.
_MAX_BLOCKS = 96


class AttendedView(View[Attended]):
    """An attention stage."""

    noun = "sequence"
    columns = ("sequence", "length", "blocks", "chosen", "attended")
    labels = ("there", "a query token attends to")

    @property
    def read(self) -> str:
        """What a query token attends to."""
        return "compressed token" if self.picture.chooses else "token"

    def draw(self) -> Html:
        """Of each sequence, its blocks, those that are chosen, and the tokens that a query token attends to."""
        picture = self.picture
        total = len(picture.lengths)
        chosen = pick(total, [int(picture.lengths.argmax())] if total else [])
        tokens = max((int(picture.lengths[index]) for index in chosen), default=0)
        rows = [_sequence(picture, index, max(tokens, 1)) for index in chosen]
        notes = ["Which blocks are chosen depends on the query: the ones drawn are an example."]
        if len(chosen) < total:
            notes.append(f"Drawn are {len(chosen)} of {number(total)} sequences.")
        if any(picture.forced):
            notes.append("Blocks in dark are always chosen.")
        if tokens > picture.block * MAX_DRAWN_BLOCKS:
            notes.append("Of so many blocks only those are drawn that are always chosen.")
        where = "all of these tokens, compressed" if picture.chooses else "attended tokens"
        kinds = (("tokens", where), ("window0", "chosen block"), ("next", "other block"))
        caption = (
            f"Blocks of {count(picture.block, 'token')}; a query token "
            f"{'chooses' if picture.chooses else 'reads'} at most {count(picture.count, 'block')} per group of heads"
        )
        return figure(caption, legend(*kinds), row_list(rows), note=" ".join(notes))

    def row(self, index: int) -> tuple[str, ...]:
        picture = self.picture
        length, blocks, reads = (int(of[index]) for of in (picture.lengths, picture.windows, picture.reads))
        chosen = number(min(blocks, picture.count)) if blocks else NOTHING
        return number(index), number(length), number(blocks), chosen, count(reads, self.read)

    def amounts(self) -> list[tuple[str, str]]:
        """Tokens that are there and that are attended to, each under its label."""
        picture = self.picture
        return [
            (self.labels[0], count(picture.before, "token")),
            (self.labels[1], count(picture.after, self.read)),
            ("ratio", picture.ratio or NOTHING),
        ]


def _sequence(picture: Attended, index: int, tokens: int) -> Html:
    length, scale = int(picture.lengths[index]), Scale(0, tokens)
    parts = [scale.box("tokens" if picture.chooses else "page", 0, length, 4, 20)]
    blocks = int(picture.windows[index])
    for block in range(blocks) if blocks <= _MAX_BLOCKS else ():
        start = block * picture.block
        parts.append(scale.box("next", start, min(picture.block, length - start), 28, 12))
    for block in picture.drawn_blocks(index):
        start = block * picture.block
        kind = "window0" if block in picture.forced[index] or not any(picture.forced) else "window1"
        size = min(picture.block, length - start)
        parts.append(scale.box(kind, start, size, 28, 12, f"block {block}"))
        if not picture.chooses:
            parts.append(scale.box("tokens", start, size, 4, 20))
    chosen = min(blocks, picture.count)
    label = f"{count(length, 'token')}, {chosen} of {count(blocks, 'block')}"
    name = tag("span", tag("b", f"sequence {number(index)}"), f" {label}", class_="label")
    return tag("li", name, svg(64, f"sequence {index}: {label}", *parts, scale.ticks(44), tokens=tokens))
