"""The page: one HTML file without scripts, whose policy forbids it to load or send anything."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import PurePath

from onnx import ModelProto

from ..checker import Finding, Report, Severity
from ..checker.rules import RULES
from .drawing import draw_decode, draw_prefill, next_write
from .facts import Decode, Edge, Neighbour, Place, Prefill, Subject
from .markup import Html, brief, byte_size, count, join, number, plain, raw, tag

# What fits a page that a browser opens at once. Beyond it, the page says what it leaves out.
MAX_SECTIONS = 200
MAX_PICTURE_BYTES = 4 * 2**20
MAX_FINDINGS = 20
MAX_NUMBERS = 100
_OPEN_SECTIONS = 6
_MAX_DOC = 2000
_NOTHING = "\u2013"  # a dash where there is no value


def render(
    title: str,
    proto: ModelProto,
    report: Report,
    found: Sequence[Subject],
    others: Sequence[Finding],
    where: list[Place],
) -> Html:
    """The whole page."""
    style = resources.files(__package__).joinpath("page.css").read_text("utf-8")
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'sha256-{digest}'; img-src data:; base-uri 'none'; form-action 'none'"
    pictures = _Pictures()
    shown = found[:MAX_SECTIONS]
    sections = [_section(subject, pictures, is_open=i < _OPEN_SECTIONS) for i, subject in enumerate(shown)]
    main = tag(
        "main",
        _summary(report, found),
        _overview(report, found),
        _general(others),
        _where(where),
        tag("section", tag("h2", "Node by node"), *sections, _left_out(report), aria_label="Node by node")
        if found
        else None,
        _model(proto),
        id="main",
        tabindex="-1",
    )
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=policy),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("meta", name="referrer", content="no-referrer"),
        tag("link", rel="icon", href="data:,"),  # or a browser would ask the server for one
        tag("title", f"NSA nodes of {title}"),
        tag("style", raw(style)),
    )
    header = tag(
        "header",
        tag("p", "nsa-onnx explain", class_="eyebrow"),
        tag("h1", title),
        tag("p", _verdict(report), class_="lead"),
    )
    footer = tag(
        "footer",
        tag("p", "One file, no scripts, nothing is loaded from elsewhere. Lengths and windows are drawn to scale."),
    )
    body = tag("body", tag("a", "Skip to the nodes", class_="skip", href="#main"), _patterns(), header, main, footer)
    return join(raw("<!doctype html>\n"), tag("html", head, body, lang="en"), raw("\n"))


@dataclass
class _Pictures:
    """Pictures drawn so far: one that was drawn before is shown again as long as the page stays small."""

    drawn: dict[str, tuple[int, str]] = field(default_factory=dict)
    made: dict[int, Html] = field(default_factory=dict)  # by plan, which nodes share
    size: int = 0

    def take(self, plan: Prefill | Decode, subject: Subject) -> Html:
        """The picture; folded if an earlier node has the same; a remark if the page has enough of them."""
        picture = self.made.get(id(plan))
        if picture is None:
            picture = self.made[id(plan)] = draw_prefill(plan) if isinstance(plan, Prefill) else draw_decode(plan)
        here = (subject.index, subject.name)
        first = self.drawn.setdefault(hashlib.sha256(picture.encode()).hexdigest(), here)
        fits = self.size + len(picture) <= MAX_PICTURE_BYTES
        self.size += len(picture) if fits else 0
        if first == here:
            return picture if fits else tag("p", "Not drawn, to keep the page small.", class_="note")
        if fits:
            return tag("details", tag("summary", f"The same picture as {brief(first[1])}"), picture, class_="more")
        return tag("p", "The same picture as ", tag("a", brief(first[1]), href=f"#node-{first[0]}"), class_="note")


def _patterns() -> Html:
    """Hatchings that the pictures refer to."""

    def hatch(name: str) -> Html:
        return tag(
            "pattern",
            tag("rect", width=6, height=6, class_=f"{name}-ground"),
            tag("line", x1=0, y1=0, x2=0, y2=6, class_=f"{name}-line"),
            id=name,
            width=6,
            height=6,
            patternUnits="userSpaceOnUse",
            patternTransform="rotate(45)",
        )

    return tag("svg", tag("defs", hatch("hatch-tail"), hatch("hatch-short")), class_="defs", aria_hidden="true")


def _verdict(report: Report) -> str:
    nodes = count(len(report.nodes), "NSA node")
    if report.ok:
        return f"{nodes}, no findings for target {report.target}."
    errors, warnings = (count(report.count(s), s.value) for s in (Severity.ERROR, Severity.WARNING))
    return f"{nodes}; {errors} and {warnings} for target {report.target}."


# --------------------------------------------------------------------------------------------------
# The model as a whole


def _summary(report: Report, found: Sequence[Subject]) -> Html:
    tiles: list[tuple[str, str, str]] = [("NSA nodes", number(len(report.nodes)), "")]
    for severity in Severity:
        here = report.count(severity)
        tiles.append((f"{severity.value}s", number(here), severity.value if here else "good"))
    exact = [s for s in found if isinstance(s.plan, Prefill) and not s.example and s.row_bytes]
    if exact and len(found) == len(report.nodes):
        before = sum(s.plan.total * (s.row_bytes or 0) for s in exact if isinstance(s.plan, Prefill))
        after = sum(s.plan.rows * (s.row_bytes or 0) for s in exact if isinstance(s.plan, Prefill))
        tiles.append(("bytes before", byte_size(before), ""))
        tiles.append(("bytes after", byte_size(after), ""))
    return tag(
        "dl",
        *(tag("div", tag("dt", name), tag("dd", value, class_=kind or None)) for name, value, kind in tiles),
        class_="tiles",
    )


def _overview(report: Report, found: Sequence[Subject]) -> Html:
    if not found:
        return tag("p", "The model has no node of domain nsa_onnx, so there is nothing to draw.", class_="empty")
    head = tag(
        "tr", *(tag("th", name, scope="col") for name in ("node", "window", "before", "after", "ratio", "findings"))
    )
    rows = [_overview_row(subject) for subject in found]
    more = len(report.nodes) - len(rows)
    note = tag("p", f"{number(more)} more nodes are not listed.", class_="note") if more > 0 else None
    table = tag("table", tag("thead", head), tag("tbody", *rows), class_="stack")
    return tag("section", tag("h2", "Overview", id="overview"), table, note, aria_labelledby="overview")


def _overview_row(subject: Subject) -> Html:
    attributes = dict(subject.attributes)
    window = f"{attributes.get('compress_block_size', '?')} / {attributes.get('compress_stride', '?')}"
    before, after = _input_type(subject), subject.output.type if subject.output else "?"
    ratio = _NOTHING
    if isinstance(subject.plan, Prefill) and not subject.example:
        ratio = f"{subject.plan.total / subject.plan.rows:.1f} : 1" if subject.plan.rows else "nothing left"
    elif subject.plan is not None:
        ratio = f"at least {number(subject.plan.stride)} : 1"  # the more, the shorter the segments
    name: Html | str = brief(subject.name)
    if subject.index < MAX_SECTIONS:
        name = tag("a", name, href=f"#node-{subject.index}")
    cells = (
        ("window", window, "num"),
        ("before", before, "type"),
        ("after", after, "type"),
        ("ratio", ratio, "num"),
        ("findings", _badges(subject.findings), None),
    )
    place = "" if subject.place == "graph" else f" in {_crumbs(subject.place)}"
    first = tag("th", name, tag("small", f"{brief(subject.op_type)}{place}"), scope="row")
    return tag("tr", first, *(tag("td", value, data_label=label, class_=kind) for label, value, kind in cells))


def _input_type(subject: Subject) -> str:
    return next((edge.type for edge in subject.inputs if edge.argument == "input"), "?")


def _badges(findings: Sequence[Finding]) -> Html:
    if not findings:
        return tag("span", "none", class_="badge good")
    parts = []
    for severity in Severity:
        here = sum(finding.severity is severity for finding in findings)
        if here:
            parts.append(tag("span", count(here, severity.value), class_=f"badge {severity.value}"))
    return join(*parts)


def _general(others: Sequence[Finding]) -> Html | None:
    if not others:
        return None
    return tag(
        "section",
        tag("h2", "Findings elsewhere in the model", id="general"),
        _findings(others),
        aria_labelledby="general",
    )


def _where(where: Sequence[Place]) -> Html | None:
    if not where:
        return None
    items = []
    for place in where[:50]:
        ours = place.nodes
        ticks = [
            tag("rect", class_="here", x=f"{plain(100 * p / max(place.total, 1))}%", y=2, width=5, height=14, rx=1)
            for p in dict.fromkeys(
                round(400 * position / max(place.total, 1)) * place.total / 400 for _, position in ours
            )
        ]
        label = f"{count(len(ours), 'NSA node')} among {count(place.total, 'node')}"
        if place.calls is not None:
            label += f", called in {count(place.calls, 'place')}"
        links = [
            tag("a", f"#{position}", href=f"#node-{index}") for index, position in ours[:8] if index < MAX_SECTIONS
        ]
        at = join(tag("span", " · at ", class_="quiet"), *_spaced(links)) if links else None
        drawing = tag(
            "svg", tag("rect", class_="strip", y=6, width="100%", height=6), *ticks, height=18, aria_hidden="true"
        )
        name = tag("span", tag("b", _crumbs(place.name)), tag("span", f" {label}", class_="quiet"), at, class_="label")
        items.append(tag("li", name, drawing))
    more = len(where) - len(items)
    note = tag("p", f"{number(more)} more graphs and functions hold NSA nodes.", class_="note") if more > 0 else None
    return tag(
        "section",
        tag("h2", "Where they are", id="where"),
        tag("p", "Each bar is one graph or function, its nodes from first to last.", class_="quiet"),
        tag("ul", *items, class_="rows"),
        note,
        aria_labelledby="where",
    )


def _spaced(links: Sequence[Html]) -> list[Html | str]:
    return [part for link in links for part in (link, " ")][:-1]


def _crumbs(place: str) -> str:
    return brief(place).replace(" > ", " \u203a ")


def _left_out(report: Report) -> Html | None:
    more = len(report.nodes) - MAX_SECTIONS
    if more <= 0:
        return None
    return tag("p", f"The other {number(more)} nodes are left out, to keep the page small.", class_="note")


def _model(proto: ModelProto) -> Html:
    rows: list[tuple[str, str]] = [
        ("IR version", str(proto.ir_version)),
        ("producer", brief(f"{proto.producer_name} {proto.producer_version}".strip()) or _NOTHING),
        ("graph", brief(proto.graph.name) or _NOTHING),
        ("nodes", number(len(proto.graph.node))),
        ("functions", number(len(proto.functions))),
    ]
    opsets = ", ".join(f"{brief(e.domain, 60) or 'ai.onnx'} {e.version}" for e in proto.opset_import[:12])
    rows.append(("operator sets", opsets or _NOTHING))
    facts = tag("dl", *(tag("div", tag("dt", name), tag("dd", value)) for name, value in rows), class_="facts")
    docs = [_doc(text) for text in (proto.doc_string, proto.graph.doc_string) if text]
    return tag("section", tag("h2", "The file", id="file"), facts, *docs, aria_labelledby="file")


def _doc(text: str) -> Html:
    return tag(
        "details",
        tag("summary", "Documentation in the file"),
        tag("p", brief(text, _MAX_DOC), class_="doc"),
        class_="more",
    )


# --------------------------------------------------------------------------------------------------
# One node


def _section(subject: Subject, pictures: _Pictures, is_open: bool) -> Html:
    ident = f"node-{subject.index}"
    heading = tag("h3", brief(subject.name))
    where = (
        f"{brief(subject.op_type)}, #{subject.position} of {count(subject.total, 'node')} in {_crumbs(subject.place)}"
    )
    sub = tag("span", where, class_="quiet")
    body = [
        _findings(subject.findings, named=False) if subject.findings else None,
        _neighbourhood(subject),
        _amounts(subject),
        _picture(subject, pictures),
        _numbers(subject),
        _doc(subject.doc) if subject.doc else None,
    ]
    # The target of links is inside: browsers open the details around a target, not a target that is one.
    return tag(
        "details",
        tag("summary", heading, sub, _badges(subject.findings) if subject.findings else None),
        tag("div", *body, id=ident, class_="body", role="group", aria_label=brief(subject.name)),
        class_="node",
        open=is_open or bool(subject.findings and subject.index < MAX_FINDINGS),
    )


def _findings(findings: Sequence[Finding], named: bool = True) -> Html:
    items = [_finding(finding, named) for finding in findings[:MAX_FINDINGS]]
    more = len(findings) - len(items)
    if more > 0:
        items.append(tag("li", f"{number(more)} more: nsa-onnx check lists them all.", class_="quiet"))
    return tag("ul", *items, class_="findings")


def _finding(finding: Finding, named: bool) -> Html:
    level = finding.severity.value
    subject = brief(" ".join(part for part in (finding.op_type, finding.node, finding.place) if part)) if named else ""
    known = RULES.get(finding.rule)
    meaning = None
    if known is not None:
        meaning = tag(
            "details",
            tag("summary", f"{finding.rule}: {known.title}"),
            tag("p", brief(" ".join(known.documentation.split()), _MAX_DOC)),
            class_="more",
        )
    return tag(
        "li",
        tag(
            "p",
            tag("span", level, class_=f"badge {level}"),
            " ",
            tag("code", brief(finding.rule)),
            tag("span", f" {subject}", class_="quiet"),
        ),
        tag("p", brief(finding.message, 600), class_="message"),
        tag("p", tag("b", "Way out: "), brief(finding.hint, 600)) if finding.hint else None,
        meaning,
        class_=level,
    )


def _neighbourhood(subject: Subject) -> Html:
    """Producers, the node, consumers: three columns, or one below the other on a small screen."""
    marked: dict[str, str] = {}
    for finding in reversed(subject.findings):  # the first finding of an argument is the one that marks it
        marked[finding.argument] = finding.severity.value
    sources = [tag("li", _edge(edge, marked), _ends(edge)) for edge in subject.inputs]
    out = subject.output
    sinks = (
        [tag("li", _edge(out, {out.argument: marked["output"]} if "output" in marked else marked), _ends(out))]
        if out
        else []
    )
    attributes = [
        tag("div", tag("dt", name), tag("dd", value, class_="wrong" if name in marked else None))
        for name, value in subject.attributes
    ]
    centre = tag("div", tag("b", brief(subject.op_type)), tag("dl", *attributes), class_="self")
    return tag(
        "div",
        tag("div", tag("h4", "Inputs, and where they come from"), tag("ul", *sources), class_="sources"),
        centre,
        tag("div", tag("h4", "Output, and who reads it"), tag("ul", *sinks), class_="sinks"),
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
        return join(name, tag("span", f" of {_crumbs(end.name)}", class_="quiet"))
    if end.kind != "node":
        outer = f" of {_crumbs(end.name)}" if end.name else ""
        return join(name, tag("span", f" {_KINDS[end.kind]}{outer}", class_="quiet"))
    label: Html = tag("span", brief(end.op_type, 60), class_="op")
    if end.nsa is not None and end.nsa < MAX_SECTIONS:
        label = tag("a", brief(end.op_type, 60), href=f"#node-{end.nsa}")
    chain = f" ← {' ← '.join(brief(op, 40) for op in end.chain)}" if end.chain else ""
    return join(label, " ", tag("code", brief(end.name, 80)), tag("span", chain, class_="quiet"))


def _amounts(subject: Subject) -> Html | None:
    """Shapes and bytes before and after, as numbers."""
    plan = subject.plan
    if plan is None:
        return None
    before, after = (plan.total, plan.rows) if isinstance(plan, Prefill) else _decoded(plan)
    unit = subject.row_bytes
    sizes = ("", "") if unit is None else (f", {byte_size(before * unit)}", f", {byte_size(after * unit)}")
    saved = ""
    if before and after:
        saved = f"{before / after:.1f} : 1, {100 * (1 - after / before):.1f} % saved"
    rest = "" if subject.example or not isinstance(plan, Prefill) else f", {number(int(plan.dropped.sum()))} dropped"
    example = subject.example
    labels = ("before", "after") if isinstance(plan, Prefill) else ("tokens cached", "windows cached by now")
    cells = [
        (labels[0], f"{count(before, 'token')}{sizes[0]}{rest}"),
        (labels[1], f"{count(after, 'row')}{sizes[1]}"),
        ("compression", saved or _NOTHING),
    ]
    if isinstance(plan, Decode):
        written = f"{number(int(plan.writes.sum()))} of {count(len(plan.lengths), 'sequence')}"
        cells.append(("write in this step", written))
    facts = tag("dl", *(tag("div", tag("dt", name), tag("dd", value)) for name, value in cells), class_="facts")
    return join(tag("p", example, class_="example") if example else None, facts)


def _decoded(plan: Decode) -> tuple[int, int]:
    return int(plan.lengths.sum()), int(plan.windows.sum())


def _picture(subject: Subject, pictures: _Pictures) -> Html:
    if subject.plan is None:
        values = None
        if subject.lengths is not None and subject.lengths.size:
            chips = [
                tag("li", number(value), class_="wrong" if i in subject.wrong_lengths else None)
                for i, value in enumerate(subject.lengths[:64].tolist())
            ]
            more = subject.lengths.size - len(chips)
            if more > 0:
                chips.append(tag("li", f"and {number(more)} more", class_="quiet"))
            values = join(tag("h4", "actual_seq_len"), tag("ol", *chips, class_="chips", start=0))
        return tag("div", tag("p", subject.undrawn, class_="note"), values)
    return pictures.take(subject.plan, subject)


def _numbers(subject: Subject) -> Html | None:
    plan = subject.plan
    if plan is None:
        return None
    shown = min(len(plan.lengths), MAX_NUMBERS)
    names: tuple[str, ...]
    rows: list[tuple[str, ...]]
    if isinstance(plan, Prefill):
        names = ("segment", "tokens", "length", "windows", "rows", "dropped")
        rows = [_segment_numbers(plan, index) for index in range(shown)]
    else:
        names = ("sequence", "length", "this step", "slot", "next at")
        rows = [_sequence_numbers(plan, index) for index in range(shown)]
    more = len(plan.lengths) - shown
    note = tag("p", f"and {number(more)} more", class_="note") if more > 0 else None
    head = tag("tr", *(tag("th", name, scope="col") for name in names))
    body = [
        tag(
            "tr",
            tag("th", row[0], scope="row"),
            *(tag("td", v, class_="num", data_label=n) for n, v in zip(names[1:], row[1:], strict=True)),
        )
        for row in rows
    ]
    table = tag("table", tag("thead", head), tag("tbody", *body), class_="stack numbers")
    return tag(
        "details",
        tag("summary", f"The same in numbers ({count(len(plan.lengths), names[0])})"),
        table,
        note,
        class_="more",
    )


def _segment_numbers(plan: Prefill, index: int) -> tuple[str, ...]:
    start, row = int(plan.starts[index]), int(plan.first_rows[index])
    length, windows, dropped = (int(a[index]) for a in (plan.lengths, plan.windows, plan.dropped))
    tokens = f"{number(start)} to {number(start + length - 1)}" if length else _NOTHING
    rows = f"{number(row)} to {number(row + windows - 1)}" if windows else _NOTHING
    return number(index), tokens, number(length), number(windows), rows, number(dropped)


def _sequence_numbers(plan: Decode, index: int) -> tuple[str, ...]:
    length = int(plan.lengths[index])
    writes = bool(plan.writes[index])
    step = f"writes tokens {number(length - plan.block)} to {number(length - 1)}" if writes else "nothing"
    slot = _NOTHING if plan.slots is None or not writes else str(int(plan.slots[index]))
    following = next_write(length + writes, plan.block, plan.stride)
    return number(index), number(length), step, slot, number(following)


def title_of(path: str) -> str:
    """The file's name, for the heading."""
    return brief(PurePath(path).name or path or "model") if path else "model"
