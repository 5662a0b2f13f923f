"""`check --run`: a node that computes what the contract says passes, any other does not, and no model is too large."""

from __future__ import annotations

import dataclasses
import subprocess
import sys

import ml_dtypes
import nsa_models as models
import numpy as np
import onnx
import oracle
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from nsa_onnx.analysis import analyse
from nsa_onnx.checker import Severity, check
from nsa_onnx.checker import run as running
from nsa_onnx.cli import main
from nsa_onnx.graph.tensors import TensorFacts
from nsa_onnx.operators import OPERATORS
from nsa_onnx.operators.base import NotRunError
from nsa_onnx.operators.facts import NodeFacts
from nsa_onnx.operators.numbers import rounded, ulps
from nsa_onnx.operators.sampling import MAX_ELEMENTS
from nsa_onnx.operators.schema import violations

TYPES = pytest.mark.parametrize("dtype", [np.dtype(np.float16), models.BFLOAT16], ids=["float16", "bfloat16"])
MODELS = {
    "compress": lambda dtype: models.compress(dtype=dtype),
    "constant lengths": lambda dtype: models.compress([40, 40, 100, 107], dtype=dtype),
    "declared": lambda dtype: models.compress(x=(900, 4, 16), dtype=dtype),
    "largest": lambda dtype: models.compress(
        x=("T", 128, 256), w=(128, 128), y=("R", 128, 256), compress_block_size=128, dtype=dtype
    ),
    "infer": lambda dtype: models.infer(dtype=dtype),
    "infer, no table": lambda dtype: models.infer(table=None, dtype=dtype),
    "infer, declared": lambda dtype: models.infer(x=(12, 64, 4, 16), batch=3, table=(3, 5), dtype=dtype),
    "infer, constant lengths": lambda dtype: models.infer([80, 33, 192], batch=3, dtype=dtype),
    "infer, large pages": lambda dtype: models.infer(
        x=("P", 128, 63, 256),
        w=(112, 63),
        cache=("S", 63, 256),
        compress_block_size=112,
        page_block_size=128,
        dtype=dtype,
    ),
}


def only_run(made):
    (run,) = check(made, run=True).runs
    return run


@TYPES
@pytest.mark.parametrize("name", MODELS)
def test_nodes_that_compute_right_are_within_an_ulp(name, dtype):
    report = check(MODELS[name](dtype), run=True)
    assert report.ok, report.to_text()
    (run,) = report.runs
    assert run.ulps in (0, 1)
    assert (run.node, run.place) == ("nsa", "graph")
    assert dtype.name in run.note
    assert " 0 of " not in run.note


def test_nothing_is_run_unless_that_is_wanted():
    assert check(models.compress()).runs == ()


# --------------------------------------------------------------------------------------------------
# What is wrong is found


def wrong(monkeypatch, change):
    """Let onnxruntime's results be something else."""
    computing = running._compute
    monkeypatch.setattr(running, "_compute", lambda *node: [change(computing(*node)[0], node[-1])])


def one_ulp_more(got, _):
    got[1, 2, 3] = float(np.nextafter(np.float16(got[1, 2, 3]), np.float16(np.inf)))
    return got


def not_a_number(got, _):
    got[1, 2, 3] = np.nan
    return got


def sums_in_float16(got, values):
    x, w = (values[name].astype(np.float16) for name in ("input", "weight"))
    return oracle._compress(x, w, 32, 16, values["actual_seq_len"], np.float16).astype(np.float64)


def truncated(got, values):
    x, w = (values[name].astype(np.float32) for name in ("input", "weight"))
    exact = oracle.compress_float64(x, w, 32, 16, values["actual_seq_len"])
    bits = exact.astype(np.float32).view(np.uint32) & np.uint32(0xFFFFE000)  # toward zero
    return bits.view(np.float32).astype(np.float64)


