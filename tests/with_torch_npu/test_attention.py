"""torch_npu's attention stages: their layouts, masks and further results, off the NPU and in graphs."""

import sys

import attention_cases as cases
import onnx
import pytest
import torch
import torch_npu
from torch_cases import nsa_nodes, run_onnx, same

import nsa_onnx.exporters as exporters
from nsa_onnx.exporters import torch_npu as hooks
from nsa_onnx.exporters.operators import OPERATORS

NAMES = list(cases.CALLS)
BY_NAME = {operator.name: operator for operator in OPERATORS}

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*legacy TorchScript:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning"),
]


def npu_call(name, layout="TND", dtype=torch.float16):
    """The same call for torch_npu's op."""
    args, keywords = cases.CALLS[name](dtype)
    keywords = dict(keywords)
    if keywords.pop("causal", False):
        keywords["atten_mask"] = torch.zeros(1, 1, dtype=torch.uint8)  # what is in it does not matter
    if name.endswith("infer"):
        query, key, value, *rest = args
        if layout != "BSND" or "compress" in name:
            key, value = key.flatten(2), value.flatten(2)
        if layout != "TND":
            query = query[:, None]
        if layout == "BSH":
            query = query.flatten(2)
        if layout != "TND" and "select" in name:
            rest[0] = rest[0][:, None]
        args, keywords = (query, key, value, *rest), keywords | {"layout": layout}
    return args, keywords


LAYOUTS = [(name, "TND") for name in NAMES]
LAYOUTS += [("nsa_compress_attention_infer", "BSND"), *(("nsa_select_attention_infer", one) for one in ("BSND", "BSH"))]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("name", "layout"), LAYOUTS)
def test_every_layout_gives_our_ops_bits(name, layout, dtype):
    args, keywords = npu_call(name, layout, dtype)
    got = cases.results(getattr(torch_npu, f"npu_{name}")(*args, **keywords))
    ours, given = cases.CALLS[name](dtype)
    want = cases.results(getattr(exporters, name)(*ours, **given))
    if layout == "BSH":
        assert got[0].shape == (2, 1, want[0][0].numel())
    elif layout == "BSND":
        assert all(one.dim() == 4 for one in got)
    assert all(same(a.reshape(b.shape), b) for a, b in zip(got, want, strict=False))
    meta = {key: value.to("meta") if isinstance(value, torch.Tensor) else value for key, value in keywords.items()}
    fakes = getattr(torch_npu, f"npu_{name}")(
        *(value.to("meta") if isinstance(value, torch.Tensor) else value for value in args), **meta
    )
    assert [(one.shape, one.dtype) for one in cases.results(fakes)] == [(one.shape, one.dtype) for one in got]


def test_a_uint8_mask_is_a_bool_one():
    args, keywords = npu_call("nsa_compress_attention")
    masks = {name: keywords[name].to(torch.uint8) * 3 for name in ("topk_mask", "atten_mask")}
    got = torch_npu.npu_nsa_compress_attention(*args, **keywords | masks)
    assert all(same(a, b) for a, b in zip(got, torch_npu.npu_nsa_compress_attention(*args, **keywords), strict=True))


def test_without_a_mask_select_attention_is_not_causal():
    args, keywords = npu_call("nsa_select_attention")
    del keywords["atten_mask"]
    got, *_ = torch_npu.npu_nsa_select_attention(*args, **keywords)
    lengths = {name: keywords[name] for name in ("actual_seq_qlen", "actual_seq_kvlen")}
    assert same(got, exporters.nsa_select_attention(*args, causal=False, **lengths))
    assert not same(got, exporters.nsa_select_attention(*args, causal=True, **lengths))


# --------------------------------------------------------------------------------------------------
# softmax_max and softmax_sum


