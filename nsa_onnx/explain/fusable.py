"""The part for a model without NSA nodes: what ``nsa-onnx fuse`` would find in its standard operators."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from ..analysis import Analysis
from ..recognise.search import Candidate
from .markup import NOTHING, Html, brief, code, count, join, number, tag
from .parts import crumbs

_MAX_CANDIDATES = 100
_LONGEST_PATH = 4096
_COLUMNS = ("value", "would be", "window / stride", "segments", "written as")


def fusable(model: Analysis) -> Html:
    """What would become NSA nodes, what only looks like one and why, and the command for the model's file."""
    found = model.candidates(allow_rounding=True)
    proven, left = [one for one in found if not one.reason], [one for one in found if one.reason]
    parts: list[Html | None] = [_verdict(proven, shlex.quote(brief(model.path or "model.onnx", _LONGEST_PATH)))]
    if proven:
        rows = [_row(one) for one in proven[:_MAX_CANDIDATES]]
        head = tag("tr", *(tag("th", name, scope="col") for name in _COLUMNS))
        parts += [tag("table", tag("thead", head), tag("tbody", *rows), class_="stack"), _beyond(proven)]
    if left:
        reasons = [
            tag("li", _place(one), tag("p", brief(one.reason, 600), class_="message")) for one in left[:_MAX_CANDIDATES]
        ]
        summary = tag("summary", f"{count(len(left), 'value')} left as is, and why")
        parts.append(
            tag(
                "details",
                summary,
                tag("ul", *reasons, class_="findings"),
                _beyond(left),
                class_="more",
                open=not proven,
            )
        )
    if not model.search().complete:
        parts.append(tag("p", "The model is too large to be looked at as a whole: there may be more.", class_="note"))
    return tag("section", tag("h2", "What nsa-onnx fuse would find", id="fuse"), *parts, aria_labelledby="fuse")


def _verdict(proven: Sequence[Candidate], file: str) -> Html:
    nothing = "The model has no node of domain nsa_onnx, so there is nothing to draw."
    if not proven:
        text = f"{nothing} `nsa-onnx fuse` would put none in: nothing in it is proven to be what such a node computes."
        return tag("p", *code(text), class_="lead")
    text = (
        f"{nothing} But {count(len(proven), 'value')} in it {'is' if len(proven) == 1 else 'are'} computed in standard "
        "operators, where an NSA node would do the same with less memory and time. This command puts it there:"
    )
    option = " --allow-rounding" if any(one.inexact for one in proven) else ""
    command = f"nsa-onnx fuse {f'./{file}' if file.startswith('-') else file} -o fused.onnx{option}"
    return join(tag("p", text, class_="lead"), tag("p", tag("code", command), class_="command"))


def _row(one: Candidate) -> Html:
    sizes = (one.compress_block_size, one.compress_stride)
    window = f"{number(sizes[0])} / {number(sizes[1])} tokens" if all(sizes) else NOTHING
    cells: tuple[tuple[Html | str, str | None], ...] = (
        (brief(one.op_type), None),
        (window, "num"),
        (brief(one.segments), None),
        (join(one.form, tag("small", f"needs --allow-rounding: {one.inexact}") if one.inexact else None), None),
    )
    labelled = zip(_COLUMNS[1:], cells, strict=True)
    return tag(
        "tr",
        tag("th", _place(one), scope="row"),
        *(tag("td", value, data_label=label, class_=style) for label, (value, style) in labelled),
    )


def _place(one: Candidate) -> Html:
    """The value, the node that makes it, and its graph if that is not the main one."""
    place = "" if one.place == "graph" else f" in {crumbs(one.place)}"
    made_by = f"made by {brief(one.name)}" if one.name != one.output else ""
    return join(tag("code", brief(one.output)), tag("small", f" {made_by}{place}") if made_by or place else None)


def _beyond(some: Sequence[Candidate]) -> Html | None:
    more = len(some) - _MAX_CANDIDATES
    return tag("p", f"and {number(more)} more", class_="note") if more > 0 else None
