"""The names that users rely on, and their signatures."""

import ctypes
import importlib
import inspect
import re
import subprocess
import sys
from dataclasses import fields, is_dataclass
from pathlib import Path

import pytest

import nsa_onnx
import nsa_onnx.checker
import nsa_onnx.exporters
import nsa_onnx.fuse

COMPRESS = "input, weight, compress_block_size, compress_stride, *, actual_seq_len"
COMPRESS_INFER = (
    "input, weight, slot_mapping, compress_block_size, compress_stride, page_block_size, *, "
    "block_table=None, actual_seq_len, cache"
)
ATTENTION = (
    "query, key, value, scale_value, head_num, compress_block_size, compress_stride, select_block_size, "
    "select_block_count, *, topk_mask=None, atten_mask=None, actual_seq_qlen, actual_cmp_seq_kvlen, "
    "actual_sel_seq_kvlen"
)
ATTENTION_INFER = (
    "query, key, value, scale_value, head_num, key_value_head_num, select_block_size, select_block_count, "
    "page_block_size, compress_block_size, compress_stride, *, block_table, actual_cmp_seq_kvlen"
)
SELECT = (
    "query, key, value, topk_indices, scale_value, head_num, select_block_size, select_block_count, *, causal=False, "
    "actual_seq_qlen, actual_seq_kvlen"
)
SELECT_INFER = (
    "query, key, value, topk_indices, scale_value, head_num, key_value_head_num, select_block_size, "
    "select_block_count, page_block_size, *, block_table, actual_seq_kvlen"
)
CHECK = "model, *, target='cpu', run=False, ignore=(), folder=None, min_nodes=0"
DATA = None  # a class or a value: its members are in MEMBERS, or nothing is promised but the name

# Everything public, by module, as docs/stability.md promises it. Adding an argument with a default is no break.
PUBLIC = {
    "nsa_onnx": {
        "Report": DATA,
        "check": CHECK,
        "compressed_length": "actual_seq_len, compress_block_size, compress_stride",
        "create_session": (
            "model, *, device='auto', options=None, providers=None, ascend_backend=None, provider_options=None"
        ),
        "everywhere": "",
        "from_ortvalue": "value",
        "get_library_path": "",
        "nsa_compress": COMPRESS,
        "nsa_compress_attention": ATTENTION,
        "nsa_compress_attention_infer": ATTENTION_INFER,
        "nsa_compress_infer": COMPRESS_INFER,
        "nsa_select_attention": SELECT,
        "nsa_select_attention_infer": SELECT_INFER,
        "reference_ops": "",
        "register": "",
        "session_options": "base=None",
        "to_ortvalue": "array, *, dtype=None",
    },
    "nsa_onnx.exporters": {
        "ExportResult": DATA,
        "export": (
            "model, args, path, *, kwargs=None, dynamo=True, dynamic_shapes=None, opset_version=None, portable=False, "
            "input_names=None, output_names=None, external_data=False, verify=None, **options"
        ),
        "nsa_compress": COMPRESS,
        "nsa_compress_attention": ATTENTION,
        "nsa_compress_attention_infer": ATTENTION_INFER,
        "nsa_compress_infer": COMPRESS_INFER,
        "nsa_select_attention": SELECT,
        "nsa_select_attention_infer": SELECT_INFER,
        "onnx_translation_table": "",
    },
    "nsa_onnx.checker": {
        "RULES": DATA,
        "TARGETS": DATA,
        "Finding": DATA,
        "NodeRun": DATA,
        "Report": DATA,
        "Rule": DATA,
        "RunUnavailableError": DATA,
        "Severity": DATA,
        "UnreadableModelError": DATA,
        "check": CHECK,
    },
    "nsa_onnx.fuse": {
        "Candidate": DATA,
        "FuseResult": DATA,
        "candidates": "model, *, allow_rounding=False, folder=None",
        "fuse": "model, *, allow_rounding=False, folder=None",
    },
    "nsa_onnx.explain": {
        "MAX_DRAWN_LENGTH": DATA,
        "explain": "model, *, target='cpu', lengths=None, folder=None",
    },
    "nsa_onnx.pytest_plugin": {
        "assert_valid_nsa_model": "model, *, target='cpu', fail_on='warning', min_nodes=1, run=False, ignore=()",
        "nsa_session": DATA,
    },
}

# What users read of the objects that they are given.
MEMBERS = {
    nsa_onnx.Report: "model target nodes findings runs ok fails count summary to_text to_dict to_json",
    nsa_onnx.checker.Finding: "rule severity message node op_type argument place hint",
    nsa_onnx.checker.NodeRun: "node op_type place ulps note",
    nsa_onnx.checker.Severity: "ERROR WARNING",
    nsa_onnx.exporters.ExportResult: "path mutated report lost_inputs",
    nsa_onnx.fuse.FuseResult: "model fused left complete",
    nsa_onnx.fuse.Candidate: (
        "name output place form reason compress_block_size compress_stride actual_seq_len inexact op_type"
    ),
}


def _without_types(function):
    signature = inspect.signature(function)
    bare = [p.replace(annotation=inspect.Parameter.empty) for p in signature.parameters.values()]
    return str(inspect.Signature(bare)).removeprefix("(").removesuffix(")")


@pytest.mark.parametrize("name", PUBLIC)
def test_the_public_names_and_their_signatures(name):
    module = importlib.import_module(name)
    assert sorted(module.__all__) == sorted(PUBLIC[name])
    functions = {one: signature for one, signature in PUBLIC[name].items() if signature is not DATA}
    assert {one: _without_types(getattr(module, one)) for one in functions} == functions


@pytest.mark.parametrize("kind", MEMBERS, ids=lambda kind: kind.__name__)
def test_objects_have_the_members_that_users_read(kind):
    there = {*dir(kind), *(field.name for field in (fields(kind) if is_dataclass(kind) else ()))}
    assert set(MEMBERS[kind].split()) <= there


def test_the_errors_are_of_the_kinds_that_users_catch():
    assert issubclass(nsa_onnx.checker.UnreadableModelError, ValueError)
    assert issubclass(nsa_onnx.checker.RunUnavailableError, RuntimeError)


def test_the_c_functions_that_are_promised_exist():
    text = (Path(__file__).parents[1] / "docs" / "stability.md").read_text("utf-8")
    promised = re.findall(r"`(nsa_\w+)\(`?", text)
    library = ctypes.CDLL(nsa_onnx.get_library_path())
    assert "RegisterCustomOps" in text and library.RegisterCustomOps
    assert [name for name in promised if not hasattr(library, name)] == []


def test_check_stays_the_function_whatever_is_imported():
    code = "import nsa_onnx.checker, nsa_onnx.cli, nsa_onnx; assert callable(nsa_onnx.check)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_importing_the_package_imports_neither_torch_nor_onnxruntime():
    code = "import sys, nsa_onnx; assert not {'torch', 'onnxruntime', 'onnxscript'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_everything_public_is_documented():
    undocumented = [name for name in nsa_onnx.__all__ if not inspect.getdoc(getattr(nsa_onnx, name))]
    assert not undocumented
