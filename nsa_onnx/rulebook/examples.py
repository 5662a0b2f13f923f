"""Example models for the rules, in ONNX's text format: one correct NSA node, changed by the caller in one place."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from .. import spec

STANDARD_OPSET = 18
_LINE = 80
_COMPRESS = f"{spec.DOMAIN}.{spec.COMPRESS_OP}"
_INFER = f"{spec.DOMAIN}.{spec.INFER_OP}"


def model(
    inputs: Sequence[str],
    outputs: Sequence[str],
    nodes: Sequence[str],
    initializers: Sequence[str] = (),
    *,
    imports: str = f'"{spec.DOMAIN}" : {spec.OPSET_VERSION}',
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


def compress_node(
    inputs: str = "x, w, seq", output: str = "y", block: int = 32, stride: int = 16, name: str = "nsa", more: str = ""
) -> str:
    """One NsaCompress node."""
    return (
        f"[{name}] {output} = {_COMPRESS}\n"
        f"      <compress_block_size = {block}, compress_stride = {stride}{more}> ({inputs})"
    )


def compress(
    x: str = "T, 4, 16",
    w: str = "32, 4",
    y: str = "R, 4, 16",
    *,
    seq: Sequence[int] | None = None,
    dtype: str = "float16",
    block: int = 32,
    stride: int = 16,
    before: Sequence[str] = (),
    after: Sequence[str] = (),
    inputs: str = "x, w, seq",
    outputs: Sequence[str] = (),
    imports: str = f'"{spec.DOMAIN}" : {spec.OPSET_VERSION}',
) -> str:
    """A model with one NsaCompress.

    Args:
        x, w, y: the shapes of input, weight and output.
        seq: constant prefix sums; an input of the graph if None.
        before, after: more nodes, in front of it and behind it.
        inputs: of the node, by name; "seq" may be made by a node of ``before``.
        outputs: more outputs of the graph.
    """
    made = any(node.startswith("seq = ") for node in before)
    given = [f"{dtype}[{x}] x", f"{dtype}[{w}] w", *([] if made or seq is not None else ["int64[B] seq"])]
    constants = [] if seq is None else [integers("lengths" if made else "seq", seq)]
    nodes = [*before, compress_node(inputs, block=block, stride=stride), *after]
    return model(given, [f"{dtype}[{y}] y", *outputs], nodes, constants, imports=imports)


def infer_node(
    inputs: str = "x, w, slots, cache, seq, table",
    output: str = "cache_out",
    block: int = 32,
    page: int = 64,
    name: str = "nsa",
) -> str:
    """One NsaCompressInfer node."""
    return (
        f"[{name}] {output} = {_INFER}\n"
        f"      <compress_block_size = {block}, compress_stride = 16, page_block_size = {page}>\n"
        f"      ({inputs})"
    )


def infer(
    x: str = "12, 64, 4, 16",
    w: str = "32, 4",
    cache: str = "9, 4, 16",
    batch: str = "3",
    *,
    table: str | None = "3, 4",
    seq: Sequence[int] | None = None,
    slots: Sequence[int] | None = None,
    pages: Sequence[int] | None = None,
    block: int = 32,
    page: int = 64,
    before: Sequence[str] = (),
    after: Sequence[str] = (),
    carried: bool = True,
    outputs: Sequence[str] = (),
) -> str:
    """A model with one NsaCompressInfer.

    Args:
        x, w, cache, batch, table: shapes; without a table the input is left out.
        seq, slots, pages: constant lengths, slots and table; inputs of the graph if None.
        before, after: more nodes, in front of it and behind it.
        carried: whether the updated cache is an output of the graph.
        outputs: more outputs.
    """
    made = any(node.startswith("seq = ") for node in before)
    given = [f"float16[{x}] x", f"float16[{w}] w", f"float16[{cache}] cache"]
    constants: list[str] = []
    for name, dtype, shape, values in (
        ("lengths" if made else "seq", "int64", batch, seq),
        ("slots", "int32", batch, slots),
        ("table", "int32", table, pages),
    ):
        if values is not None:
            constants.append(integers(name, values, dtype, shape or ""))
        elif shape is not None and not (name == "lengths" and made):
            given.append(f"{dtype}[{shape}] {name}")
    names = "x, w, slots, cache, seq" + ("" if table is None else ", table")
    nodes = [*before, infer_node(names, block=block, page=page), *after]
    results = [*([f"float16[{cache}] cache_out"] if carried else []), *outputs]
    return model(given, results, nodes, constants)
