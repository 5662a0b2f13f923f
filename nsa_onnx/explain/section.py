"""One node's section of the page: its findings, neighbours and picture, and the same in numbers."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..operators.pictures import Attended, Pages, Picture, Segments, Values
from .attended import AttendedView
from .facts import Subject
from .markup import Html, brief, count, join, number, tag
from .neighbours import Edge, Neighbour
from .pages import PagesView
from .parts import MAX_SECTIONS, badges, crumbs, documentation, findings
from .segments import SegmentsView
from .view import View

# Of all pictures of a page together.
MAX_PICTURE_BYTES = 4 * 2**20
MAX_NUMBERS = 100
_MAX_VALUES = 64

VIEWS: Mapping[type[Picture], type[View[Any]]] = {
    Segments: SegmentsView,
    Pages: PagesView,
    Attended: AttendedView,
}
"""How each kind of picture is shown."""


def view_of(picture: Picture) -> View[Any]:
    return VIEWS[type(picture)](picture)


@dataclass
class Pictures:
    """Pictures drawn so far: one that was drawn before is shown again as long as the page stays small."""

    drawn: dict[str, tuple[int, str]] = field(default_factory=dict)
    made: dict[int, Html] = field(default_factory=dict)  # by the data, which nodes share
    size: int = 0

    def take(self, of: Picture, subject: Subject) -> Html:
        """The picture; folded if an earlier node has the same; a remark if the page has enough of them."""
        picture = self.made.get(id(of))
        if picture is None:
            picture = self.made[id(of)] = view_of(of).draw()
        here = (subject.index, subject.name)
        first = self.drawn.setdefault(hashlib.sha256(picture.encode()).hexdigest(), here)
        fits = self.size + len(picture) <= MAX_PICTURE_BYTES
        self.size += len(picture) if fits else 0
        if first == here:
            return picture if fits else tag("p", "Not drawn, to keep the page small.", class_="note")
        if fits:
            return tag("details", tag("summary", f"The same picture as {brief(first[1])}"), picture, class_="more")
        return tag("p", "The same picture as ", tag("a", brief(first[1]), href=f"#node-{first[0]}"), class_="note")


def section(subject: Subject, pictures: Pictures, level: int, *, is_open: bool, like: str = "") -> Html:
    """One node: findings, neighbours, amounts, picture and numbers.

    Args:
        level: of its heading.
        like: the name of an earlier node of which there is the same to tell.
    """
    ident = f"node-{subject.index}"
    heading = tag(f"h{level}", brief(subject.name))
    where = (
        f"{brief(subject.op_type)}, #{subject.position} of {count(subject.total, 'node')} in {crumbs(subject.place)}"
    )
    sub = tag("span", f"{where}, like {brief(like)}" if like else where, class_="quiet")
    body = [
        findings(subject.findings, named=False) if subject.findings else None,
        _neighbourhood(subject, level + 1),
        _amounts(subject),
        _picture(subject, pictures, level + 1),
        _numbers(subject),
        documentation(subject.doc) if subject.doc else None,
    ]
    # The target of links is inside: browsers open the details around a target, not a target that is one.
    return tag(
        "details",
        tag("summary", heading, sub, badges(subject.findings) if subject.findings else None),
        tag("div", *body, id=ident, class_="body", role="group", aria_label=brief(subject.name)),
        class_="node",
        open=is_open,
    )


def _neighbourhood(subject: Subject, level: int) -> Html:
    """Producers, the node, consumers: three columns, or one below the other on a small screen."""
    marked: dict[str, str] = {}
    for finding in reversed(subject.findings):  # the first finding of an argument is the one that marks it
        marked[finding.argument] = finding.severity.value
    sources = [tag("li", _edge(edge, marked), _ends(edge)) for edge in subject.inputs]
    if "output" in marked:  # what a finding calls an output, whatever its name
        marked |= {edge.argument: marked["output"] for edge in subject.outputs}
    sinks = [tag("li", _edge(edge, marked), _ends(edge)) for edge in subject.outputs]
    attributes = [
        tag("div", tag("dt", name), tag("dd", value, class_="wrong" if name in marked else None))
        for name, value in subject.attributes
    ]
    centre = tag("div", tag("b", brief(subject.op_type)), tag("dl", *attributes), class_="self")
    return tag(
        "div",
        tag("div", tag(f"h{level}", "Inputs, and where they come from"), tag("ul", *sources), class_="sources"),
        centre,
        tag("div", tag(f"h{level}", "Output, and who reads it"), tag("ul", *sinks), class_="sinks"),
        class_="graph",
    )


def _edge(edge: Edge, marked: Mapping[str, str]) -> Html:
    level = marked.get(edge.argument)
    flag = tag("span", "see finding", class_=f"badge {level}") if level else None
    return tag("p", tag("b", brief(edge.argument)), " ", flag, tag("span", edge.type, class_="type"), class_="edge")


def _ends(edge: Edge) -> Html:
    parts = [tag("p", _end(end, edge.value), class_="end") for end in edge.ends]
    if not edge.ends:
        parts.append(tag("p", "read by nobody", class_="end quiet"))
    if edge.more > 0:
        parts.append(tag("p", f"and {number(edge.more)} more", class_="end quiet"))
    return join(*parts)


_KINDS = {
    "input": "input of the graph",
    "initializer": "constant of the model",
    "constant": "constant node",
    "output": "output of the graph",
    "missing": "nowhere: no such value",
}


def _end(end: Neighbour, value: str) -> Html:
    name = tag("code", brief(value, 80))
    if end.kind == "outer":
        return join(name, tag("span", f" of {crumbs(end.name)}", class_="quiet"))
    if end.kind != "node":
        outer = f" of {crumbs(end.name)}" if end.name else ""
        return join(name, tag("span", f" {_KINDS[end.kind]}{outer}", class_="quiet"))
    label: Html = tag("span", brief(end.op_type, 60), class_="op")
    if end.nsa is not None and end.nsa < MAX_SECTIONS:
        label = tag("a", brief(end.op_type, 60), href=f"#node-{end.nsa}")
    chain = f" ← {' ← '.join(brief(op, 40) for op in end.chain)}" if end.chain else ""
    return join(label, " ", tag("code", brief(end.name, 80)), tag("span", chain, class_="quiet"))


def _amounts(subject: Subject) -> Html | None:
    """Shapes and bytes before and after, as numbers."""
    if subject.picture is None:
        return None
    cells = view_of(subject.picture).amounts()
    facts = tag("dl", *(tag("div", tag("dt", name), tag("dd", value)) for name, value in cells), class_="facts")
    example = subject.picture.example
    return join(tag("p", example, class_="example") if example else None, facts)


def _picture(subject: Subject, pictures: Pictures, level: int) -> Html:
    if subject.picture is not None:
        return pictures.take(subject.picture, subject)
    shown = subject.values
    values = _values(shown, level) if shown is not None and shown.values.size else None
    return tag("div", tag("p", subject.undrawn, class_="note"), values)


def _values(shown: Values, level: int) -> Html:
    chips = [
        tag("li", number(value), class_="wrong" if i in shown.wrong else None)
        for i, value in enumerate(shown.values[:_MAX_VALUES].tolist())
    ]
    more = shown.values.size - len(chips)
    if more > 0:
        chips.append(tag("li", f"and {number(more)} more", class_="quiet"))
    return join(tag(f"h{level}", shown.argument), tag("ol", *chips, class_="chips", start=0))


def _numbers(subject: Subject) -> Html | None:
    if subject.picture is None:
        return None
    view, total = view_of(subject.picture), len(subject.picture.lengths)
    rows = [view.row(index) for index in range(min(total, MAX_NUMBERS))]
    note = tag("p", f"and {number(total - len(rows))} more", class_="note") if total > len(rows) else None
    head = tag("tr", *(tag("th", name, scope="col") for name in view.columns))
    body = [
        tag(
            "tr",
            tag("th", row[0], scope="row"),
            *(tag("td", v, class_="num", data_label=n) for n, v in zip(view.columns[1:], row[1:], strict=True)),
        )
        for row in rows
    ]
    table = tag("table", tag("thead", head), tag("tbody", *body), class_="stack numbers")
    return tag(
        "details", tag("summary", f"The same in numbers ({count(total, view.noun)})"), table, note, class_="more"
    )
