"""Which nodes belong together on the page: those of one layer, and those that are alike."""

from __future__ import annotations

import re
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

from .facts import Subject, comparable

# "model.layers.7" in "/model/layers.7/attn/compress" or "model.layers.7.attn.weight".
_LAYER = re.compile(r"[\w./]*?(?<![A-Za-z])(?:layers?[ ._/-]?|blocks?[./]|blk\.|h\.)\d+", re.ASCII | re.IGNORECASE)
# As much of a name is looked at.
_MAX_NAME = 200


@dataclass(frozen=True)
class Layer:
    """The nodes of one layer; a single node where its layer is not known.

    Attributes:
        name: as in the model, up to the layer's number; empty if it is not known.
    """

    name: str
    nodes: tuple[Subject, ...]


def layers(subjects: Sequence[Subject]) -> list[Layer]:
    """All nodes by layer, in the order of their first nodes."""
    grouped: dict[Hashable, list[Subject]] = {}
    for subject in subjects:
        grouped.setdefault((subject.place, layer_name(subject) or subject.index), []).append(subject)
    return [Layer(layer_name(nodes[0]), tuple(nodes)) for nodes in grouped.values()]


def layer_name(subject: Subject) -> str:
    """The layer that the node's own name tells, or the names of its constants or results; empty if none does."""
    constants = [edge.value for edge in subject.inputs if any(end.kind == "initializer" for end in edge.ends)]
    for name in (subject.name, *constants, *(edge.value for edge in subject.outputs)):
        found = _LAYER.search(name[:_MAX_NAME])
        if found:
            return found[0].strip("./")
    return ""


def alike(groups: Sequence[Layer]) -> list[tuple[Layer, list[Layer]]]:
    """The first layer of each kind, and the others of its kind."""
    kinds: dict[Hashable, list[Layer]] = {}
    for layer in groups:
        kinds.setdefault(tuple(kind(node) for node in layer.nodes), []).append(layer)
    return [(first, others) for first, *others in kinds.values()]


def kind(subject: Subject) -> Hashable:
    """Equal for nodes of which there is the same to tell. Names do not count, nor who makes and reads the values."""
    shown = subject.values
    return (
        subject.op_type,
        subject.attributes,
        tuple((edge.argument, edge.facts) for edge in (*subject.inputs, *subject.outputs)),
        tuple((finding.rule, finding.message) for finding in subject.findings),
        id(subject.picture),  # nodes share equal ones
        subject.undrawn,
        None if shown is None else (shown.argument, comparable(shown.values)),
    )
