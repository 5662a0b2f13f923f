"""Our operators in sessions that other programs open, and in onnx's reference evaluator."""

from __future__ import annotations

import contextlib
import re
import signal
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
from nsa_onnx.operators import OPERATORS
from nsa_onnx.operators.example import example_model
from nsa_onnx.operators.nsa_compress.example import example
from nsa_onnx.runtime import session as sessions


def compress_model():
    return example_model(OPERATORS["NsaCompress"], example(32, 16, (40, 100), 2, 16))


MODEL = compress_model().SerializeToString()
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


def test_what_others_put_over_us_stays():
    """Another tool may wrap the sessions as well, and outlive us."""
    seen = []
    plain = onnxruntime.InferenceSession.__init__
    with nsa_onnx.everywhere():
        below = onnxruntime.InferenceSession.__init__

        def theirs(self, *args, **kwargs):
            seen.append(self)
            below(self, *args, **kwargs)

        onnxruntime.InferenceSession.__init__ = theirs
    try:
        assert onnxruntime.InferenceSession.__init__ is theirs
        with pytest.raises(Exception, match="nsa_onnx"):
            onnxruntime.InferenceSession(MODEL)
        with nsa_onnx.everywhere():
            assert runs(onnxruntime.InferenceSession(MODEL))
        assert len(seen) == 2
    finally:
        onnxruntime.InferenceSession.__init__ = below
        with nsa_onnx.everywhere():
            pass
    assert onnxruntime.InferenceSession.__init__ is plain


def test_what_is_no_options_is_refused_by_onnxruntime():
    with nsa_onnx.everywhere(), pytest.raises(TypeError, match="incompatible"):
        onnxruntime.InferenceSession(MODEL, "options")


# --------------------------------------------------------------------------------------------------
# nsa-onnx with

SCRIPT = f"""
import sys
before = sorted(name for name in sys.modules if name.startswith(("nsa_onnx", "onnx")))
import onnxruntime
onnxruntime.InferenceSession({MODEL!r})
import onnx
assert onnx.defs.has("NsaCompress", 1, "nsa_onnx")
print(before, __name__, sys.argv[1:])
sys.exit(int(sys.argv[1]))
"""
WITH = [sys.executable, "-m", "nsa_onnx.cli", "with", "--"]


def run_with(words, folder, **variables):
    environment = {"PATH": "/usr/bin:/bin", **variables}
    return subprocess.run(
        [*WITH, *words], cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=60
    )


FORMS = {
    "script": ["./tool.py"],
    "python's script": ["python", "-X", "dev", "tool.py"],
    "module": ["python", "-m", "tool"],
    "code": ["python", "-c", SCRIPT],
    "console script": ["./console-script"],
    "child": ["sh", "-c", f'{sys.executable} tool.py "$@"', "sh"],
    "child of a child": ["python", "-c", "import sys, subprocess as s; sys.exit(s.call([sys.executable, 'tool.py', "
                         "*sys.argv[1:]]))"],
    "twice": [*WITH, "python", "tool.py"],
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_every_python_of_a_command_has_our_operators(form, tmp_path):
    """It imports nothing of ours before it imports onnx or onnxruntime."""
    (tmp_path / "tool.py").write_text(SCRIPT)
    console_script = tmp_path / "console-script"
    console_script.write_text(f"#!{sys.executable}\n{SCRIPT}")
    console_script.chmod(0o755)
    done = run_with([*FORMS[form], "7", "--flag"], tmp_path)
    assert (done.returncode, done.stdout) == (7, "[] __main__ ['7', '--flag']\n"), done.stderr


def test_workers_of_a_pool_have_our_operators(tmp_path):
    (tmp_path / "tool.py").write_text(f"""
import multiprocessing

def work(_):
    import onnxruntime
    return len(onnxruntime.InferenceSession({MODEL!r}).get_inputs())

if __name__ == "__main__":
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        print(pool.map(work, range(2)))
""")
    assert run_with(["python", "tool.py"], tmp_path).stdout == "[2, 2]\n"


def test_onnx_first_and_ours_first_are_fine(tmp_path):
    for imports in ("import onnx", "import nsa_onnx.checker", "import nsa_onnx.pytest_plugin, onnx"):
        code = f"{imports}; import onnx; print(onnx.defs.has('NsaCompress', 1, 'nsa_onnx'))"
        done = run_with(["python", "-c", code], tmp_path)
        assert (done.stdout, done.stderr) == ("True\n", ""), imports


def test_how_a_program_ends_is_passed_on(tmp_path):
    assert run_with(["true"], tmp_path).returncode == 0
    assert run_with(["python", "-c", "raise SystemExit('no')"], tmp_path).returncode == 1
    assert run_with(["sh", "-c", "kill -TERM $$"], tmp_path).returncode == -signal.SIGTERM


def test_a_sitecustomize_that_ours_hides_is_run(tmp_path):
    (tmp_path / "sitecustomize.py").write_text("print('theirs', __name__)")
    code = "import os, sys, sitecustomize; print(os.path.basename(sitecustomize.__file__), sys.path)"
    done = run_with(["python", "-c", code], tmp_path, PYTHONPATH=str(tmp_path))
    assert done.stdout.startswith("theirs sitecustomize\n" * 2 + "sitecustomize.py ["), "nsa-onnx itself, and its child"
    assert "hook" not in done.stdout


def test_a_python_without_us_says_so_when_it_matters(tmp_path):
    (tmp_path / "onnxruntime.py").write_text("")
    python = [sys.executable, "-S", "-c", "import site, sys, sitecustomize; "]
    assert run_with([*python[:-1], python[-1] + "print(1)"], tmp_path).stderr == ""
    done = run_with([*python[:-1], python[-1] + "import onnxruntime; print(2)"], tmp_path)
    assert done.stdout == "2\n"
    assert re.fullmatch(
        r"nsa-onnx with: .* does not know NSA nodes \(No module named 'nsa_onnx'\): install nsa_onnx for it\n",
        done.stderr,
    )


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ([], "a program is missing"),
        (["no-such-tool"], "no-such-tool: no such program"),
        (["no-such-tool.py"], "no-such-tool.py: no such program"),
    ],
)
def test_what_cannot_be_run_is_told(words, reason, capsys):
    assert cli.main(["with", "--", *words]) == 2
    assert reason in capsys.readouterr().err


# --------------------------------------------------------------------------------------------------
# onnx's reference evaluator


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_the_reference_evaluator_runs_prefill_with_the_same_bits(dtype):
    made = compress_model()
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
    made = compress_model()
    inner = onnx.NodeProto()
    inner.CopyFrom(made.graph.node[0])
    names = list(inner.input), list(inner.output)
    made.functions.append(helper.make_function("f", "F", *names, [inner], made.opset_import))
    made.opset_import.add(domain="f", version=1)
    made.graph.node[0].CopyFrom(helper.make_node("F", *names, domain="f"))
    inlined = onnx.inliner.inline_local_functions(made)
    got = ReferenceEvaluator(inlined, new_ops=nsa_onnx.reference_ops()).run(None, {"input": X, "weight": W})[0]
    assert np.array_equal(got, WANT)
