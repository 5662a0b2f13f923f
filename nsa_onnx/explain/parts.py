"""What the page and the sections of its nodes have in common: findings, places, texts from the model."""

from __future__ import annotations

from collections.abc import Sequence

from ..checker import Finding, Severity
from ..checker.rules import RULES
from .markup import Html, brief, count, join, number, tag

# What fits a page that a browser opens at once. Beyond it, the page says what it leaves out.
MAX_SECTIONS = 200
MAX_FINDINGS = 20
_MAX_TEXT = 2000


def findings(found: Sequence[Finding], named: bool = True) -> Html:
    """A list, each with its rule and the way out; ``named`` says of which node it is."""
    items = [_finding(finding, named) for finding in found[:MAX_FINDINGS]]
    more = len(found) - len(items)
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
            tag("p", brief(" ".join(known.documentation.split()), _MAX_TEXT)),
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


def badges(found: Sequence[Finding]) -> Html:
    """How many findings there are, by severity."""
    if not found:
        return tag("span", "none", class_="badge good")
    parts = []
    for severity in Severity:
        here = sum(finding.severity is severity for finding in found)
        if here:
            parts.append(tag("span", count(here, severity.value), class_=f"badge {severity.value}"))
    return join(*parts)


def crumbs(place: str) -> str:
    """A place, from the outermost graph to the innermost."""
    return brief(place).replace(" > ", " \u203a ")


def documentation(text: str) -> Html:
    """What a model, graph or node says of itself, folded."""
    return tag(
        "details",
        tag("summary", "Documentation in the file"),
        tag("p", brief(text, _MAX_TEXT), class_="doc"),
        class_="more",
    )
