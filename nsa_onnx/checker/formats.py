"""The report of several models as text, JSON, SARIF, JUnit XML and GitHub annotations.

Each format is a function from the outcomes (`Outcome`, one per model) to text. Names in models are not trusted:
`console.clean` cleans all of them, and each function adds the escapes of its own format.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote
from xml.etree import ElementTree

from ..console import clean, path_text
from ..console import to_json as json_text
from ..operators.contract import plural
from ..rulebook.finding import Finding, Severity
from . import rules
from .report import Report, finding_lines, run_line, where


@dataclass(frozen=True)
class Unreadable:
    """A model that could not be checked; the message names it and says why."""

    model: str
    target: str
    message: str


Outcome = Report | Unreadable


@dataclass(frozen=True)
class Context:
    """What else a format wants to know.

    Attributes:
        version: of nsa_onnx.
        fail_on: from which severity on a finding fails a model.
        alone: one model was asked for by its name, not several, a folder or a pattern.
        color: for a terminal.
        told: who reads this has been told of unreadable models in another way.
        quiet: models without findings are counted only.
    """

    version: str
    fail_on: Severity = Severity.WARNING
    alone: bool = False
    color: bool = False
    told: bool = False
    quiet: bool = False


# --------------------------------------------------------------------------------------------------
# Text and JSON


def text(outcomes: Sequence[Outcome], context: Context) -> str:
    """For people. Of several models, each one's line first and its findings below it, and a last line for all."""
    lines: list[str] = []
    for outcome in outcomes:
        if context.quiet and isinstance(outcome, Report) and outcome.ok and not context.alone:
            continue
        if isinstance(outcome, Unreadable):
            lines += [] if context.told else [path_text(outcome.message)]
        elif context.alone:
            lines.append(outcome.to_text(color=context.color))
        else:
            lines.append(outcome.summary(color=context.color))
            for finding in outcome.findings:
                lines += [f"  {line}" for line in finding_lines(finding, context.color)]
            lines += [f"  {run_line(run)}" for run in outcome.runs]
    if not context.alone:
        lines.append(total(outcomes))
    return "\n".join(lines)


def total(outcomes: Sequence[Outcome]) -> str:
    """One line for all models."""
    reports = [outcome for outcome in outcomes if isinstance(outcome, Report)]
    parts = [f"{sum(report.ok for report in reports)} ok"]
    parts += [plural(sum(report.count(severity) for report in reports), severity.value) for severity in Severity]
    if unreadable := len(outcomes) - len(reports):
        parts.append(f"{unreadable} could not be checked")
    nodes = plural(sum(len(report.nodes) for report in reports), "NSA node")
    return f"{plural(len(outcomes), 'model')}: {', '.join(parts)} ({nodes} checked)"


def to_json(outcomes: Sequence[Outcome], context: Context) -> str:
    """The report's own JSON for one model that was named; an object with all reports otherwise."""
    entries = [_json_entry(outcome) for outcome in outcomes]
    if context.alone:
        return json_text(entries[0])
    reports = [outcome for outcome in outcomes if isinstance(outcome, Report)]
    summary = {
        "ok": all(isinstance(outcome, Report) and outcome.ok for outcome in outcomes),
        "models": len(outcomes),
        "errors": sum(report.count(Severity.ERROR) for report in reports),
        "warnings": sum(report.count(Severity.WARNING) for report in reports),
        "nodes": sum(len(report.nodes) for report in reports),
        "unreadable": len(outcomes) - len(reports),
    }
    return json_text({"summary": summary, "reports": entries})


def _json_entry(outcome: Outcome) -> dict[str, Any]:
    if isinstance(outcome, Report):
        return outcome.to_dict()
    return {"model": outcome.model, "target": outcome.target, "error": outcome.message}


# --------------------------------------------------------------------------------------------------
# SARIF 2.1.0

SARIF_SCHEMA = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"


