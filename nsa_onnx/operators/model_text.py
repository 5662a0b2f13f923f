"""Models in ONNX's text format, from their parts: what rules of the checker are shown with."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import NamedTuple

from .contract import DOMAIN, OPSET_VERSION

STANDARD_OPSET = 18
IMPORT = f'"{DOMAIN}" : {OPSET_VERSION}'
_LINE = 80


class RuleExample(NamedTuple):
    """What a rule is shown with: a model that it has a finding for, and one just inside the bound."""

    triggers: str = ""
    accepted: str = ""


def model(
    inputs: Sequence[str],
    outputs: Sequence[str],
    nodes: Sequence[str],
    initializers: Sequence[str] = (),
    *,
    imports: str = IMPORT,
    functions: str = "",
) -> str:
    """A model from its parts: ``float16[T, 4, 16] x``, ``y = Neg (x)``, ``int64[2] seq = {40, 100}``."""
    opsets = ", ".join(filter(None, (f'"" : {STANDARD_OPSET}', imports)))
    constants = f"<{_wrapped(initializers)}>\n" if initializers else ""
    body = "".join(f"    {node}\n" for node in nodes)
    return (
        f"<ir_version: 10, opset_import: [{opsets}]>\n"
        f"model ({_wrapped(inputs)})\n  => ({', '.join(outputs)})\n{constants}{{\n{body}}}\n{functions}"
    )


def _wrapped(values: Sequence[str]) -> str:
    """Values with commas, on lines that fit a page."""
    lines = [""]
    for value in values:
        joined = f"{lines[-1]}, {value}" if lines[-1] else value
        if not lines[-1] or len(joined) <= _LINE:
            lines[-1] = joined
        else:
            lines.append(value)
    return ",\n       ".join(lines)


def integers(name: str, values: Sequence[int], dtype: str = "int64", shape: str = "") -> str:
    """An initializer of integers."""
    text = f"{dtype}[{shape or len(values)}] {name} = {{{', '.join(map(str, values))}}}"
    return textwrap.fill(text, _LINE, subsequent_indent=" " * 8)
