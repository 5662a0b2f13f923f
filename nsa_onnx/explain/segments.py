"""How segments are shown: the batch before and after, windows where they are, tails that are dropped."""

from __future__ import annotations

import numpy as np

from ..operators.pictures import Segments
from .drawing import Scale, figure, legend, pick, row_list, svg
from .markup import NOTHING, Html, count, join, number, tag
from .view import View

# Shapes per picture. At 200 segments on a small screen, one is a pixel wide.
MAX_SEGMENTS = 200
# Windows of one row; more would be narrower than the line between them.
MAX_WINDOWS = 160
# Above these many windows, the last ones are drawn again, larger.
_CLOSE_UP = 12
_BINS = 100
_LANE, _GAP, _BAR = 7, 2, 14


class SegmentsView(View[Segments]):
    """A batch that is compressed whole."""

    noun = "segment"
    columns = ("segment", "tokens", "length", "windows", "rows", "dropped")
    labels = ("before", "after")

    def draw(self) -> Html:
        """The whole batch before and after, segments with their windows, and the last windows of one, enlarged."""
        parts = [_batch(self.picture), _segments(self.picture)]
        enlarged = _enlarged(self.picture)
        if enlarged is not None:
            parts.append(_windows_enlarged(self.picture, enlarged))
        return join(*parts)

    def remark(self) -> str:
        return f", {number(int(self.picture.dropped.sum()))} dropped" if self.picture.exact else ""

    def row(self, index: int) -> tuple[str, ...]:
        start, row = int(self.picture.starts[index]), int(self.picture.first_rows[index])
        length, windows, dropped = _segment(self.picture, index)
        tokens = f"{number(start)} to {number(start + length - 1)}" if length else NOTHING
        rows = f"{number(row)} to {number(row + windows - 1)}" if windows else NOTHING
        return number(index), tokens, number(length), number(windows), rows, number(dropped)


def _segment(picture: Segments, index: int) -> tuple[int, int, int]:
    """Its length, windows, and tokens that are dropped."""
    return int(picture.lengths[index]), int(picture.windows[index]), int(picture.dropped[index])


def _batch(picture: Segments) -> Html:
    """Input and output on one scale of tokens: what is left of the width is what is left of the memory."""
    scale = Scale(0, max(picture.before, picture.tokens, 1))
    few = len(picture.lengths) <= MAX_SEGMENTS
    before = _segment_boxes(picture, scale) if few else _bins(picture, scale)
    after = []
    if few:
        for index, (row, rows) in enumerate(zip(picture.first_rows.tolist(), picture.windows.tolist(), strict=True)):
            if rows:
                after.append(
                    scale.box(f"row{index % 2}", row, rows, 44, 22, f"{count(rows, 'row')} of segment {index}")
                )
    elif picture.after:
        after.append(scale.box("row0", 0, picture.after, 44, 22))
    missing = picture.tokens - picture.before
    if missing > 0:
        after.append(scale.box("wrong", picture.before, missing, 14, 22, f"{count(missing, 'token')} in no segment"))
    label = (
        f"{count(picture.before, 'token')} in {count(len(picture.lengths), 'segment')} become "
        f"{count(picture.after, 'row')}; {count(int(picture.dropped.sum()), 'token')} dropped"
    )
    note = ""
    if not few:
        note = (
            f"{number(len(picture.lengths))} segments are too many to draw one by one: each of the {_BINS} columns "
            f"sums up {number(-(-scale.tokens // _BINS))} tokens, and its upper part is the share that is dropped."
        )
    drawing = svg(
        90,
        label,
        join(*before),
        join(*after),
        tag("text", f"before: {count(picture.before, 'token')}", class_="axis", x=0, y=10),
        tag("text", f"after: {count(picture.after, 'row')}", class_="axis", x=scale.x(picture.after), dx=6, y=59),
        scale.ticks(68),
        tokens=scale.tokens,
    )
    return figure("The whole batch, before and after, on one scale", drawing, note=note)


def _segment_boxes(picture: Segments, scale: Scale) -> list[Html]:
    parts = []
    for index, start in enumerate(picture.starts.tolist()):
        length, windows, dropped = _segment(picture, index)
        title = f"segment {index}: {count(length, 'token')}, {count(windows, 'window')}, {number(dropped)} dropped"
        if length > dropped:
            parts.append(scale.box(f"segment{index % 2}", start, length - dropped, 14, 22, title))
        if dropped:
            parts.append(scale.box("tail" if windows else "short", start + length - dropped, dropped, 14, 22, title))
    return parts


