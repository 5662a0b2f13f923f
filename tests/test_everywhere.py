"""Our operators in sessions that others open, and in onnx's reference evaluator."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import ml_dtypes
import nsa_models as models
import numpy as np
import onnx.inliner
import onnxruntime
import pytest
from onnx import helper
from onnx.reference import ReferenceEvaluator

import nsa_onnx
from nsa_onnx import cli
from nsa_onnx.runtime import session as sessions
from nsa_onnx.runtime.session import compress_model

MODEL = compress_model(32, 16, (40, 100), 2, 16).SerializeToString()
X = np.random.default_rng(0).standard_normal((100, 2, 16)).astype(np.float16)
W = np.random.default_rng(1).random((32, 2)).astype(np.float16)
WANT = nsa_onnx.nsa_compress(X, W, 32, 16, actual_seq_len=[40, 100])


def runs(session):
    return np.array_equal(session.run(None, {"input": X, "weight": W})[0], WANT)


def test_sessions_of_others_run_our_nodes_inside_and_not_outside():
    with pytest.raises(Exception, match="nsa_onnx"):
        onnxruntime.InferenceSession(MODEL)
    before = onnxruntime.InferenceSession.__init__
    with nsa_onnx.everywhere():
        inside = onnxruntime.InferenceSession(MODEL)
        assert runs(inside)
        assert runs(onnxruntime.InferenceSession(MODEL, None, ["CPUExecutionProvider"]))
        assert runs(onnxruntime.InferenceSession(MODEL, providers=["CPUExecutionProvider"]))
        options = onnxruntime.SessionOptions()
        assert runs(onnxruntime.InferenceSession(MODEL, options))
        assert runs(onnxruntime.InferenceSession(MODEL, sess_options=options))  # shared options
    assert onnxruntime.InferenceSession.__init__ is before
    assert runs(inside)
    with pytest.raises(Exception, match="nsa_onnx"):
        onnxruntime.InferenceSession(MODEL)


def test_subclasses_are_reached_and_errors_undo_everything():
    class Session(onnxruntime.InferenceSession):
        def __init__(self, model):
            super().__init__(model, providers=["CPUExecutionProvider"])

    ran = []
    with contextlib.suppress(ZeroDivisionError), nsa_onnx.everywhere():
        ran.append(runs(Session(MODEL)))
        raise ZeroDivisionError
    assert ran == [True]
    with pytest.raises(Exception, match="nsa_onnx"):
        Session(MODEL)


def test_blocks_nest_and_overlap_in_threads():
    def one(_):
        with nsa_onnx.everywhere(), nsa_onnx.everywhere():
            return runs(onnxruntime.InferenceSession(MODEL))

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(one, range(20)))
    with pytest.raises(Exception, match="nsa_onnx"):
        onnxruntime.InferenceSession(MODEL)


def test_registering_the_library_again_is_harmless():
    options = onnxruntime.SessionOptions()
    for _ in range(3):
        options.register_custom_ops_library(nsa_onnx.get_library_path())
    assert runs(onnxruntime.InferenceSession(MODEL, options))
    assert runs(sessions.create_session(MODEL, options=options))
    assert runs(sessions.create_session(MODEL, options=sessions.session_options(options)))


SCRIPT = f"""
import sys, onnxruntime
onnxruntime.InferenceSession({MODEL!r})
print(__name__, sys.argv[1:])
sys.exit(int(sys.argv[1]))
"""


@pytest.mark.parametrize("form", ["script", "python script", "module", "code"])
def test_the_command_runs_a_program_with_our_operators(form, tmp_path):
    (tmp_path / "tool.py").write_text(SCRIPT)
    words = {
        "script": ["tool.py"], "python script": ["python3", "tool.py"], "module": ["python", "-m", "tool"],
        "code": ["python", "-c", SCRIPT],
    }[form]  # fmt: skip
    line = [sys.executable, "-m", "nsa_onnx.cli", "with", "--", *words, "7", "--flag"]
    done = subprocess.run(line, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (7, "__main__ ['7', '--flag']\n"), done.stderr


def test_the_command_passes_on_how_a_program_ends(tmp_path, capsys):
    def ends(code):
        (tmp_path / "tool.py").write_text(code)
        return cli.main(["with", "--", str(tmp_path / "tool.py")]), capsys.readouterr().err

    assert ends("") == (0, "")
    assert ends("raise SystemExit('no')") == (1, "no\n")
    status, said = ends("open('/nowhere/at/all')")
    assert status == 1 and "Traceback" in said and "FileNotFoundError" in said


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ([], "a program is missing"),
        (["python"], "a program is missing"),
        (["no-such-tool"], "no-such-tool: no such program"),
        (["/bin/true"], "no Python program: only the sessions of this Python process"),
        (["python", "-X", "dev"], "'-X' is not understood: give a script, -m MODULE or -c CODE"),
    ],
)
def test_what_cannot_be_run_is_told(words, reason, capsys):
    assert cli.main(["with", "--", *words]) == 2
    assert reason in capsys.readouterr().err


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_the_reference_evaluator_runs_prefill_with_the_same_bits(dtype):
    made = compress_model(32, 16, (40, 100), 2, 16)
    got = ReferenceEvaluator(made, new_ops=nsa_onnx.reference_ops()).run(
        None, {"input": X.astype(dtype), "weight": W.astype(dtype)}
    )[0]
    want = nsa_onnx.nsa_compress(X.astype(dtype), W.astype(dtype), 32, 16, actual_seq_len=[40, 100])
    assert got.dtype == dtype and np.array_equal(got.view(np.uint16), want.view(np.uint16))


@pytest.mark.parametrize("table", [True, False])
def test_the_reference_evaluator_runs_decode_and_leaves_the_cache(table):
    made = models.infer() if table else models.infer(table=None, x=(12, 64, 4, 16), batch=3)
    rng = np.random.default_rng(2)
    feeds, shapes = {}, {v.name: [d.dim_value for d in v.type.tensor_type.shape.dim] for v in made.graph.input}
    node = made.graph.node[0]
    names = dict(
        zip(("input", "weight", "slot_mapping", "cache", "actual_seq_len", "block_table"), node.input, strict=False)
    )
    sizes = {a.name: a.i for a in node.attribute}
    batch = shapes[names["slot_mapping"]][0] or 3
    shapes[names["slot_mapping"]] = [batch]
    for key, name in names.items():
        if name not in shapes:
            continue
        shape = [dim or 8 for dim in shapes[name]]
        if key in ("input", "weight", "cache"):
            feeds[name] = rng.random(shape).astype(np.float16)
        elif key == "slot_mapping":
            feeds[name] = np.arange(batch, dtype=np.int32)
        elif key == "block_table":
            feeds[name] = np.zeros([batch, shape[1]], np.int32)
        else:
            feeds[name] = np.full(batch, sizes["compress_block_size"], np.int64)
    cache = feeds[names["cache"]].copy()
    got = ReferenceEvaluator(made, new_ops=nsa_onnx.reference_ops()).run(None, feeds)[0]
    want = sessions.create_session(made, device="cpu").run(None, feeds)[0]
    assert np.array_equal(got, want) and not np.array_equal(got, cache)
    assert np.array_equal(feeds[names["cache"]], cache)


def test_the_reference_evaluator_runs_our_nodes_in_functions_once_they_are_inlined():
    """It does not hand new_ops on to functions."""
    made = compress_model(32, 16, (40, 100), 2, 16)
    inner = onnx.NodeProto()
    inner.CopyFrom(made.graph.node[0])
    names = list(inner.input), list(inner.output)
    made.functions.append(helper.make_function("f", "F", *names, [inner], made.opset_import))
    made.opset_import.add(domain="f", version=1)
    made.graph.node[0].CopyFrom(helper.make_node("F", *names, domain="f"))
    inlined = onnx.inliner.inline_local_functions(made)
    got = ReferenceEvaluator(inlined, new_ops=nsa_onnx.reference_ops()).run(None, {"input": X, "weight": W})[0]
    assert np.array_equal(got, WANT)