def across_segments(got, values):
    x, w = (values[name].astype(np.float16) for name in ("input", "weight"))
    return oracle.compress_exact(x, w, 32, 16, [len(x)]).astype(np.float64)[: len(got)]


@pytest.mark.parametrize("change", [one_ulp_more, not_a_number, sums_in_float16, truncated, across_segments])
def test_a_wrong_result_is_a_finding(monkeypatch, change):
    wrong(monkeypatch, change)
    report = check(models.compress(), run=True)
    (found,) = report.findings
    assert (found.rule, found.severity, found.node) == ("NSA100", Severity.ERROR, "nsa")
    assert "the float64 reference says" in found.message
    assert report.runs[0].ulps >= 1


def test_a_wrong_shape_and_a_crash_are_findings(monkeypatch):
    wrong(monkeypatch, lambda got, _: got[:-1])
    (found,) = check(models.compress(), run=True).findings
    assert "the result has shape" in found.message

    def crash(*node):
        raise ValueError("[ONNXRuntimeError] : 1\nmore")

    monkeypatch.setattr(running, "_compute", crash)
    (found,) = check(models.compress(), run=True).findings
    assert "onnxruntime does not run it: [ONNXRuntimeError] : 1" in found.message


def test_a_slot_that_must_not_be_written_is_looked_at(monkeypatch):
    def write_all(got, values):
        unused = set(range(len(got))) - set(values["slot_mapping"].tolist())
        got[unused.pop()] += 1
        return got

    wrong(monkeypatch, write_all)
    (found,) = check(models.infer(), run=True).findings
    assert found.rule == "NSA100"


def test_a_sum_in_another_order_passes(monkeypatch):
    def backwards(got, values):
        x, w = (values[name].astype(np.float16) for name in ("input", "weight"))
        starts = oracle.window_starts(values["actual_seq_len"], 32, 16)
        windows = np.stack([x[s : s + 32] for s in starts]).astype(np.float32)
        return (windows * w.astype(np.float32)[None, :, :, None])[:, ::-1].cumsum(1)[:, -1].astype(np.float16) * 1.0

    wrong(monkeypatch, backwards)
    assert check(models.compress(), run=True).ok


# --------------------------------------------------------------------------------------------------
# The reference and its numbers


@given(
    st.integers(0, 2**32 - 1),
    st.lists(st.integers(0, 90), min_size=1, max_size=5).filter(lambda lengths: lengths[0] > 0),
    st.sampled_from([(16, 16), (32, 16), (48, 32)]),
)
def test_the_reference_of_compress_is_the_oracles(seed, lengths, window):
    block, stride = window
    sums = np.cumsum(lengths)
    generator = np.random.default_rng(seed)
    x, w = generator.standard_normal((sums[-1], 2, 16)), generator.standard_normal((block, 2))
    values = {"input": x, "weight": w, "actual_seq_len": sums}
    window = {"compress_block_size": block, "compress_stride": stride}
    (got,) = OPERATORS["NsaCompress"].reference(values, window)
    assert np.array_equal(got.values, oracle.compress_float64(x, w, block, stride, sums))
    assert (got.slack <= 1e-3).all()


@pytest.mark.parametrize("with_table", [True, False])
def test_the_reference_of_infer_is_the_oracles(with_table):
    generator = np.random.default_rng(3)
    x, w = generator.standard_normal((6, 64, 2, 16)), generator.standard_normal((48, 2))
    cache = generator.standard_normal((4, 2, 16))
    values = {"input": x, "weight": w, "cache": cache, "slot_mapping": np.array([3, -1, 0])}
    values["actual_seq_len"] = np.array([112, 50, 48])
    table = np.array([[5, 0], [-1, -1], [2, -1]]) if with_table else None
    if with_table:
        values["block_table"] = table
    attributes = {"compress_block_size": 48, "compress_stride": 16, "page_block_size": 64}
    (got,) = OPERATORS["NsaCompressInfer"].reference(values, attributes)
    slots, lengths = values["slot_mapping"], values["actual_seq_len"]
    assert np.array_equal(got.values, oracle.infer_float64(x, w, slots, 48, 16, 64, table, lengths, cache))
    assert (got.slack[[1, 2]] == 0).all()
    assert (got.slack[[0, 3]] > 0).all()


