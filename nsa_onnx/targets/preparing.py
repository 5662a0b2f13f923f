"""What ``prepare`` does for every target: the copy that is changed, and the list of changes."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar

from onnx import GraphProto, ModelProto, NodeProto

from ..analysis import Analysis, analyse
from ..graph.reading import UnreadableModelError, load
from ..graph.walk import nodes_below, with_subgraphs
from .base import Limits, lacks

ELSEWHERE = "serve the model on the CPU"
"""What to do about an operator that a target does not have."""


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
        work = cls(copy, folder)
        try:
            work._join_names()
        except TypeError as error:  # protobuf gives bytes for names that are not UTF-8
            raise UnreadableModelError("the model holds text that is not UTF-8") from error
        return work

    def _join_names(self) -> None:
        """TypeError if one of the names that preparing reads is not text: join is the fastest way to ask all."""
        for owner in (self.model, *self.model.functions):
            "".join(entry.domain for entry in owner.opset_import)
        nodes = chain(self.nodes(), *(nodes_below(function.node) for function in self.model.functions))
        for node in nodes:
            "".join((node.name, node.domain, node.op_type, *node.input, *node.output))
        for function in self.model.functions:
            "".join((function.domain, function.name, *function.input, *function.output, *function.attribute))
        for graph in self.graphs:
            "".join(value.name for value in (*graph.input, *graph.output, *graph.initializer, *graph.value_info))

    @cached_property
    def graphs(self) -> list[GraphProto]:
        """The main graph, then all graphs within. Not those in functions."""
        return with_subgraphs(self.model.graph)

    def replace_model(self, model: ModelProto) -> None:
        """Go on with another model."""
        self.model.CopyFrom(model)
        self.__dict__.pop("graphs", None)

    def nodes(self) -> Iterator[NodeProto]:
        for graph in self.graphs:
            yield from graph.node

    def read(self, limits: Limits, missing: Mapping[str, str] | None = None) -> Analysis:
        """The copy as the checker sees it now. An operator that a target with such limits does not have is a reason."""
        seen = analyse(self.model, folder=self.folder)
        for node in seen.nodes:
            if node.facts is not None and (problem := lacks(limits, node.op_type, missing or {})):
                self.reasons.append(f"{label(node.proto)}: {problem}: {ELSEWHERE}")
        return seen

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
        self._model = model
        self._number = 0

    @cached_property
    def _taken(self) -> set[str]:
        names: set[str] = set()
        for scope in self._model.scopes:
            names.update(scope.names, scope.inputs, scope.outputs)
            for step in scope.steps:
                names.update(step.inputs, step.outputs, (step.node.name,))
        return {found[1] for name in names if (found := _PREFIX.match(name))}

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
