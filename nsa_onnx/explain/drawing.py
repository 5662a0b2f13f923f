"""Pictures of segments, windows and pages, to scale, as SVG.

Horizontal positions are percentages of the picture's width: a picture fits every screen and its text keeps its size.
A picture holds at most some hundred shapes, whatever the model says. Beyond that it shows a summary, and its caption
says so.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from .facts import Decode, Prefill
from .markup import Html, count, join, number, plain, tag

# Shapes per picture. At 200 segments on a small screen, one is a pixel wide.
MAX_SEGMENTS = 200
# Rows of segments or sequences that are drawn one by one.
MAX_ROWS = 12
# Windows of one row; more would be narrower than the line between them.
MAX_WINDOWS = 160
# Above these many windows, the last ones are drawn again, larger.
_CLOSE_UP = 12
# Logical pages that a row of a decode step shows, the last ones.
_PAGES = 6
_BINS = 100
_LANE, _GAP, _BAR = 7, 2, 14


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


def _svg(height: float, label: str, *children: Html, tokens: int | None = None) -> Html:
    return tag("svg", *children, role="img", aria_label=label, height=float(height), data_tokens=tokens)


def _figure(caption: str, *children: Html, note: str = "") -> Html:
    notes = tag("p", note, class_="note") if note else None
    return tag("figure", tag("figcaption", caption), *children, notes)


def _legend(*entries: tuple[str, str]) -> Html:
    items = [
        tag("li", tag("svg", tag("rect", class_=kind, width=14, height=12), width=14, height=12, aria_hidden="true"), t)
        for kind, t in entries
    ]
    return tag("ul", *items, class_="legend")


def _rows(rows: Iterable[Html]) -> Html:
    return tag("ol", *rows, class_="rows")


def _chosen(total: int, special: Iterable[int]) -> list[int]:
    """All rows if they are few, else the first ones and the special ones."""
    if total <= MAX_ROWS:
        return list(range(total))
    first = list(range(MAX_ROWS - 4))
    others = [index for index in dict.fromkeys(special) if index >= len(first)][: MAX_ROWS - len(first)]
    return sorted(first + others)


# --------------------------------------------------------------------------------------------------
# Prefill


def draw_prefill(plan: Prefill) -> Html:
    """The whole batch before and after, then segments with their windows, then the last windows of one, enlarged."""
    parts = [_batch(plan), _segments(plan)]
    enlarged = _enlarged(plan)
    if enlarged is not None:
        parts.append(_windows_enlarged(plan, enlarged))
    return join(*parts)


def _batch(plan: Prefill) -> Html:
    """Input and output on one scale of tokens: what is left of the width is what is left of the memory."""
    scale = Scale(0, max(plan.total, plan.tokens, 1))
    few = len(plan.lengths) <= MAX_SEGMENTS
    before = _segment_boxes(plan, scale) if few else _bins(plan, scale)
    after = []
    if few:
        for index, (row, rows) in enumerate(zip(plan.first_rows.tolist(), plan.windows.tolist(), strict=True)):
            if rows:
                after.append(
                    scale.box(f"row{index % 2}", row, rows, 44, 22, f"{count(rows, 'row')} of segment {index}")
                )
    elif plan.rows:
        after.append(scale.box("row0", 0, plan.rows, 44, 22))
    missing = plan.tokens - plan.total
    if missing > 0:
        after.append(scale.box("wrong", plan.total, missing, 14, 22, f"{count(missing, 'token')} in no segment"))
    label = (
        f"{count(plan.total, 'token')} in {count(len(plan.lengths), 'segment')} become {count(plan.rows, 'row')}; "
        f"{count(int(plan.dropped.sum()), 'token')} dropped"
    )
    note = ""
    if not few:
        note = (
            f"{number(len(plan.lengths))} segments are too many to draw one by one: each of the {_BINS} columns sums "
            f"up {number(-(-scale.tokens // _BINS))} tokens, and its upper part is the share that is dropped."
        )
    drawing = _svg(
        90,
        label,
        join(*before),
        join(*after),
        tag("text", f"before: {count(plan.total, 'token')}", class_="axis", x=0, y=10),
        tag("text", f"after: {count(plan.rows, 'row')}", class_="axis", x=scale.x(plan.rows), dx=6, y=59),
        scale.ticks(68),
        tokens=scale.tokens,
    )
    return _figure("The whole batch, before and after, on one scale", drawing, note=note)


def _segment_boxes(plan: Prefill, scale: Scale) -> list[Html]:
    parts = []
    for index, start in enumerate(plan.starts.tolist()):
        length, dropped, windows = (int(a[index]) for a in (plan.lengths, plan.dropped, plan.windows))
        title = f"segment {index}: {count(length, 'token')}, {count(windows, 'window')}, {number(dropped)} dropped"
        if length > dropped:
            parts.append(scale.box(f"segment{index % 2}", start, length - dropped, 14, 22, title))
        if dropped:
            parts.append(scale.box("tail" if windows else "short", start + length - dropped, dropped, 14, 22, title))
    return parts


def _bins(plan: Prefill, scale: Scale) -> list[Html]:
    """Columns over equal shares of the tokens: below what windows cover, above what is dropped."""
    edges = np.linspace(0, plan.total, _BINS + 1)
    starts, covered = plan.starts, plan.lengths - plan.dropped
    before = np.concatenate(([0], np.cumsum(covered)))[:-1]
    at = np.clip(np.searchsorted(starts, edges, side="right") - 1, 0, len(starts) - 1)
    reached = before[at] + np.minimum(edges - starts[at], covered[at])
    width = plan.total / _BINS
    shares = np.clip(np.diff(reached) / width, 0, 1).tolist()
    parts = [scale.box("tail", 0, plan.total, 14, 22)]
    for index, share in enumerate(shares):
        if share:
            height = round(22 * share, 2)
            parts.append(scale.box(f"segment{index % 2}", index * width, width, 36 - height, height))
    return parts


def _segments(plan: Prefill) -> Html:
    lengths, dropped = plan.lengths, plan.dropped
    short = np.flatnonzero(plan.windows == 0)
    special = [int(lengths.argmax()), int(dropped.argmax()), *short[:1].tolist(), len(lengths) - 1]
    chosen = _chosen(len(lengths), special)
    scale = Scale(0, max(1, *(int(lengths[index]) for index in chosen)))
    rows = [_segment_row(plan, index, scale, last=index == chosen[-1]) for index in chosen]
    note = ""
    if len(chosen) < len(lengths):
        note = (
            f"Drawn are {len(chosen)} of {number(len(lengths))} segments: the first ones, the longest, the one with "
            "the longest tail, one without a window, the last."
        )
    legend = _legend(
        ("segment0", "tokens in windows"), ("window0", "window"), ("tail", "dropped tail"), ("short", "no window fits")
    )
    return _figure(f"Segments and their windows of {plan.block}, {plan.stride} apart", legend, _rows(rows), note=note)


def _lanes(block: int, stride: int) -> int:
    """Lanes in which windows do not overlap."""
    return min(8, -(-block // stride))


def _segment_row(plan: Prefill, index: int, scale: Scale, last: bool) -> Html:
    length, windows, dropped = (int(a[index]) for a in (plan.lengths, plan.windows, plan.dropped))
    label = f"{count(length, 'token')}, {count(windows, 'window')}"
    if not length:
        label += ", empty"
    elif not windows:
        label += f": shorter than {plan.block}, all dropped"
    elif dropped:
        label += f", {number(dropped)} dropped"
    parts = [scale.box("segment0", 0, length - dropped, 0, _BAR)] if windows else []
    if dropped:
        parts.append(scale.box("tail" if windows else "short", length - dropped, dropped, 0, _BAR))
    height = _BAR + 3
    lanes = min(windows, _lanes(plan.block, plan.stride))
    if windows <= MAX_WINDOWS and -(-plan.block // plan.stride) <= 8:
        for k in range(windows):
            y = height + k % lanes * (_LANE + _GAP)
            parts.append(scale.box(f"window{k % 2}", k * plan.stride, plan.block, y, _LANE))
        height += lanes * (_LANE + _GAP)
    else:
        parts.append(scale.box("band", 0, length - dropped, height, 2 * _LANE))
        height += 2 * _LANE + _GAP
        label += " (too many to draw apart)"
    if last:
        parts.append(scale.ticks(height))
        height += 20
    name = tag("span", tag("b", f"segment {number(index)}"), f" {label}", class_="label")
    return tag("li", name, _svg(height, f"segment {index}: {label}", *parts, tokens=scale.tokens))


def _enlarged(plan: Prefill) -> int | None:
    """The segment whose end is worth a closer look: one that is drawn too small, with a tail if there is one."""
    many = np.flatnonzero(plan.windows > _CLOSE_UP)
    if not many.size:
        return None
    tails = many[plan.dropped[many] > 0]
    return int((tails if tails.size else many)[0])


def _windows_enlarged(plan: Prefill, index: int) -> Html:
    length, windows, dropped = (int(a[index]) for a in (plan.lengths, plan.windows, plan.dropped))
    lanes = _lanes(plan.block, plan.stride)
    shown = min(windows, 5 if lanes > 1 else 3)
    first_window = windows - shown
    first = first_window * plan.stride
    scale = Scale(first, length - first)
    parts = [scale.box("segment0", first, length - dropped - first, 0, _BAR)]
    if dropped:
        parts.append(scale.box("tail", length - dropped, dropped, 0, _BAR))
    row = int(plan.first_rows[index])
    for k in range(first_window, windows):
        y = _BAR + 4 + (k - first_window) % lanes * 18
        parts.append(scale.box(f"window{k % 2}", k * plan.stride, plan.block, y, 16))
        parts.append(tag("text", f"row {row + k}", class_="inside", x=scale.x(k * plan.stride), dx=4, y=y + 12))
    y = _BAR + 4 + min(lanes, shown) * 18
    tail = f"{count(dropped, 'token')} after the last window dropped" if dropped else "no tail"
    label = f"the last {count(shown, 'window')} of segment {index}, with the output row that each becomes; {tail}"
    caption = f"Enlarged: the end of segment {number(index)}, in tokens of the segment"
    drawing = _svg(y + 20, label, *parts, scale.ticks(y), tokens=scale.tokens)
    return _figure(caption, drawing, tag("p", label[0].upper() + label[1:] + ".", class_="note"))


# --------------------------------------------------------------------------------------------------
# Decode


def draw_decode(plan: Decode) -> Html:
    """The last pages of each sequence, its tokens, and the window that this step compresses or the next one."""
    writes = np.flatnonzero(plan.writes)
    total = len(plan.lengths)
    special = [*writes[:2].tolist(), int(plan.lengths.argmax()) if total else 0, *writes[2:4].tolist()]
    chosen = _chosen(total, special)
    views = [_view(plan, index) for index in chosen]
    tokens = max((last - first for first, last in views), default=1) * plan.page
    rows = [_sequence_row(plan, index, first, tokens) for index, (first, _) in zip(chosen, views, strict=True)]
    notes = []
    if len(chosen) < total:
        notes.append(f"Drawn are {len(chosen)} of {number(total)} sequences.")
    if any(first for first, _ in views):
        notes.append(f"Of longer sequences, the last pages are drawn (at most {_PAGES}).")
    if plan.table is not None or plan.owned is not None:
        notes.append("#n is where a page lies in the cache.")
    legend = _legend(
        ("tokens", "tokens in pages"), ("window0", "window that is compressed"), ("next", "next window, not yet full")
    )
    caption = f"Sequences in pages of {plan.page} tokens; windows of {plan.block}, one every {plan.stride} tokens"
    return _figure(caption, legend, _rows(rows), note=" ".join(notes))


def next_write(length: int, block: int, stride: int) -> int:
    """The length at which a sequence next completes a window; its own if it does now."""
    return block if length < block else length + (block - length) % stride


def _view(plan: Decode, index: int) -> tuple[int, int]:
    """The logical pages that a row shows: the last ones, with the window in sight."""
    length = int(plan.lengths[index])
    last = -(-max(length, next_write(length, plan.block, plan.stride)) // plan.page)
    fits = max(_PAGES, -(-plan.block // plan.page) + 1)
    return max(0, last - min(fits, 16)), last


def _sequence_row(plan: Decode, index: int, first_page: int, tokens: int) -> Html:
    length = int(plan.lengths[index])
    scale = Scale(first_page * plan.page, tokens)
    last_page = -(-max(length, next_write(length, plan.block, plan.stride)) // plan.page)
    parts = []
    for logical in range(first_page, last_page):
        start = logical * plan.page
        held = min(max(length - start, 0), plan.page)
        parts.append(scale.box("page", start, plan.page, 14, 20))
        if held:
            parts.append(scale.box("tokens", start, held, 14, 20))
        parts.append(tag("text", f"page {logical}", class_="axis", x=scale.x(start), dx=2, y=10))
        physical = plan.physical_page(index, logical) if held else None
        if physical is not None:
            parts.append(tag("text", f"#{physical}", class_="held", x=scale.x(start), dx=4, y=28))
    end = next_write(length, plan.block, plan.stride)
    kind = "window0" if end == length else "next"
    start = max(end - plan.block, scale.first)
    parts.append(scale.box(kind, start, end - start, 37, 9))
    label = _sequence_label(plan, index)
    name = tag("span", tag("b", f"sequence {number(index)}"), f" {label}", class_="label")
    return tag("li", name, _svg(49, f"sequence {index}: {label}", *parts, tokens=tokens))


def _sequence_label(plan: Decode, index: int) -> str:
    length = int(plan.lengths[index])
    if not plan.writes[index]:
        missing = next_write(length, plan.block, plan.stride) - length
        return f"{count(length, 'token')}: writes nothing, the next window is full in {count(missing, 'token')}"
    slot = "its slot" if plan.slots is None else f"slot {int(plan.slots[index])}"
    return f"{count(length, 'token')}: tokens {number(length - plan.block)} to {number(length - 1)} go to {slot}"
