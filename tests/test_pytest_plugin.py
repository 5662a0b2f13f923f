"""The pytest plugin: present wherever nsa_onnx is installed, clear when a model is wrong, no cost for other tests."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import entry_points

import nsa_models as models
import onnx
import pytest

from nsa_onnx.checker import UnreadableModelError
from nsa_onnx.pytest_plugin import assert_valid_nsa_model

pytest_plugins = ["pytester"]


@pytest.fixture
def folder(pytester):
    onnx.save(models.compress([40, 100]), pytester.path / "good.onnx")
    onnx.save(models.compress([50, 40]), pytester.path / "bad.onnx")
    return pytester


def outcomes(folder, code):
    """What pytest makes of a test file, in a process of its own."""
    folder.makepyfile(code)
    return folder.runpytest_subprocess("-p", "no:cacheprovider", "-p", "no:xdist", "-p", "no:hypothesispytest")


def test_pytest_finds_the_plugin_by_itself(folder):
    (entry,) = [entry for entry in entry_points(group="pytest11") if entry.name == "nsa_onnx"]
    assert entry.load().assert_valid_nsa_model is assert_valid_nsa_model
    shown = folder.runpytest_subprocess("--fixtures").stdout.str()
    assert {"nsa_session", "assert_valid_nsa_model"} <= {line.split(" ")[0] for line in shown.splitlines()}


def test_a_good_model_passes_and_is_served(folder):
    result = outcomes(
        folder,
        """
        import numpy as np

        def test_valid(assert_valid_nsa_model):
            report = assert_valid_nsa_model("good.onnx", run=True)
            assert report.runs[0].ulps == 0

        def test_served(nsa_session):
            session = nsa_session("good.onnx")
            assert session.get_providers() == ["CPUExecutionProvider"]
            feeds = {"x": np.ones((100, 4, 16), np.float16), "w": np.ones((32, 4), np.float16)}
            (y,) = session.run(None, feeds)
            assert y.shape == (3, 4, 16) and (y == 32).all()
        """,
    )
    result.assert_outcomes(passed=2)


def test_a_bad_model_fails_with_what_is_wrong_and_without_our_code(folder):
    result = outcomes(
        folder,
        """
        from nsa_onnx.pytest_plugin import assert_valid_nsa_model

        def test_bad():
            assert_valid_nsa_model("bad.onnx")
        """,
    )
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        [
            "E*AssertionError: not a valid NSA model for target cpu:",
            "E*error NSA015 NsaCompress 'nsa': actual_seq_len?1? must be >= the element before it, 50, got 40",
            "E*bad.onnx: 1 error, 0 warnings (1 NSA node checked)",
        ]
    )
    result.stdout.no_fnmatch_line("*report.fails*")
    result.stdout.no_fnmatch_line("*pytest_plugin.py*")


def test_it_takes_the_model_itself_and_gives_the_report():
    report = assert_valid_nsa_model(models.compress([40, 100]))
    assert report.ok
    with pytest.raises(AssertionError, match="NSA015"):
        assert_valid_nsa_model(models.compress([50, 40]))


def test_warnings_fail_unless_told_otherwise():
    odd = models.compress([31], x=(31, 4, 16), y=(0, 4, 16))  # no window in it
    with pytest.raises(AssertionError, match="warning NSA"):
        assert_valid_nsa_model(odd)
    assert len(assert_valid_nsa_model(odd, fail_on="error").findings) == 1


def test_a_model_whose_nodes_are_lost_is_not_valid():
    made = models.compress()
    node = made.graph.node[0]
    node.op_type, node.domain = "Identity", ""
    del node.attribute[:], node.input[1:], made.opset_import[1:]
    with pytest.raises(AssertionError, match="has 0 NSA nodes, at least 1 are expected"):
        assert_valid_nsa_model(made)
    assert assert_valid_nsa_model(made, min_nodes=0).nodes == ()
    with pytest.raises(AssertionError, match="has 1 NSA node, at least 2"):
        assert_valid_nsa_model(models.compress(), min_nodes=2)


def test_what_is_no_model_fails_the_test(tmp_path):
    with pytest.raises(AssertionError, match=r"missing\.onnx: No such file") as caught:
        assert_valid_nsa_model(tmp_path / "missing.onnx")
    assert isinstance(caught.value.__cause__, UnreadableModelError)


@pytest.mark.parametrize("arguments", [{"target": "gpu"}, {"fail_on": "note"}])
def test_wrong_arguments_are_no_assertion(arguments):
    with pytest.raises(ValueError, match=r"gpu|note"):
        assert_valid_nsa_model(models.compress(), **arguments)


def test_targets_reach_the_checker():
    wide = models.infer(x=("P", 128, 4, 16), w=(112, 4), compress_block_size=112, page_block_size=128)
    assert_valid_nsa_model(wide)
    with pytest.raises(AssertionError, match="for target cann-aclnn"):
        assert_valid_nsa_model(wide, target="cann-aclnn")


def test_a_run_of_pytest_that_does_not_use_it_imports_nothing_for_it(folder):
    result = outcomes(
        folder,
        """
        import sys

        def test_nothing():
            assert "nsa_onnx.pytest_plugin" in sys.modules
            assert not {"numpy", "onnx", "onnxruntime", "torch", "nsa_onnx.checker"} & sys.modules.keys()
        """,
    )
    result.assert_outcomes(passed=1)


def test_a_session_without_onnxruntime_says_what_to_install(folder):
    result = outcomes(
        folder,
        """
        import sys

        def test_served(nsa_session, monkeypatch):
            monkeypatch.setitem(sys.modules, "onnxruntime", None)
            nsa_session("good.onnx")
        """,
    )
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["E*RuntimeError: onnxruntime cannot be imported*pip install onnxruntime"])


def test_the_package_itself_imports_nothing_before_it_is_used():
    code = "import sys, nsa_onnx; print(sorted({'numpy', 'onnx'} & sys.modules.keys()), 'check' in dir(nsa_onnx))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[] True\n"