@TYPES
def test_rounding_is_to_nearest_even(dtype):
    bits = np.arange(2**16, dtype=np.uint16)
    with np.errstate(invalid="ignore"):  # of the NaNs among them
        numbers = bits.view(dtype).astype(np.float64)
    tiny = float(ml_dtypes.finfo(dtype).smallest_normal)
    numbers = np.sort(numbers[np.isfinite(numbers) & (np.abs(numbers) >= tiny)])
    halfway = (numbers[1:] + numbers[:-1]) / 2
    halfway = halfway[np.abs(halfway) >= tiny]
    for values in (numbers, halfway, np.nextafter(halfway, -np.inf), np.nextafter(halfway, np.inf)):
        got = rounded(values, dtype.name)
        low = numbers[np.searchsorted(numbers, values, "right") - 1]
        high = numbers[np.minimum(np.searchsorted(numbers, values, "left"), len(numbers) - 1)]
        even = (low.astype(dtype).view(np.uint16) & 1) == 0
        down = (values - low < high - values) | ((values - low == high - values) & even)
        assert np.array_equal(got, np.where(down, low, high))


@TYPES
def test_ulps_count_the_numbers_in_between(dtype):
    numbers = np.array([-1.0, -0.0, 0.0, 1.0, 2.0, np.nan, np.inf], dtype)
    for a in numbers:
        for b in numbers:
            got = ulps(*(np.array([v], np.float64) for v in (a, b)), dtype.name)[0]
            assert got == oracle.ulp_distance(np.array([a]), np.array([b])), (a, b)


# --------------------------------------------------------------------------------------------------
# Which input


DIMS = st.none() | st.integers(0, 5) | st.integers(0, 400) | st.integers(10**6, 2**62)


@settings(max_examples=50)
@given(st.data(), st.sampled_from(["NsaCompress", "NsaCompressInfer"]))
def test_generated_input_is_valid_whatever_is_declared(data, op_type):
    """Or it is said why there is none; nothing large is made on the way."""
    draw = data.draw
    heads, dim, page = draw(st.sampled_from([None, 1, 63])), draw(st.sampled_from([None, 16, 256])), 64
    if op_type == "NsaCompress":
        x, batch = (draw(DIMS), heads, dim), draw(DIMS)
        seq = draw(st.none() | st.lists(st.integers(1, 2**40), min_size=1, max_size=4).map(sorted))
        made = models.compress(seq, x=x, w=(32, None), y=(None, None, None))
        if seq is None:
            made.graph.input[2].CopyFrom(models.value("seq", TensorProto.INT64, [batch]))
    else:
        batch = draw(DIMS)
        seq = draw(st.none() | st.lists(st.integers(0, 500), min_size=1, max_size=4))
        table = draw(st.none() | st.tuples(DIMS, DIMS))
        batch = batch if seq is None else len(seq)
        table = table and (batch, table[1])
        cache = (draw(DIMS), heads, dim)
        x = (draw(DIMS), draw(st.sampled_from([None, page])), heads, dim)
        made = models.infer(seq, x=x, w=(32, None), cache=cache, table=table, batch=batch)
    (node,) = analyse(made).nodes
    if any(True for _ in violations(node.facts)):
        return
    attributes = {name: node.facts.integer(name) for name in OPERATORS[op_type].attribute_names}
    try:
        sample = OPERATORS[op_type].sample(node.facts, attributes)
    except NotRunError:
        return
    values = sample.values
    assert all(value.size <= MAX_ELEMENTS for value in values.values())
    floats, ints = OPERATORS[op_type].float_inputs, {}
    inputs = {}
    for name, value in values.items():
        inputs[name] = TensorFacts(sample.dtype if name in floats else value.dtype.name, value.shape)
        if name not in floats:
            ints[name] = value.astype(np.int64)
    assert [one.message for one in violations(NodeFacts(op_type, attributes, inputs, ints))] == []


