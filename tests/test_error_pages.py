"""docs/errors.md: the real programs say what its headings quote, and each way out is one."""

import os
import re
import subprocess
import sys
from pathlib import Path

import nsa_models as models
import onnx
import onnxruntime
import pytest

import nsa_onnx

ROOT = Path(__file__).parents[1]
HEADINGS = re.findall(r"^## (.*)$", (ROOT / "docs" / "errors.md").read_text("utf-8"), re.MULTILINE)
MODEL = models.compress([40, 100]).SerializeToString()


def session(model=MODEL, options=None):
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def register(path):
    onnxruntime.SessionOptions().register_custom_ops_library(str(path))


def our_library():
    register(nsa_onnx.get_library_path())


def compiled(path, source, *options):
    command = ["g++", "-shared", "-fPIC", "-x", "c++", "-", "-o", str(path), *map(str, options)]
    subprocess.run(command, input=source, check=True, text=True)
    return path


def another_library_of_the_domain(folder):
    """One that adds domain nsa_onnx without looking whether it is there."""
    headers = [os.environ.get("ONNXRUNTIME_INCLUDE_DIR", "."), *(ROOT / "build" / "_deps").glob("onnxruntime-*")]
    source = """
        #include <onnxruntime_c_api.h>
        extern "C" OrtStatusPtr RegisterCustomOps(OrtSessionOptions* options, const OrtApiBase* base) {
          const OrtApi* api = base->GetApi(16);
          OrtCustomOpDomain* domain = nullptr;
          OrtStatusPtr status = api->CreateCustomOpDomain("nsa_onnx", &domain);
          return status != nullptr ? status : api->AddCustomOpDomain(options, domain);
        }"""
    return compiled(folder / "other.so", source, *(f"-I{folder}" for folder in headers))


def twice(folder):
    options = nsa_onnx.session_options()
    options.register_custom_ops_library(str(another_library_of_the_domain(folder)))
    session(options=options)


def cut_off(folder):
    (folder / "cut.so").write_bytes(b"\x7fELF")
    register(folder / "cut.so")


def needs_a_newer_version(folder):
    """A library made with a version of another that is then replaced by an older one."""
    needed = folder / "libneeded.so"
    (folder / "map").write_text("NEWER_2 { global: *; };")
    compiled(needed, 'extern "C" int needed() { return 1; }', f"-Wl,--version-script={folder / 'map'}")
    source = 'extern "C" int needed(); extern "C" int RegisterCustomOps() { return needed(); }'
    compiled(folder / "made.so", source, f"-L{folder}", "-lneeded", f"-Wl,-rpath,{folder}")
    (folder / "map").write_text("OLDER_1 { global: *; };")
    compiled(needed, 'extern "C" int needed() { return 1; }', f"-Wl,--version-script={folder / 'map'}")
    register(folder / "made.so")


def needs_a_function(folder):
    source = 'extern "C" int gone(); extern "C" int RegisterCustomOps() { return gone(); }'
    register(compiled(folder / "lacking.so", source))


def float32():
    model = models.compress([40, 100])
    for one in (*model.graph.input, *model.graph.output):
        one.type.tensor_type.elem_type = onnx.TensorProto.FLOAT
    return model.SerializeToString()


def newer_ir():
    model = models.compress([40, 100])
    model.ir_version = 99
    return model.SerializeToString()


def in_python(code):
    """In a process where nothing of ours has been imported before."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr)


FLAT = f"""
import onnx
model = onnx.load_from_string({MODEL!r})
"""
CHECK = "onnx.checker.check_model(model, check_custom_domain=True)"
EVALUATE = "from onnx.reference import ReferenceEvaluator; ReferenceEvaluator(model"
TORCH = "torch.ops.nsa_onnx.nsa_compress"

# By the first words of the heading: what gives the message, and the same after the way out.
CASES = {
    "nsa_onnx:NsaCompress(-1)": (lambda _: session(), lambda: session(options=nsa_onnx.session_options())),
    "Domain already set": (twice, lambda: nsa_onnx.session_options(nsa_onnx.session_options())),
    "Failed to load library … cannot open": (lambda folder: register(folder / "no.so"), our_library),
    "Failed to load library … file too short": (cut_off, our_library),
    "Failed to load library … version": (needs_a_newer_version, our_library),
    "Failed to load library … undefined symbol": (needs_a_function, our_library),
    "Failed to get symbol": (lambda folder: register(compiled(folder / "empty.so", "")), our_library),
    "Type 'tensor(float)'": (
        lambda _: session(float32(), nsa_onnx.session_options()),
        lambda: session(options=nsa_onnx.session_options()),
    ),
    "Unsupported model IR version": (
        lambda _: session(newer_ir(), nsa_onnx.session_options()),
        lambda: session(options=nsa_onnx.session_options()),
    ),
    "No Op registered": (
        lambda _: in_python(FLAT + CHECK),
        lambda: in_python(f"{FLAT}import nsa_onnx; nsa_onnx.register(); {CHECK}"),
    ),
    "Node type": (
        lambda _: in_python(f"{FLAT}{EVALUATE})"),
        lambda: in_python(f"{FLAT}import nsa_onnx; {EVALUATE}, new_ops=nsa_onnx.reference_ops())"),
    ),
    "'_OpNamespace'": (
        lambda _: in_python(f"import torch, nsa_onnx; {TORCH}"),
        lambda: in_python(f"import torch, nsa_onnx.exporters; {TORCH}"),
    ),
}


def test_every_section_has_its_case():
    assert [h for h in HEADINGS if sum(h.startswith(start) for start in CASES) != 1] == []
    assert len(HEADINGS) == len(CASES)


@pytest.mark.parametrize("heading", HEADINGS)
def test_the_message_is_the_programs_and_the_way_out_is_one(heading, tmp_path):
    (start,) = (start for start in CASES if heading.startswith(start))
    produce, solved = CASES[start]
    with pytest.raises(Exception, match=".*".join(map(re.escape, heading.split("…")))):  # classes of several programs
        produce(tmp_path)
    solved()
