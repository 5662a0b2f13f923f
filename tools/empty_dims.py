"""Finds the standard operators at which onnxruntime's CPU provider crashes or fails on axes of length 0.

    .venv/bin/python tools/empty_dims.py

The models are onnx's own tests of single operators, float inputs only, with one axis (or all axes of one size) of
their inputs made empty, and `PROBES`. They run in a separate process, which may crash and is then started again after
the model that crashed it. The results are in nsa_onnx/targets/cpu.py; tests/test_empty_dims.py compares.
"""

from __future__ import annotations

import json
import pickle
import selectors
import subprocess
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import onnxruntime

MAX_CASES = 8
"""Of onnx's tests of one operator, the first ones."""
SECONDS = 20.0
"""What one model may take; a hang is as bad as a death."""

_FLOATS = (np.float16, np.float32, np.float64)


@dataclass(frozen=True)
class Case:
    """A model of one node, and what it is fed with. ``empty`` is for people."""

    op_type: str
    name: str
    empty: str
    model: bytes
    feeds: dict[str, Any] = field(repr=False)


@dataclass(frozen=True)
class Outcome:
    """What came of a case: ``ok``, ``fails``, ``dies`` or ``hangs``; the shapes of its outputs or the message."""

    case: Case
    result: str
    shapes: tuple[tuple[int, ...], ...] = ()
    message: str = ""


# An operator's name (a suffix tells probes apart), its node and the shapes of its inputs. The 0 is what T' would be:
# with 1 in its place, each runs. A tuple of one list is a constant of int64.
_Given = Sequence[object]
PROBES: dict[str, tuple[str, _Given]] = {
    "ArgMax": ("y = ArgMax (a)", [(0, 4)]),
    "ArgMin": ("y = ArgMin (a)", [(0, 4)]),
    "Attention": ("y = Attention (a, b, c)", [(1, 2, 5, 16), (1, 2, 0, 16), (1, 2, 0, 16)]),
    "AveragePool": ("y = AveragePool <kernel_shape = [1]> (a)", [(1, 4, 0)]),
    "Conv": ("y = Conv <kernel_shape = [1]> (a, b)", [(1, 4, 0), (4, 4, 1)]),
    "ConvTranspose": ("y = ConvTranspose <kernel_shape = [3, 3, 3]> (a, b)", [(1, 1, 0, 4, 4), (1, 2, 3, 3, 3)]),
    "Einsum": ('y = Einsum <equation = "qhd,khd->hqk"> (a, b)', [(31, 4, 16), (0, 4, 16)]),
    "Einsum 2": ('y = Einsum <equation = "bhqd,bkhd->bhqk"> (a, b)', [(1, 4, 31, 16), (1, 0, 4, 16)]),
    "GRU": ("y = GRU <hidden_size = 5> (a, b, c)", [(4, 0, 16), (1, 15, 16), (1, 15, 5)]),
    "GRU 2": ("y = GRU <hidden_size = 5> (a, b, c)", [(0, 4, 16), (1, 15, 16), (1, 15, 5)]),
    "Gather": ("y = Gather (a, b)", [(0, 4), [-1]]),
    "GlobalAveragePool": ("y = GlobalAveragePool (a)", [(1, 4, 0)]),
    "GlobalLpPool": ("y = GlobalLpPool (a)", [(1, 4, 0)]),
    "GlobalMaxPool": ("y = GlobalMaxPool (a)", [(1, 4, 0)]),
    "GridSample": ("y = GridSample (a, b)", [(1, 4, 0, 2), (1, 3, 3, 2)]),
    "GroupNormalization": ("y = GroupNormalization <num_groups = 2> (a, b, c)", [(1, 4, 0), (4,), (4,)]),
    "LSTM": ("y = LSTM <hidden_size = 5> (a, b, c)", [(4, 0, 16), (1, 20, 16), (1, 20, 5)]),
    "LayerNormalization": ("y = LayerNormalization (a, b)", [(4, 0), (0,)]),
    "LpPool": ("y = LpPool <kernel_shape = [1]> (a)", [(1, 4, 0)]),
    "MaxPool": ("y = MaxPool <kernel_shape = [1]> (a)", [(1, 4, 0)]),
    "Pad": ('y = Pad <mode = "edge"> (a, b)', [(0, 4), [1, 0, 0, 0]]),
    "RMSNormalization": ("y = RMSNormalization (a, b)", [(4, 0), (0,)]),
    "Reshape": ("y = Reshape (a, b)", [(0, 4, 16), [0, -1]]),
    "STFT": ("y = STFT (a, b, c)", [(1, 128, 1), [8], (0,)]),
    "Scan": (
        "y = Scan <num_scan_inputs = 1, body = b (float[4] x) => (float[4] r) { r = Neg (x) }> (a)",
        [(0, 4)],
    ),
    "SoftmaxCrossEntropyLoss": ("y = SoftmaxCrossEntropyLoss (a, b)", [(0, 4, 1), (0, 1)]),
    "TopK": ("y, z = TopK <axis = 0> (a, b)", [(0, 4), [1]]),
    "Unique": ("y = Unique <axis = 0> (a)", [(4, 0)]),
    # What takes a compression's place, and works.
    "MatMul": ("y = MatMul (a, b)", [(4, 31, 16), (4, 16, 0)]),
    "MatMul 2": ("y = MatMul (a, b)", [(4, 31, 0), (4, 0, 16)]),
    "Softmax": ("y = Softmax (a)", [(4, 31, 0)]),
    "Concat": ("y = Concat <axis = 0> (a, b)", [(0, 4), (1, 4)]),
}
_NEW = ("Attention", "RMSNormalization")
_INTEGERS = {"SoftmaxCrossEntropyLoss": "b"}


