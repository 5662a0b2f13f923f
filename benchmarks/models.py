"""Measures the commands that read models on a large model: milliseconds of processor time per node.

For comparison: onnx's own reading and shape inference of the same file.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from nsa_onnx import cli
from nsa_onnx.operators.contract import DOMAIN, OPSET_VERSION

COMMANDS = {
    "check": ("check", "MODEL"),
    "fuse": ("fuse", "MODEL", "-o", "OUT"),
    "explain": ("explain", "MODEL", "--html", "OUT"),
    "prepare --target atc": ("prepare", "MODEL", "--target", "atc", "-o", "OUT"),
    "infer-shapes": ("infer-shapes", "MODEL", "-o", "OUT"),
}
_ONNX = "onnx"


def decoder(nodes: int, *, in_standard_operators: bool = False) -> ModelProto:
    """Layers of 17 nodes, at least `nodes` in all: small operators on [1024, 4, 64], and NsaCompress in every tenth.

    Args:
        in_standard_operators: a mean over blocks, which `fuse` replaces, instead of the NsaCompress.
    """
    made: list[NodeProto] = []
    value, outputs = "x", []

    def add(op: str, *inputs: str, **attributes: Any) -> str:
        name = f"v{len(made)}"
        made.append(helper.make_node(op, inputs, [name], name=name, **attributes))
        return name

    for layer in itertools.count():
        if len(made) >= nodes:
            break
        if layer % 10 == 0:
            if in_standard_operators:
                blocks = add("Reshape", add("Cast", value, to=TensorProto.FLOAT), "blocks")
                outputs.append(add("Cast", add("ReduceMean", blocks, axes=[1], keepdims=0), to=TensorProto.FLOAT16))
            else:
                window = {"compress_block_size": 32, "compress_stride": 16}
                outputs.append(add("NsaCompress", value, "weight", "lengths", domain=DOMAIN, **window))
        for _ in range(4):
            shape = add("Constant", value=numpy_helper.from_array(np.array([-1, 4, 64])))
            value = add("Relu", add("MatMul", add("Reshape", value, shape), "square"))
        value = add("Add", value, value)
    constants = {
        "weight": np.ones((32, 4), np.float16),
        "square": np.ones((64, 64), np.float16),
        "lengths": np.array([1024]),
        "blocks": np.array([-1, 32, 4, 64]),
    }
    float16 = TensorProto.FLOAT16
    graph = helper.make_graph(
        made,
        "decoder",
        [helper.make_tensor_value_info("x", float16, [1024, 4, 64])],
        [helper.make_tensor_value_info(name, float16, None) for name in (value, *outputs)],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    imports = [helper.make_opsetid("", 17), helper.make_opsetid(DOMAIN, OPSET_VERSION)]
    return helper.make_model(graph, opset_imports=imports, ir_version=9)


def run(command: str, model: Path, folder: Path) -> int:
    """One command on a file; its exit status. What it prints is dropped, what it writes is in the folder."""
    places = {"MODEL": str(model), "OUT": str(folder / "out")}
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        return cli.main([places.get(word, word) for word in COMMANDS[command]])


def commands(nodes: int, rounds: int) -> list[dict[str, Any]]:
    """Every command on one model. The rounds go through all of them in turn."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model, path = decoder(nodes), folder / "decoder.onnx"
        onnx.save(model, path)
        times: dict[str, list[float]] = {_ONNX: [], **{command: [] for command in COMMANDS}}
        for _ in range(rounds + 1):
            for command, of in times.items():
                of.append(_seconds(command, path, folder))
    count = len(model.graph.node)
    medians = {command: statistics.median(of[1:]) for command, of in times.items()}
    return [
        {
            "command": command,
            "nodes": count,
            "ms_per_node": 1e3 * seconds / count,
            "over_onnx": statistics.median(a / b for a, b in zip(times[command][1:], times[_ONNX][1:], strict=True)),
        }
        for command, seconds in medians.items()
    ]


def _seconds(command: str, path: Path, folder: Path) -> float:
    begin = time.process_time()
    if command == _ONNX:
        onnx.shape_inference.infer_shapes(onnx.load(path), data_prop=True)
    else:
        status = run(command, path, folder)
        assert status == 0, f"{command} ended with exit code {status}"
    return time.process_time() - begin
