"""The command ``nsa-onnx paths``."""

from __future__ import annotations

import argparse

from ..console import OK, CommandError, show
from ..runtime import native


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", nargs="?", choices=native.PATHS, help="print this path and nothing else")


def run(arguments: argparse.Namespace) -> int:
    try:
        paths = {name: native.path_of(name) for name in native.PATHS}
    except RuntimeError as error:  # there is no library
        raise CommandError(error) from error
    if arguments.name:
        show(str(paths[arguments.name]))
    else:
        for name, path in paths.items():
            show(f"{name:12} {path}")
    return OK
