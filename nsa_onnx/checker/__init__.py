"""Checks a model with NSA nodes before it is run: `check` takes a model and returns a `Report`.

The rules are in `rules`, the report in `report`, its output formats in `formats`. `nsa_onnx.analysis` reads the model.
"""

from __future__ import annotations

import os
from collections.abc import Collection
from dataclasses import replace

from ..analysis import Analysis, Source, analyse
from ..graph.reading import UnreadableModelError
from ..rulebook.finding import Finding, Severity
from . import rules
from .report import NodeRun, Report
from .rules import RULES, TARGETS, Rule
from .rules.running import too_few
from .run import RunUnavailableError, run_nodes

__all__ = [
    "RULES",
    "TARGETS",
    "Finding",
    "NodeRun",
    "Report",
    "Rule",
    "RunUnavailableError",
    "Severity",
    "UnreadableModelError",
    "check",
]


def check(
    model: Source,
    *,
    target: str = "cpu",
    run: bool = False,
    ignore: Collection[str] = (),
    folder: str | os.PathLike[str] | None = None,
    min_nodes: int = 0,
) -> Report:
    """Look for everything that is wrong with a model's NSA nodes. Weights are not loaded.

    Args:
        model: path of an ONNX file, the model itself, or its analysis.
        target: what the model is meant for; one of `TARGETS`.
        run: also run each NSA node in onnxruntime, on generated input, and compare it with a float64 reference.
        ignore: ids of rules whose findings are left out.
        folder: of the external data, where exporters put index constants; the file's own for a path. Without it, none
            is read.
        min_nodes: NSA nodes that the model must have at least. Tools lose them without a word.

    Raises:
        UnreadableModelError: (a ValueError) the file cannot be read as a model.
        ValueError: the target or a rule is unknown.
        RunUnavailableError: (a RuntimeError) nodes were to be run, and onnxruntime or our library is missing.
    """
    if unknown := [one for one in ignore if one not in RULES]:
        raise ValueError(f"ignore must hold ids of rules, got {unknown[0]!r}")
    seen, report = examine(model, target=target, run=run, folder=folder)
    findings = (*report.findings, *too_few(seen, min_nodes))
    return replace(report, findings=tuple(one for one in findings if one.rule not in ignore))


def examine(
    model: Source, *, target: str = "cpu", run: bool = False, folder: str | os.PathLike[str] | None = None
) -> tuple[Analysis, Report]:
    """`check`, and the model as the rules saw it, for those who show more than findings."""
    if target not in TARGETS:
        raise ValueError(f"target must be one of {', '.join(TARGETS)}, got {target!r}")
    seen = analyse(model, folder=folder, target=target)
    try:
        findings = rules.run(seen)
        runs, differences = run_nodes(seen, findings) if run else ((), ())
    except UnicodeError as error:
        raise UnreadableModelError(f"{seen.path or 'model'}: holds text that is not UTF-8") from error
    return seen, Report(seen.path, target, tuple(node.name for node in seen.nodes), findings + differences, runs)
