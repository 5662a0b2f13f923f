"""For any file, every command and the Python API end in time, with findings or a clean error.

The models are in `hostile_models`, the processes that run commands in `hostile_commands`. The fuzzer tries mutated
models for NSA_FUZZ_SECONDS, 20 if that is not set; NSA_FUZZ_SEED chooses them, else the commit does. What breaks a
command is kept under build/fuzz/, and printed as a case for the corpus.
"""

from __future__ import annotations

import base64
import io
import os
import random
import subprocess
import textwrap
import time
import zlib
from pathlib import Path

import hostile_commands as hostile
import hostile_models as corpus
import nsa_models as models
import numpy as np
import onnx
import pytest
import test_check
import test_check_rules
import test_fuse
import test_fuse_forms
import test_stages
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from hypothesis.errors import Flaky
from mutations import mutated

from nsa_onnx import check
from nsa_onnx.checker import UnreadableModelError
from nsa_onnx.checker.rules import RULE_OF_ROW
from nsa_onnx.graph import wire
from nsa_onnx.operators import OPERATORS
from nsa_onnx.runtime.session import session_options

# What breaks a command is kept here.
KEPT = Path(__file__).parent.parent / "build" / "fuzz"
SECONDS = float(os.environ.get("NSA_FUZZ_SECONDS", "20"))
# File names that a shell, a terminal or a CI system could take for something else.
FILE_NAMES = ("m.onnx", "::error::x.onnx", "a\nb\x1b[2J.onnx", "##vso[task.x].onnx", "-o.onnx", "m.onnxtxt")


def commit_seed():
    """Each commit tries other models, and a failure comes again."""
    if given := os.environ.get("NSA_FUZZ_SEED"):
        return int(given)
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short=8", "HEAD"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return int(done.stdout or "1", 16)


@pytest.fixture(scope="module")
def commands():
    with hostile.Commands() as running:
        yield running


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "models").mkdir()
    return tmp_path / "models"


# --------------------------------------------------------------------------------------------------
# By hand


def failures_of(named, folder, commands, which=hostile.COMMANDS):
    """What goes wrong with models, for all commands: lines of name, command, text."""
    found = []
    for name, made in named.items():
        corpus.write(made, folder / "m.onnx")
        found += [f"{name!r}, {command}: {wrong}" for command, wrong in commands.wrong_with(folder / "m.onnx", which)]
    return found


def of_other_tests():
    """Hostile models of tests that ask for more than an end in time."""
    named = {f"fuse: {name}": made for name, made in (*test_fuse.hostile(), *test_fuse_forms.hostile())}
    named |= {f"check: {number}": make() for number, make in enumerate(test_check.HOSTILE)}
    named |= {f"explain: {number}": onnx.parser.parse_model(text) for number, text in enumerate(test_stages.ABSURD)}
    named["check: chained caches"] = test_check_rules.many_caches(100)
    return named


READERS = ("check cpu", "infer-shapes", "prepare atc", "fuse rounding", "explain")
# One of each kind; all where there is time.
SOME = (
    *READERS,
    "check atc",
    "check cann-aclnn",
    "run",
    "expand",
    "prepare cann",
    "python candidates",
    "python plugin",
)
if SECONDS > 60:
    SOME = READERS = hostile.COMMANDS


@pytest.mark.parametrize("part", range(4))
def test_no_command_falls_for_a_hostile_model(part, folder, commands):
    named = corpus.hand_made() | corpus.found()
    some = {name: named[name] for name in list(named)[part::4]}
    assert not failures_of(some, folder, commands, SOME)


def test_no_command_falls_for_what_other_tests_know(folder, commands):
    assert not failures_of(of_other_tests(), folder, commands, READERS)


@pytest.mark.parametrize("operator", OPERATORS.values(), ids=OPERATORS)
def test_no_command_falls_for_a_spoilt_node(operator, folder, commands):
    """Each attribute, shape and index of each operator, at all edges and of all kinds."""
    model = corpus.spoilt(operator)
    assert len(model.graph.node) > 50
    assert not failures_of({operator.op_type: model}, folder, commands, SOME)


def test_no_command_minds_a_good_model(folder, commands):
    """The corpus of the fuzzer, as it is: what breaks here would hide what it looks for."""
    good = corpus.good_models()
    basic = [*corpus.BASIC, *(f"{op_type} example" for op_type in OPERATORS)]
    assert not failures_of({name: good[name] for name in basic}, folder, commands)


MISTAKES = {
    "SystemError": "raise SystemError('x')",
    "SystemExit": "raise SystemExit(0)",
    "a control character": "print('\\x1b[2J')",
    "a control character from C": "os.write(2, b'\\x1b[2J')",
    "a command to Azure": "print('a##[error]b')",
    "a command to GitHub": "print('::error::b')",
    "a traceback": "print('Traceback', file=sys.stderr)",
    "status 3": "return 3",
    "status 2 in silence": "return 2",
    "an output of a failed command": "out.write_bytes(b'new'); return 1",
    "half an output": "out.write_bytes(model.read_bytes()[:-9]); return 0",
    "no output": "return 0",
    "a changed input": "model.write_bytes(b'x')",
    "a file left over": "pathlib.Path('.nsa-onnx-left').touch()",
    "an end": "os._exit(7)",
    "a crash": "os.kill(os.getpid(), 11)",
    "all memory": "bytearray(2**33)",
    "much memory": "bytearray(b'x') * 2**29",
    "much time": "while True: pass",
}