def probe(name: str, zero: int) -> Case:
    """A probe with ``zero`` elements where it has 0."""
    text, given = PROBES[name]
    op_type = name.split()[0]
    feeds: dict[str, Any] = {}
    for letter, one in zip("abc", given, strict=False):
        if isinstance(one, tuple):
            dtype = np.int64 if _INTEGERS.get(op_type) == letter else np.float32
            feeds[letter] = np.ones([zero if dim == 0 else dim for dim in one], dtype)
            if dtype == np.int64:
                feeds[letter] *= 0
        else:
            feeds[letter] = np.array(one, np.int64).reshape(() if op_type == "STFT" else -1)
    kinds = {np.dtype(np.float32): "float", np.dtype(np.int64): "int64"}
    inputs = ", ".join(
        f"{kinds[value.dtype]}[{', '.join(f'{letter}{axis}' for axis in range(value.ndim))}] {letter}"
        for letter, value in feeds.items()
    )
    opset = 23 if op_type in _NEW else 21  # each in a version that onnxruntime has
    model = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : {opset}]> g ({inputs}) => (y) {{ {text} }}')
    return Case(op_type, f"probe {name}", f"size {zero}", model.SerializeToString(), feeds)


# --------------------------------------------------------------------------------------------------
# onnx's tests