def test_what_the_model_fixes_is_what_is_run():
    assert only_run(models.compress([40, 100], x=("T", 4, 16))).note == "input [100, 4, 16] float16"
    assert only_run(models.compress(x=(333, 5, 48), w=(32, 5), y=("R", 5, 48))).note == "input [333, 5, 48] float16"
    run = only_run(models.infer([80, 33, 192], batch=3, x=(9, 64, 4, 16), table=None))
    assert run.note == "input [9, 64, 4, 16] float16, 2 of 3 sequences written"


def test_constant_slots_and_tables_are_used_as_they_are(monkeypatch):
    seen = {}
    wrong(monkeypatch, lambda got, values: seen.update(values) or got)
    made = models.infer(batch=3, x=(9, 64, 4, 16), cache=(7, 4, 16), table=(3, 2))
    for name, values in (("slots", [6, 99, 2]), ("table", [8, 1, -1, 7, 0, 0])):
        (declared,) = [one for one in made.graph.input if one.name == name]
        made.graph.input.remove(declared)
        dims = [3] if name == "slots" else [3, 2]
        made.graph.initializer.append(helper.make_tensor(name, TensorProto.INT32, dims, values))
    report = check(made, run=True)
    assert not report.count(Severity.ERROR)
    assert report.runs[0].ulps == 0
    assert seen["slot_mapping"].tolist() == [6, 99, 2]
    assert seen["block_table"].tolist() == [[8, 1], [-1, 7], [0, 0]]
    assert seen["actual_seq_len"][1] == 0  # its slot is out of range: it must not write
    assert seen["actual_seq_len"][0] >= 32


@pytest.mark.parametrize(
    "made",
    [
        lambda: models.compress(x=(2**40, 128, 256), w=(32, 128), y=("R", 128, 256)),
        lambda: models.compress([2**40]),
        lambda: models.infer(x=(2**40, 64, 4, 16)),
        lambda: models.infer(x=(2**40, 64, 4, 16), table=None),
        lambda: models.infer(cache=(2**40, 4, 16)),
        lambda: models.infer(batch=2**40, table=(2**40, 2**40)),
    ],
)
def test_huge_dims_are_cut(made):
    run = only_run(made())
    assert run.ulps in (0, 1)


def test_a_cut_is_told():
    assert only_run(models.compress(x=(2**40, 4, 16))).note == "input [65536, 4, 16] float16, T cut from 1099511627776"
    assert only_run(models.infer(x=(2**40, 64, 4, 16))).note.endswith(", block_num cut from 1099511627776")


def test_what_is_not_run_says_why():
    assert only_run(models.compress([50, 40])).note == "it has errors"
    too_few = models.infer([80, 32, 1], x=(6, 64, 4, 16), batch=3, cache=(1, 4, 16))
    assert "slot_mapping[1] must be in [0, 1), got -1" in only_run(too_few).note
    step = helper.make_function(
        "local",
        "Step",
        ["x", "w", "seq"],
        ["y"],
        [models.node()],
        [helper.make_opsetid("nsa_onnx", 1)],
        attributes=["stride"],
    )
    attribute = next(one for one in step.node[0].attribute if one.name == "compress_stride")
    attribute.Clear()
    attribute.name, attribute.ref_attr_name, attribute.type = "compress_stride", "stride", onnx.AttributeProto.INT
    call = helper.make_node("Step", ["x", "w", "seq"], ["y"], domain="local", stride=16)
    half = np.float16
    made = models.model(
        [call],
        [models.value("x", half, ["T", 4, 16]), models.value("w", half, [32, 4]), models.value("seq", 7, ["B"])],
        [models.value("y", half, ["R", 4, 16])],
        functions=[step],
        imports=(("nsa_onnx", 1), ("local", 1)),
    )
    run = only_run(made)
    assert (run.ulps, run.note) == (None, "compress_stride is set by the caller of its function")


