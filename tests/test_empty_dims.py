"""T' = 0: the operators at which onnxruntime stops, found again; where an empty axis goes."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from nsa_onnx.graph.emptiness import Extent, results
from nsa_onnx.targets.cpu import ONNXRUNTIME, STOPS, stop

sys.path.insert(0, str(Path(__file__).parents[1] / "tools"))
import empty_dims


@pytest.fixture(scope="module")
def outcomes():
    return empty_dims.survey(list(empty_dims.cases()))


def extents(case):
    """A case's node, with the extents of its inputs and their values."""
    node = onnx.load_from_string(case.model).graph.node[0]
    arrays = [case.feeds.get(name) for name in node.input]

    def constant(index):
        array = arrays[index] if index < len(arrays) else None
        return array if array is not None and array.dtype.kind == "i" else None

    inputs = [
        None if array is None else Extent(array.ndim, frozenset(np.flatnonzero(np.array(array.shape) == 0).tolist()))
        for array in arrays
    ]
    return node, inputs, constant


def test_the_operators_at_which_onnxruntime_dies_are_those_of_the_table(outcomes):
    assert onnxruntime.__version__ == ONNXRUNTIME
    assert {one.case.op_type for one in outcomes if one.result == "dies"} == {n for n, s in STOPS.items() if s.dies}
    assert not [one for one in outcomes if one.result == "hangs"]
    assert len({one.case.op_type for one in outcomes if one.result == "ok"}) > 120  # it did try them


def test_every_death_is_foreseen_from_the_node_alone(outcomes):
    for one in outcomes:
        if one.result == "dies":
            assert stop(*extents(one.case)) is STOPS[one.case.op_type], one.case


def test_what_runs_is_not_said_to_stop(outcomes):
    # Of Einsum's equations, the ones that run are as many, and others with each release.
    wrong = [one.case for one in outcomes if one.result == "ok" and stop(*extents(one.case)) is not None]
    assert {case.op_type for case in wrong} <= {"Einsum"}, [case for case in wrong if case.op_type != "Einsum"]


def test_where_an_empty_axis_goes_is_where_onnxruntime_has_it(outcomes):
    seen = set()
    for one in outcomes:
        if one.result != "ok" or one.case.op_type == "Concat":  # which drops empty parts that do not fit the others
            continue
        node, inputs, constant = extents(one.case)
        for extent, shape in zip(results(node, inputs, constant), one.shapes, strict=False):
            if extent is not None and extent.empty:
                seen.add(node.op_type)
                assert extent.rank == len(shape), one.case
                assert all(shape[axis] == 0 for axis in extent.empty), one
    assert len(seen) > 70


@pytest.mark.parametrize("name", sorted(empty_dims.PROBES))
def test_each_probe_runs_with_one_and_stops_with_none(name, outcomes):
    op_type = name.split()[0]
    entry = STOPS.get(op_type)
    wanted = "ok" if entry is None else "dies" if entry.dies else "fails"
    one, nothing = empty_dims.probe(name, 1), empty_dims.probe(name, 0)
    session = onnxruntime.InferenceSession(one.model, providers=["CPUExecutionProvider"])
    session.run(None, one.feeds)
    assert next(o.result for o in outcomes if o.case.name == nothing.name) == wanted
    assert stop(*extents(nothing)) is entry
    assert stop(*extents(one)) is None


def test_every_operator_of_the_table_has_a_probe():
    assert set(STOPS) <= {name.split()[0] for name in empty_dims.PROBES}
