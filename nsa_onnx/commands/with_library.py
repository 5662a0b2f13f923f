"""The command ``nsa-onnx with``."""

from __future__ import annotations

import argparse
import os

from ..console import UNUSABLE, finish, tell
from ..runtime import native
from ..runtime.everywhere import command_with


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("program", nargs=argparse.REMAINDER, metavar="-- PROGRAM", help="with its arguments")


def run(arguments: argparse.Namespace) -> int:
    words = arguments.program[1:] if arguments.program[:1] == ["--"] else arguments.program
    try:
        native.library_path()
        program, words, environment = command_with(words, os.environ)
    except (RuntimeError, ValueError) as error:
        tell(error)
        return UNUSABLE
    finish()
    os.execve(program, words, environment)  # its exit status is ours, and so is the signal that ends it
