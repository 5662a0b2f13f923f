"""The names that users rely on, and their signatures."""

import inspect
import subprocess
import sys

import nsa_onnx
import nsa_onnx.exporters

SIGNATURES = {
    nsa_onnx.nsa_compress: "input, weight, compress_block_size, compress_stride, *, actual_seq_len",
    nsa_onnx.nsa_compress_infer: (
        "input, weight, slot_mapping, compress_block_size, compress_stride, page_block_size, *, "
        "block_table=None, actual_seq_len, cache"
    ),
    nsa_onnx.compressed_length: "actual_seq_len, compress_block_size, compress_stride",
    nsa_onnx.register: "",
    nsa_onnx.get_library_path: "",
}


def _without_types(function):
    signature = inspect.signature(function)
    bare = [p.replace(annotation=inspect.Parameter.empty) for p in signature.parameters.values()]
    return str(inspect.Signature(bare)).strip("()")


def test_the_fixed_signatures():
    assert {f.__name__: _without_types(f) for f in SIGNATURES} == {f.__name__: s for f, s in SIGNATURES.items()}
    session = inspect.signature(nsa_onnx.create_session).parameters
    assert session["device"].default == "auto"
    export = inspect.signature(nsa_onnx.exporters.export).parameters
    assert list(export)[:3] == ["model", "args", "path"]
    assert (export["dynamo"].default, export["portable"].default) == (True, False)
    assert callable(nsa_onnx.exporters.onnx_translation_table)


def test_check_stays_the_function_whatever_is_imported():
    code = "import nsa_onnx.checker, nsa_onnx.cli, nsa_onnx; assert callable(nsa_onnx.check)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_importing_the_package_imports_neither_torch_nor_onnxruntime():
    code = "import sys, nsa_onnx; assert not {'torch', 'onnxruntime', 'onnxscript'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_everything_public_is_documented():
    undocumented = [name for name in nsa_onnx.__all__ if not inspect.getdoc(getattr(nsa_onnx, name))]
    assert not undocumented