def scores(query, keys, heads):
    """float64 ``[N1, L]`` of one row, for keys ``[L, N2, D]``."""
    repeated = keys.double().repeat_interleave(heads // keys.shape[1], 1)
    return torch.einsum("hd,lhd->hl", query.double(), repeated) * cases.SCALE


def test_compress_attentions_softmax_is_that_of_its_definition():
    args, keywords = npu_call("nsa_compress_attention")
    *_, highest, sums = torch_npu.npu_nsa_compress_attention(*args, **keywords)
    assert highest.shape == sums.shape == (40, cases.HEADS, 8)
    for row, (start, tokens) in {3: (0, slice(0, 5)), 30: (16, slice(5, 11))}.items():
        logits = scores(args[0][row], args[1][tokens], cases.HEADS)
        hidden = keywords["atten_mask"][row - start, : logits.shape[1]]
        logits[:, hidden] = torch.finfo(torch.float32).min
        top = logits.amax(-1, keepdim=True)
        torch.testing.assert_close(highest[row].double(), top.expand(-1, 8), rtol=1e-5, atol=1e-5)
        want = (logits - top).exp().sum(-1, keepdim=True)
        torch.testing.assert_close(sums[row].double(), want.expand(-1, 8), rtol=1e-5, atol=1e-5)


def test_select_attentions_softmax_is_that_of_its_definition():
    args, keywords = npu_call("nsa_select_attention")
    _, highest, sums = torch_npu.npu_nsa_select_attention(*args, **keywords)
    tokens = torch.tensor([*range(64, 80), *range(64)])  # blocks 1 and 0 of the first sequence, row 7
    logits = scores(args[0][7], args[1][tokens], cases.HEADS)
    logits[:, tokens > 7] = torch.finfo(torch.float32).min
    top = logits.amax(-1, keepdim=True)
    torch.testing.assert_close(highest[7].double(), top.expand(-1, 8), rtol=1e-5, atol=1e-5)
    want = (logits - top).exp().sum(-1, keepdim=True)
    torch.testing.assert_close(sums[7].double(), want.expand(-1, 8), rtol=1e-5, atol=1e-5)
    assert not sums[5].any()  # no block at all


class Uses(torch.nn.Module):
    """Returns the first results of a prefill stage alone, or the softmax's sums as well."""

    def __init__(self, name, softmax):
        super().__init__()
        self.name, self.softmax = name, softmax
        self.args, self.keywords = npu_call(name)

    def forward(self, query):
        results = getattr(torch_npu, f"npu_{self.name}")(query, *self.args[1:], **self.keywords)
        return (results[0], results[-1]) if self.softmax else results[0]


@pytest.mark.parametrize("dynamo", [True, False])
@pytest.mark.parametrize("name", ["nsa_compress_attention", "nsa_select_attention"])
def test_a_graph_that_uses_the_softmax_is_refused(name, dynamo, tmp_path):
    query = npu_call(name)[0][0]
    exporters.export(Uses(name, False), (query,), tmp_path / "m.onnx", dynamo=dynamo, verify=True)
    assert [node.op_type for node in nsa_nodes(onnx.load(tmp_path / "m.onnx"))] == [BY_NAME[name].node.op_type]
    with pytest.raises(RuntimeError, match=f"softmax_max and softmax_sum of torch_npu.npu_{name} .* must not use them"):
        exporters.export(Uses(name, True), (query,), tmp_path / "n.onnx", dynamo=dynamo)
    assert not (tmp_path / "n.onnx").exists()


# --------------------------------------------------------------------------------------------------
# Graphs of a decode step in each layout


class Decode(torch.nn.Module):
    def __init__(self, layout):
        super().__init__()
        self.layout = layout

    def forward(self, query, key, value, table):
        """query [B, 1, N1, D] or [B, N1, D], pages [block_num, page, N2, D]."""
        compress, select = torch_npu.npu_nsa_compress_attention_infer, torch_npu.npu_nsa_select_attention_infer
        keys, values = key.flatten(2), value.flatten(2)
        sizes = 0.25, 4, 2, 64, 3, 64
        tnd = "TND" if self.layout == "TND" else "BSND"
        coarse, topk = compress(
            *(query, keys, values, *sizes, 32, 16), layout=tnd, block_table=table, actual_cmp_seq_kvlen=[7, 2]
        )
        query = query.flatten(2) if self.layout == "BSH" else query
        pages = (key, value) if self.layout == "BSND" else (keys, values)
        fine = select(
            *(query, *pages, topk, *sizes),
            **{"layout": self.layout, "block_table": table, "actual_seq_kvlen": [125, 48], "actual_seq_qlen": [1, 1]},
        )
        return coarse, topk, fine


@pytest.mark.parametrize("dynamo", [True, False])
@pytest.mark.parametrize("layout", ["TND", "BSND", "BSH"])
def test_a_decode_steps_layouts_become_reshapes(layout, dynamo, tmp_path):
    (query, key, value, *_), keywords = cases.compress_attention_infer()
    arguments = query if layout == "TND" else query[:, None], key, value, keywords["block_table"]
    path = tmp_path / "m.onnx"
    exporters.export(Decode(layout), arguments, path, dynamo=dynamo, verify=True)
    proto = onnx.load(path)
    assert [node.op_type for node in nsa_nodes(proto)] == ["NsaCompressAttentionInfer", "NsaSelectedAttentionInfer"]
    others = {node.op_type for node in proto.graph.node} - {node.op_type for node in nsa_nodes(proto)}
    assert others <= {"Reshape", "Shape", "Slice", "Concat", "Constant"}
    want = Decode(layout)(*arguments)
    assert all(same(a, b) for a, b in zip(run_onnx(proto, *arguments), want, strict=True))


# --------------------------------------------------------------------------------------------------
# Refusals


@pytest.mark.parametrize(
    ("name", "change", "error", "message"),
    [
        ("nsa_compress_attention_infer", {"layout": "BSH"}, RuntimeError, "layout must be TND or BSND, got BSH"),
        ("nsa_select_attention_infer", {"layout": "BNSD"}, RuntimeError, "layout must be BSND or BSH or TND, got BNSD"),
        (
            "nsa_select_attention_infer",
            {"layout": "BSND"},
            RuntimeError,
            "query must have rank 4 in layout BSND, got rank 3",
        ),
        (
            "nsa_select_attention_infer",
            {"actual_seq_qlen": [1, 2]},
            RuntimeError,
            r"actual_seq_qlen\[1\] must be 1, got 2",
        ),
        ("nsa_select_attention_infer", {"atten_mask": torch.ones(1, 1)}, RuntimeError, "atten_mask must be None"),
        ("nsa_compress_attention_infer", {"topk_mask": torch.ones(1, 1)}, RuntimeError, "topk_mask must be None"),
        ("nsa_compress_attention_infer", {"block_table": None}, TypeError, "block_table must be .* got NoneType"),
        (
            "nsa_compress_attention",
            {"actual_sel_seq_kvlen": None},
            TypeError,
            "actual_sel_seq_kvlen must be .* got None: it is required",
        ),
    ],
)
def test_what_our_operators_have_not_is_refused(name, change, error, message):
    args, keywords = npu_call(name)
    with pytest.raises(error, match=message):
        getattr(torch_npu, f"npu_{name}")(*args, **keywords | change)


def test_several_query_tokens_of_a_sequence_are_refused():
    (query, *args), keywords = npu_call("nsa_compress_attention_infer", "BSND")
    with pytest.raises(RuntimeError, match=r"query.shape\[1\] must be 1, got 2: a decode step takes one query token"):
        torch_npu.npu_nsa_compress_attention_infer(torch.cat([query, query], 1), *args, **keywords)


@pytest.mark.parametrize("name", NAMES)
def test_gradients_off_the_npu_are_those_of_our_ops(name):
    gradients = []
    for module, (args, keywords) in ((torch_npu, npu_call(name)), (exporters, cases.CALLS[name]())):
        operands = [one.clone().requires_grad_() for one in args[:3]]
        function = getattr(module, f"npu_{name}" if module is torch_npu else name)
        out, *_ = cases.results(function(*operands, *args[3:], **keywords))
        if name.endswith("infer"):
            with pytest.raises(NotImplementedError, match=f"{name} has no gradient"):
                out.sum().backward()
        else:
            gradients.append(torch.autograd.grad(out.float().square().sum(), operands))
    for ours, theirs in zip(*gradients, strict=True) if gradients else ():
        assert same(ours, theirs)
        assert ours.abs().sum() > 0


# --------------------------------------------------------------------------------------------------
# Our ops on NPU tensors. No NPU here: the kernels for it are there, and give torch_npu what it takes.


def on_npu(name, args, keywords):
    operator = BY_NAME[name]
    return cases.results(hooks.npu_kernel(operator, operator.op)(*args, **keywords))


def taken_by_the_vendor(name):
    """A call without what the vendor's kernels get wrong."""
    args, keywords = cases.CALLS[name]()
    if name == "nsa_select_attention":
        query, key, value, _, *rest = args
        topk = torch.tensor([1, 0, 0], dtype=torch.int32).expand(40, cases.KV_HEADS, 3).clone()
        args, keywords = (query, key[:192], value[:192], topk, *rest), keywords | {"actual_seq_kvlen": [64 * 2, 64 * 3]}
        topk[16:] = 0
    return args, keywords


@pytest.mark.parametrize("kind", ["list", "tensor"])
@pytest.mark.parametrize("name", NAMES)
def test_our_ops_on_npu_tensors_go_to_torch_npu(name, kind):
    args, keywords = taken_by_the_vendor(name)
    for overload in BY_NAME[name].op.schemas:
        assert torch._C._dispatch_has_kernel_for_dispatch_key(f"nsa_onnx::{overload}", "PrivateUse1")
    got = on_npu(name, args, cases.with_lengths(keywords, kind))
    want = cases.results(getattr(exporters, name)(*args, **keywords))
    for one, other in zip(got, want, strict=True):
        # Where heads choose different blocks, these come in another order.
        torch.testing.assert_close(one, other, rtol=2e-3, atol=1e-4)


def test_the_vendor_gets_what_its_kernels_take(monkeypatch):
    """Masks as wide as the longest sequence; the blocks of one head at a time, -1 last."""
    seen = []
    packet = torch.ops.npu.npu_nsa_select_attention_infer
    module = sys.modules[exporters.operators.nsa_selected_attention_infer.__name__]
    monkeypatch.setattr(module, "find_op", lambda name: lambda **given: (seen.append(given), packet(**given))[1])
    args, keywords = cases.select_attention_infer()
    on_npu("nsa_select_attention_infer", args, keywords)
    assert [call["topk_indices"].tolist() for call in seen] == [
        [[[1, 0]] * 2, [[0, -1]] * 2],
        [[[0, -1]] * 2, [[-1, -1]] * 2],
    ]
    assert all(call["actual_seq_qlen"] == [1, 1] and call["layout"] == "TND" for call in seen)

    module = sys.modules[exporters.operators.nsa_compress_attention.__name__]
    attend = torch.ops.npu.npu_nsa_compress_attention
    monkeypatch.setattr(module, "find_op", lambda name: lambda **given: (seen.append(given), attend(**given))[1])
    args, keywords = cases.compress_attention()
    keywords["atten_mask"] = torch.zeros(50, 40, dtype=torch.bool)
    on_npu("nsa_compress_attention", args, keywords)
    assert seen[-1]["atten_mask"].shape == (24, 6)
    assert seen[-1]["topk_mask"].shape == (24, 2)


def test_what_the_vendors_kernels_get_wrong_is_refused():
    args, keywords = cases.select_attention()
    with pytest.raises(RuntimeError, match="npu_nsa_select_attention takes no -1 in topk_indices on an NPU"):
        on_npu("nsa_select_attention", args, keywords)
    args[3].fill_(0)
    with pytest.raises(RuntimeError, match="takes whole blocks of 64 on an NPU, and sequence 0 has 80 keys"):
        on_npu("nsa_select_attention", args, keywords)
    args[3][0, 0, 0] = 2
    with pytest.raises(RuntimeError, match=r"topk_indices\[0, 0, 0\] must be in \[-1, 2\)"):
        on_npu("nsa_select_attention", args, keywords)
    args, keywords = taken_by_the_vendor("nsa_select_attention")
    with pytest.raises(RuntimeError, match=r"takes a scale_value in \(0, 1\] on an NPU, got 2.0"):
        on_npu("nsa_select_attention", (*args[:4], 2.0, *args[5:]), keywords)
    args, keywords = cases.select_attention_infer()
    args[3][0, 0] = 1
    with pytest.raises(RuntimeError, match="takes no block of topk_indices twice on an NPU"):
        on_npu("nsa_select_attention_infer", args, keywords)
    args, keywords = cases.compress_attention_infer()
    with pytest.raises(RuntimeError, match="takes no sequence without compressed tokens on an NPU, and sequence 1"):
        on_npu("nsa_compress_attention_infer", args, keywords | {"actual_cmp_seq_kvlen": [100, 0]})
