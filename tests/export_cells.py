"""The cells of the table in docs/export.md: how each is exported, and what "yes", "error" and "frozen" mean.

A cell is an op, a route and a kind of lengths. The table is read from the document, so that every cell has a test:
test_export_table.py runs those of our ops, with_torch_npu/test_table.py those of torch_npu's.
"""

from __future__ import annotations

import itertools
import warnings
from pathlib import Path

import onnx
import torch

import nsa_onnx
import nsa_onnx.exporters as exporters

DOCUMENT = Path(__file__).parent.parent / "docs" / "export.md"
LENGTHS = ("constant", "symbolic", "tensor")
ROUTES = (
    "torch.export",
    "torch.compile",
    "torch.onnx.export(dynamo=True)",
    "the same with onnx_translation_table()",
    "nsa_onnx.exporters.export()",
    "torch.onnx.export(dynamo=False)",
    "nsa_onnx.exporters.export(dynamo=False)",
)


def table():
    """{(op, route, kind of lengths): outcome}, as docs/export.md has it."""
    cells = {}
    for line in DOCUMENT.read_text().splitlines():
        columns = [column.strip() for column in line.strip("| ").split("|")]
        ops, *rest = (column.replace("`", "") for column in columns)
        if len(rest) != 1 + len(LENGTHS) or rest[0] not in ROUTES:
            continue
        for op, kind in itertools.product(ops.split(", "), LENGTHS):
            assert (op, rest[0], kind) not in cells, f"twice in the table: {op}, {rest[0]}"
            cells[op, rest[0], kind] = rest[1 + LENGTHS.index(kind)]
    return cells


class Cell(torch.nn.Module):
    """A model that calls an op on one tensor [n, ...] and lengths that hang on n.

    Subclasses say what they need of the example's size, `tokens`.
    """

    def __init__(self, op, kind):
        super().__init__()
        self.op, self.kind = op, kind
        generator = torch.Generator().manual_seed(0)
        self.register_buffer("weight", torch.randn(32, 2, generator=generator).half())
        self.register_buffer("cache", torch.randn(5, 2, 16, generator=generator).half())
        self.register_buffer("query", torch.randn(1, 4, 16, generator=generator).half())

    def seq(self, constant, symbolic, lengths):
        if self.kind == "tensor":
            return lengths.tolist() if self.op.startswith("npu_") else lengths
        return constant if self.kind == "constant" else symbolic


class Prefill(Cell):
    """x [T, 2, 16], for two sequences, the first of 64 tokens."""

    sizes = 160, 112

    def arguments(self, tokens):
        x = torch.randn(tokens, 2, 16, generator=torch.Generator().manual_seed(tokens)).half()
        return x, torch.tensor([64, tokens])

    def forward(self, x, lengths):
        return self.compute(x, self.seq([64, 160], [64, x.shape[0]], lengths))


class Compress(Prefill):
    def compute(self, x, seq):
        return _call(self.op)(x, self.weight, 32, 16, actual_seq_len=seq)


class CompressAttention(Prefill):
    """Blocks of one compressed token each, so that all lengths are the same."""

    def compute(self, x, seq):
        lengths = {"actual_seq_qlen": seq, "actual_cmp_seq_kvlen": seq, "actual_sel_seq_kvlen": seq}
        out, topk, *_ = _call(self.op)(torch.cat([x, x], 1), x, x, 0.25, 4, 16, 16, 16, 16, **lengths)
        return torch.cat([out, topk.repeat_interleave(2, 1).to(out.dtype)], 1)


class SelectAttention(Prefill):
    def compute(self, x, seq):
        topk = torch.zeros_like(x[:, :, :2], dtype=torch.int32) + torch.tensor([2, 0], dtype=torch.int32)
        causal = {"atten_mask": x[0] > 0} if self.op.startswith("npu_") else {"causal": True}
        lengths = {"actual_seq_qlen": seq, "actual_seq_kvlen": seq}
        result = _call(self.op)(torch.cat([x, x], 1), x, x, topk, 0.25, 4, 16, 2, **causal, **lengths)
        return result[0] if self.op.startswith("npu_") else result


