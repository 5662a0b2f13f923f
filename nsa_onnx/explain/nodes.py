"""The part "Node by node": a section for each node, those of a layer together, one example of each kind open."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field

from .facts import Subject
from .layers import Layer, alike, kind, layers
from .markup import Html, brief, count, join, number, tag
from .parts import MAX_FINDINGS, MAX_SECTIONS, badges
from .section import Pictures, section

# Kinds of nodes of which an example is open, and names that a fold tells.
_OPEN_KINDS = 6
_MAX_NAMES = 3


def node_by_node(found: Sequence[Subject], total: int) -> Html:
    """The sections of the nodes that were found, of a ``total`` in the model."""
    sections, parts = _Sections(), list[Html]()
    for first, others in alike(layers(found[:MAX_SECTIONS])):
        parts.append(sections.layer(first))
        if others:
            parts.append(sections.fold(others))
    more = total - MAX_SECTIONS
    if more > 0:
        parts.append(tag("p", f"The other {number(more)} nodes are left out, to keep the page small.", class_="note"))
    return tag("section", tag("h2", "Node by node", id="nodes"), *parts, aria_labelledby="nodes")


@dataclass
class _Sections:
    """Makes the sections; knows which pictures and kinds of nodes there have been."""

    pictures: Pictures = field(default_factory=Pictures)
    seen: dict[Hashable, Subject] = field(default_factory=dict)

    def layer(self, layer: Layer, *, folded: bool = False) -> Html:
        """The sections of its nodes, below its name if there are several."""
        if not _has_heading(layer):
            return join(*(self._node(node, 3, folded) for node in layer.nodes))
        nodes = [self._node(node, 4, folded) for node in layer.nodes]
        return tag("div", tag("h3", brief(layer.name)), *nodes, class_="layer")

    def fold(self, others: Sequence[Layer]) -> Html:
        """Layers of which there is nothing new to tell, closed."""
        named = _has_heading(others[0])
        what = f"{count(len(others), 'more layer')} like this" if named else f"{number(len(others))} more like this"
        names = [brief(layer.name or layer.nodes[0].name, 60) for layer in others]
        if len(names) > _MAX_NAMES + 1:
            names[_MAX_NAMES:-1] = ["\u2026"]
        findings = [finding for layer in others for node in layer.nodes for finding in node.findings]
        summary = tag(
            "summary", what, tag("span", ", ".join(names), class_="quiet"), badges(findings) if findings else None
        )
        return tag("details", summary, *(self.layer(layer, folded=True) for layer in others), class_="alike")

    def _node(self, node: Subject, level: int, folded: bool) -> Html:
        first = self.seen.setdefault(kind(node), node)
        is_open = first is node and len(self.seen) <= (MAX_FINDINGS if node.findings else _OPEN_KINDS)
        like = "" if folded or first is node else first.name
        return section(node, self.pictures, level, is_open=is_open, like=like)


def _has_heading(layer: Layer) -> bool:
    return len(layer.nodes) > 1 and bool(layer.name)
