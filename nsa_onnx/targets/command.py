"""The command ``nsa-onnx prepare``: its targets, its options, and what it prints."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..console import FOUND, OK, UNUSABLE, add_files, speaker, tell
from ..graph.errors import UnreadableModelError
from ..graph.reading import load_graph
from ..graph.writing import write_model
from . import TARGETS
from .preparing import PrepareError

PREPARING = {name: target for name, target in TARGETS.items() if target.prepare is not None}


def add_arguments(parser: argparse.ArgumentParser, target: str | None = None) -> None:
    """The options; for one target alone if it is given."""
    add_files(parser)
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


def run(arguments: argparse.Namespace) -> int:
    """Prepare and write. Returns the exit status.

    Raises:
        UnreadableModelError, NotWritableError, OSError: with the file's name.
    """
    model = load_graph(Path(arguments.model))
    source, target = Path(arguments.model), PREPARING[arguments.target]
    given = {option for one in PREPARING.values() for option in one.options if getattr(arguments, option, False)}
    if unknown := sorted(given - set(target.options)):
        tell(f"{_flag(unknown[0])} is nothing that target {target.name} knows")
        return UNUSABLE
    assert target.prepare is not None
    try:
        prepared = target.prepare(model, folder=source.parent, **dict.fromkeys(given, True))
    except PrepareError as error:
        for reason in error.reasons:
            tell(f"{source}: {reason}")
        return FOUND
    except UnreadableModelError as error:
        raise UnreadableModelError(f"{source}: {error}") from error
    write_model(prepared.model, source, Path(arguments.output))
    say = speaker(arguments.quiet)
    for line in [*prepared.changes, *(f"note: {note}" for note in prepared.notes)] or ["nothing to change"]:
        say(line)
    say(f"limits are for another command: nsa-onnx check --target {target.name} {source}")
    say(f"wrote {arguments.output} for target {target.name}")
    return OK
