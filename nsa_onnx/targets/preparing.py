"""What making a model ready for a target has in common: the copy that is changed, and what there is to say about it."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from onnx import GraphProto, ModelProto, NodeProto

from ..analysis import Analysis, analyse
from ..graph.reading import UnreadableModelError, load
from ..graph.walk import subgraphs


class PrepareError(ValueError):
    """A target cannot take the model, and preparing does not help.

    Attributes:
        reasons: one line each, with node, argument, value, bound and the way out.
    """

    def __init__(self, reasons: Sequence[str]) -> None:
        super().__init__("\n".join(reasons))
        self.reasons = tuple(reasons)


@dataclass(frozen=True)
class PrepareResult:
    """A model that a target takes, as far as that is known.

    Attributes:
        model: the changed copy.
        changes: what was changed, one line each; empty if nothing had to be.
        notes: what may still stop it or matters on the device, one line each.
    """

    model: ModelProto
    changes: tuple[str, ...]
    notes: tuple[str, ...]


Prepare = Callable[..., PrepareResult]
"""``prepare(model, *, folder, ...)``: the model itself, and the folder of its external data."""


AnyWork = TypeVar("AnyWork", bound="Work")


@dataclass
class Work:
    """The copy that is being changed, and what there is to say about it."""

    model: ModelProto
    folder: Path | None
    changes: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    reasons: list[str] = field(default_factory=list)

    @classmethod
    def of(cls: type[AnyWork], model: str | os.PathLike[str] | ModelProto, folder: Path | None) -> AnyWork:
        """A copy of a model, or of the file at a path.

        Raises:
            UnreadableModelError: the file cannot be read, or the model holds text that is not UTF-8, or no graph.
        """
        if isinstance(model, ModelProto):
            copy = ModelProto()
            copy.CopyFrom(model)
        else:
            folder = Path(model).parent if folder is None else folder
            copy = load(Path(model))
        if not copy.HasField("graph"):
            raise UnreadableModelError("the model has no graph")
        if _holds_bad_text(copy):
            raise UnreadableModelError("the model holds text that is not UTF-8")
        return cls(copy, folder)

    def graphs(self) -> Iterator[GraphProto]:
        """The main graph, then all graphs within. Not those in functions."""
        pending = [self.model.graph]
        while pending:
            graph = pending.pop()
            yield graph
            for node in graph.node:
                pending.extend(subgraphs(node))

    def nodes(self) -> Iterator[NodeProto]:
        for graph in self.graphs():
            yield from graph.node

    def read(self) -> Analysis:
        """The copy as the checker sees it now."""
        return analyse(self.model, folder=self.folder)

    def changed(self, count: int, what: str) -> None:
        if count:
            self.changes.append(f"{what} ({count})")

    def stop_if_refused(self) -> None:
        if self.reasons:
            raise PrepareError(tuple(dict.fromkeys(self.reasons)))

    def result(self) -> PrepareResult:
        return PrepareResult(self.model, tuple(self.changes), tuple(dict.fromkeys(self.notes)))


class Prefixes:
    """Prefixes that no name in the model begins with."""

    def __init__(self, model: Analysis) -> None:
        self._taken: set[str] = set()
        for scope in model.scopes:
            names = {*scope.names, *scope.inputs, *scope.outputs}
            for node in scope.nodes:
                names.update((*node.output, *node.input, node.name))
            self._taken.update(found[1] for name in names if (found := _PREFIX.match(name)))
        self._number = 0

    def next(self) -> str:
        while str(self._number) in self._taken:
            self._number += 1
        self._number += 1
        return f"nsa_onnx_{self._number - 1}_"


_PREFIX = re.compile("nsa_onnx_([0-9]+)_")


def insert(nodes: Any, position: int, made: Sequence[NodeProto]) -> None:
    """Put nodes at a position of protobuf's container. Who inserts several times begins with the last position."""
    for offset, one in enumerate(made):
        nodes.insert(position + offset, one)


def label(node: NodeProto) -> str:
    """A node in a message."""
    return f"node {node.name or next(iter(node.output), '')!r} ({node.op_type})"


def _holds_bad_text(message: Any) -> bool:
    """Whether a string of the protobuf message, at any depth, is not UTF-8: protobuf then gives bytes."""
    for descriptor, value in message.ListFields():
        if descriptor.type not in (descriptor.TYPE_STRING, descriptor.TYPE_MESSAGE):
            continue
        single = isinstance(value, (str, bytes)) or hasattr(value, "ListFields")
        for one in [value] if single else value:
            if isinstance(one, bytes) or (hasattr(one, "ListFields") and _holds_bad_text(one)):
                return True
    return False
