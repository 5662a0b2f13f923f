"""The command line: nsa-onnx check | infer-shapes | expand | prepare | fuse | explain | with | doctor | demo | paths.

Exit status: 0 success; 1 something was found, or the command could not do its work; 2 wrong usage, or a file that
cannot be read or written. An error is one line on stderr that names the file.
"""

from __future__ import annotations

import argparse
import os
import sys
import traceback
from collections.abc import Sequence
from contextlib import suppress
from importlib import import_module
from typing import NamedTuple

from . import __version__
from .console import FOUND, PROGRAM, UNUSABLE, CommandError, Parser, finish, tell
from .graph.errors import NotWritableError, UnreadableModelError


class Command(NamedTuple):
    """A command: its module (see `nsa_onnx.commands`), and what --help says of it."""

    module: str
    text: str
    given: tuple[str, ...] = ()  # to the module's add_arguments, beside the parser


COMMANDS = {
    "check": Command(
        "checker.command",
        "Say what is wrong with models' NSA nodes. Exit 0 clean, 1 findings, 2 a model cannot be checked.",
    ),
    "infer-shapes": Command("commands.infer_shapes", "Write a model with the shapes of all its values, T' included."),
    "expand": Command(
        "commands.expand",
        "Write a model that also runs without our library: bodies in standard operators added.",
    ),
    "prepare": Command(
        "targets.command",
        "Write a model that a target takes: what it is known to get wrong or to reject is rewritten.",
    ),
    "prepare-atc": Command("targets.command", "Another name for prepare --target atc.", given=("atc",)),
    "fuse": Command(
        "fuse.command", "Replace the compression written in standard operators by our node, where that is proven."
    ),
    "explain": Command("explain.command", "Draw a model's NSA nodes, windows to scale, as one page of HTML."),
    "with": Command(
        "commands.with_library", "Run a program: every onnxruntime session of its Pythons has our operators."
    ),
    "doctor": Command("commands.doctor", "Show versions, library and instruction set, and try them."),
    "demo": Command("commands.demo", "Build, check and serve a tiny model; compare with the eager call."),
    "paths": Command("commands.paths", "Show where the files for C and C++ are (docs/cpp.md)."),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line, without the program's name; the process's own if None. Returns the exit status."""
    try:
        words = sys.argv[1:] if argv is None else argv
        completes = "_ARGCOMPLETE" in os.environ  # a shell asks how the line could go on
        parser = _parser(None if completes else words)
        if completes:
            with suppress(ImportError):
                import argcomplete

                argcomplete.autocomplete(parser)
        arguments = parser.parse_args(words)
        status: int = arguments.run(arguments)
    except BrokenPipeError:  # of --help, say: commands print with console.show
        status = 0
    except SystemExit as end:  # --help, or wrong usage
        raise SystemExit(_finished(int(end.code or 0))) from None
    except OSError as error:
        status = _fail(f"{error.filename}: {error.strerror}" if error.filename else error, UNUSABLE)
    except (UnreadableModelError, NotWritableError) as error:
        status = _fail(error, UNUSABLE)
    except CommandError as error:
        status = _fail(error, FOUND)
    except Exception:  # a fault of ours; the names in its text come from the model all the same
        for line in traceback.format_exc().splitlines():
            tell(line, kept=True)
        status = UNUSABLE
    return _finished(status)


def _finished(status: int) -> int:
    """The exit status, once everything is written."""
    try:
        finish()
    except BrokenPipeError:  # the reader has gone, which is its right; what was found stays found
        return status
    except OSError as error:
        return _fail(f"standard output: {error.strerror}", UNUSABLE)
    return status


def _fail(error: object, status: int) -> int:
    tell(error)
    return status


def _parser(words: Sequence[str] | None = None) -> argparse.ArgumentParser:
    """The parser for a command line: of the commands' modules, that of the command in it alone is imported.

    All of them without a command line.
    """
    parser = Parser(prog=PROGRAM, description="Check, convert and try models with NSA nodes.")
    parser.add_argument("--version", action="version", version=f"nsa-onnx {__version__}")
    parser.set_defaults(run=lambda _: _help(parser), version=__version__)
    commands = parser.add_subparsers(metavar="COMMAND")
    asked = None if words is None else next((word for word in words if not word.startswith("-")), "")
    for name, command in COMMANDS.items():
        added = commands.add_parser(name, help=command.text, description=command.text)
        if asked in (None, name):
            module = import_module(f"{__package__}.{command.module}")
            module.add_arguments(added, *command.given)
            added.set_defaults(run=module.run)
    return parser


def _help(parser: argparse.ArgumentParser) -> int:
    """Without a command. A script that has lost its arguments must not look successful."""
    parser.print_help(sys.stderr)
    return UNUSABLE


if __name__ == "__main__":
    sys.exit(main())
