"""Sessions with our library, and the doctor."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings
from pathlib import Path

import nsa_models as models
import numpy as np
import onnx
import onnxruntime
import oracle
import pytest

import nsa_onnx
from nsa_onnx.operators import OPERATORS
from nsa_onnx.operators.expand import expand
from nsa_onnx.operators.sampling import floats
from nsa_onnx.runtime import native, session

SEQ = [40, 100, 230]


def feeds():
    generator = np.random.default_rng(0)
    return {
        "x": generator.standard_normal((SEQ[-1], 4, 16)).astype(np.float16),
        "w": generator.standard_normal((32, 4)).astype(np.float16),
    }


def want():
    return oracle.compress_exact(feeds()["x"], feeds()["w"], 32, 16, SEQ)


@pytest.mark.parametrize("form", ["path", "text", "bytes", "model"])
def test_a_model_is_served_in_every_form(form, tmp_path):
    model = models.compress(SEQ)
    path = tmp_path / "m.onnx"
    onnx.save(model, path)
    source = {"path": path, "text": str(path), "bytes": model.SerializeToString(), "model": model}[form]
    (got,) = nsa_onnx.create_session(source).run(None, feeds())
    assert oracle.same_bits(got, want())


def test_options_and_library_path_are_what_onnxruntime_takes():
    options = nsa_onnx.session_options()
    made = onnxruntime.InferenceSession(models.compress(SEQ).SerializeToString(), options)
    assert oracle.same_bits(made.run(None, feeds())[0], want())
    by_hand = onnxruntime.SessionOptions()
    by_hand.register_custom_ops_library(nsa_onnx.get_library_path())
    onnxruntime.InferenceSession(models.compress(SEQ).SerializeToString(), by_hand)


def test_given_options_and_providers_are_used():
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    made = nsa_onnx.create_session(models.compress(SEQ), options=options, providers=["CPUExecutionProvider"])
    assert made.get_session_options().intra_op_num_threads == 1
    assert made.get_providers() == ["CPUExecutionProvider"]


def test_options_serve_several_sessions():
    options = nsa_onnx.session_options(nsa_onnx.session_options())
    for _ in range(2):
        made = nsa_onnx.create_session(models.compress(SEQ), options=options)
        assert oracle.same_bits(made.run(None, feeds())[0], want())


def test_a_model_beyond_two_gibibytes_is_refused_with_the_way_out(monkeypatch):
    def fail(_):
        raise OverflowError("Failed to serialize proto")

    monkeypatch.setattr(onnx.ModelProto, "SerializeToString", fail)
    with pytest.raises(ValueError, match=r"external data .* pass the path"):
        nsa_onnx.create_session(models.compress(SEQ))


def test_the_custom_kernel_wins_over_a_portable_body(tmp_path):
    """onnxruntime says in its profile what it has run: one node of ours, and none of the body's."""
    options = onnxruntime.SessionOptions()
    options.enable_profiling = True
    options.profile_file_prefix = str(tmp_path / "profile")
    made = nsa_onnx.create_session(expand(models.compress(SEQ)), options=options)
    (got,) = made.run(None, feeds())
    assert oracle.same_bits(got, want())
    events = json.loads(Path(made.end_profiling()).read_text())
    ops = {event["args"]["op_name"] for event in events if "op_name" in event.get("args", {})}
    assert ops == {"NsaCompress"}


def test_kernel_and_body_agree_on_decode_with_and_without_a_table():
    generator = np.random.default_rng(1)
    values = {
        "x": generator.standard_normal((12, 64, 4, 16)).astype(np.float16),
        "w": generator.standard_normal((32, 4)).astype(np.float16),
        "slots": np.array([3, -1, 1], np.int32),
        "cache": generator.standard_normal((5, 4, 16)).astype(np.float16),
        "seq": np.array([96, 97, 256]),
    }
    for table in (None, generator.integers(0, 12, (3, 4)).astype(np.int32)):
        model = models.infer(table=None if table is None else ("B", "M"))
        full = values if table is None else {**values, "table": table}
        (kernel,) = nsa_onnx.create_session(model).run(None, full)
        (body,) = models.run_ort(expand(model), full)
        assert oracle.same_bits(kernel, body)
        assert not oracle.same_bits(kernel, values["cache"])