def test_what_a_command_does_wrong_is_seen(folder):
    """The guard is tried, too: a command that misbehaves in each of the ways is found, and a good one is not."""
    corpus.write(models.compress(), folder / "m.onnx")
    (folder.parent / "sitecustomize.py").write_text(
        "import os, pathlib, sys\nimport nsa_onnx.cli\n"
        "def main(argv):\n"
        "    out, model = pathlib.Path(argv[1].removeprefix('-o=')), pathlib.Path(argv[2])\n"
        f"    code = pathlib.Path({str(folder.parent / 'mistake')!r}).read_text()\n"
        "    exec(f'def mistake(out, model):\\n    {code}', globals())\n"
        "    status = mistake(out, model)\n"
        "    if status is None: out.write_bytes(model.read_bytes())\n"
        "    return status or 0\n"
        "nsa_onnx.cli.main = main\n"
    )
    path = f"{folder.parent}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    unseen = []
    with hostile.Commands({"PYTHONPATH": path}) as running:
        for name, code in {"nothing": "pass", **MISTAKES}.items():
            (folder.parent / "mistake").write_text(code)
            corpus.write(models.compress(), folder / "m.onnx")
            if not running.wrong_with(folder / "m.onnx", ["expand"], seconds=1):
                unseen.append(name)
    assert unseen == ["nothing"]


# --------------------------------------------------------------------------------------------------
# Mutations


class BrokenError(AssertionError):
    """A command that took a mutated file badly."""


def test_no_command_falls_for_a_mutated_model(folder, commands):
    """Hypothesis decides what is mutated, and makes a failing case small."""
    pool, last, tried = list(corpus.good_models().values()), {}, set()

    @settings(
        max_examples=50,
        database=None,
        derandomize=False,
        deadline=None,
        phases=(Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
        report_multiple_bugs=False,
        print_blob=False,
    )
    @given(st.randoms(use_true_random=False))
    def mutate(rng):
        data, path, some = mutated(rng, pool), folder / rng.choice(FILE_NAMES), rng.sample(hostile.COMMANDS, 4)
        if not last and (data in tried or time.monotonic() - begin > SECONDS):
            return
        tried.add(data)
        corpus.write(data, path)
        try:
            if found := commands.wrong_with(path, some):
                last.update(data=data, name=path.name, found=found)
                raise BrokenError
        finally:
            path.unlink()

    begin, count, start = time.monotonic(), 0, commit_seed()
    try:
        while time.monotonic() - begin < SECONDS:
            seed(start + count)(mutate)()
            count += 1
    except (BrokenError, Flaky):  # the latter if it does not come again
        pytest.fail(told(start + count, **last), pytrace=False)
    assert len(tried) > SECONDS / 5  # it has done something, on a busy machine, too


def told(number, data, name, found):
    """A failure for its reader: the file, the command, and a case for the corpus."""
    KEPT.mkdir(parents=True, exist_ok=True)
    kept = KEPT / f"seed-{number}.onnx"
    kept.write_bytes(data)
    command, wrong = found[0]
    case = textwrap.fill(base64.b64encode(zlib.compress(data, 9)).decode(), 100, initial_indent='        "')
    return (
        f"{command} on {kept}, called {name!r}: {wrong}\n\n"
        "For found() in tests/hostile_models.py, so that it stays found:\n\n"
        f"    'what it was': packed(\n" + case.replace("\n", '"\n        "') + '"\n    ),\n'
    )


def test_mutations_are_the_same_for_a_seed_and_reach_the_commands():
    pool = list(corpus.good_models().values())
    made = [[mutated(random.Random(number), pool) for number in range(100)] for _ in range(2)]
    assert made[0] == made[1]
    parsed = []
    for data in made[0]:
        try:
            parsed.append(onnx.ModelProto.FromString(data))
        except Exception:
            continue
    # Most are still models, or the commands would be tried on their door only.
    assert len(parsed) > 70
    assert sum(any(node.domain == "nsa_onnx" for node in one.graph.node) for one in parsed) > 30
    types = {node.op_type for one in parsed for node in one.graph.node}
    assert set(OPERATORS) < types


def test_a_failure_is_told_as_a_file_and_a_case_of_the_corpus(monkeypatch, tmp_path):
    monkeypatch.setitem(globals(), "KEPT", tmp_path)
    data = bytes(range(256)) * 3
    text = told(7, data, "m.onnx", [("check cpu", "Traceback")])
    assert (tmp_path / "seed-7.onnx").read_bytes() == data
    assert "check cpu on" in text
    entry = text[text.index("    'what it was'") :]
    assert eval("{" + entry + "}", {"packed": corpus.packed}) == {"what it was": data}


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
    content = corpus.good_models()[name].SerializeToString()
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