def sarif(outcomes: Sequence[Outcome], context: Context) -> str:
    """For code scanning. All rules are listed; a model that could not be checked is a notification of the tool."""
    reports = [outcome for outcome in outcomes if isinstance(outcome, Report)]
    unreadable = [outcome for outcome in outcomes if isinstance(outcome, Unreadable)]
    index = {rule_id: number for number, rule_id in enumerate(rules.RULES)}
    invocation: dict[str, Any] = {"executionSuccessful": not unreadable}
    if unreadable:
        invocation["toolExecutionNotifications"] = [
            {"level": "error", "message": {"text": clean(one.message)}, "locations": [_location(one.model)]}
            for one in unreadable
        ]
    driver = {"name": "nsa-onnx", "version": context.version, "rules": [_sarif_rule(rule) for rule in index]}
    run = {
        "tool": {"driver": driver},
        "invocations": [invocation],
        "columnKind": "unicodeCodePoints",
        "properties": {"models": len(outcomes), "nsaNodes": sum(len(report.nodes) for report in reports)},
        "results": [result for report in reports for result in _sarif_results(report, index)],
    }
    return json_text({"$schema": SARIF_SCHEMA, "version": "2.1.0", "runs": [run]})


def _sarif_rule(rule_id: str) -> dict[str, Any]:
    rule = rules.RULES[rule_id]
    documentation = " ".join(rule.documentation.split())
    return {
        "id": rule.id,
        "shortDescription": {"text": rule.title},
        "fullDescription": {"text": documentation or rule.title},
        "help": {"text": f"{documentation or rule.title}\n\nMore: nsa-onnx check --explain {rule.id}"},
        "defaultConfiguration": {"level": rule.severity.value},
    }


def _sarif_results(report: Report, index: dict[str, int]) -> list[dict[str, Any]]:
    seen: Counter[str] = Counter()
    results = []
    for finding in report.findings:
        lines = [clean(finding.message)] + ([f"Hint: {clean(finding.hint)}"] if finding.hint else [])
        about = where(finding)
        # Alerts are told apart by this, from one analysis to the next: by line they would all be one.
        identity = "\0".join((_uri(report.model), finding.rule, finding.place, finding.node, finding.argument))
        digest = hashlib.sha256(identity.encode(errors="replace")).hexdigest()[:16]
        seen[digest] += 1
        result: dict[str, Any] = {
            "ruleId": finding.rule,
            "level": finding.severity.value,
            "message": {"text": (f"{about}: " if about else "") + "\n".join(lines)},
            "locations": [_location(report.model, finding)],
            "partialFingerprints": {"primaryLocationLineHash": f"{digest}:{seen[digest]}"},
        }
        if finding.rule in index:
            result["ruleIndex"] = index[finding.rule]
        results.append(result)
    return results


def _location(model: str, finding: Finding | None = None) -> dict[str, Any]:
    location: dict[str, Any] = {}
    if model:
        # Code scanning shows nothing without a line, which a binary file does not have.
        location["physicalLocation"] = {"artifactLocation": {"uri": _uri(model)}, "region": {"startLine": 1}}
    if finding is not None and finding.node:
        name, place = clean(finding.node), clean(finding.place)
        full = f"{place} > {name}" if place else name
        location["logicalLocations"] = [{"name": name, "fullyQualifiedName": full, "kind": "node"}]
    return location


def _uri(model: str) -> str:
    """Relative to the folder that the command runs in, where a CI system has its checkout; else absolute."""
    path = relative_path(model)
    if os.path.isabs(path):
        return "file://" + quote(os.fsencode(path))
    # A first part like "a:b" would be read as a scheme.
    return quote(os.fsencode(Path(path).as_posix()))


def relative_path(model: str) -> str:
    """A path as seen from the folder that the command runs in; absolute if the model lies elsewhere."""
    absolute, here = os.path.abspath(model), os.getcwd()
    inside = absolute.startswith(here.rstrip(os.sep) + os.sep)
    return os.path.relpath(absolute, here) if inside else absolute


# --------------------------------------------------------------------------------------------------
# JUnit


