"""The package without its native library: eager calls, all commands, export; and how one gets there."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import nsa_models as models
import numpy as np
import onnx
import oracle
import pytest

import nsa_onnx

TESTS = Path(__file__).parent
ROOT = TESTS.parent
SITE_PACKAGES = Path(np.__file__).parents[1]
SEQ = [40, 100, 230]

# --------------------------------------------------------------------------------------------------
# The package without its library, in processes of its own


def run(site, *arguments, cwd, status=0, **environment):
    """Python with a package in `site`; -S: without site, the finder of an editable install does not answer first."""
    path = os.pathsep.join(map(str, (site, SITE_PACKAGES, TESTS)))
    done = subprocess.run(
        [sys.executable, "-S", *map(str, arguments)],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": path, **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    ignored = shutil.ignore_patterns("*.so", "__pycache__")
    shutil.copytree(ROOT / "nsa_onnx", folder / "nsa_onnx", ignore=ignored)
    shutil.copytree(ROOT / "exporters", folder / "nsa_onnx" / "exporters", ignore=ignored)
    return folder


@pytest.fixture
def script(site, tmp_path):
    def execute(code, **options):
        file = tmp_path / "script.py"
        file.write_text(code)
        return run(site, file, cwd=tmp_path, **options)

    return execute


@pytest.fixture
def command(site, tmp_path):
    return lambda *arguments, **options: run(site, "-m", "nsa_onnx.cli", *arguments, cwd=tmp_path, **options)


# Not in pytest's own process: its plugin of ours would be the editable install's.
RUN_TESTS = """
import sys, pytest
from nsa_onnx.runtime import native
assert not native.is_here()
status = pytest.main(sys.argv[1:])
assert not native._library.cache_info().currsize
sys.exit(status)
"""


@pytest.mark.parametrize("name", ["test_eager.py", "test_eager_errors.py"])
def test_the_tests_of_the_eager_calls_pass_without_the_library(script, site, tmp_path, name):
    (tmp_path / "run.py").write_text(RUN_TESTS)
    options = ["-q", "-o", "pythonpath=", "-p", "no:cacheprovider", "-c", ROOT / "pyproject.toml"]
    assert " passed" in run(site, "run.py", *options, f"--rootdir={ROOT}", TESTS / name, cwd=tmp_path)


def test_the_torch_ops_compute_on_the_cpu(script):
    code = """
import numpy as np, oracle, torch
import nsa_onnx, nsa_onnx.exporters
from torch_cases import decode_arguments, randn, same, to_numpy
for dtype in (torch.float16, torch.bfloat16):
    x, w = randn(100, 2, 16, dtype=dtype), randn(32, 2, dtype=dtype, seed=1)
    strided = x.permute(2, 0, 1).contiguous().permute(1, 2, 0).requires_grad_()
    got = nsa_onnx.nsa_compress(strided, w, 32, 16, actual_seq_len=[40, 100])
    assert same(got, oracle.compress_exact(to_numpy(x), to_numpy(w), 32, 16, [40, 100]))
    got.sum().backward()
    assert strided.grad.abs().sum() > 0
    pages, slots, table, cache = decode_arguments(dtype)
    arrays = [to_numpy(t) for t in (slots, table, cache)]
    wanted = oracle.infer_exact(to_numpy(pages), to_numpy(w), arrays[0], 32, 16, 64, arrays[1], [64, 80], arrays[2])
    rest = {"block_table": table, "actual_seq_len": [64, 80], "cache": cache}
    got = nsa_onnx.nsa_compress_infer(pages, w, slots, 32, 16, 64, **rest)
    assert got.data_ptr() == cache.data_ptr() and same(cache, wanted)
print("computed")
"""
    assert "computed" in script(code)


EXPORT = """
import os, sys, warnings
import onnx, torch
import nsa_onnx
from nsa_onnx.exporters import export
from nsa_onnx.operators.nsa_compress.operator import NsaCompress
from torch_cases import decode_arguments, randn
DYNAMO = sys.argv[1] == "dynamo"
warnings.simplefilter("ignore", DeprecationWarning)

class Model(torch.nn.Module):
    def __init__(self, dtype):
        super().__init__()
        self.weight = torch.nn.Parameter(randn(64, 16, dtype=dtype, seed=3))  # large enough for external data

    def forward(self, x, pages, slots, table, cache):
        w = self.weight[:32, :2].contiguous()
        y = nsa_onnx.nsa_compress(x, w, 32, 16, actual_seq_len=[40, 100])
        cache = nsa_onnx.nsa_compress_infer(
            pages, w, slots, 32, 16, 64, block_table=table, actual_seq_len=[64, 80], cache=cache)
        return y, cache

