"""For any file, every command and the Python API end in time, with findings or a clean error.

The models and the process that reads them are in `hostile_models`. The fuzzer runs for ten seconds of processor time;
``NSA_ONNX_FUZZ_SECONDS=600 NSA_ONNX_FUZZ_SEED=7 pytest tests/test_hostile.py -k mutated`` runs it for ten minutes, on
other models. What breaks a command is kept under build/fuzz/ and named by the failure.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import hostile_models as hostile
import nsa_models as models
import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nsa_onnx import check
from nsa_onnx.checker import UnreadableModelError
from nsa_onnx.checker.rules import RULE_OF_ROW
from nsa_onnx.graph import wire
from nsa_onnx.runtime.session import session_options

KEPT = Path(__file__).parent.parent / "build" / "fuzz"
FUZZ_SECONDS = float(os.environ.get("NSA_ONNX_FUZZ_SECONDS", "10"))
FUZZ_SEED = int(os.environ.get("NSA_ONNX_FUZZ_SEED", "1"))


# --------------------------------------------------------------------------------------------------
# By hand


def kept_in(folder, name):
    """A copy of a file that broke something, for the one who reads the failure."""
    KEPT.mkdir(parents=True, exist_ok=True)
    path = KEPT / name
    shutil.copy(folder, path)
    return path


def failures_of(files, folder):
    """What goes wrong with files of a folder, for all commands in one process: lines of name, command, text."""
    jobs = [{"model": str(path), "command": command} for path in files for command in hostile.COMMANDS]
    return [
        f"{files[Path(job['model'])]!r}, {job['command']}: {wrong}" for job, wrong in hostile.run_jobs(jobs, folder)
    ]


def test_no_command_falls_for_a_hostile_model(tmp_path):
    files = {}
    for number, (name, made) in enumerate(hostile.hand_made().items()):
        path = tmp_path / "models" / f"{number}.onnx"
        path.parent.mkdir(exist_ok=True)
        hostile.write(made, path)
        files[path] = name
    assert not failures_of(files, tmp_path)


def test_no_command_minds_a_good_model(tmp_path):
    """The corpus of the fuzzer, as it is: what breaks here would hide what it looks for."""
    files = {}
    for number, (name, made) in enumerate(hostile.good_models().items()):
        path = tmp_path / "models" / f"{number}.onnx"
        path.parent.mkdir(exist_ok=True)
        hostile.write(made, path)
        files[path] = name
    some = {path: name for path, name in files.items() if " " not in name or "example" in name}
    assert not failures_of(some, tmp_path)


@pytest.mark.parametrize(
    "what",
    [
        "raise SystemError('x')",
        "raise SystemExit(0)",
        "print('\\x1b[2J')",
        "print('Traceback', file=sys.stderr)",
        "return 3",
        "return 2",
        "open(argv[argv.index('-o') + 1], 'w').close(); return 1",
        "return 0",
        "os._exit(7)",
        "bytearray(2**33)",
    ],
)
def test_the_process_that_runs_commands_sees_what_is_wrong(what, tmp_path, monkeypatch):
    """The guard is tried, too: a command that misbehaves in each of the ways is found."""
    hostile.write(models.compress(), tmp_path / "m.onnx")
    (tmp_path / "sitecustomize.py").write_text(
        f"import os, sys\nimport nsa_onnx.cli\ndef main(argv):\n    {what}\n    return 0\nnsa_onnx.cli.main = main\n"
    )
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    jobs = [{"model": str(tmp_path / "m.onnx"), "command": "expand"}]
    assert len(hostile.run_jobs(jobs, tmp_path)) == 1


# --------------------------------------------------------------------------------------------------
# Mutations


def test_no_command_falls_for_a_mutated_model(tmp_path):
    folder = tmp_path / "models"
    folder.mkdir()
    command = [sys.executable, hostile.__file__, "--fuzz", str(FUZZ_SECONDS), str(FUZZ_SEED), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"')]
    if done.returncode:
        path = kept_in(folder / "mutated.onnx", f"seed-{FUZZ_SEED}.onnx")
        last = lines[-1] if lines else {}
        job = last.get("done") or last.get("begun") or {}
        wrong = last.get("wrong") or f"the process ended with {done.returncode}: {done.stderr[-2000:]}"
        pytest.fail(f"{job.get('command')} on {path}: {wrong}")
    assert lines[-1]["models"] >= FUZZ_SECONDS  # it has done something


def test_mutations_are_the_same_for_a_seed_and_reach_the_commands():
    pool = list(hostile.good_models().values())
    made = [[hostile.mutated(hostile.random.Random(seed), pool) for seed in range(60)] for _ in range(2)]
    assert made[0] == made[1]
    parsed = []
    for data in made[0]:
        try:
            parsed.append(onnx.ModelProto.FromString(data))
        except Exception:
            continue
    # Most are still models, or the commands would be tried on their door only.
    assert len(parsed) > 40
    assert sum(any(node.domain == "nsa_onnx" for node in one.graph.node) for one in parsed) > 15


# --------------------------------------------------------------------------------------------------
# Large files


def varint(value):
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def file_of(path, size, *parts):
    """A file with these bytes in front, zeros behind them."""
    with path.open("wb") as file:
        file.write(b"".join(parts))
        file.truncate(size)
    return path


LARGE = {
    "zeros": (2**31 - 1, []),
    "a graph of zeros": (2**31 - 1, [b"\x3a", varint(2**31 - 7)]),
    "more bytes than there are": (2**24, [b"\x3a", varint(2**40)]),
    "a number without end": (2**24, [b"\x08" + b"\xff" * 2**16]),
    "groups": (2**24, [b"\x0b" * 2**16]),
    "numbers of a byte": (
        2**30,
        [b"\x3a", varint(2**30 - 6), b"\x2a", varint(2**30 - 12), b"\x3a", varint(2**30 - 18)],
    ),
    "text": (2**24, [b"ir_version: 8\n"]),
}


@pytest.mark.parametrize("name", LARGE)
def test_large_files_that_are_no_models_are_not_read(name, tmp_path):
    size, parts = LARGE[name]
    path = file_of(tmp_path / ("m.onnxtxt" if name == "text" else "m.onnx"), size, *parts)
    with pytest.raises(UnreadableModelError, match=r"not an ONNX model \(|bytes of text"):
        check(path)


@pytest.mark.parametrize(("inside", "found"), [(-1, True), (0, False)])
def test_the_fields_of_a_large_file_are_bounded(inside, found, monkeypatch):
    content = models.compress([40, 100]).SerializeToString()
    count = wire.scan(io.BytesIO(content), len(content))
    monkeypatch.setattr(wire, "MAX_FIELDS", count + inside)
    if found:
        with pytest.raises(wire.WireError, match="fields"):
            wire.scan(io.BytesIO(content), len(content))
    else:
        assert wire.scan(io.BytesIO(content), len(content)) == count


@pytest.mark.parametrize("name", ["portable", "branches", "attacks", "pages"])
def test_good_models_pass_the_scan_whatever_their_size(name):
    content = hostile.good_models()[name].SerializeToString()
    assert wire.scan(io.BytesIO(content), len(content)) > 20


@settings(max_examples=200)
@given(st.data())
def test_what_the_scan_refuses_protobuf_refuses(data):
    content = bytearray(models.compress([40, 100]).SerializeToString())
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    try:
        wire.scan(io.BytesIO(content), len(content))
    except wire.WireError as error:
        if "is no field" in str(error) and content.count(b"\x0b") + content.count(b"\x0c"):
            return  # groups, which protobuf skips where it does not know them, are in no model
        with pytest.raises(Exception, match=r"."):
            onnx.ModelProto.FromString(bytes(content))


# --------------------------------------------------------------------------------------------------
# The verdict against the truth

BLOCKS = st.sampled_from([16, 32, 48, 64, 112, 128])
DTYPES = st.sampled_from([np.dtype(np.float16), models.BFLOAT16])


@st.composite
def compressions(draw):
    """A model that breaks no limit, with feeds: (model, feeds, expected rows)."""
    block = draw(BLOCKS)
    stride = draw(st.integers(1, block // 16)) * 16
    heads, dim = draw(st.integers(1, 128)), draw(st.sampled_from([16, 48, 128, 256]))
    lengths = draw(st.lists(st.integers(0, 3 * block), min_size=1, max_size=6))
    lengths[0] += 1
    ends, dtype = np.cumsum(lengths), draw(DTYPES)
    constant, known = draw(st.booleans()), draw(st.booleans())
    total = int(ends[-1])
    x = (total, heads, dim) if known else ("T", "N", "D")
    made = models.compress(
        ends.tolist() if constant else None,
        dtype,
        x,
        (block, heads) if known else ("L", "N"),
        ("R", "N", "D"),
        compress_block_size=block,
        compress_stride=stride,
    )
    feeds = {"x": np.ones((total, heads, dim), dtype), "w": np.ones((block, heads), dtype)}
    if not constant:
        feeds["seq"] = ends
    rows = sum(max(0, 1 + (length - block) // stride) for length in lengths)
    return made, feeds, (rows, heads, dim)


@settings(max_examples=40)
@given(compressions())
def test_what_check_calls_right_runs(case):
    made, feeds, shape = case
    report = check(made)
    # All windows too short is the one thing that is said of a model that runs.
    assert {finding.rule for finding in report.findings} <= ({"NSA022"} if not shape[0] else set()), report.to_text()
    options = session_options()
    options.intra_op_num_threads = 1
    (got,) = models.run_ort(made, feeds, options)
    assert got.shape == shape


@st.composite
def decodes(draw):
    block = draw(st.sampled_from([16, 32, 48, 112]))
    stride = draw(st.integers(1, block // 16)) * 16
    page, heads, dim = draw(st.sampled_from([64, 128])), draw(st.integers(1, 63)), draw(st.sampled_from([16, 128]))
    batch, each, table = draw(st.integers(1, 4)), draw(st.integers(1, 3)), draw(st.booleans())
    pages = batch * each
    lengths = draw(st.lists(st.integers(0, each * page), min_size=batch, max_size=batch))
    constant, dtype = draw(st.booleans()), draw(DTYPES)
    made = models.infer(
        lengths if constant else None,
        dtype,
        x=(pages, page, heads, dim),
        w=(block, heads),
        cache=(batch, heads, dim),
        table=(batch, each) if table else None,
        batch=batch,
        compress_block_size=block,
        compress_stride=stride,
        page_block_size=page,
    )
    feeds = {"x": np.ones((pages, page, heads, dim), dtype), "w": np.ones((block, heads), dtype)}
    feeds |= {"slots": np.arange(batch, dtype=np.int32), "cache": np.zeros((batch, heads, dim), dtype)}
    if not constant:
        feeds["seq"] = np.array(lengths)
    if table:
        feeds["table"] = np.arange(pages, dtype=np.int32).reshape(batch, each)[::-1].copy()
    return made, feeds


@settings(max_examples=40)
@given(decodes())
def test_what_check_calls_right_decodes(case):
    made, feeds = case
    assert check(made).ok, check(made).to_text()
    options = session_options()
    options.intra_op_num_threads = 1
    (got,) = models.run_ort(made, feeds, options)
    assert got.shape == feeds["cache"].shape


def bad_int(good):
    """Integers that are not good, of any size."""
    return st.integers(-(2**63), 2**63 - 1).filter(lambda value: not good(value)) | st.integers(-300, 300).filter(
        lambda value: not good(value)
    )


# A limit's row, and how a compress or decode model breaks it.
BREAKS = {
    "block_multiple": lambda v: models.compress(compress_block_size=v, w=("L", 4)),
    "stride_multiple": lambda v: models.compress(compress_stride=v),
    "page_size": lambda v: models.infer(page_block_size=v, x=("P", "G", 4, 16)),
    "head_dim_multiple": lambda v: models.compress(x=("T", 4, v), y=("R", 4, v)),
    "heads_max": lambda v: models.compress(x=("T", v, 16), w=(32, v), y=("R", v, 16)),
    "cache_dim": lambda v: models.infer(cache=("S", 4, v)),
    "weight_block": lambda v: models.compress(w=(v, 4)),
    "seq_last": lambda v: models.compress([v], x=(100, 4, 16)),
}
GOOD = {
    "block_multiple": lambda v: v % 16 == 0 and 16 <= v <= 128,
    "stride_multiple": lambda v: v % 16 == 0 and 16 <= v <= 32,
    "page_size": lambda v: v in (64, 128),
    "head_dim_multiple": lambda v: v % 16 == 0 and v <= 256,
    "heads_max": lambda v: 1 <= v <= 128,
    "cache_dim": lambda v: v == 16,
    "weight_block": lambda v: v == 32,
    "seq_last": lambda v: v == 100,
}


@pytest.mark.parametrize("row", BREAKS)
@settings(max_examples=40)
@given(data=st.data())
def test_what_breaks_a_limit_gets_its_rule(row, data):
    value = data.draw(bad_int(GOOD[row]))
    if row not in ("block_multiple", "stride_multiple", "page_size", "seq_last"):
        value = abs(value) if value != -(2**63) else 7  # a negative dim is none
        if GOOD[row](value):
            value = 257
    rules = {finding.rule for finding in check(BREAKS[row](value)).findings}
    assert RULE_OF_ROW[row] in rules, (value, rules)