def _bins(picture: Segments, scale: Scale) -> list[Html]:
    """Columns over equal shares of the tokens: below what windows cover, above what is dropped."""
    edges = np.linspace(0, picture.before, _BINS + 1)
    starts, covered = picture.starts, picture.lengths - picture.dropped
    before = np.concatenate(([0], np.cumsum(covered)))[:-1]
    at = np.clip(np.searchsorted(starts, edges, side="right") - 1, 0, len(starts) - 1)
    reached = before[at] + np.minimum(edges - starts[at], covered[at])
    width = picture.before / _BINS
    shares = np.clip(np.diff(reached) / width, 0, 1).tolist()
    parts = [scale.box("tail", 0, picture.before, 14, 22)]
    for index, share in enumerate(shares):
        if share:
            height = round(22 * share, 2)
            parts.append(scale.box(f"segment{index % 2}", index * width, width, 36 - height, height))
    return parts


def _segments(picture: Segments) -> Html:
    lengths, dropped = picture.lengths, picture.dropped
    short = np.flatnonzero(picture.windows == 0)
    special = [int(lengths.argmax()), int(dropped.argmax()), *short[:1].tolist(), len(lengths) - 1]
    chosen = pick(len(lengths), special)
    scale = Scale(0, max(1, *(int(lengths[index]) for index in chosen)))
    rows = [_segment_row(picture, index, scale, last=index == chosen[-1]) for index in chosen]
    note = ""
    if len(chosen) < len(lengths):
        note = (
            f"Drawn are {len(chosen)} of {number(len(lengths))} segments: the first ones, the longest, the one with "
            "the longest tail, one without a window, the last."
        )
    shown = legend(
        ("segment0", "tokens in windows"), ("window0", "window"), ("tail", "dropped tail"), ("short", "no window fits")
    )
    return figure(
        f"Segments and their windows of {count(picture.block, 'token')}, {number(picture.stride)} apart",
        shown,
        row_list(rows),
        note=note,
    )


def _lanes(block: int, stride: int) -> int:
    """Lanes in which windows do not overlap."""
    return min(8, -(-block // stride))


def _segment_row(picture: Segments, index: int, scale: Scale, last: bool) -> Html:
    length, windows, dropped = _segment(picture, index)
    label = f"{count(length, 'token')}, {count(windows, 'window')}"
    if not length:
        label += ", empty"
    elif not windows:
        label += f": shorter than {picture.block}, all dropped"
    elif dropped:
        label += f", {number(dropped)} dropped"
    parts = [scale.box("segment0", 0, length - dropped, 0, _BAR)] if windows else []
    if dropped:
        parts.append(scale.box("tail" if windows else "short", length - dropped, dropped, 0, _BAR))
    height = _BAR + 3
    lanes = min(windows, _lanes(picture.block, picture.stride))
    if windows <= MAX_WINDOWS and -(-picture.block // picture.stride) <= 8:
        for k in range(windows):
            y = height + k % lanes * (_LANE + _GAP)
            parts.append(scale.box(f"window{k % 2}", k * picture.stride, picture.block, y, _LANE))
        height += lanes * (_LANE + _GAP)
    else:
        parts.append(scale.box("band", 0, length - dropped, height, 2 * _LANE))
        height += 2 * _LANE + _GAP
        label += " (too many to draw apart)"
    if last:
        parts.append(scale.ticks(height))
        height += 20
    name = tag("span", tag("b", f"segment {number(index)}"), f" {label}", class_="label")
    return tag("li", name, svg(height, f"segment {index}: {label}", *parts, tokens=scale.tokens))


def _enlarged(picture: Segments) -> int | None:
    """The segment whose end is worth a closer look: one that is drawn too small, with a tail if there is one."""
    many = np.flatnonzero(picture.windows > _CLOSE_UP)
    if not many.size:
        return None
    tails = many[picture.dropped[many] > 0]
    return int((tails if tails.size else many)[0])


def _windows_enlarged(picture: Segments, index: int) -> Html:
    length, windows, dropped = _segment(picture, index)
    lanes = _lanes(picture.block, picture.stride)
    shown = min(windows, 5 if lanes > 1 else 3)
    first_window = windows - shown
    first = first_window * picture.stride
    scale = Scale(first, length - first)
    parts = [scale.box("segment0", first, length - dropped - first, 0, _BAR)]
    if dropped:
        parts.append(scale.box("tail", length - dropped, dropped, 0, _BAR))
    row = int(picture.first_rows[index])
    for k in range(first_window, windows):
        y = _BAR + 4 + (k - first_window) % lanes * 18
        parts.append(scale.box(f"window{k % 2}", k * picture.stride, picture.block, y, 16))
        parts.append(tag("text", f"row {row + k}", class_="inside", x=scale.x(k * picture.stride), dx=4, y=y + 12))
    y = _BAR + 4 + min(lanes, shown) * 18
    tail = f"{count(dropped, 'token')} after the last window dropped" if dropped else "no tail"
    label = f"the last {count(shown, 'window')} of segment {index}, with the output row that each becomes; {tail}"
    caption = f"Enlarged: the end of segment {number(index)}, in tokens of the segment"
    drawing = svg(y + 20, label, *parts, scale.ticks(y), tokens=scale.tokens)
    return figure(caption, drawing, tag("p", label[0].upper() + label[1:] + ".", class_="note"))
