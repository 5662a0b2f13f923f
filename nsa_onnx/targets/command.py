"""The command ``nsa-onnx prepare``: its targets, its options, and what it prints."""

from __future__ import annotations

import argparse
from pathlib import Path

from onnx import ModelProto

from ..console import speaker, tell
from ..graph.writing import write_model
from . import TARGETS
from .preparing import PrepareError

DESCRIPTION = "Write a model that a target takes: what it is known to get wrong or to reject is rewritten."
PREPARING = {name: target for name, target in TARGETS.items() if target.prepare is not None}


def add_arguments(parser: argparse.ArgumentParser, target: str | None = None) -> None:
    """The options, beside MODEL and -o OUT; for one target alone if it is given."""
    if target is None:
        parser.add_argument("--target", choices=PREPARING, required=True, help="what the model is meant for")
    else:
        parser.set_defaults(target=target)
    names = PREPARING if target is None else [target]
    for option, text in {key: text for name in names for key, text in PREPARING[name].options.items()}.items():
        takers = " or ".join(name for name in names if option in PREPARING[name].options)
        only = f" (--target {takers})" if target is None else ""
        parser.add_argument(_flag(option), action="store_true", help=text + only)


def _flag(option: str) -> str:
    return f"--{option.replace('_', '-')}"


def run(arguments: argparse.Namespace, model: ModelProto) -> int:
    """Prepare and write. Returns the exit status.

    Raises:
        UnreadableModelError, NotWritableError, OSError: with the file's name.
    """
    source, target = Path(arguments.model), PREPARING[arguments.target]
    given = {option for one in PREPARING.values() for option in one.options if getattr(arguments, option, False)}
    if unknown := sorted(given - set(target.options)):
        tell(f"{_flag(unknown[0])} is nothing that target {target.name} knows")
        return 2
    assert target.prepare is not None
    try:
        prepared = target.prepare(model, folder=source.parent, **dict.fromkeys(given, True))
    except PrepareError as error:
        for reason in error.reasons:
            tell(f"{source}: {reason}")
        return 1
    write_model(prepared.model, source, Path(arguments.output))
    say = speaker(arguments.quiet)
    for line in [*prepared.changes, *(f"note: {note}" for note in prepared.notes)] or ["nothing to change"]:
        say(line)
    say(f"limits are for another command: nsa-onnx check --target {target.name} {source}")
    say(f"wrote {arguments.output} for target {target.name}")
    return 0
