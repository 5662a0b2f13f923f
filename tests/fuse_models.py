"""Shared by the tests of fusion: modules exported by torch, graphs written by hand, and how they are run."""

from __future__ import annotations

import contextlib
import io
import warnings

import nsa_models as models
import numpy as np
import onnx
import onnx.parser
import pytest
import torch
from onnx import numpy_helper

import nsa_onnx
from nsa_onnx.fuse import fuse

BLOCK, STRIDE, HEADS, DIM, TOKENS = 32, 16, 2, 16, 112
HALF, BFLOAT16 = np.dtype(np.float16), models.BFLOAT16


def data(tokens=TOKENS, dtype=HALF, block=BLOCK, heads=HEADS, dim=DIM):
    generator = np.random.default_rng(7)
    x = generator.standard_normal((tokens, heads, dim)).astype(np.float32).astype(dtype)
    return x, generator.random((block, heads)).astype(np.float32).astype(dtype)


def run(model, **feeds):
    """The model's outputs; our library is loaded."""
    return models.run_ort(model, feeds, nsa_onnx.session_options())


def op_types(model):
    return [node.op_type for node in model.graph.node]


def fused_to_one_node(model, **options):
    result = fuse(model, **options)
    assert op_types(result.model) == ["NsaCompress"], (result.left, op_types(result.model))
    assert len(result.fused) == 1
    assert not result.left
    assert nsa_onnx.check(result.model).ok
    onnx.checker.check_model(result.model, full_check=True)
    return result


def export(module, dynamo, *, dynamic=False, inputs=None, dtype=torch.float16):
    x, w = (torch.from_numpy(array.astype(np.float32)).to(dtype) for array in data())
    inputs = (x, w) if inputs is None else inputs
    names = ["x", "w"][: len(inputs)]
    options = {"input_names": names, "output_names": ["y"]}
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        if dynamo:
            shapes = ({0: torch.export.Dim("T", min=2 * BLOCK, max=4096)}, None) if dynamic else None
            program = torch.onnx.export(module, inputs, dynamo=True, dynamic_shapes=shapes, verbose=False, **options)
            return program.model_proto
        file = io.BytesIO()
        axes = {"x": {0: "T"}} if dynamic else None
        torch.onnx.export(module, inputs, file, dynamo=False, dynamic_axes=axes, **options)
        return onnx.load_from_string(file.getvalue())


EXPORTERS = pytest.mark.parametrize("dynamo", [True, False], ids=["dynamo", "legacy"])


WINDOWS = np.arange(0, TOKENS - BLOCK + 1, STRIDE)[:, None] + np.arange(BLOCK)


def gathered(
    windows=WINDOWS,
    body="",
    *,
    x="float16[112, 2, 16]",
    w="float16[32, 2]",
    constants=(),
    output="y",
    more="",
    before="",
):
    """Windows by Gather, times the weight, summed, in float32; ``body`` replaces what follows the Gather."""
    body = (
        body
        or """
        w3 = Unsqueeze (w32, last)
        products = Mul (windows, w3)
        sums = ReduceSum <keepdims = 0> (products, one)
        y = Cast <to = 10> (sums)
    """
    )
    text = f"""<ir_version: 9, opset_import: ["" : 18]>
        g ({x} x, {w} w) => (float16[R, 2, 16] {output}) {{
            x32 = Cast <to = 1> (x)
            w32 = Cast <to = 1> (w)
            windows = Gather <axis = 0> (x32, at)
            {before}
            {body}
            {more}
        }}"""
    model = onnx.parser.parse_model(text)
    numbers = {"at": windows, "one": [1], "zero": [0], "two": [2], "last": [-1], **dict(constants)}
    used = {name for node in model.graph.node for name in node.input}
    model.graph.initializer.extend(
        numpy_helper.from_array(np.asarray(value) if hasattr(value, "dtype") else np.array(value, np.int64), name)
        for name, value in numbers.items()
        if name in used
    )
    return model
