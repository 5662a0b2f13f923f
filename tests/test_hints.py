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
SELECT = {"scale_value": 0.25, "head_num": 4, "select_block_size": 32, "select_block_count": 2}
PAGED_SELECT = {**SELECT, "key_value_head_num": 2, "page_block_size": 64}
# Function, attributes, inputs, of which those that begin with "actual_" are lengths.
OPERATORS = {
    "NsaCompress": ("nsa_compress", WINDOW, "input weight actual_seq_len"),
    "NsaCompressInfer": ("nsa_compress_infer", SIZES, "input weight slot_mapping cache actual_seq_len block_table"),
    "NsaSelectedAttention": (
        "nsa_select_attention",
        {**SELECT, "causal": False},
        "query key value topk_indices actual_seq_qlen actual_seq_kvlen",
    ),
    "NsaSelectedAttentionInfer": (
        "nsa_select_attention_infer",
        PAGED_SELECT,
        "query key value topk_indices actual_seq_kvlen block_table",
    ),
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


def select(query=(3, 4, 32), key=(70, 2, 32), x="float16", blocks="int32", seq=((1, 3), (40, 70))):
    arrays = {
        "query": np.zeros(query, x),
        "key": np.zeros(key, x),
        "value": np.zeros((70, 2, 16), x),
        "topk_indices": np.zeros((3, 2, 2), blocks),
    }
    return "NsaSelectedAttention", arrays, list(map(list, seq))


def select_decode(query=(2, 4, 32), key=(5, 64, 2, 32), table="int32", seq=(40, 100)):
    arrays = {
        "query": np.zeros(query, "float16"),
        "key": np.zeros(key, "float16"),
        "value": np.zeros((5, 64, 2, 16), "float16"),
        "topk_indices": np.zeros((2, 2, 2), "int32"),
        "block_table": np.zeros((2, 2), table),
    }
    return "NsaSelectedAttentionInfer", arrays, list(seq)


# --------------------------------------------------------------------------------------------------
# Ways to give one input; each returns the messages


def _lengths(op_type, lengths):
    """By name: a list of them for each where there are several."""
    names = [name for name in OPERATORS[op_type][2].split() if name.startswith("actual_")]
    return dict(zip(names, lengths if len(names) > 1 else [lengths], strict=True))


def _call(module, op_type, arrays, lengths):
    function, attributes, _ = OPERATORS[op_type]
    return getattr(module, function)(**arrays, **attributes, **_lengths(op_type, lengths))


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
    _, attributes, names = OPERATORS[op_type]
    given = {name: np.array(one) for name, one in _lengths(op_type, lengths).items()}
    values = {**arrays, **given}
    types = {name: (ONNX_NAMES[value.dtype.name], ",".join(map(str, value.shape))) for name, value in values.items()}
    constants = given if constant else {}
    inputs = [f"{kind}[{dims}] {name}" for name, (kind, dims) in types.items() if name not in constants]
    lines = []
    for name, value in constants.items():
        kind, dims = types[name]
        lines.append(f"{name} = Constant <value = {kind}[{dims}] {{{', '.join(map(str, value.tolist()))}}}> ()")
    sizes = ", ".join(
        f"{name} = {value if name == 'scale_value' else int(value)}" for name, value in attributes.items()
    )
    lines.append(f"y = nsa_onnx.{op_type} <{sizes}> ({names.replace(' ', ', ')})")
    body = " ".join(lines)
    return onnx.parser.parse_model(f"{HEAD}({', '.join(inputs)}) => (float16[r,n,d] y) {{ {body} }}"), values


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
    "leading zero, an empty sequence": (
        prefill(seq=[0, 40, 40, 100]),
        "actual_seq_len[0] must be >= 1, got 0",
        "leading_zero",
    ),
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
    "query tokens of a batch": (select(query=(1, 3, 4, 32)), "query must have rank 3", "tokens_first"),
    "keys of a batch": (select(key=(1, 70, 2, 32)), "key must have rank 3", "tokens_first"),
    "float32, blocks": (select(x="float32"), "query must be float16 or bfloat16, got float32", "cast_float"),
    "int64 blocks": (select(blocks="int64"), "topk_indices must be int32, got int64", "cast_int32"),
    "lengths of keys": (
        select(seq=[(1, 3), (40, 30)]),
        "actual_seq_kvlen[1] must be >= the element before it, 40, got 30",
        "lengths",
    ),
    "several tokens a step": (select_decode(query=(2, 3, 4, 32)), "query must have rank 3", "one_token"),
    "pages without heads": (select_decode(key=(5, 64, 64)), "key must have rank 4", "split_heads"),
    "int64 table, blocks": (select_decode(table="int64"), "block_table must be int32, got int64", "cast_int32"),
    "prefix sums of keys": (select_decode(seq=[100, 200]), "actual_seq_kvlen[1] must be <= 128", "prefix_sums"),
    # Mistakes of the same rows that no habit explains
    "a sum elsewhere": (prefill(seq=[40, 70]), "the last element, must equal T = 100, got 70", None),
    "a decrease": (prefill(seq=[60, 50, 100]), "must be >= the element before it, 60, got 50", None),
    "a zero and a wrong end": (prefill(seq=[0, 40, 90]), "actual_seq_len[0] must be >= 1, got 0", None),
    "a query without heads": (select(query=(3, 128)), "query must have rank 3 [T1, N1, D], got rank 2", None),
    "keys that end elsewhere": (select(seq=[(1, 3), (40, 60)]), "must equal T2 = 70, got 60", None),
    "blocks in pages, too long": (select_decode(seq=[200, 100]), "actual_seq_kvlen[0] must be <= 128", None),
    "too long": (decode(seq=[300, 100, 300]), "actual_seq_len[0] must be in [0, 256]", None),
    "a weight of another size": (prefill(w=(16, 4)), "must equal compress_block_size = 32, got 16", None),
    "transposed, for fewer heads": (prefill(w=(3, 32)), "must equal compress_block_size = 32, got 3", None),
    "transposed, for more heads": (prefill(w=(5, 32)), "must equal compress_block_size = 32, got 5", None),
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


@pytest.mark.parametrize("lengths", [100, [[40, 100]]], ids=["rank 0", "rank 2"])
@pytest.mark.parametrize("bad", [prefill, decode], ids=["prefill", "decode"])
def test_lengths_of_another_rank_get_the_same_words(bad, lengths):
    op_type, arrays, good = bad()
    values = torch.tensor(lengths)
    said = [route(op_type, arrays, values) for route in (torch_eager, exporter)]
    said.append(runtime(op_type, arrays, values.numpy()))
    assert all(message.endswith(f"actual_seq_len must have rank 1 [B], got rank {values.ndim}") for message in said)
    model, feeds = _model(op_type, arrays, good, constant=False)
    assert nsa_onnx.create_session(model, device="cpu").run(None, feeds)


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