class Decode(Cell):
    """One sequence that owns all pages [P, 64, 2, 16]."""

    sizes = 128, 192

    def arguments(self, tokens):
        pages = torch.randn(tokens // 64, 64, 2, 16, generator=torch.Generator().manual_seed(tokens)).half()
        return pages, torch.tensor([tokens - 16])

    def forward(self, pages, lengths):
        return self.compute(pages, self.seq([112], [pages.shape[0] * 64 - 16], lengths))

    def table(self, pages):
        return torch.arange(pages.shape[0]).to(torch.int32)[None]  # the legacy exporter drops the dtype of arange


class CompressInfer(Decode):
    """Its cache is a buffer, and what it returns."""

    def compute(self, pages, seq):
        slots = torch.full((1,), 3, dtype=torch.int32)
        return _call(self.op)(pages, self.weight, slots, 32, 16, 64, actual_seq_len=seq, cache=self.cache)


class CompressAttentionInfer(Decode):
    def compute(self, pages, seq):
        given = pages.flatten(2) if self.op.startswith("npu_") else pages
        lengths = {"block_table": self.table(pages), "actual_cmp_seq_kvlen": seq}
        out, topk = _call(self.op)(self.query, given, given, 0.25, 4, 2, 64, 4, 64, 32, 16, **lengths)
        return torch.cat([out.flatten(1), topk.flatten(1).to(out.dtype)], 1)


class SelectAttentionInfer(Decode):
    def compute(self, pages, seq):
        topk = torch.tensor([[[1, 0], [0, -1]]], dtype=torch.int32)
        lengths = {"block_table": self.table(pages), "actual_seq_kvlen": seq}
        if self.op.startswith("npu_"):
            query = self.query[:, None]
            return _call(self.op)(query, pages, pages, topk, 0.25, 4, 2, 64, 2, 64, **lengths)[:, 0]
        return _call(self.op)(self.query, pages, pages, topk, 0.25, 4, 2, 64, 2, 64, **lengths)


_MODELS = {
    "nsa_compress": Compress,
    "nsa_compress_attention": CompressAttention,
    "nsa_select_attention": SelectAttention,
    "nsa_compress_infer": CompressInfer,
    "nsa_compress_attention_infer": CompressAttentionInfer,
    "nsa_select_attention_infer": SelectAttentionInfer,
}
OPS = (*_MODELS, *(f"npu_{name}" for name in _MODELS))


def _call(op):
    if not op.startswith("npu_"):
        return getattr(exporters, op)
    import torch_npu

    return getattr(torch_npu, op)


def _model(op, kind):
    model = _MODELS[op.removeprefix("npu_")](op, kind).eval()
    # The example's size, and another one that a graph for any size must serve as well.
    return model, model.sizes if kind != "constant" else model.sizes[:1]


def _shapes(kind):
    return None if kind == "constant" else ({0: torch.export.Dim.DYNAMIC}, None)


def outcome(op, route, kind, folder):
    """What the cell turns out to be: "yes", "error" or "frozen". A wrong result is an AssertionError."""
    model, sizes = _model(op, kind)
    expected = {}
    with torch.no_grad(), warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for size in sizes:
            expected[size] = _model(op, kind)[0](*model.arguments(size))
        try:
            run = _ROUTES[route](model, model.arguments(sizes[0]), kind, folder)
        except Exception as error:
            _assert_says_what_to_do(error, op, route, kind)
            return "error"
        results = {size: run(*model.arguments(size)).clone() for size in sizes}  # a cache is updated in place
    assert torch.equal(results[sizes[0]], expected[sizes[0]])
    if all(torch.equal(results[size], expected[size]) for size in sizes):
        return "yes"
    if not any(f"of {op} " in str(w.message) or w.category is torch.jit.TracerWarning for w in said):
        raise AssertionError("the example's lengths are frozen in the graph, and nobody said so")
    return "frozen"


def _assert_says_what_to_do(error, op, route, kind):
    messages, link = [], error
    while link is not None:
        messages.append(str(link))
        link = link.__cause__ or link.__context__
    text = "\n".join(messages)
    # Where torch refuses a symbolic list before any kernel of ours is asked, only export() can say more.
    torch_knows = kind == "tensor" and not route.startswith("nsa_onnx.") and "Declaration: npu::" in text
    if not torch_knows and f"nsa_onnx.exporters.{op.removeprefix('npu_')}" not in text:
        raise AssertionError("the error does not say what to do") from error


# --------------------------------------------------------------------------------------------------
# Routes: (model, example arguments, kind of lengths, folder) -> a function of arguments


def _export(model, arguments, kind, folder):
    program = torch.export.export(model, arguments, dynamic_shapes=_shapes(kind)).run_decompositions()
    return lambda *args: program.module()(*args)


def _compile(model, arguments, kind, folder):
    torch._dynamo.reset()
    return torch.compile(model, backend="aot_eager")


def _dynamo(model, arguments, kind, folder, **options):
    path = folder / "model.onnx"
    torch.onnx.export(model, arguments, path, dynamo=True, verbose=False, dynamic_shapes=_shapes(kind), **options)
    return _session(path)


def _table(model, arguments, kind, folder):
    return _dynamo(model, arguments, kind, folder, custom_translation_table=exporters.onnx_translation_table())


def _ours(model, arguments, kind, folder):
    path = folder / "model.onnx"
    exporters.export(model, arguments, path, dynamic_shapes=_shapes(kind))
    return _session(path)


def _legacy_axes(kind):
    return {} if kind == "constant" else {"dynamic_axes": {"tokens": {0: "n"}}}


def _legacy(model, arguments, kind, folder):
    path = folder / "model.onnx"
    names = ["tokens", "lengths"]
    torch.onnx.export(model, arguments, path, dynamo=False, input_names=names, **_legacy_axes(kind))
    return _session(path)


def _our_legacy(model, arguments, kind, folder):
    path = folder / "model.onnx"
    names = ["tokens", "lengths"]
    exporters.export(model, arguments, path, dynamo=False, input_names=names, **_legacy_axes(kind))
    return _session(path)


_ROUTES = dict(zip(ROUTES, (_export, _compile, _dynamo, _table, _ours, _legacy, _our_legacy), strict=True))


def _session(path):
    onnx.checker.check_model(path, full_check=True, check_custom_domain=True)
    session = nsa_onnx.create_session(path, device="cpu")
    names = [value.name for value in session.get_inputs()]

    def run(*args):
        # An input that the graph does not use is gone; what is left is in order.
        feeds = [args[0], args[1]] if len(names) == 2 else [args[0]]
        return torch.from_numpy(session.run(None, {n: a.numpy() for n, a in zip(names, feeds, strict=True)})[0])

    return run