def junit(outcomes: Sequence[Outcome], context: Context) -> str:
    """A test suite per model and a test case per node; one more for the model itself.

    A finding below ``fail_on`` fails no case; it is in the case's output.
    """
    suites = [_suite(outcome, context) for outcome in outcomes]
    root = ElementTree.Element("testsuites", {"name": "nsa-onnx check"})
    for key in ("tests", "failures", "errors"):
        root.set(key, str(sum(int(suite.get(key, "0")) for suite in suites)))
    root.extend(suites)
    ElementTree.indent(root)
    # ASCII with references for the rest: right wherever it is printed or written.
    data: bytes = ElementTree.tostring(root, encoding="us-ascii", xml_declaration=True)
    return data.decode("ascii")


def _suite(outcome: Outcome, context: Context) -> ElementTree.Element:
    name = clean(outcome.model) or "model"
    suite = ElementTree.Element("testsuite", {"name": name})
    if isinstance(outcome, Unreadable):
        case = _case(suite, name, "model")
        ElementTree.SubElement(case, "error", {"type": "unreadable", "message": clean(outcome.message)})
        cases, failures, errors = 1, 0, 1
    else:
        about: dict[str, list[Finding]] = {"": [], **{node: [] for node in outcome.nodes}}
        for finding in outcome.findings:
            about.setdefault(finding.node, []).append(finding)
        failed = [_node_case(suite, name, node, found, outcome, context) for node, found in about.items()]
        cases, failures, errors = len(about), sum(failed), 0
    for key, value in (("tests", cases), ("failures", failures), ("errors", errors), ("skipped", 0)):
        suite.set(key, str(value))
    return suite


def _case(suite: ElementTree.Element, model: str, name: str) -> ElementTree.Element:
    return ElementTree.SubElement(suite, "testcase", {"name": name, "classname": model})


def _node_case(
    suite: ElementTree.Element, model: str, node: str, found: Sequence[Finding], report: Report, context: Context
) -> bool:
    """One test case; whether it fails."""
    case = _case(suite, model, clean(node) or "model")
    failing = [f for f in found if f.severity is Severity.ERROR or context.fail_on is Severity.WARNING]
    if failing:
        first = failing[0]
        summary = f"{clean(first.rule)} {clean(first.message)}"
        if len(failing) > 1:
            summary += f" (and {len(failing) - 1} more)"
        failure = ElementTree.SubElement(case, "failure", {"type": clean(first.rule), "message": summary})
        failure.text = "\n".join(line for finding in failing for line in finding_lines(finding))
    output = [line for finding in found if finding not in failing for line in finding_lines(finding)]
    output += [run_line(run) for run in report.runs if node and run.node == node]
    if output:
        ElementTree.SubElement(case, "system-out").text = "\n".join(output)
    return bool(failing)


# --------------------------------------------------------------------------------------------------
# GitHub


def github(outcomes: Sequence[Outcome], context: Context) -> str:
    """Workflow commands, which GitHub shows as annotations; a last line for all models."""
    lines = []
    for outcome in outcomes:
        if isinstance(outcome, Unreadable):
            lines.append(_command("error", "model cannot be checked", outcome.model, clean(outcome.message)))
            continue
        for finding in outcome.findings:
            about = where(finding)
            message = (f"{about}: " if about else "") + clean(finding.message)
            if finding.hint:
                message += f"\nhint: {clean(finding.hint)}"
            lines.append(_command(finding.severity.value, f"{finding.rule} {finding.node}", outcome.model, message))
    return "\n".join([*lines, total(outcomes)])


def _command(level: str, title: str, model: str, message: str) -> str:
    properties = {"title": clean(title).strip(), "file": clean(relative_path(model)) if model else ""}
    shown = ",".join(f"{key}={_escaped(value, property_of=True)}" for key, value in properties.items() if value)
    return f"::{level} {shown}::{_escaped(message)}"


def _escaped(value: str, property_of: bool = False) -> str:
    """As the runner reads it back. "%" first: the others' codes have one."""
    pairs = [("%", "%25"), ("\r", "%0D"), ("\n", "%0A")] + [(":", "%3A"), (",", "%2C")] * property_of
    for char, code in pairs:
        value = value.replace(char, code)
    return value


FORMATS: dict[str, Callable[[Sequence[Outcome], Context], str]] = {
    "text": text,
    "json": to_json,
    "sarif": sarif,
    "junit": junit,
    "github": github,
}
"""All formats by name."""
