"""A mistake in the model is reported in one sentence with its line; torch's trace is shown on request."""

import inspect
import logging
import traceback

import pytest
import torch
from torch_cases import BLOCK, DIM, HEADS, STRIDE, randn

import nsa_onnx
from nsa_onnx import exporters

pytestmark = [pytest.mark.filterwarnings("ignore:.*legacy TorchScript:DeprecationWarning")]


class Contract(torch.nn.Module):
    def forward(self, x):
        weight = torch.zeros(HEADS, BLOCK).half()
        return nsa_onnx.nsa_compress(x, weight, BLOCK, STRIDE, actual_seq_len=[100])  # the mistake


class Lengths(torch.nn.Module):
    def forward(self, x):
        weight = torch.zeros(BLOCK, HEADS).half()
        return exporters.nsa_compress(x, weight, BLOCK, STRIDE, actual_seq_len=[0, 100])  # the mistake


class Attribute(torch.nn.Module):
    def forward(self, x):
        return self.projection(x)  # the mistake


class Shapes(torch.nn.Module):
    def forward(self, x):
        return x.float() @ torch.zeros(3, 3)  # the mistake


class Nested(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = torch.nn.Sequential(torch.nn.Identity(), Contract())

    def forward(self, x):
        return self.inner(x)


MISTAKES = {
    Contract: (RuntimeError, "weight.shape[0] must equal compress_block_size = 32, got 2"),
    Lengths: (RuntimeError, "actual_seq_len[0] must be >= 1, got 0"),
    Attribute: (AttributeError, "'Attribute' object has no attribute 'projection'"),
    Shapes: (RuntimeError, ""),
    Nested: (RuntimeError, "weight.shape[0] must equal compress_block_size = 32, got 2"),
}


def mistaken_line(model):
    """As Python's tracebacks say it."""
    lines, first = inspect.getsourcelines(Contract if model is Nested else model)
    (index,) = [i for i, line in enumerate(lines) if "# the mistake" in line]
    return f'File "{__file__}", line {first + index}, in forward\n    {lines[index].strip()}'


@pytest.mark.parametrize("dynamo", [True, False])
@pytest.mark.parametrize("model", MISTAKES)
def test_export_tells_the_message_and_the_line_and_nothing_else(model, dynamo, tmp_path, capfd):
    kind, message = MISTAKES[model]
    with pytest.raises(kind) as raised:
        exporters.export(model(), (randn(100, HEADS, DIM),), tmp_path / "model.onnx", dynamo=dynamo)
    text = "".join(traceback.format_exception(raised.type, raised.value, raised.tb))
    assert type(raised.value) is kind
    assert message in str(raised.value).splitlines()[0]
    assert str(raised.value).endswith(mistaken_line(model))
    assert text.count("\n") < 20  # export(), pytest and the message
    assert "PyTorch" not in text
    assert "Traceback" not in capfd.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("dynamo", [True, False])
def test_torchs_trace_is_there_under_the_debug_switch(dynamo, tmp_path, monkeypatch):
    monkeypatch.setenv("NSA_ONNX_DEBUG", "1")
    with pytest.raises(Exception, match=r"weight\.shape.0. must equal") as raised:
        exporters.export(Contract(), (randn(100, HEADS, DIM),), tmp_path / "model.onnx", dynamo=dynamo)
    text = "".join(traceback.format_exception(raised.type, raised.value, raised.tb))
    assert text.count("\n") > 40
    monkeypatch.setenv("NSA_ONNX_DEBUG", "0")
    with pytest.raises(RuntimeError, match=r"^weight\.shape.0. must equal"):
        exporters.export(Contract(), (randn(100, HEADS, DIM),), tmp_path / "model.onnx", dynamo=dynamo)


@pytest.mark.parametrize("dynamo", [True, False])
@pytest.mark.parametrize("model", [Contract, Lengths, Nested])
def test_plain_torch_export_ends_in_our_message_and_the_line(model, dynamo, tmp_path):
    """torch's frames cannot be taken away there; its summary is what is printed last, and it has both."""
    with pytest.raises(Exception, match="must") as raised:
        torch.onnx.export(model(), (randn(100, HEADS, DIM),), tmp_path / "m.onnx", dynamo=dynamo, verbose=False)
    _, message = MISTAKES[model]
    last = str(raised.value).removesuffix("\n\n(Refer to the full stack trace above for more information.)")
    assert message in last
    assert last.endswith(f"\n  {mistaken_line(model)}")


def test_outside_of_an_export_python_shows_the_line_itself():
    with pytest.raises(RuntimeError) as raised:
        Contract()(randn(100, HEADS, DIM))
    assert "File" not in str(raised.value)


def test_what_torch_cannot_do_keeps_its_own_words(tmp_path):
    class Strided(torch.nn.Module):
        def forward(self, x):
            x.as_strided((4,), (1,)).fill_(1.0)
            return x

    with pytest.raises(torch.onnx.OnnxExporterError, match="as_strided"):
        exporters.export(Strided(), (randn(100, HEADS, DIM),), tmp_path / "model.onnx")


def test_what_torch_logs_is_kept_back_only_where_the_model_is_wrong(tmp_path):
    """It logs a trace of its own for a failing operator, which says nothing that the message does not."""
    seen = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: seen.append(record.getMessage())
    logging.getLogger("torch.onnx").addHandler(handler)
    logging.getLogger("torch").addHandler(handler)
    try:
        with pytest.raises(RuntimeError):
            exporters.export(Shapes(), (randn(100, HEADS, DIM),), tmp_path / "model.onnx")
        assert not seen

        class Says(torch.nn.Module):
            def forward(self, x):
                logging.getLogger("torch.onnx").warning("a remark")
                return x + 1

        exporters.export(Says(), (randn(100, HEADS, DIM),), tmp_path / "model.onnx")
        assert "a remark" in seen
    finally:
        logging.getLogger("torch.onnx").removeHandler(handler)
        logging.getLogger("torch").removeHandler(handler)