for dtype in (torch.float16, torch.bfloat16):
    model, args = Model(dtype).eval(), (randn(100, 2, 16, dtype=dtype), *decode_arguments(dtype))
    export(model, args, "m.onnx", dynamo=DYNAMO, verify=True)
    nodes = onnx.load("m.onnx", load_external_data=False).graph.node
    assert {"NsaCompress", "NsaCompressInfer"} <= {node.op_type for node in nodes}
    assert not [name for name in os.listdir() if "expanded" in name or "draft" in name], os.listdir()
try:
    nsa_onnx.create_session("m.onnx")
except RuntimeError as error:
    assert "NsaCompress, NsaCompressInfer cannot run without the native library" in str(error), error
    assert "nsa-onnx expand" in str(error) and "portable=True" in str(error), error
else:
    raise AssertionError("it runs")

export(model, args, "portable.onnx", dynamo=DYNAMO, portable=True)
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    nsa_onnx.create_session("portable.onnx")
assert ["native library is missing" in str(one.message) for one in caught] == [True], caught
assert caught[0].filename == __file__, caught[0]

# What is verified is that the graph computes the same: with another body it does not.
right = NsaCompress.body_text
NsaCompress.body_text = right.replace("products = Mul (values_32, weight_j)", "products = Add (values_32, weight_j)")
assert NsaCompress.body_text != right
try:
    export(model, args, "wrong.onnx", dynamo=DYNAMO, verify=True)
except RuntimeError as error:
    assert "does not compute what the model does" in str(error), error
else:
    raise AssertionError("a wrong body was not noticed")
assert not os.path.exists("wrong.onnx")
print("exported")
"""


@pytest.mark.parametrize("route", ["dynamo", "legacy"])
def test_export_verifies_by_the_portable_bodies(site, tmp_path, route):
    (tmp_path / "export.py").write_text(EXPORT)
    assert "exported" in run(site, "export.py", route, cwd=tmp_path)


def test_a_portable_model_gives_the_same_bits_with_a_warning(command, script, tmp_path):
    onnx.save(models.compress(SEQ), tmp_path / "m.onnx")
    command("expand", "m.onnx", "-o", "portable.onnx")
    generator = np.random.default_rng(0)
    x = generator.standard_normal((SEQ[-1], 4, 16)).astype(np.float16)
    w = generator.standard_normal((32, 4)).astype(np.float16)
    np.savez(tmp_path / "feeds.npz", x=x, w=w)
    code = """
import numpy as np, nsa_onnx
np.save("y.npy", nsa_onnx.create_session("portable.onnx").run(None, dict(np.load("feeds.npz")))[0])
"""
    said = script(code)
    assert len(re.findall("RuntimeWarning: the native library is missing", said)) == 1
    assert oracle.same_bits(np.load(tmp_path / "y.npy"), oracle.compress_exact(x, w, 32, 16, SEQ))


def test_sessions_say_what_they_need(script, tmp_path):
    onnx.save(models.compress(SEQ), tmp_path / "m.onnx")
    plain = onnx.helper.make_node("Neg", ["x"], ["y"])
    plain = models.model([plain], [models.value("x", np.float16, [2])], [models.value("y", np.float16, [2])])
    onnx.save(plain, tmp_path / "plain.onnx")
    code = """
import warnings
import nsa_onnx
warnings.simplefilter("error")
nsa_onnx.create_session("plain.onnx")  # no NSA node: nothing is missing

def message(call):
    try:
        call()
    except RuntimeError as error:
        return str(error)
    raise AssertionError("it runs")

missing = message(nsa_onnx.get_library_path)
assert "this is the pure Python package" in missing and "manylinux" in missing and "C++17 compiler" in missing, missing
for call in (
    lambda: nsa_onnx.create_session("m.onnx"),
    lambda: nsa_onnx.create_session(open("m.onnx", "rb").read()),
    lambda: nsa_onnx.create_session("m.onnx", device="ascend"),
    nsa_onnx.session_options,
    lambda: nsa_onnx.everywhere().__enter__(),
):
    assert missing in message(call)
for source in ("nowhere.onnx", b"no model"):
    try:
        nsa_onnx.create_session(source)
    except Exception as error:
        assert "native library" not in str(error), error
    else:
        raise AssertionError("it runs")
