"""One table of hints: the same bad input gets the same words in eager calls, exporters, onnxruntime and checker."""

import re
import subprocess
import sys

import numpy as np
import onnx.parser
import pytest
import torch
from torch._subclasses import FakeTensorMode

import nsa_onnx
from nsa_onnx import exporters
from nsa_onnx.operators.hints import HINTS

HEAD = '<ir_version: 8, opset_import: ["" : 18, "nsa_onnx" : 1]> g '
ONNX_NAMES = {"float16": "float16", "float32": "float", "float64": "double", "int32": "int32", "int64": "int64"}
WINDOW = {"compress_block_size": 32, "compress_stride": 16}
SIZES = {**WINDOW, "page_block_size": 64}
INPUTS = {
    "NsaCompress": ("input", "weight", "actual_seq_len"),
    "NsaCompressInfer": ("input", "weight", "slot_mapping", "cache", "actual_seq_len", "block_table"),
}


def prefill(x="float16", w=(32, 4), seq=(40, 100), tokens=100):
    """Operator, arrays by name, lengths."""
    shape = (tokens, 4, 16)
    return "NsaCompress", {"input": np.zeros(shape, x), "weight": np.zeros(w, x)}, list(seq)


def decode(x="float16", w=(32, 4), seq=(32, 33, 48), slots="int32", table="int32"):
    arrays = {
        "input": np.zeros((12, 64, 4, 16), x),
        "weight": np.zeros(w, x),
        "slot_mapping": np.arange(3, dtype=slots),
        "block_table": np.zeros((3, 4), table),
        "cache": np.zeros((9, 4, 16), x),
    }
    return "NsaCompressInfer", arrays, list(seq)


# --------------------------------------------------------------------------------------------------
# Ways to give one input; each returns the messages


def _call(module, op_type, arrays, lengths):
    if op_type == "NsaCompress":
        return module.nsa_compress(*arrays.values(), *WINDOW.values(), actual_seq_len=lengths)
    operands = [arrays[name] for name in ("input", "weight", "slot_mapping")]
    rest = {name: arrays[name] for name in ("block_table", "cache")}
    return module.nsa_compress_infer(*operands, *SIZES.values(), actual_seq_len=lengths, **rest)


def _message(call):
    with pytest.raises((TypeError, RuntimeError)) as raised:
        call()
    return str(raised.value)


def eager(op_type, arrays, lengths):
    return _message(lambda: _call(nsa_onnx, op_type, arrays, lengths))


def torch_eager(op_type, arrays, lengths):
    tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
    return _message(lambda: _call(exporters, op_type, tensors, lengths))


def exporter(op_type, arrays, lengths):
    """What torch.export and torch.onnx.export run: the fake kernels."""
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        tensors = {name: mode.from_tensor(torch.from_numpy(array)) for name, array in arrays.items()}
        return _message(lambda: _call(exporters, op_type, tensors, lengths))


def _model(op_type, arrays, lengths, constant):
    values = {**arrays, "actual_seq_len": np.array(lengths)}
    types = {name: (ONNX_NAMES[value.dtype.name], ",".join(map(str, value.shape))) for name, value in values.items()}
    rank = ["r", "n", "d"]
    inputs = [
        f"{kind}[{dims}] {name}" for name, (kind, dims) in types.items() if not (constant and name == "actual_seq_len")
    ]
    numbers = ", ".join(map(str, lengths))
    kind, dims = types["actual_seq_len"]
    lines = [f"actual_seq_len = Constant <value = {kind}[{dims}] {{{numbers}}}> ()"] if constant else []
    sizes = WINDOW if op_type == "NsaCompress" else SIZES
    attributes = ", ".join(f"{name} = {value}" for name, value in sizes.items())
    lines.append(f"y = nsa_onnx.{op_type} <{attributes}> ({', '.join(INPUTS[op_type])})")
    body = " ".join(lines)
    return onnx.parser.parse_model(f"{HEAD}({', '.join(inputs)}) => (float16[{','.join(rank)}] y) {{ {body} }}"), values


def runtime(op_type, arrays, lengths):
    model, values = _model(op_type, arrays, lengths, constant=False)
    with pytest.raises(Exception) as raised:  # noqa: PT011 (onnxruntime has classes of its own)
        nsa_onnx.create_session(model, device="cpu").run(None, values)
    return str(raised.value)


def checker(op_type, arrays, lengths):
    model, _ = _model(op_type, arrays, lengths, constant=True)
    return "\n".join(finding.message for finding in nsa_onnx.check(model).findings)


