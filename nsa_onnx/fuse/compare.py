"""``nsa-onnx fuse --verify``: compares a model before and after fusion.

The proof needs no run; this is an optional second check. It computes each replaced value in float64 (`meaning`) and
runs both models in onnxruntime on made-up inputs, where onnxruntime's CPU provider can run them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import ModelProto, TensorProto, helper
from onnx.external_data_helper import load_external_data_for_model

from ..graph.walk import standard_opset
from ..recognise.positions import Dynamic
from ..recognise.precision import BFLOAT16, HALF, numpy_type
from ..recognise.results import Root
from ..runtime.session import session_for_trial
from .meaning import Meaning
from .rewrite import Replacement

Floats = npt.NDArray[np.float64]

# Length of a dim that the model leaves open: a few windows of any size. Of a second one, a small batch.
OPEN_DIM, OTHER_OPEN_DIM = 400, 2
# The two differ by the order of float32 additions, and by what rounding makes of that: one unit in the last place of
# the result, or, where large terms cancel, an error relative to the largest value.
_BITS: dict[int, int] = {HALF: 10, BFLOAT16: 7}
_CANCELLED = 2.0**-18
# What is rounded otherwise, and everything after the replaced values: last places, multiplied by whatever follows. A
# wrong window shows as 1.
_LOOSE = 0.05


@dataclass(frozen=True)
class Difference:
    """One value of both models.

    Attributes:
        name: of the value.
        replaced: whether a node of ours makes it now, and its meaning is compared; else it is an output of the model,
            which onnxruntime has run.
        largest: largest absolute difference.
        scale: largest absolute value.
        equal: whether it is as equal as it has to be.
    """

    name: str
    replaced: bool
    largest: float
    scale: float
    equal: bool


@dataclass(frozen=True)
class Comparison:
    """What was compared.

    Attributes:
        differences: of the replaced values, then of the outputs of the model.
        not_run: why onnxruntime cannot run the model as it was, and so no output was compared; empty if it can.
    """

    differences: tuple[Difference, ...]
    not_run: str = ""

    @property
    def equal(self) -> bool:
        """Whether all values are as equal as they have to be."""
        return all(one.equal for one in self.differences)


def compare(before: ModelProto, after: ModelProto, replacements: Sequence[Replacement], folder: Path) -> Comparison:
    """Compute each replaced value from the tensors that it is proven to be made of, then run both models.

    Our own bodies are not computed: they were compared node by node.

    Args:
        folder: of the external data.

    Raises:
        ValueError: a value cannot be computed, or the new model cannot be run although the old one can, or there is
            nothing that can be compared; with the reason.
    """
    opset = standard_opset(before.opset_import) or 0
    differences = [_meanings(one, opset) for one in replacements if one.found.compression is not None]
    models = [_watching(model, folder) for model in (before, after)]
    try:
        feeds = {value.name: _made_up_input(value, index) for index, value in enumerate(_inputs(models[0]))}
        first = _run(models[0], feeds)
    except ValueError as error:
        if not differences:
            raise
        return Comparison(tuple(differences), str(error))
    second = _run(models[1], feeds)
    differences += [_difference(name, first[name], second[name], None) for name in first]
    return Comparison(tuple(differences))


def _meanings(replacement: Replacement, opset: int) -> Difference:
    """What the value is in both graphs, from the same roots."""
    found, after = replacement.found, replacement.after
    assert found.compression is not None
    roots = found.compression.roots
    given = {
        root.name: _made_up(root, seed)
        for seed, root in enumerate((roots.x, roots.w, roots.bias))
        if root is not None and found.graph.constant(root.name) is None
    }
    values = [np.asarray(Meaning(graph, opset, given).value(found.value), np.float64) for graph in (found.graph, after)]
    bits = None if found.compression.inexact else _BITS.get(roots.x.dtype)
    return _difference(found.value, values[0], values[1], bits, replaced=True)


def _made_up(root: Root, seed: int) -> npt.NDArray[Any]:
    shape = [OPEN_DIM if isinstance(dim, Dynamic) else dim for dim in root.shape]
    return _random(root.name, shape, numpy_type(root.dtype), seed)


def _random(name: str, shape: Sequence[int], dtype: npt.DTypeLike, seed: int) -> npt.NDArray[Any]:
    if math.prod(shape) > 2**28:
        raise ValueError(f"input {name!r} is too large to be made up: {list(shape)}")
    generator = np.random.default_rng(seed)
    kind = np.dtype(dtype)
    if kind.kind in "fV":  # bfloat16 is of no kind of NumPy's
        return generator.standard_normal(shape, np.float32).astype(kind)
    return np.asarray(generator.integers(0, 2, shape)).astype(kind)


def _difference(name: str, before: Floats, after: Floats, bits: int | None, *, replaced: bool = False) -> Difference:
    """The difference, and whether it is small enough: within one unit in the last place of so many bits, if given."""
    if before.shape != after.shape:
        return Difference(name, replaced, math.inf, 0.0, False)
    scale = float(np.abs(before[np.isfinite(before)]).max(initial=0.0))
    with np.errstate(invalid="ignore"):
        apart = np.where((before == after) | (np.isnan(before) & np.isnan(after)), 0.0, np.abs(before - after))
        if bits is not None:
            allowed = 2.0**-bits * np.abs(before) + _CANCELLED * scale
        else:
            allowed = np.full(before.shape, _LOOSE * scale)
        equal = bool(np.all(apart <= allowed))
    return Difference(name, replaced, float(apart.max(initial=0.0)), scale, equal)


def _inputs(model: ModelProto) -> list[Any]:
    constants = {tensor.name for tensor in model.graph.initializer}
    return [value for value in model.graph.input if value.name not in constants]


def _watching(model: ModelProto, folder: Path) -> ModelProto:
    """A copy that has its weights inside, and its outputs as float32.

    Inputs of bfloat16, which NumPy does not have, become float32 and a Cast.
    """
    copy = ModelProto()
    copy.CopyFrom(model)
    try:
        load_external_data_for_model(copy, str(folder))
    except Exception as error:  # onnx: its own checks of the paths, and the file system's errors
        raise ValueError(f"its external data cannot be read ({error})") from error
    nodes = list(copy.graph.node)
    for value in _inputs(copy):
        if value.type.tensor_type.elem_type == TensorProto.BFLOAT16:
            renamed = f"{value.name}__float32"
            nodes.insert(0, helper.make_node("Cast", [renamed], [value.name], to=TensorProto.BFLOAT16))
            value.name = renamed
            value.type.tensor_type.elem_type = TensorProto.FLOAT
    outputs = list(dict.fromkeys(value.name for value in copy.graph.output))
    del copy.graph.output[:]
    for name in outputs:
        nodes.append(helper.make_node("Cast", [name], [f"{name}__watched"], to=TensorProto.FLOAT))
        copy.graph.output.append(helper.make_tensor_value_info(f"{name}__watched", TensorProto.FLOAT, None))
    kept = [type(node).FromString(node.SerializeToString()) for node in nodes]
    del copy.graph.node[:]
    copy.graph.node.extend(kept)
    return copy


def _made_up_input(value: Any, seed: int) -> npt.NDArray[Any]:
    tensor = value.type.tensor_type
    shape: list[int] = []
    opened = 0
    for dim in tensor.shape.dim:
        if dim.HasField("dim_value") and dim.dim_value >= 0:
            shape.append(dim.dim_value)
        else:
            shape.append(OTHER_OPEN_DIM if opened else OPEN_DIM)
            opened += 1
    try:
        dtype = helper.tensor_dtype_to_np_dtype(tensor.elem_type)
    except KeyError as error:
        raise ValueError(f"input {value.name!r} is of a type that cannot be made up") from error
    return _random(value.name, shape, dtype, seed)


def _run(model: ModelProto, feeds: Mapping[str, npt.NDArray[Any]]) -> dict[str, Floats]:
    try:
        import onnxruntime  # an extra of the package

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4  # what fails is told by the exception
        session = session_for_trial(model, options)
        given = {value.name: feeds[value.name] for value in _inputs(model)}
        outputs = session.run(None, given)
    except Exception as error:  # onnxruntime has classes of its own
        text = " ".join(str(error).split())
        raise ValueError(f"it cannot be run ({text[:300]})") from error
    names = [value.name.removesuffix("__watched") for value in model.graph.output]
    return {name: np.asarray(array, np.float64) for name, array in zip(names, outputs, strict=True)}