"""
    script(code)


def test_every_command_works(command, tmp_path):
    onnx.save(models.compress(SEQ), tmp_path / "m.onnx")
    assert "m.onnx: ok (1 NSA node checked)" in command("check", "m.onnx")
    assert "pure Python package" in command("check", "--run", "m.onnx", status=2)
    command("infer-shapes", "m.onnx", "-o", "shaped.onnx")
    rows = onnx.load(tmp_path / "shaped.onnx").graph.output[0].type.tensor_type.shape.dim[0].dim_value
    assert rows == nsa_onnx.compressed_length(SEQ, 32, 16)
    command("expand", "m.onnx", "-o", "portable.onnx")
    assert "ok" in command("check", "--target", "portable", "portable.onnx")
    for target in ("atc", "cann"):
        command("prepare", "--target", target, "m.onnx", "-o", f"{target}.onnx")
    command("explain", "m.onnx", "--html", "m.html")
    assert "NsaCompress" in (tmp_path / "m.html").read_text()
    demo = command("demo")
    assert "(T' = 10)" in demo and "the same bits as the eager call" in demo


def test_fuse_verifies(command, tmp_path):
    windows = onnx.parser.parse_model(
        """<ir_version: 9, opset_import: ["" : 18]> g (float16[64, 2, 16] x, float16[32, 2] w) => (float16[3, 2, 16] y)
        <int64[3, 32] at> {
            weights = Unsqueeze (w, axes)
            windows = Gather <axis = 0> (x, at)
            products = Mul (windows, weights)
            y = ReduceSum <keepdims = 0> (products, one)
        }"""
    )
    starts = np.arange(3)[:, None] * 16 + np.arange(32)
    del windows.graph.initializer[:]
    for name, value in (("at", starts), ("axes", np.array([2])), ("one", np.array([1]))):
        windows.graph.initializer.append(onnx.numpy_helper.from_array(value.astype(np.int64), name))
    onnx.save(windows, tmp_path / "m.onnx")
    said = command("fuse", "--verify", "--allow-rounding", "m.onnx", "-o", "fused.onnx")
    assert "NsaCompress" in {node.op_type for node in onnx.load(tmp_path / "fused.onnx").graph.node}, said
    assert "means 'y': equal" in said and "ran   'y': equal" in said


def test_the_doctor_says_once_what_is_missing_and_what_works(command):
    said = command("doctor", status=1)
    assert said.count("MISSING: libnsa_onnx_ort.so is not at") == said.count("pure Python package") == 1
    lines = dict(re.split(r"  +", line.strip(), maxsplit=1) for line in said.splitlines())
    assert "eager calls, computed in NumPy" in lines["works without"]
    assert "check --run" in lines["needs it"]
    assert (lines["run: eager"], lines["run: portable"]) == ("ok", "ok")
    assert lines["run: onnxruntime"] == "needs the native library"


def test_a_source_tree_says_that_it_is_not_built(tmp_path):
    # Where an installed copy could be found, its library would be: only what the sources import is taken from there.
    code = f"import sys, onnx; sys.path.remove({str(SITE_PACKAGES)!r}); import nsa_onnx; nsa_onnx.get_library_path()"
    said = run(ROOT, "-c", code, cwd=tmp_path, status=1)
    assert "imported from a source tree that is not built" in said.splitlines()[-1]


# --------------------------------------------------------------------------------------------------
# How one gets there


def build(folder, *options):
    """`pip wheel .` where no compiler works."""
    words = ["-m", "pip", "wheel", "--no-build-isolation", "--no-deps", "-w", folder, "-C", f"build-dir={folder}/build"]
    return subprocess.run(
        [sys.executable, *map(str, words), *options, str(ROOT)],
        cwd=folder,
        env={**os.environ, "CC": "/bin/false", "CXX": "/bin/false"},
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )


def test_pip_gives_the_pure_package_where_no_compiler_works(tmp_path):
    done = build(tmp_path, "-v")
    assert done.returncode == 0, done.stderr
    assert "this is the pure Python package" in done.stdout + done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    assert wheel.name.endswith("-py3-none-any.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        archive.extractall(tmp_path / "site")
    assert {"nsa_onnx/py.typed", "nsa_onnx/exporters/__init__.py", "nsa_onnx/explain/page.css"} <= names
    assert not [name for name in names if name.endswith(".so")]
    said = run(tmp_path / "site", "-m", "nsa_onnx.cli", "doctor", cwd=tmp_path, status=1)
    assert "MISSING: libnsa_onnx_ort.so" in said and "C++17 compiler" in said


def test_pip_fails_there_if_the_library_is_asked_for(tmp_path):
    done = build(tmp_path, "-C", "wheel.cmake=true")
    assert done.returncode != 0
    assert "CMake configuration failed" in done.stdout + done.stderr
    assert not list(tmp_path.glob("*.whl"))