def test_nodes_that_are_alike_are_run_once(monkeypatch):
    made = models.compress()
    for number in range(5):
        made.graph.node.add().CopyFrom(made.graph.node[0])
        made.graph.node[-1].name, made.graph.node[-1].output[0] = f"n{number}", f"y{number}"
    calls = []
    wrong(monkeypatch, lambda got, values: calls.append(1) or got)
    report = check(made, run=True)
    assert [run.ulps for run in report.runs] == [0] * 6
    assert len(calls) == 1
    monkeypatch.setattr(running, "MAX_NODES", 0)
    assert {run.note for run in check(made, run=True).runs} == {"0 other nodes were run"}


# --------------------------------------------------------------------------------------------------
# The command


def test_the_command_runs_and_reports(tmp_path, capsys, monkeypatch):
    path = tmp_path / "m.onnx"
    onnx.save(models.compress([40, 100]), path)
    assert main(["check", "--run", str(path)]) == 0
    assert "ran NsaCompress 'nsa': largest difference 0 ulp (input [100, 4, 16] float16)" in capsys.readouterr().out
    wrong(monkeypatch, one_ulp_more)
    assert main(["check", "--run", str(path)]) == 1
    assert "error NSA100 NsaCompress 'nsa': output[1, 2, 3] is" in capsys.readouterr().out
    assert main(["check", str(path)]) == 0


@pytest.mark.parametrize("command", ["cli.main(['check', 'm.onnx', '--run'])", "check('m.onnx', run=True)"])
def test_without_onnxruntime_that_is_said(tmp_path, command):
    onnx.save(models.compress([40, 100]), tmp_path / "m.onnx")
    code = (
        "import sys; sys.modules['onnxruntime'] = None\n"
        "from nsa_onnx import cli, check\n"
        "from nsa_onnx.checker import RunUnavailableError\n"
        f"try: print({command})\n"
        "except RunUnavailableError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert "onnxruntime cannot be imported" in done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    if "cli" in command:
        assert (done.stdout, len(done.stderr.splitlines())) == ("2\n", 1)


def test_facts_make_a_key_whatever_they_hold():
    (node,) = analyse(models.compress([40, 100])).nodes
    assert running._identity(node.facts) == running._identity(dataclasses.replace(node.facts))
    hash(running._identity(node.facts))


@pytest.mark.parametrize(("rows", "columns", "blocks"), [(2048, 127, 32), (33, 2, 1), (5, 40, 3), (1, 1, 1), (9, 0, 0)])
def test_lengths_are_within_constant_masks(rows, columns, blocks):
    made = onnx.parser.parse_model("""
        <ir_version: 10, opset_import: ["" : 18, "nsa_onnx" : 1]>
        model (float16[T1, 4, 32] q, float16[Tc, 2, 32] k, float16[Tc, 2, 16] v, int64[B] ends, int64[B] tokens,
               int64[B] blocks) => (float16[T1, 4, 16] y, int32[T1, 2, 2] topk) {
            y, topk = nsa_onnx.NsaCompressAttention
              <scale_value = 0.25, head_num = 4, compress_block_size = 32, compress_stride = 16,
               select_block_size = 64, select_block_count = 2>
              (q, k, v, ends, tokens, blocks, hidden, chosen)
        }""")
    for name, shape in (("hidden", (rows, columns)), ("chosen", (rows, blocks))):
        made.graph.initializer.append(onnx.numpy_helper.from_array(np.zeros(shape, bool), name))
    report = check(made, run=True)
    assert report.ok and [run.note for run in report.runs]
