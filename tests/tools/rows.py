"""The rows of the table in docs/tools.md: each tool as people call it, from one file to another."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import layers
import onnx
from onnx import TensorProto, helper

ROOT = Path(__file__).parents[2]
BIN = ROOT / "build" / "tools" / "bin"
ROWS = {}


class ToolError(Exception):
    """A program ended with another status than 0."""


def row(name):
    def add(function):
        ROWS[name] = function
        return function

    return add


def program(*words):
    """Run a Python program as the Python of this process would, here and under `nsa-onnx with` alike."""
    done = subprocess.run([sys.executable, *map(str, words)], capture_output=True, text=True, check=False)
    if done.returncode:
        raise ToolError(done.stdout + done.stderr)


@row("onnxsim")
def onnxsim(source, target):
    program(BIN / "onnxsim", source, target)


@row("onnxslim")
def onnxslim(source, target):
    program(BIN / "onnxslim", source, target)


@row("onnxslim --model-check")
def onnxslim_check(source, target):
    program(BIN / "onnxslim", source, target, "--model-check")


@row("onnx_graphsurgeon")
def graphsurgeon(source, target):
    import onnx_graphsurgeon

    graph = onnx_graphsurgeon.import_onnx(onnx.load(source))
    onnx.save(onnx_graphsurgeon.export_onnx(graph.fold_constants().cleanup().toposort()), target)


@row("onnxscript.optimizer")
def onnxscript_optimizer(source, target):
    import onnxscript.optimizer

    onnx.save(onnxscript.optimizer.optimize(onnx.load(source)), target)


@row("onnxscript.version_converter")
def onnxscript_version_converter(source, target):
    import onnxscript.version_converter

    model = onnx.load(source)
    onnxscript.version_converter.convert_version(model, 21)
    onnx.save(model, target)


@row("onnx.version_converter")
def version_converter(source, target):
    import onnx.version_converter

    onnx.save(onnx.version_converter.convert_version(onnx.load(source), 21), target)


@row("onnx.utils.extract_model")
def extract_model(source, target):
    import onnx.utils

    inputs = [value.name for value in layers.PLAIN.graph.input]
    onnx.utils.extract_model(source, target, inputs, ["y", "cache_out"])


@row("onnx.compose.merge_models")
def merge_models(source, target, prefix=None):
    import onnx.compose

    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("Identity", ["q"], ["z"])],
        "after",
        [value("q", TensorProto.FLOAT, [3, layers.WIDTH])],
        [value("z", TensorProto.FLOAT, [3, layers.WIDTH])],
    )
    after = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.save(onnx.compose.merge_models(onnx.load(source), after, [("y", "q")], prefix1=prefix), target)


@row("onnx.compose.merge_models(prefix1=...)")
def merge_models_with_prefix(source, target):
    merge_models(source, target, "a_")


@row("onnx.compose.add_prefix")
def add_prefix(source, target):
    import onnx.compose

    onnx.save(onnx.compose.add_prefix(onnx.load(source), "a_"), target)


@row("onnxruntime.quantization.quantize_dynamic")
def quantize_dynamic(source, target):
    from onnxruntime.quantization import quantize_dynamic

    quantize_dynamic(source, target)


@row("onnxruntime.quantization.quantize_static")
def quantize_static(source, target):
    from onnxruntime.quantization import CalibrationDataReader, quantize_static

    class Reader(CalibrationDataReader):
        left = 2

        def get_next(self):
            self.left -= 1
            return layers.FEEDS if self.left >= 0 else None

    quantize_static(source, target, Reader())


@row("onnxruntime.quantization.preprocess")
def quant_pre_process(source, target):
    # The command itself goes on after an error of onnxruntime that it prints.
    from onnxruntime.quantization.shape_inference import quant_pre_process

    quant_pre_process(source, target)


@row("onnxruntime.transformers.optimizer, opt_level 0")
def optimizer(source, target, level=0):
    from onnxruntime.transformers import optimizer

    result = optimizer.optimize_model(
        str(source), "bert", num_heads=layers.HEADS, hidden_size=layers.HEADS * layers.DIM, opt_level=level
    )
    result.save_model_to_file(str(target))


@row("onnxruntime.transformers.optimizer, opt_level 1")
def optimizer_with_a_session(source, target):
    optimizer(source, target, 1)


@row("onnxruntime.transformers.float16")
def float16(source, target):
    from onnxruntime.transformers.float16 import convert_float_to_float16

    onnx.save(convert_float_to_float16(onnx.load(source), keep_io_types=True), target)


@row("onnxconverter_common.float16")
def onnxconverter_common(source, target):
    from onnxconverter_common import float16

    onnx.save(float16.convert_float_to_float16(onnx.load(source), keep_io_types=True), target)


@row("polygraphy check lint")
def polygraphy_lint(source, target):
    program(BIN / "polygraphy", "check", "lint", source)
    shutil.copy(source, target)


@row("polygraphy run --onnxrt")
def polygraphy_run(source, target):
    program(BIN / "polygraphy", "run", source, "--onnxrt", "--data-loader-script", ROOT / "tests/tools/feeds.py")
    shutil.copy(source, target)


@row("polygraphy surgeon sanitize")
def polygraphy_sanitize(source, target):
    program(BIN / "polygraphy", "surgeon", "sanitize", "--fold-constants", source, "-o", target)


@row("onnxruntime.tools.convert_onnx_models_to_ort")
def convert_to_ort(source, target):
    program("-m", "onnxruntime.tools.convert_onnx_models_to_ort", source, "--optimization_style", "Fixed")
    source.with_suffix(".ort").rename(target)
