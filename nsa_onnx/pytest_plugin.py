"""The pytest plugin: `assert_valid_nsa_model` and the fixture ``nsa_session``.

pytest loads it wherever nsa_onnx is installed (entry point ``pytest11``), so nothing is imported here before a test
needs it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from onnx import ModelProto
    from onnxruntime import InferenceSession

    from .checker import Report

__all__ = ["assert_valid_nsa_model", "nsa_session"]


def assert_valid_nsa_model(
    model: str | os.PathLike[str] | ModelProto,
    *,
    target: str = "cpu",
    fail_on: str = "warning",
    min_nodes: int = 1,
    run: bool = False,
    ignore: Collection[str] = (),
) -> Report:
    """Fail the test if `nsa_onnx.check` finds something wrong with a model, and show what.

    Args:
        model: path of an ONNX file, or the model itself.
        target: what it is meant for, as in `nsa_onnx.check`.
        fail_on: ``warning`` or ``error``, the mildest severity that fails the test.
        min_nodes: NSA nodes that the model must have at least; an export that lost them all is clean otherwise.
        run: also run each NSA node in onnxruntime and compare it with a float64 reference.
        ignore: ids of rules whose findings are left out.

    Returns:
        The report, for further assertions.

    Raises:
        AssertionError: something is wrong with the model, or it is none.
        ValueError: ``target``, ``fail_on`` or a rule is unknown.
    """
    __tracebackhide__ = True
    from .checker import Severity, UnreadableModelError, check
    from .console import clean

    severity = Severity(fail_on)
    try:
        report = check(model, target=target, run=run, ignore=ignore, min_nodes=min_nodes)
    except UnreadableModelError as error:
        raise AssertionError(f"no model that nsa_onnx can check: {clean(str(error))}") from error
    if report.fails(severity):
        raise AssertionError(f"not a valid NSA model for target {target}:\n{report.to_text()}")
    return report


@pytest.fixture(name="assert_valid_nsa_model")
def _assert_valid_nsa_model() -> Callable[..., Report]:
    """`nsa_onnx.pytest_plugin.assert_valid_nsa_model`, without an import."""
    return assert_valid_nsa_model


@pytest.fixture
def nsa_session() -> Callable[..., InferenceSession]:
    """A function that makes onnxruntime sessions with our operators: `nsa_onnx.create_session`, on the CPU by default.

    ``nsa_session(model, device="cpu", **more)`` raises RuntimeError where onnxruntime is not installed.
    """

    def make(model: str | os.PathLike[str] | bytes | ModelProto, **arguments: Any) -> InferenceSession:
        from .runtime.session import create_session

        # A test that asked for providers or a device has said where to run.
        if not arguments.keys() & {"device", "providers"}:
            arguments["device"] = "cpu"
        return create_session(model, **arguments)

    return make
