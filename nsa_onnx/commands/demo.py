"""The command ``nsa-onnx demo``."""

from __future__ import annotations

import argparse

import numpy as np

from ..checker import check
from ..console import FOUND, OK, CommandError, show
from ..operators import OPERATORS
from ..operators.example import example_model
from ..operators.nsa_compress.call import nsa_compress
from ..operators.nsa_compress.contract import OP_TYPE, compressed_length
from ..operators.nsa_compress.example import example
from ..runtime.session import session_for_trial


def add_arguments(_: argparse.ArgumentParser) -> None:
    """None."""


def run(_: argparse.Namespace) -> int:
    block, stride, heads, dim, seq = 32, 16, 4, 64, (40, 100, 100, 230)
    model = example_model(OPERATORS[OP_TYPE], example(block, stride, seq, heads, dim))
    report = check(model)
    generator = np.random.default_rng(0)
    x = generator.standard_normal((seq[-1], heads, dim)).astype(np.float16)
    w = generator.random((block, heads)).astype(np.float16)
    try:
        (got,) = session_for_trial(model).run(None, {"input": x, "weight": w})
        want = nsa_compress(x, w, block, stride, actual_seq_len=seq)
    except Exception as error:  # onnxruntime has classes of its own
        raise CommandError(error) from error
    same = np.array_equal(np.asarray(got).view(np.uint16), want.view(np.uint16))
    rows = compressed_length(seq, block, stride)
    show(f"model        one {OP_TYPE}, windows of {block} tokens, {stride} apart")
    for line in report.to_text().splitlines():
        show(f"check        {line}")
    show(f"segments     prefix sums {', '.join(map(str, seq))}")
    show(f"compressed   {list(x.shape)} -> {list(np.shape(got))} (T' = {rows}), {x.nbytes} -> {want.nbytes} bytes")
    show(f"onnxruntime  {'the same bits as' if same else 'DIFFERS FROM'} the eager call")
    return OK if same and report.ok else FOUND
