"""The command ``nsa-onnx infer-shapes``."""

from __future__ import annotations

import argparse
from pathlib import Path

from onnx import ModelProto
from onnx.shape_inference import infer_shapes

from ..analysis import analyse_graph
from ..console import OK, CommandError, add_files, speaker
from ..graph.bounds import MAX_INFERRED_DIMS, inferred_dims, propagates_safely
from ..graph.external import SMALL_BYTES, inside
from ..graph.writing import write_model
from ..operators.contract import plural
from ..operators.schema import OUTPUT_RANKS

add_arguments = add_files


def run(arguments: argparse.Namespace) -> int:
    seen = analyse_graph(arguments.model)
    model = seen.proto
    if seen.inference_error:
        raise CommandError(f"{arguments.model}: {seen.inference_error}")
    in_one_file = ModelProto()
    in_one_file.CopyFrom(model)
    for tensor in in_one_file.graph.initializer:
        tensor.CopyFrom(inside(tensor, seen.folder, SMALL_BYTES))  # inference reads no other file
    # With the weights, which the analysis leaves out: one of them may be a shape of a million dims.
    if inferred_dims(in_one_file, seen.outline, OUTPUT_RANKS) > MAX_INFERRED_DIMS:
        raise CommandError(f"{arguments.model}: shapes may have more than {MAX_INFERRED_DIMS} dims in all")
    safely = propagates_safely(in_one_file, seen.outline, OUTPUT_RANKS, seen.inferred)
    try:
        # Strict: what onnx would leave out without a word is an error here.
        result = infer_shapes(in_one_file, strict_mode=True, data_prop=safely)
    except Exception as error:  # onnx raises classes of its own, and others for broken models
        raise CommandError(f"{arguments.model}: {error}") from error
    for tensor, original in zip(result.graph.initializer, model.graph.initializer, strict=True):
        tensor.CopyFrom(original)
    write_model(result, Path(arguments.model), Path(arguments.output))
    values = (*result.graph.value_info, *result.graph.output)
    shaped = {value.name for value in values if value.type.tensor_type.HasField("shape")}
    speaker(arguments.quiet)(f"wrote {arguments.output}: the shapes of {plural(len(shaped), 'value')}")
    return OK
