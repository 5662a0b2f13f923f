"""The command ``nsa-onnx doctor``."""

from __future__ import annotations

import argparse

from ..console import FOUND, OK, clean, show
from ..runtime.session import doctor


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--ascend", action="store_true", help="also run the operators on the Ascend device")


def run(arguments: argparse.Namespace) -> int:
    diagnosis = doctor(ascend=arguments.ascend)
    for line in diagnosis.to_text().splitlines():
        show(clean(line))
    return OK if diagnosis.ok else FOUND
