"""The command ``nsa-onnx check``: which models it reads, what it writes, its exit status.

If one model cannot be read, the others are checked all the same. The guide for users is docs/check.md.
"""

from __future__ import annotations

import argparse
import glob
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from ..console import FOUND, OK, UNUSABLE, progress, show, tell, wants_color
from ..graph.reading import UnreadableModelError, load
from ..graph.writing import NotWritableError, replace_file, require_no_weights
from ..rulebook.finding import Severity
from . import RULES, TARGETS, check
from .documentation import explain, list_rules
from .formats import FORMATS, Context, Outcome, Unreadable
from .report import Report
from .run import RunUnavailableError, require_onnxruntime

SUFFIX = ".onnx"


@dataclass(frozen=True)
class Output:
    """A format, and the file that it is written to; standard output if there is none."""

    format: str
    file: str = ""


def parse_output(value: str) -> Output:
    """``FORMAT`` or ``FORMAT=FILE``."""
    name, equals, file = value.partition("=")
    if name not in FORMATS:
        raise argparse.ArgumentTypeError(f"unknown format {name!r} (choose from {', '.join(FORMATS)})")
    if equals and not file:
        raise argparse.ArgumentTypeError(f"{value!r}: a file name is missing after '='")
    return Output(name, file)


def _rule_id(value: str) -> str:
    if value.upper() not in RULES:
        raise argparse.ArgumentTypeError(f"no rule has the id {value!r}; see --list-rules")
    return value.upper()


def _count(value: str) -> int:
    if not value.isdecimal() or len(value) > 9:
        raise argparse.ArgumentTypeError(f"must be a number of nodes, got {value!r}")
    return int(value)


class _Tell(argparse.Action):
    """Print something about the rules and exit, as --help does. Wants no model."""

    def __call__(self, parser: argparse.ArgumentParser, _: object, rule: object, option: str | None = None) -> None:
        try:
            show(list_rules() if self.nargs == 0 else explain(str(rule)))
        except ValueError as error:
            parser.error(str(error))
        parser.exit()


class _AddOutput(argparse.Action):
    """Collect outputs: at most one to standard output, and none twice to a file."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: object, option: object = None
    ) -> None:
        outputs = [*getattr(namespace, self.dest), values]
        assert all(isinstance(output, Output) for output in outputs)
        files = [os.path.abspath(output.file) if output.file else "" for output in outputs]
        if files.count("") > 1:
            parser.error(
                "--format: only one format goes to standard output, give the others a file: --format sarif=out.sarif"
            )
        if len(set(files)) < len(files):
            parser.error("--format: two formats for one file")
        setattr(namespace, self.dest, outputs)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What the command line of ``check`` takes."""
    parser.add_argument(
        "models", metavar="MODEL", nargs="+", help="a file, a folder (its *.onnx files, recursively) or a pattern"
    )
    parser.add_argument(
        "--format",
        dest="outputs",
        metavar="FORMAT[=FILE]",
        type=parse_output,
        action=_AddOutput,
        default=(),
        help=f"{', '.join(FORMATS)}; with =FILE into a file; may be given several times (default: text)",
    )
    parser.add_argument("--target", choices=TARGETS, default="cpu", help="what the models are meant for")
    parser.add_argument(
        "--fail-on",
        choices=[severity.value for severity in Severity],
        default=Severity.WARNING.value,
        help="the mildest severity that fails a model, with exit status 1 (default: warning)",
    )
    parser.add_argument(
        "--run",
        dest="run_nodes",
        action="store_true",
        help="also run each NSA node in onnxruntime, on generated input, and compare",
    )
    parser.add_argument(
        "--ignore", metavar="ID", type=_rule_id, action="append", default=[], help="leave a rule out; may be repeated"
    )
    parser.add_argument(
        "--min-nodes",
        metavar="N",
        type=_count,
        default=0,
        help="NSA nodes that each model must have at least: tools lose them without a word (default: 0)",
    )
    parser.add_argument(
        "--quiet", action="store_true", help="of several models, say nothing of those without findings; no progress"
    )
    parser.add_argument("--list-rules", action=_Tell, nargs=0, help="list the rules, look at no model")
    parser.add_argument("--explain", action=_Tell, metavar="ID", help="explain a rule: --explain NSA012")