def test_devices_are_refused_in_words():
    with pytest.raises(ValueError, match="device must be one of auto, cpu, ascend, got 'gpu'"):
        nsa_onnx.create_session(models.compress(SEQ), device="gpu")
    with pytest.raises(RuntimeError, match=r"has no CANNExecutionProvider: pip install onnxruntime-cann"):
        nsa_onnx.create_session(models.compress(SEQ), device="ascend")
    with pytest.raises(ValueError, match="ascend_backend must be one of auto, ascend_kernels, aclnn, got 'acl'"):
        nsa_onnx.create_session(models.compress(SEQ), device="ascend", ascend_backend="acl")
    with pytest.raises(ValueError, match="provider_options is for device 'ascend'"):
        nsa_onnx.create_session(models.compress(SEQ), device="cpu", provider_options={})
    nsa_onnx.create_session(models.compress(SEQ), device="cpu")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"enable_can_graph": 0},
            "provider option 'enable_can_graph' is unknown; the CANN provider has arena_extend_strategy, ",
        ),
        ({"enable_cann_graph": True}, "which does not know NSA nodes: leave it 0"),
    ],
)
def test_provider_options_that_cannot_work_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        nsa_onnx.create_session(models.compress(SEQ), device="ascend", provider_options=options)


def test_without_an_ascend_provider_auto_is_the_cpu():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        made = nsa_onnx.create_session(models.compress(SEQ))
    assert made.get_providers() == ["CPUExecutionProvider"]


def test_where_no_cann_is_the_doctor_says_what_is_missing():
    ascend = session.doctor(ascend=True).ascend
    assert not ascend.ok
    assert not ascend.simulated
    assert "has no CANNExecutionProvider" in ascend.problem
    assert "cannot load CANN's libascendcl.so" in ascend.backends["aclnn"]
    assert "set_env.sh" in ascend.backends["aclnn"]
    assert ascend.problem in "\n".join(" ".join(row) for row in ascend.rows())


def test_without_onnxruntime_the_way_out_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(RuntimeError, match=r": pip install onnxruntime$"):
        nsa_onnx.create_session(models.compress(SEQ))


def test_the_doctor_finds_this_installation_healthy():
    diagnosis = session.doctor()
    assert diagnosis.ok
    assert diagnosis.runs == {"eager": "ok", "onnxruntime": "ok"}
    assert diagnosis.versions["nsa_onnx"] == diagnosis.library_version == nsa_onnx.__version__
    assert diagnosis.versions["onnx"] == onnx.__version__
    assert diagnosis.library == nsa_onnx.get_library_path()
    assert diagnosis.cpu_target in diagnosis.cpu_targets
    assert "CPUExecutionProvider" in diagnosis.providers
    for word in (diagnosis.library, diagnosis.cpu_target, onnxruntime.__version__):
        assert word in diagnosis.to_text()


def example_values(operator):
    made = operator.example
    return {**floats(made.shapes, "float16"), **made.indices}, made.attributes


def test_the_doctor_notices_wrong_results_and_failures(monkeypatch):
    last = list(OPERATORS.values())[-1]
    half = tuple(one.values.astype(np.float16) + 1 for one in last.reference(*example_values(last)))
    monkeypatch.setattr(type(last), "call", lambda *_: half)
    diagnosis = session.doctor()
    assert not diagnosis.ok
    assert diagnosis.runs["eager"] == "computes a wrong result"

    def missing():
        raise RuntimeError("libnsa_onnx_ort.so is not at /nowhere")

    monkeypatch.setattr(native, "library_path", missing)
    diagnosis = session.doctor()
    assert "not at /nowhere" in diagnosis.library
    assert "not at /nowhere" in diagnosis.runs["onnxruntime"]


@pytest.mark.parametrize(
    ("wanted", "status", "line"),
    [
        ("scalar", 0, "wanted          NSA_ONNX_CPU_TARGET='scalar', as asked for"),
        ("mmx", 1, "wanted          NSA_ONNX_CPU_TARGET='mmx', not in use: name one of those above, or auto"),
        ("auto", 0, "NSA_ONNX_CPU_TARGET='auto', as asked for"),
    ],
)
def test_the_doctor_says_whether_the_forced_instruction_set_is_in_use(wanted, status, line):
    command = [sys.executable, "-m", "nsa_onnx.cli", "doctor"]
    environment = {**os.environ, "NSA_ONNX_CPU_TARGET": wanted}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (status, "")
    assert line in done.stdout
    in_use = wanted if wanted == "scalar" else native.cpu_targets()[0]
    assert f"\ncpu target        {in_use} (of {', '.join(native.cpu_targets())})\n" in done.stdout


def test_the_doctor_needs_no_onnxruntime(monkeypatch):
    version = session._version
    monkeypatch.setattr(session, "_version", lambda name: None if name.startswith("onnxruntime") else version(name))
    diagnosis = session.doctor()
    assert diagnosis.ok
    assert diagnosis.versions["onnxruntime"] is None
    assert diagnosis.runs == {"eager": "ok"}


def test_checking_imports_neither_torch_nor_onnxruntime():
    code = "import sys, nsa_onnx.cli, nsa_onnx.runtime.session; print({'torch', 'onnxruntime'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
