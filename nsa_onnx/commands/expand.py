"""The command ``nsa-onnx expand``."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..console import OK, CommandError, add_files, speaker
from ..graph.errors import UnreadableModelError
from ..graph.reading import load_graph
from ..graph.writing import write_model
from ..operators.contract import DOMAIN, listed
from ..operators.expand import expand

add_arguments = add_files


def run(arguments: argparse.Namespace) -> int:
    try:
        result = expand(load_graph(Path(arguments.model)))
    except UnreadableModelError:
        raise
    except ValueError as error:
        raise CommandError(f"{arguments.model}: {error}") from error
    write_model(result, Path(arguments.model), Path(arguments.output))
    bodies = [function.name for function in result.functions if function.domain == DOMAIN]
    added = f"{listed(bodies)} in standard operators" if bodies else "nothing added, there is no NSA node"
    speaker(arguments.quiet)(f"wrote {arguments.output}: {added}")
    return OK
