"""The command ``nsa-onnx fuse``: its arguments, its steps, and what it prints."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from ..analysis import Analysis, NsaNode, analyse_graph, nodes_of
from ..console import OK, UNUSABLE, CommandError, add_files, speaker, tell
from ..graph.errors import NotWritableError, UnreadableModelError
from ..graph.writing import write_model
from ..runtime.session import require_trial_sessions
from . import Candidate, FuseResult, fuse
from .compare import compare


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options."""
    add_files(parser)
    parser.add_argument(
        "--allow-rounding",
        action="store_true",
        help="also replace what rounds products or partial sums to 16 bits, or accumulates in float64",
    )
    parser.add_argument(
        "--verify",
        action="store_true",
        help="compare what each replaced value means, and run both models with onnxruntime on made-up inputs",
    )


def run(arguments: argparse.Namespace) -> int:
    """Fuse, check, compare if that is asked for, then write. Returns the exit status.

    Raises:
        CommandError: it cannot be done; nothing has been written.
        UnreadableModelError, NotWritableError, OSError: with the file's name.
    """
    try:
        return _run(arguments, analyse_graph(arguments.model))
    except UnicodeError as error:
        raise UnreadableModelError(f"{arguments.model}: holds text that is not UTF-8") from error
    except (UnreadableModelError, NotWritableError):
        raise
    except ValueError as error:
        raise CommandError(f"{arguments.model}: {error}") from error


def _run(arguments: argparse.Namespace, seen: Analysis) -> int:
    if arguments.verify:
        try:
            require_trial_sessions()
        except RuntimeError as error:
            tell(f"--verify: {error}")
            return UNUSABLE
    say = speaker(arguments.quiet)
    result = fuse(seen, allow_rounding=arguments.allow_rounding)
    if wrong := _new_errors(seen, result):
        raise ValueError(f"the result has errors that the model has not: {'; '.join(wrong)}")
    if arguments.verify and result.fused:
        _verify(seen, result, say)
    write_model(result.model, Path(arguments.model), Path(arguments.output))
    for candidate in result.fused:
        say(f"fused {_where(candidate)}: {_window(candidate)}")
    for candidate in result.left:
        say(f"left  {_where(candidate)}: {candidate.reason}")
    if not result.fused:
        say("nothing to fuse" + ("" if result.left else ": no compression was found in standard operators"))
    if not result.complete:
        say("the model is too large to be looked at as a whole: there may be more")
    say(f"wrote {arguments.output}")
    return OK


def _new_errors(seen: Analysis, result: FuseResult) -> list[str]:
    """What is certainly wrong with nodes of ours in the graphs that were changed, and was not before."""
    graphs = {id(one.after): one.after.scope for one in result.replacements}.values()
    before = {(_result(node), one.message) for node in seen.nodes for one in node.violations}
    after = [(_result(node), one.message) for node in nodes_of(graphs, seen.folder) for one in node.violations]
    return [f"{value!r}: {message}" for value, message in after if (value, message) not in before]


def _result(node: NsaNode) -> str:
    return str(next(iter(node.proto.output), ""))


def _where(candidate: Candidate) -> str:
    place = "" if candidate.place == "graph" else f" in {candidate.place}"
    return f"{candidate.name!r}{place} ({candidate.form})"


def _window(candidate: Candidate) -> str:
    return f"block {candidate.compress_block_size}, stride {candidate.compress_stride}, {candidate.segments}"


def _verify(seen: Analysis, result: FuseResult, say: Callable[[str], None]) -> None:
    comparison = compare(seen.proto, result.model, result.replacements, seen.folder or Path())
    for one in comparison.differences:
        what, word = "means" if one.replaced else "ran  ", "equal" if one.equal else "DIFFERENT"
        say(f"{what} {one.name!r}: {word} (largest difference {one.largest:.3g}, largest value {one.scale:.3g})")
    if comparison.not_run:
        say(f"ran   nothing of the model as it was: {comparison.not_run}")
    if not comparison.equal:
        raise ValueError("the two models were compared, and they differ")