def run(arguments: argparse.Namespace) -> int:
    """Check, write, and give the exit status.

    Raises:
        OSError: an output cannot be written; with the file's name.
    """
    if arguments.run_nodes:
        try:
            require_onnxruntime()
        except RunUnavailableError as error:
            tell(f"--run: {error}")
            return UNUSABLE
    found = list(find_models(arguments.models, arguments.target))
    outputs: Sequence[Output] = arguments.outputs or [Output("text")]
    if (lost := _overwritten(outputs, found)) is not None:
        tell(f"--format: {lost}")
        return UNUSABLE
    outcomes = _check_all(found, arguments)
    fail_on = Severity(arguments.fail_on)
    alone = (
        len(arguments.models) == 1 and [one if isinstance(one, str) else one.model for one in found] == arguments.models
    )
    for output in outputs:
        color = not output.file and wants_color(sys.stdout)
        told = not output.file
        context = Context(arguments.version, fail_on, alone, color, told, arguments.quiet)
        rendered = FORMATS[output.format](outcomes, context)
        if output.file:
            replace_file(Path(output.file), f"{rendered}\n".encode())
        elif rendered:
            show(rendered)
    if any(isinstance(outcome, Unreadable) for outcome in outcomes):
        return UNUSABLE
    return FOUND if any(isinstance(outcome, Report) and outcome.fails(fail_on) for outcome in outcomes) else OK


# --------------------------------------------------------------------------------------------------
# The models


def find_models(arguments: Sequence[str], target: str) -> Iterator[str | Unreadable]:
    """The paths that are meant, each once, in order; `Unreadable` where nothing is there.

    A folder means the ``*.onnx`` files in it and below, hidden folders and links to folders left out. A pattern is
    matched here if the shell has not done so; ``**`` means any folders.
    """
    seen: set[str] = set()
    for argument in arguments:
        for one in _found(argument, target):
            key = os.path.abspath(_name(one))
            if key not in seen:
                seen.add(key)
                yield one


def _name(one: str | Unreadable) -> str:
    return one if isinstance(one, str) else one.model


def _found(argument: str, target: str) -> Iterator[str | Unreadable]:
    if os.path.isdir(argument):
        yield from _in_folder(argument, target)
        return
    if os.path.lexists(argument) or not glob.has_magic(argument):
        yield argument
        return
    matches = sorted(glob.glob(argument, recursive=True))
    if not matches:
        yield Unreadable(argument, target, f"{argument}: no file matches")
    for match in matches:
        if not os.path.isdir(match):
            yield match
        elif "**" not in argument:
            yield from _in_folder(match, target)


def _in_folder(folder: str, target: str) -> Iterator[str | Unreadable]:
    errors: list[OSError] = []
    found = False
    for place, folders, files in os.walk(folder, onerror=errors.append):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            if name.lower().endswith(SUFFIX):
                found = True
                yield os.path.join(place, name)
    for error in errors:
        found = True
        yield Unreadable(str(error.filename), target, f"{error.filename}: {error.strerror}")
    if not found:
        yield Unreadable(folder, target, f"{folder}: no *{SUFFIX} file in this folder")


def _overwritten(outputs: Sequence[Output], found: Sequence[str | Unreadable]) -> str | None:
    """What an output would replace that is not a report: a model, or a model's weights."""
    models = [one for one in found if isinstance(one, str)]
    by_path = {os.path.realpath(one): one for one in models}
    for output in outputs:
        if (model := by_path.get(os.path.realpath(output.file))) is not None:
            return f"{model} is one of the models"
        if not os.path.isfile(output.file):
            continue
        for model in models:
            with suppress(UnreadableModelError):  # which is told when its turn comes
                try:
                    require_no_weights(load(Path(model)), Path(model), Path(output.file))
                except NotWritableError as error:
                    return str(error)
    return None


def _check_all(found: Sequence[str | Unreadable], arguments: argparse.Namespace) -> list[Outcome]:
    outcomes: list[Outcome] = []
    for number, one in enumerate(found, 1):
        if isinstance(one, str):
            with progress(f"[{number}/{len(found)}] {one}", shown=len(found) > 1 and not arguments.quiet):
                outcomes.append(_check_one(one, arguments))
        else:
            outcomes.append(one)
        if isinstance(last := outcomes[-1], Unreadable):
            tell(last.message)
    return outcomes


def _check_one(path: str, arguments: argparse.Namespace) -> Outcome:
    try:
        return check(
            path,
            target=arguments.target,
            run=arguments.run_nodes,
            ignore=arguments.ignore,
            min_nodes=arguments.min_nodes,
        )
    except UnreadableModelError as error:
        return Unreadable(path, arguments.target, str(error))
    except Exception as error:  # a fault of the checker: the gate stays shut, the other models are looked at
        reason = (str(error).splitlines() or [""])[0]
        return Unreadable(path, arguments.target, f"{path}: cannot be checked ({type(error).__name__}: {reason})")
