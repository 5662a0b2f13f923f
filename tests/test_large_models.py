"""Commands on large models: each reads, infers and searches a model once, and the work grows only as the model does.

Nothing is timed here: readings, inferences, searches and calls of Python functions are counted. `make bench` measures
the time per node (benchmarks/models.py).
"""

import sys
from collections import Counter

import onnx
import onnx.shape_inference
import pytest

import nsa_onnx.analysis
from benchmarks import models

ONCE = ("fuse", "prepare --target atc", "explain", "check")


def save(folder, nodes, **options):
    path = folder / "model.onnx"
    model = models.decoder(nodes, **options)
    onnx.save(model, path)
    return path, len(model.graph.node)


@pytest.fixture
def counted(monkeypatch):
    """How often onnx read a file, inferred a model's types, and a model was searched for the compression."""
    counts: Counter = Counter()

    def count(owner, name):
        function = getattr(owner, name)

        def call(*arguments, **options):
            counts[name] += 1
            return function(*arguments, **options)

        monkeypatch.setattr(owner, name, call)

    count(onnx, "load")
    count(onnx.shape_inference, "infer_shapes")
    count(nsa_onnx.analysis, "search")
    return counts


@pytest.mark.parametrize("in_standard_operators", [False, True], ids=["nodes", "standard operators"])
@pytest.mark.parametrize("command", ONCE)
def test_a_model_is_read_inferred_and_searched_once(command, in_standard_operators, tmp_path, counted):
    path, _ = save(tmp_path, 400, in_standard_operators=in_standard_operators)
    assert models.run(command, path, tmp_path) == (1 if command == "check" and in_standard_operators else 0)
    searches = 0 if command.startswith("prepare") else 1
    assert counted == Counter(load=1, infer_shapes=1, search=searches)
    if command == "fuse" and in_standard_operators:
        made = onnx.load(tmp_path / "out").graph.node
        assert [node.op_type for node in made].count("NsaCompress") == 3


def calls(command, path, folder):
    """How many functions written in Python were called, and how many of others."""
    count = 0

    def profile(frame, event, argument):
        nonlocal count
        count += event in ("call", "c_call")

    sys.setprofile(profile)
    try:
        models.run(command, path, folder)
    finally:
        sys.setprofile(None)
    return count


@pytest.mark.parametrize("in_standard_operators", [False, True], ids=["nodes", "standard operators"])
@pytest.mark.parametrize("command", models.COMMANDS)
def test_the_work_grows_as_the_model_does(command, in_standard_operators, tmp_path):
    counts = []
    for nodes in (200, 2000, 4000, 8000):  # the first one for what happens once in a process
        path, size = save(tmp_path, nodes, in_standard_operators=in_standard_operators)
        counts.append((size, calls(command, path, tmp_path)))
    (few, before), (some, after), (many, at_last) = counts[1:]
    first, second = (after - before) / (some - few), (at_last - after) / (many - some)
    assert second < 1.1 * first, f"calls per further node: {first:.1f}, then {second:.1f}"
    assert second < 200
