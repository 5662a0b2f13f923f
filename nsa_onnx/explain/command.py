"""The command ``nsa-onnx explain``."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from ..analysis import analyse
from ..checker import TARGETS
from ..console import OK, add_quiet, output_file, speaker
from ..graph.errors import NotWritableError
from ..graph.writing import replace_file, require_no_weights
from ..operators.contract import plural
from . import MAX_DRAWN_LENGTH, explain


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What the command line takes."""
    parser.add_argument("model", metavar="MODEL", help="an ONNX file")
    parser.add_argument("--html", metavar="OUT", required=True, type=output_file, help="the page")
    parser.add_argument("--target", choices=TARGETS, default="cpu", help="what the model is meant for")
    parser.add_argument(
        "--lengths", metavar="L,L,...", type=_lengths, help="sequences to draw where the model does not fix them"
    )
    add_quiet(parser)


def _lengths(text: str) -> list[int]:
    lengths = [int(part) if part.isdecimal() and len(part) < 14 else 0 for part in text.split(",")]
    if not all(1 <= length <= MAX_DRAWN_LENGTH for length in lengths):
        raise argparse.ArgumentTypeError(f"must be numbers in [1, {MAX_DRAWN_LENGTH}], as in 40,100")
    return lengths


def run(arguments: argparse.Namespace) -> int:
    """Draw and write. Returns the exit status.

    Raises:
        UnreadableModelError, NotWritableError, OSError: with the file's name.
    """
    source, target = Path(arguments.model), Path(arguments.html)
    if os.path.realpath(source) == os.path.realpath(target):
        raise NotWritableError(f"{target}: is the model")
    seen = analyse(source)
    page = explain(seen, target=arguments.target, lengths=arguments.lengths)
    if target.is_file():
        require_no_weights(seen.proto, source, target)
    replace_file(target, page.encode())
    speaker(arguments.quiet)(f"wrote {target}: {plural(len(seen.nodes), 'NSA node')} of {source}")
    return OK
