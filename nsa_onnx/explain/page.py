"""The page: one HTML file without scripts, whose policy forbids it to load or send anything."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Hashable, Sequence
from importlib import resources
from pathlib import PurePath

from onnx import ModelProto

from ..analysis import Analysis
from ..checker import Finding, Report, Severity
from ..operators import OPERATORS
from ..operators.windows import BLOCK, STRIDE
from .facts import Place, Subject, places
from .fusable import fusable
from .layers import kind
from .markup import NOTHING, Html, brief, byte_size, code, count, join, number, plain, raw, tag
from .nodes import node_by_node
from .parts import MAX_SECTIONS, badges, crumbs, documentation, findings


def render(
    title: str,
    model: Analysis,
    report: Report,
    found: Sequence[Subject],
    others: Sequence[Finding],
) -> Html:
    """The whole page."""
    style = resources.files(__package__).joinpath("page.css").read_text("utf-8")
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'sha256-{digest}'; img-src data:; base-uri 'none'; form-action 'none'"
    main = tag(
        "main",
        _summary(report, found),
        _overview(report, found) if found else fusable(model),
        _general(others),
        _where(places(model, found)),
        node_by_node(found, len(report.nodes)) if found else None,
        _model(model.proto),
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
    body = tag("body", tag("a", "Skip to the content", class_="skip", href="#main"), _patterns(), header, main, footer)
    return join(raw("<!doctype html>\n"), tag("html", head, body, lang="en"), raw("\n"))


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
    exact = [(p, p.row_bytes) for s in found if (p := s.picture) is not None and p.exact and p.row_bytes]
    if exact and len(found) == len(report.nodes):
        tiles.append(("bytes before", byte_size(sum(picture.before * unit for picture, unit in exact)), ""))
        tiles.append(("bytes after", byte_size(sum(picture.after * unit for picture, unit in exact)), ""))
    return tag(
        "dl",
        *(tag("div", tag("dt", name), tag("dd", value, class_=kind or None)) for name, value, kind in tiles),
        class_="tiles",
    )


def _overview(report: Report, found: Sequence[Subject]) -> Html:
    kinds: dict[Hashable, list[Subject]] = {}
    for subject in found:
        kinds.setdefault(kind(subject), []).append(subject)
    more = len(report.nodes) - len(found)
    left_out = tag("p", f"{number(more)} more nodes are not listed.", class_="note") if more > 0 else None
    every = None
    if len(kinds) < len(found):
        summary = tag("summary", f"All {count(len(found), 'node')}, one by one")
        every = tag("details", summary, _table([_overview_row(subject) for subject in found]), class_="more")
    return tag(
        "section",
        tag("h2", "Overview", id="overview"),
        _table([_overview_row(first, len(others)) for first, *others in kinds.values()]),
        every,
        left_out,
        *_names_of_dims(found),
        aria_labelledby="overview",
    )


_COLUMNS = ("node", "window / stride", "before", "after", "ratio", "findings")


def _table(rows: Sequence[Html]) -> Html:
    head = tag("tr", *(tag("th", name, scope="col") for name in _COLUMNS))
    return tag("table", tag("thead", head), tag("tbody", *rows), class_="stack")


def _names_of_dims(found: Sequence[Subject]) -> list[Html]:
    """Of each operator that the model has: what its first input and output are, in the words of its documentation."""
    notes = []
    for operator in (
        OPERATORS[name] for name in dict.fromkeys(subject.op_type for subject in found) if name in OPERATORS
    ):
        first, made = operator.inputs[0], operator.outputs[0]
        reads, makes = (
            join(tag("b", first.name), " ", *code(first.text)),
            join(tag("b", made.name), " ", *code(made.text)),
        )
        notes.append(tag("p", f"{operator.op_type} reads ", reads, " It makes ", makes, class_="note"))
    return notes


def _overview_row(subject: Subject, alike: int = 0) -> Html:
    attributes, picture = dict(subject.attributes), subject.picture
    window = f"{attributes.get(BLOCK, '?')} / {attributes.get(STRIDE, '?')} tokens"
    operator = OPERATORS.get(subject.op_type)
    if operator is not None and BLOCK not in operator.attribute_names:
        window = NOTHING
    ratio = NOTHING if picture is None else picture.ratio or "nothing left"
    name: Html | str = brief(subject.name)
    if subject.index < MAX_SECTIONS:
        name = tag("a", name, href=f"#node-{subject.index}")
    cells = (
        (window, "num"),
        (subject.input_type, "type"),
        (subject.outputs[0].type if subject.outputs else "?", "type"),
        (ratio, "num"),
        (badges(subject.findings), None),
    )
    place = "" if subject.place == "graph" else f" in {crumbs(subject.place)}"
    more = tag("small", f"and {number(alike)} more like it") if alike else None
    first = tag("th", name, tag("small", f"{brief(subject.op_type)}{place}"), more, scope="row")
    labelled = zip(_COLUMNS[1:], cells, strict=True)
    return tag("tr", first, *(tag("td", value, data_label=label, class_=style) for label, (value, style) in labelled))


def _general(others: Sequence[Finding]) -> Html | None:
    if not others:
        return None
    return tag(
        "section",
        tag("h2", "Findings elsewhere in the model", id="general"),
        findings(others),
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
        name = tag("span", tag("b", crumbs(place.name)), tag("span", f" {label}", class_="quiet"), at, class_="label")
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


def _model(proto: ModelProto) -> Html:
    rows: list[tuple[str, str]] = [
        ("IR version", str(proto.ir_version)),
        ("producer", brief(f"{proto.producer_name} {proto.producer_version}".strip()) or NOTHING),
        ("graph", brief(proto.graph.name) or NOTHING),
        ("nodes", number(len(proto.graph.node))),
        ("functions", number(len(proto.functions))),
    ]
    opsets = ", ".join(f"{brief(e.domain, 60) or 'ai.onnx'} {e.version}" for e in proto.opset_import[:12])
    rows.append(("operator sets", opsets or NOTHING))
    facts = tag("dl", *(tag("div", tag("dt", name), tag("dd", value)) for name, value in rows), class_="facts")
    docs = [documentation(text) for text in (proto.doc_string, proto.graph.doc_string) if text]
    return tag("section", tag("h2", "The file", id="file"), facts, *docs, aria_labelledby="file")


def title_of(path: str) -> str:
    """The file's name, for the heading."""
    return brief(PurePath(path).name or path or "model") if path else "model"
