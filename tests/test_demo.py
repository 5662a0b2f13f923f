"""The demo: its model is causal as the paper asks, and its checks can fail."""

import io
import os
import subprocess
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import oracle
import pytest
import torch

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
sys.path.insert(0, str(EXAMPLES))

import nsa_decoder  # noqa: E402
from nsa_model import Config, Decode, Decoder, Prefill  # noqa: E402

BLOCK, STRIDE = 32, 16
OPTIONS = ["--layers", "1", "--steps", "40"]
TEXT = bytes(range(256)) * 2


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    """The model is tiny, and other tests run beside these: threads that wait for one another cost seconds."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def prefill(config, sequences):
    """Logits of every sequence, and the other outputs, of one ragged batch in PyTorch."""
    logits, *caches = Prefill(Decoder(config))(
        torch.cat(sequences), nsa_decoder.prefix_sums([len(s) for s in sequences])
    )
    return logits.split([len(s) for s in sequences]), caches


def random_tokens(*lengths):
    generator = torch.Generator().manual_seed(7)
    return [torch.randint(0, 256, (length,), generator=generator) for length in lengths]


# --------------------------------------------------------------------------------------------------
# The model, in PyTorch


@pytest.mark.parametrize(("dtype", "page"), [(torch.float16, 64), (torch.bfloat16, 128)])
def test_decode_by_steps_gives_the_logits_and_the_windows_of_prefill(dtype, page):
    config = Config(dtype=dtype, page=page)
    sequences = random_tokens(150, 150, 150)
    wanted, caches = prefill(config, sequences)
    decode, state = Decode(Decoder(config)), nsa_decoder.DecodeState.empty(config, [150] * 3)
    for t in range(150):
        state.feed(torch.stack([s[t] for s in sequences]), torch.full((3,), t + 1))
        logits = decode(*state.step.values(), *state.caches.values())
        torch.testing.assert_close(logits, torch.stack([w[t] for w in wanted]), rtol=0, atol=1e-2)
    for name, cache in zip(nsa_decoder.cache_names(2, nsa_decoder.PREFILL_CACHES), caches, strict=True):
        if name.startswith("windows"):
            got = torch.cat([state.sequence(name, b, 8) for b in range(3)])
            torch.testing.assert_close(got, cache, rtol=0, atol=1e-2 if dtype == torch.float16 else 5e-2)


def as_numpy(tensor):
    return tensor.view(torch.uint16).numpy().view(ml_dtypes.bfloat16 if tensor.dtype == torch.bfloat16 else np.float16)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_decode_steps_cache_the_windows_of_the_tokens_in_the_pages(dtype):
    config = Config(dtype=dtype, layers=1)
    decoder = Decoder(config)
    decode, state = Decode(decoder), nsa_decoder.DecodeState.empty(config, [100, 100])
    for t in range(100):
        state.feed(torch.tensor([2 * t, 250 - 2 * t]), torch.tensor([t + 1, t + 1]))
        decode(*state.step.values(), *state.caches.values())
    for kind, weight in (
        ("k", decoder.layers[0].attention.compress_key),
        ("v", decoder.layers[0].attention.compress_value),
    ):
        tokens = as_numpy(torch.cat([state.sequence(f"pages_{kind}.0", b, 100) for b in range(2)]))
        windows = as_numpy(torch.cat([state.sequence(f"windows_{kind}.0", b, 5) for b in range(2)]))
        wanted = oracle.compress_exact(tokens, as_numpy(weight.detach()), BLOCK, STRIDE, [100, 200])
        assert len(wanted) == 10
        assert oracle.same_bits(windows, wanted)


def test_a_query_attends_to_its_own_token_and_the_visible_windows():
    attention = Decoder(Config(layers=1)).layers[0].attention
    generator = torch.Generator().manual_seed(3)
    q, k, v, windows_k, windows_v = (
        torch.randn(1, *shape, generator=generator) for shape in ((4, 2, 2, 32), *[(4, 2, 32)] * 2, *[(3, 2, 32)] * 2)
    )
    visible = torch.tensor([[False, False, False], [True, False, False], [True, True, False], [True, True, True]])
    got = attention.attend(q, k, v, windows_k, windows_v, visible[None])
    for t in range(4):
        mixed = []
        for n in range(2):
            keys = torch.stack([k[0, t, n], *windows_k[0, visible[t], n]]).double()
            values = torch.stack([v[0, t, n], *windows_v[0, visible[t], n]]).double()
            mixed += [torch.softmax(keys @ q[0, t, n, g].double() / 32**0.5, 0) @ values for g in range(2)]
        torch.testing.assert_close(got[t], attention.out(torch.cat(mixed).float()), rtol=0, atol=1e-5)


def test_a_token_changes_no_earlier_logit_and_shows_from_the_first_complete_window_on():
    (tokens,) = random_tokens(100)
    changed = tokens.clone()
    changed[20] ^= 1
    config = Config(layers=1)
    (before,), _ = prefill(config, [tokens])
    (after,), _ = prefill(config, [changed])
    differs = (before != after).any(1)
    # Token 20 lies in windows [0, 32) and [16, 48); the first is complete before position 32.
    assert differs.nonzero().flatten().tolist() == [20, *range(32, 100)]


def test_sequences_of_a_ragged_batch_do_not_see_one_another():
    sequences = random_tokens(15, 70, 32, 33)
    together, _ = prefill(Config(), sequences)
    for sequence, logits in zip(sequences, together, strict=True):
        (alone,), _ = prefill(Config(), [sequence])
        torch.testing.assert_close(logits, alone, rtol=0, atol=1e-3)


def test_queries_before_the_first_window_give_finite_logits():
    logits, caches = prefill(Config(), random_tokens(5, 31))
    assert [len(windows) for windows in caches[2:4]] == [0, 0]
    assert all(torch.isfinite(piece).all() for piece in logits)


# --------------------------------------------------------------------------------------------------
# The program


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "text.bin"
    path.write_bytes(TEXT)
    return path


def run_program(*arguments):
    command = [sys.executable, str(EXAMPLES / "nsa_decoder.py"), *map(str, arguments)]
    one_thread = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, env=one_thread)


@pytest.fixture(scope="module")
def exported(text, tmp_path_factory):
    """The folder with the graphs of a run that has passed, and what the run printed."""
    folder = tmp_path_factory.mktemp("demo")
    done = run_program("--text", text, "--output-dir", folder, *OPTIONS)
    assert done.returncode == 0, done.stderr
    return folder, done


def test_a_text_is_served_and_everything_holds(exported):
    folder, done = exported
    assert {path.name for path in folder.glob("*.onnx")} == {"prefill.onnx", "decode.onnx"}
    for row in ("tokens", "windows", "bytes saved", "decode step", "bit for bit"):
        assert row in done.stdout
    assert "FAILED" not in done.stdout
    assert "decode 40/40" in done.stderr
    assert "\r" not in done.stderr


def serve(monkeypatch, text, folder):
    """Run the demo in this process on graphs that exist already."""
    monkeypatch.setattr(nsa_decoder, "export_prefill", lambda decoder, path: None)
    monkeypatch.setattr(nsa_decoder, "export_decode", lambda decoder, path: None)
    return nsa_decoder.main(["--text", str(text), "--output-dir", str(folder), *OPTIONS])


def test_one_flipped_bit_in_a_cached_window_fails_the_run(monkeypatch, capsys, text, exported):
    check_caches = nsa_decoder.check_caches

    def flip_then_check(decoder, state, lengths):
        slot = state.step["slot_table"][2, 1]
        state.caches["windows_v.0"].view(torch.int16)[slot, 1, 5] ^= 1
        return check_caches(decoder, state, lengths)

    monkeypatch.setattr(nsa_decoder, "check_caches", flip_then_check)
    assert serve(monkeypatch, text, exported[0]) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert "equals NsaCompress: V of layer 0: 1 of" in error


def with_changed_weight(exported, tmp_path, name):
    """Copies of the graphs; in one of them one compression weight is not what it was."""
    for source in exported[0].glob("*.onnx*"):
        (tmp_path / source.name).write_bytes(source.read_bytes())
    model = onnx.load(tmp_path / name)
    weight = next(i for i in model.graph.initializer if i.name.endswith("compress_value"))
    values = onnx.numpy_helper.to_array(weight).copy()
    values[3, 1] += 1
    weight.CopyFrom(onnx.numpy_helper.from_array(values, weight.name))
    onnx.save(model, tmp_path / name)
    return tmp_path


@pytest.mark.parametrize("graph", ["prefill", "decode"])
def test_a_changed_weight_in_a_graph_fails_the_run(monkeypatch, capsys, text, exported, tmp_path, graph):
    folder = with_changed_weight(exported, tmp_path, f"{graph}.onnx")
    assert serve(monkeypatch, text, folder) == 1
    error = capsys.readouterr().err
    assert f"check failed: {graph} logits equal PyTorch's" in error
    assert "check failed: cache filled by steps equals NsaCompress" in error


def test_bfloat16_caches_are_served(tmp_path, text, capsys):
    arguments = ["--text", text, "--output-dir", tmp_path, "--dtype", "bfloat16", "--page", "128", *OPTIONS]
    assert nsa_decoder.main([str(a) for a in arguments]) == 0, capsys.readouterr().err


BAD = {
    "missing": (["--text", "{tmp}/absent.txt"], "cannot read {tmp}/absent.txt: No such file"),
    "folder": (["--text", "{tmp}"], "cannot read {tmp}: Is a directory"),
    "empty": (["--text", "{tmp}/empty.txt"], "{tmp}/empty.txt is empty"),
    "short": (["--text", "{tmp}/short.txt"], "too short: 656 bytes are needed for --steps 128, it has 9"),
    "block": (["--block", "40"], "compress_block_size must be a multiple of 16, got 40"),
    "stride": (["--stride", "48"], "compress_stride must be in [16, compress_block_size = 32], got 48"),
    "steps": (["--steps", "8"], "--steps must be >= --block = 32"),
    "layers": (["--layers", "0"], "--layers must be >= 1, got 0"),
    "output": (["--output-dir", "{tmp}/empty.txt"], "cannot write to {tmp}/empty.txt"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_line_and_exit_code_2(tmp_path, text, capsys, name):
    (tmp_path / "empty.txt").touch()
    (tmp_path / "short.txt").write_bytes(b"too short")
    arguments, message = BAD[name]
    arguments = [a.format(tmp=tmp_path) for a in arguments]
    if "--text" not in arguments:
        (tmp_path / "long.txt").write_bytes(TEXT * 2)
        arguments += ["--text", str(tmp_path / "long.txt")]
    assert nsa_decoder.main(arguments) == 2
    error = capsys.readouterr().err
    assert message.format(tmp=tmp_path) in error
    assert error.count("\n") == 1


def test_no_more_of_the_text_is_read_than_served():
    """What has no end (/dev/zero) would otherwise fill the memory."""
    reader, writer = os.pipe()
    with open(writer, "wb") as file:
        file.write(bytes(3 * nsa_decoder.MAX_BYTES))
    batch = nsa_decoder.read_batch(Path(f"/dev/fd/{reader}"), 32, 32)
    assert sum(batch.lengths) == nsa_decoder.MAX_BYTES
    with open(reader, "rb") as file:
        assert len(file.read()) == 2 * nsa_decoder.MAX_BYTES


def test_progress_is_redrawn_on_a_terminal_and_plain_lines_elsewhere():
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    terminal, log = Terminal(), io.StringIO()
    for stream in (terminal, log):
        assert list(nsa_decoder.Progress(stream).steps("decode", 10)) == list(range(10))
    assert terminal.getvalue().count("\r") == 10
    assert terminal.getvalue().endswith("10/10\n")
    assert log.getvalue().splitlines() == [f"decode {n}/10" for n in (3, 5, 8, 10)]
