"""The demo: its layers see what the paper's see, prefill and decode agree, and its checks can fail."""

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
import nsa_serving  # noqa: E402
from nsa_model import Config, Decode, Decoder, Dense, Prefill, Turns, block_counts  # noqa: E402

# Blocks of 32 tokens, of which one is chosen freely: short sequences already have a choice.
SMALL = {"key_dim": 32, "value_dim": 16, "heads": 4, "select": 32, "count": 4, "latest": 40}
BLOCK, STRIDE = 32, 16
OPTIONS = ["--layers", "1", "--steps", "40", "--select", "32", "--count", "4", "--latest", "40", "--contexts"]
TEXT = bytes(range(256)) * 4


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    """The model is tiny, and other tests run beside these: threads that wait for one another cost seconds."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def prefill(config, sequences, choose=None):
    """Logits of every sequence, and the other outputs by name, of one ragged batch in PyTorch."""
    lengths = [len(s) for s in sequences]
    logits, *others = Prefill(Decoder(config), choose)(torch.cat(sequences), nsa_serving.prefix_sums(lengths))
    names = nsa_serving.names(config.layers, (*nsa_serving.CACHES, "chosen"))
    return logits.split(lengths), dict(zip(names, others, strict=True))


def random_tokens(*lengths):
    generator = torch.Generator().manual_seed(7)
    return [torch.randint(0, 256, (length,), generator=generator) for length in lengths]


def decode_all(config, sequences):
    """Every sequence by steps from its first token on: logits and choices (per layer) of its tokens, and the state.

    A sequence that is at its end repeats its last step.
    """
    lengths = torch.tensor([len(s) for s in sequences])
    decode, state = Decode(Decoder(config)), nsa_serving.DecodeState.empty(config, lengths.tolist())
    outputs = []
    for t in range(int(lengths.max())):
        now = lengths.clamp(max=t + 1)
        state.feed(torch.stack([s[n - 1] for s, n in zip(sequences, now, strict=True)]), now)
        outputs.append(decode(*state.step.values(), *state.caches.values()))
    stacked = [torch.stack(output, 1) for output in zip(*outputs, strict=True)]
    logits, *chosen = (torch.cat([s[:n] for s, n in zip(output, lengths, strict=True)]) for output in stacked)
    return logits, chosen, state


# --------------------------------------------------------------------------------------------------
# The model, in PyTorch

SHAPES = {
    "windows that reach into one more block": Config(layers=2, **{**SMALL, "select": 64, "count": 3}),
    "a free choice": Config(layers=1, page=128, dtype=torch.bfloat16, **SMALL),
    "windows as long as blocks": Config(layers=1, **{**SMALL, "block": 64, "select": 64}),
    "one window per block": Config(layers=1, **{**SMALL, "block": 16, "select": 16, "count": 5}),
    "windows of three strides": Config(layers=1, **{**SMALL, "block": 48, "select": 96, "count": 3}),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_decode_by_steps_chooses_and_computes_what_prefill_does(shape):
    """At every length from 1 on. The sequences end before a window, with one, between two, and with a block."""
    config = SHAPES[shape]
    sequences = random_tokens(180, 20, 176, 163, 128)
    logits, chosen, _ = decode_all(config, sequences)
    choices = nsa_decoder.Choices(config, [len(s) for s in sequences], chosen)
    wanted, _ = prefill(config, sequences, choices)
    assert choices.made == config.layers * config.kv_heads * 667
    assert choices.check().passed
    assert len(choices.gaps) <= 2  # near ties are rare
    torch.testing.assert_close(logits, torch.cat(wanted), rtol=0, atol=2e-3)


def test_what_follows_a_prompt_does_not_show_in_its_prefill():
    config = Config(layers=1, **{**SMALL, "select": 64, "count": 3})
    (tokens,) = random_tokens(200)
    (long_logits,), long = prefill(config, [tokens])
    for length in (20, 31, 32, 79, 80, 95, 96, 128, 150):
        (logits,), short = prefill(config, [tokens[:length]])
        choices = nsa_decoder.Choices(config, [length], [long["chosen.0"][:length]])
        choices(0, None, None, short["chosen.0"])  # needs no scores: there is no difference
        torch.testing.assert_close(logits, long_logits[:length], rtol=0, atol=1e-4)


def as_numpy(tensor):
    return tensor.view(torch.uint16).numpy().view(ml_dtypes.bfloat16 if tensor.dtype == torch.bfloat16 else np.float16)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_decode_steps_cache_the_windows_of_the_tokens_in_the_pages(dtype):
    config = Config(dtype=dtype, layers=1, **SMALL)
    _, _, state = decode_all(config, random_tokens(100, 100))
    attention = Decoder(config).layers[0].attention
    for kind, weight in (("k", attention.compress_key), ("v", attention.compress_value)):
        tokens = as_numpy(torch.cat([state.sequence(f"cmp_{kind}.0", b, 100) for b in range(2)]))
        windows = as_numpy(torch.cat([state.sequence(f"compressed_{kind}.0", b, 5) for b in range(2)]))
        wanted = oracle.compress_exact(tokens, as_numpy(weight.detach()), BLOCK, STRIDE, [100, 200])
        assert len(wanted) == 10
        assert oracle.same_bits(windows, wanted)


def naive(query, key, value, scale):
    """Attention of queries [N1, D] to tokens [n, N2, D] in float64."""
    results = []
    for n in range(key.shape[1]):
        for q in query.unflatten(0, (key.shape[1], -1))[n].double():
            results.append(torch.softmax(key[:, n].double() @ q * scale, 0) @ value[:, n].double())
    return torch.stack(results)


def test_the_sliding_window_is_the_latest_tokens_of_the_own_sequence():
    config = Config(layers=1, **{**SMALL, "latest": 5})
    generator = torch.Generator().manual_seed(3)
    lengths = [7, 1, 12, 3]
    query, key, value = (torch.randn(sum(lengths), n, d, generator=generator) for n, d in ((4, 32), (2, 32), (2, 16)))
    first = torch.repeat_interleave(torch.tensor([0, 7, 8, 20]), torch.tensor(lengths))
    got = Prefill(Decoder(config))._latest(query, key, value, first)
    for t, start in enumerate(first.tolist()):
        tokens = slice(max(start, t - 4), t + 1)
        wanted = naive(query[t], key[tokens], value[tokens], config.scale)
        torch.testing.assert_close(got[t].double(), wanted, rtol=0, atol=1e-5)


def test_rotary_positions_show_distances_only():
    query, key = torch.randn(2, 1, 3, 32, generator=torch.Generator().manual_seed(5))

    def product(at, there):
        a, b = (Turns.at(torch.tensor([p]), 32).apply(x) for p, x in ((at, query), (there, key)))
        return (a * b).sum(-1)

    torch.testing.assert_close(product(7, 3), product(1007, 1003), rtol=0, atol=1e-3)
    assert (product(7, 3) - product(7, 4)).abs().min() > 1e-2


def test_gates_weigh_the_branches():
    attention = Decoder(Config(layers=1, **SMALL)).layers[0].attention
    generator = torch.Generator().manual_seed(4)
    x = torch.randn(3, 128, generator=generator)
    branches = torch.randn(3, 3, 4, 16, generator=generator)
    gates = torch.sigmoid(attention.gates(x)).view(3, 3, 4)  # rows, branches, heads
    wanted = torch.einsum("rbh,brhd->rhd", gates, branches).flatten(1)
    torch.testing.assert_close(attention.mix(x, *branches), attention.out(wanted), rtol=0, atol=1e-5)


def test_a_token_changes_no_earlier_logit():
    (tokens,) = random_tokens(200)
    config = Config(layers=2, **SMALL)
    (before,), _ = prefill(config, [tokens])
    for at in (5, 90, 199):
        changed = tokens.clone()
        changed[at] ^= 1
        (after,), _ = prefill(config, [changed])
        assert torch.equal(before[:at], after[:at])
        assert (before[at:] != after[at:]).any(1).all()


def test_sequences_of_a_ragged_batch_do_not_see_one_another():
    sequences = random_tokens(15, 170, 32, 33)
    config = Config(**SMALL)
    together, _ = prefill(config, sequences)
    for sequence, logits in zip(sequences, together, strict=True):
        (alone,), _ = prefill(config, [sequence])
        torch.testing.assert_close(logits, alone, rtol=0, atol=1e-3)


def test_queries_before_the_first_window_give_finite_logits():
    logits, caches = prefill(Config(**SMALL), random_tokens(5, 31))
    assert [len(caches[f"compressed_{kind}.0"]) for kind in "kv"] == [0, 0]
    assert all(torch.isfinite(piece).all() for piece in logits)


def test_the_blocks_that_decode_can_choose():
    lengths = torch.tensor([1, 31, 32, 64, 79, 80, 128, 143, 144])
    assert block_counts(Config(), lengths).tolist() == [1, 1, 1, 1, 1, 2, 2, 2, 3]  # 64 tokens, windows of 32, 16 apart


def test_dense_attention_reads_all_tokens():
    config = Config(layers=1, **SMALL)
    decoder = Decoder(config)
    (tokens,) = random_tokens(70)
    state = nsa_serving.DecodeState.empty(config, [70])
    for t in range(70):
        state.feed(tokens[t : t + 1], torch.tensor([t + 1]))
        step, caches = state.dense()
        logits = Dense(decoder)(*step.values(), *caches.values())
    (layer,), x = decoder.layers, decoder.embedding(tokens)
    query, kept = layer.attention.project(layer.norm(x), Turns.at(torch.arange(70), config.key_dim))
    x = x[-1:] + layer.attention.out(naive(query[-1], *kept["slc"], config.scale).float().flatten()[None])
    torch.testing.assert_close(logits, decoder.logits(x + layer.mlp(x)), rtol=0, atol=1e-4)


# --------------------------------------------------------------------------------------------------
# The comparison of choices


def one_layer(zero_keys):
    """A prefill of 200 tokens, whose compressed keys are all alike or not: config, queries, these keys, the choice."""
    config = Config(layers=1, **SMALL)
    _, outputs = prefill(config, random_tokens(200))
    query = torch.randn(200, 4, 32, generator=torch.Generator().manual_seed(6)).half()
    key = outputs["compressed_k.0"]
    return config, query, torch.zeros_like(key) if zero_keys else key, outputs["chosen.0"]


def compared(config, query, key, chosen, served):
    choices = nsa_decoder.Choices(config, [200], [served])
    assert choices(0, query, key, chosen) is served
    return choices.check()


def swapped(chosen, group, old, new):
    """With another block in the last row, which can choose six."""
    changed = chosen.clone()
    row = changed[199, group]
    assert old in row.tolist()
    assert new not in row.tolist()
    row[row == old] = new
    return changed


@pytest.mark.parametrize("zero_keys", [False, True])
def test_another_block_is_accepted_only_if_its_score_is_the_same(zero_keys):
    config, query, key, chosen = one_layer(zero_keys)
    (free,) = set(chosen[199, 0].tolist()) - {0, 4, 5}
    other = next(block for block in (1, 2, 3) if block != free)
    check = compared(config, query, key, chosen, swapped(chosen, 0, free, other))
    assert check.passed is zero_keys
    assert "1 of 400 differ" in check.detail


@pytest.mark.parametrize(("old", "new"), [(0, 1), (4, 2), (5, -1), (5, 6)])
def test_the_blocks_of_decode_must_be_chosen_and_no_others_exist(old, new):
    config, query, key, chosen = one_layer(zero_keys=True)
    chosen[199, 1] = torch.tensor([0, 4, 5, 3])
    assert compared(config, query, key, chosen, chosen.clone()).passed
    assert not compared(config, query, key, chosen, swapped(chosen, 1, old, new)).passed


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
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, env=one_thread)


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
    for row in ("tokens", "windows", "decode step", "choices", "bit for bit"):
        assert row in done.stdout
    assert "FAILED" not in done.stdout
    assert "decode 40/40" in done.stderr
    assert "\r" not in done.stderr


def test_the_table_of_steps_counts_what_a_query_reads(exported, tmp_path):
    config = Config(layers=1, select=32, count=4, latest=40)
    with nsa_serving.quiet():
        nsa_serving.export_dense(Decoder(config), tmp_path / "dense.onnx")
    decode, dense = (nsa_serving.BoundSession(path) for path in (exported[0] / "decode.onnx", tmp_path / "dense.onnx"))
    times = [nsa_serving.time_steps(decode, dense, config, tokens, rounds=1) for tokens in (20, 300)]
    # 300 tokens are 17 windows and ten blocks, the last of which, of 12 tokens, reaches behind the last window.
    assert [(t.compressed, t.chosen, t.latest, t.read) for t in times] == [(0, 20, 20, 40), (17, 128, 40, 185)]
    lines = nsa_decoder.step_table(times).splitlines()
    assert len(lines) == 4
    assert lines[-1].split()[:6] == ["300", "17", "128", "40", "185", "62%"]


def serve(monkeypatch, text, folder):
    """Run the demo in this process on graphs that exist already."""
    monkeypatch.setattr(nsa_decoder, "export_prefill", lambda decoder, path: None)
    monkeypatch.setattr(nsa_decoder, "export_decode", lambda decoder, path: None)
    return nsa_decoder.main(["--text", str(text), "--output-dir", str(folder), *OPTIONS])


def test_one_flipped_bit_in_a_cached_window_fails_the_run(monkeypatch, capsys, text, exported):
    check_caches = nsa_decoder.check_caches

    def flip_then_check(decoder, state, lengths):
        slot = state.step["compressed_table"][2, 0] * state.config.page + 1
        state.caches["compressed_v.0"].view(torch.int16)[slot, 1, 5] ^= 1
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
    "heads": (["--kv-heads", "3"], "head_num must be a multiple of N2 = 3, got 8"),
    "select": (["--select", "40"], "select_block_size must be a multiple of 16, got 40"),
    "count": (["--count", "2"], "--count must be >= 3, the blocks that a decode step always chooses, got 2"),
    "latest": (["--latest", "0"], "--latest must be >= 1, got 0"),
    "contexts": (["--contexts", "64", "0"], "--contexts must be >= 1, got 0"),
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