def cases() -> Iterator[Case]:
    """The models to try. A few thousand; making them takes a quarter of a minute."""
    for name in PROBES:
        yield probe(name, 0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from onnx.backend.test.case.node import collect_testcases

        tests = collect_testcases(None)
    taken: Counter[str] = Counter()
    for test in tests:
        model = test.model
        op_type = model.graph.node[0].op_type
        if len(model.graph.node) > 1 or "_expanded" in test.name or taken[op_type] >= MAX_CASES:
            continue
        names, arrays = [value.name for value in model.graph.input], test.data_sets[0][0]
        if len(arrays) != len(names) or not all(isinstance(array, np.ndarray) for array in arrays):
            continue
        taken[op_type] += 1
        for value in (*model.graph.input, *model.graph.output):
            value.type.tensor_type.ClearField("shape")
        data = model.SerializeToString()
        for empty in _emptied(arrays):
            feeds = {
                name: _without(array, [axis for number, axis in empty if number == index])
                for index, (name, array) in enumerate(zip(names, arrays, strict=True))
            }
            about = ", ".join(f"{names[index]}[{axis}]" for index, axis in sorted(empty))
            yield Case(op_type, test.name, about, data, feeds)


def _without(array: Any, axes: Sequence[int]) -> Any:
    return (
        np.zeros([0 if axis in axes else dim for axis, dim in enumerate(array.shape)], array.dtype) if axes else array
    )


def _emptied(arrays: Sequence[Any]) -> Iterator[frozenset[tuple[int, int]]]:
    """Sets of (input, axis): each axis of a float alone, and with the others that seem to be the same dim."""
    axes = [(i, axis) for i, array in enumerate(arrays) if array.dtype in _FLOATS for axis in range(array.ndim)]
    seen: set[frozenset[tuple[int, int]]] = set()
    for index, axis in axes:
        dim = arrays[index].shape[axis]
        alike = [(i, other) for i, other in axes if arrays[i].shape[other] == dim]
        for one in (
            frozenset({(index, axis)}),
            frozenset(alike),
            frozenset((i, other) for i, other in alike if i == index),
            frozenset((i, other) for i, other in axes if other == axis),
        ):
            if one not in seen:
                seen.add(one)
                yield one


# --------------------------------------------------------------------------------------------------
# Running them


def survey(tried: Sequence[Case]) -> list[Outcome]:
    """Run the cases, each at most `SECONDS`."""
    outcomes: list[Outcome] = []
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "cases"
        file.write_bytes(pickle.dumps(tried))
        while len(outcomes) < len(tried):
            outcomes += _run(file, tried, len(outcomes))
    return outcomes


def _run(file: Path, tried: Sequence[Case], start: int) -> list[Outcome]:
    """As many outcomes as one process gives, one more if it dies or hangs."""
    command = [sys.executable, __file__, str(file), str(start)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        outcomes: list[Outcome] = []
        with selectors.DefaultSelector() as selector:
            selector.register(process.stdout, selectors.EVENT_READ)
            while (ready := selector.select(SECONDS)) and (line := process.stdout.readline()):
                result, shapes, message = json.loads(line)
                case = tried[start + len(outcomes)]
                outcomes.append(Outcome(case, result, tuple(map(tuple, shapes)), message))
        if start + len(outcomes) < len(tried):
            process.kill()  # if it is still there
            result = "dies" if ready else "hangs"
            outcomes.append(Outcome(tried[start + len(outcomes)], result, message=f"status {process.wait()}"))
    return outcomes


def _child(file: Path, start: int) -> None:
    onnxruntime.set_default_logger_severity(4)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    model, session = b"", None
    for case in pickle.loads(file.read_bytes())[start:]:
        try:
            if case.model != model or session is None:
                session = onnxruntime.InferenceSession(case.model, options, providers=["CPUExecutionProvider"])
                model = case.model
            shapes = [list(getattr(value, "shape", ())) for value in session.run(None, case.feeds)]
            told = ["ok", shapes, ""]
        except Exception as error:  # onnxruntime has classes of its own
            told = ["fails", [], str(error)[-300:]]
        print(json.dumps(told), flush=True)


def main() -> None:
    outcomes = survey(list(cases()))
    print(f"onnxruntime {onnxruntime.__version__}, {len(outcomes)} models")
    for result in ("dies", "hangs", "fails"):
        found = Counter(one.case.op_type for one in outcomes if one.result == result)
        print(f"\n{result}: {', '.join(f'{name} {count}' for name, count in sorted(found.items())) or 'none'}")
        if result != "fails":  # most of which are no valid calls
            for one in outcomes:
                if one.result == result:
                    print(f"    {one.case.op_type:20} {one.case.name}, empty: {one.case.empty} ({one.message})")


if __name__ == "__main__":
    if len(sys.argv) == 3:
        _child(Path(sys.argv[1]), int(sys.argv[2]))
    else:
        main()