ROUTES = (eager, torch_eager, exporter, runtime, checker)
CASES = {
    "leading zero": (prefill(seq=[0, 40, 100]), "actual_seq_len[0] must be >= 1, got 0", "leading_zero"),
    "lengths that rise": (prefill(seq=[40, 60]), "the last element, must equal T = 100, got 60", "lengths"),
    "lengths that fall": (prefill(seq=[60, 40]), "must be >= the element before it, 60, got 40", "lengths"),
    "prefix sums for decode": (decode(seq=[100, 200, 300]), "actual_seq_len[2] must be in [0, 256]", "prefix_sums"),
    "transposed weight": (
        prefill(w=(4, 32)),
        "weight.shape[0] must equal compress_block_size = 32, got 4",
        "transpose",
    ),
    "transposed, decode": (
        decode(w=(4, 32)),
        "weight.shape[0] must equal compress_block_size = 32, got 4",
        "transpose",
    ),
    "float32": (prefill("float32"), "input must be float16 or bfloat16, got float32", "cast_float"),
    "float32, decode": (decode("float32"), "input must be float16 or bfloat16, got float32", "cast_float"),
    "int64 slots": (decode(slots="int64"), "slot_mapping must be int32, got int64", "cast_int32"),
    "int64 table": (decode(table="int64"), "block_table must be int32, got int64", "cast_int32"),
    # Mistakes of the same rows that no habit explains
    "a sum elsewhere": (prefill(seq=[40, 70]), "the last element, must equal T = 100, got 70", None),
    "a decrease": (prefill(seq=[60, 50, 100]), "must be >= the element before it, 60, got 50", None),
    "a zero and a wrong end": (prefill(seq=[0, 40, 90]), "actual_seq_len[0] must be >= 1, got 0", None),
    "too long": (decode(seq=[300, 100, 300]), "actual_seq_len[0] must be in [0, 256]", None),
    "a weight of another size": (prefill(w=(16, 4)), "must equal compress_block_size = 32, got 16", None),
}


@pytest.mark.parametrize("name", CASES)
def test_a_mistake_gets_the_same_words_everywhere(name):
    bad, words, hint = CASES[name]
    ending = HINTS[hint].ending if hint else ""
    said = {route.__name__: route(*bad) for route in ROUTES}
    for route, message in said.items():
        assert re.search(re.escape(words) + r"[^\n]*" + re.escape(ending), message), (route, message)
        assert hint or not [known for known in HINTS.values() if known.text in message], (route, message)


@pytest.mark.parametrize(
    "lengths",
    [np.array([40, 100]), np.array([40, 100], np.int32), torch.tensor([40, 100]), list(torch.tensor([40, 100]))],
    ids=["ndarray", "int32", "tensor", "list of tensors"],
)
@pytest.mark.parametrize("bad", [prefill, decode], ids=["prefill", "decode"])
def test_lengths_in_an_array_are_told_to_become_a_list(bad, lengths):
    op_type, arrays, _ = bad()
    assert eager(op_type, arrays, lengths).endswith(HINTS["list_of_ints"].ending)


@pytest.mark.parametrize("lengths", [np.array([40.0, 100.0]), [40.0, 100.0], None, "ab"], ids=repr)
def test_lengths_that_are_no_ints_get_no_hint(lengths):
    op_type, arrays, _ = prefill()
    assert "(" not in eager(op_type, arrays, lengths)


@pytest.mark.parametrize("bad", [prefill, decode], ids=["prefill", "decode"])
def test_int32_lengths_are_told_to_be_cast(bad):
    op_type, arrays, lengths = bad()
    values = torch.tensor(lengths, dtype=torch.int32)
    said = [torch_eager(op_type, arrays, values), exporter(op_type, arrays, values)]
    model, _ = _model(op_type, arrays, np.array(lengths, np.int32), constant=False)
    with pytest.raises(Exception, match="INVALID_GRAPH") as raised:
        nsa_onnx.create_session(model, device="cpu")
    said += [str(raised.value), "\n".join(finding.message for finding in nsa_onnx.check(model).findings)]
    words = "actual_seq_len must be int64, got int32" + HINTS["cast_int64"].ending
    assert [message for message in said if words not in message] == []


@pytest.mark.parametrize("module", [nsa_onnx, exporters], ids=["nsa_onnx", "exporters"])
def test_a_numpy_scalar_is_no_array(module):
    scalar = np.float16(1)  # has a shape and a dtype
    for op_type, arrays, lengths in (prefill(), decode()):
        for name in arrays:
            with pytest.raises(TypeError, match=f"^{name} must be .*a NumPy array or a torch tensor, got float16$"):
                _call(module, op_type, {**arrays, name: scalar}, lengths)


def test_every_hint_is_tried():
    tried = {hint for _, _, hint in CASES.values()} - {None} | {"list_of_ints", "cast_int64"}
    assert tried == HINTS.keys()


@pytest.mark.parametrize("missing", ["torch", "onnxscript"])
def test_exporters_say_what_they_need(missing):
    code = (
        "import sys, importlib.util as util\n"
        "find = util.find_spec\n"
        f"util.find_spec = lambda name, *rest: None if name == {missing!r} else find(name, *rest)\n"
        "import nsa_onnx.exporters"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    last = done.stderr.strip().splitlines()[-1]
    assert last == f"ImportError: nsa_onnx.exporters needs {missing}: pip install {missing}"
