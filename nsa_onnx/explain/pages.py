"""How sequences in pages are shown: tokens in their pages, the window that a step compresses or the next one."""

from __future__ import annotations

import numpy as np

from ..operators.pictures import Pages
from .drawing import Scale, figure, legend, pick, row_list, svg
from .markup import NOTHING, Html, count, number, tag
from .view import View

# Logical pages of a row, the last ones.
_PAGES = 6


class PagesView(View[Pages]):
    """A step over sequences in pages."""

    noun = "sequence"
    columns = ("sequence", "length", "this step", "slot", "next at")
    labels = ("tokens cached", "windows cached by now")

    def draw(self) -> Html:
        """The last pages of each sequence, its tokens, and the window that this step compresses or the next one."""
        picture = self.picture
        writes = np.flatnonzero(picture.writes)
        total = len(picture.lengths)
        special = [*writes[:2].tolist(), int(picture.lengths.argmax()) if total else 0, *writes[2:4].tolist()]
        chosen = pick(total, special)
        views = [_last_pages(picture, index) for index in chosen]
        tokens = max((last - first for first, last in views), default=1) * picture.page
        rows = [_sequence_row(picture, index, first, tokens) for index, (first, _) in zip(chosen, views, strict=True)]
        notes = []
        if len(chosen) < total:
            notes.append(f"Drawn are {len(chosen)} of {number(total)} sequences.")
        if any(first for first, _ in views):
            notes.append(f"Of longer sequences, the last pages are drawn (at most {_PAGES}).")
        if picture.table is not None or picture.owned is not None:
            notes.append("#n is where a page lies in the cache.")
        shown = legend(
            ("tokens", "tokens in pages"),
            ("window0", "window that is compressed"),
            ("next", "next window, not yet full"),
        )
        windows = f"windows of {count(picture.block, 'token')}, one every {number(picture.stride)}"
        return figure(
            f"Sequences in pages of {picture.page} tokens; {windows}", shown, row_list(rows), note=" ".join(notes)
        )

    def more(self) -> list[tuple[str, str]]:
        sequences = count(len(self.picture.lengths), "sequence")
        return [("write in this step", f"{number(int(self.picture.writes.sum()))} of {sequences}")]

    def row(self, index: int) -> tuple[str, ...]:
        picture, length = self.picture, int(self.picture.lengths[index])
        writes = bool(picture.writes[index])
        step = f"writes tokens {number(length - picture.block)} to {number(length - 1)}" if writes else "nothing"
        slot = NOTHING if picture.slots is None or not writes else str(int(picture.slots[index]))
        return number(index), number(length), step, slot, number(picture.next_write(length + writes))


def _last_pages(picture: Pages, index: int) -> tuple[int, int]:
    """The logical pages that a row shows: the last ones, with the window in sight."""
    length = int(picture.lengths[index])
    last = -(-max(length, picture.next_write(length)) // picture.page)
    fits = max(_PAGES, -(-picture.block // picture.page) + 1)
    return max(0, last - min(fits, 16)), last


def _sequence_row(picture: Pages, index: int, first_page: int, tokens: int) -> Html:
    length = int(picture.lengths[index])
    scale = Scale(first_page * picture.page, tokens)
    last_page = -(-max(length, picture.next_write(length)) // picture.page)
    parts = []
    for logical in range(first_page, last_page):
        start = logical * picture.page
        held = min(max(length - start, 0), picture.page)
        parts.append(scale.box("page", start, picture.page, 14, 20))
        if held:
            parts.append(scale.box("tokens", start, held, 14, 20))
        parts.append(tag("text", f"page {logical}", class_="axis", x=scale.x(start), dx=2, y=10))
        physical = picture.physical_page(index, logical) if held else None
        if physical is not None:
            parts.append(tag("text", f"#{physical}", class_="held", x=scale.x(start), dx=4, y=28))
    end = picture.next_write(length)
    kind = "window0" if end == length else "next"
    start = max(end - picture.block, scale.first)
    parts.append(scale.box(kind, start, end - start, 37, 9))
    label = _sequence_label(picture, index)
    name = tag("span", tag("b", f"sequence {number(index)}"), f" {label}", class_="label")
    return tag("li", name, svg(49, f"sequence {index}: {label}", *parts, tokens=tokens))


def _sequence_label(picture: Pages, index: int) -> str:
    length = int(picture.lengths[index])
    if not picture.writes[index]:
        missing = picture.next_write(length) - length
        return f"{count(length, 'token')}: writes nothing, the next window is full in {count(missing, 'token')}"
    slot = "its slot" if picture.slots is None else f"slot {int(picture.slots[index])}"
    return f"{count(length, 'token')}: tokens {number(length - picture.block)} to {number(length - 1)} go to {slot}"
