"""onnxruntime's CANN provider (Ascend): what it needs, the options for our nodes, and whether they run there.

The provider says little about itself: it is listed where it cannot work, it writes its reasons to stderr only, and a
session that loses it goes on with the CPU. The functions here turn all that into errors and facts.
"""

from __future__ import annotations

import ctypes
import os
import statistics
import time
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from onnx import ModelProto, TensorProto, helper

from ..operators import OPERATORS
from ..operators.base import Operator, T
from ..operators.contract import DOMAIN
from ..operators.example import example_model
from . import native

if TYPE_CHECKING:
    from onnxruntime import InferenceSession, SessionOptions

PROVIDER = "CANNExecutionProvider"
DISTRIBUTION = "onnxruntime-cann"
BACKENDS = ("auto", "ascend_kernels", "aclnn")
BACKEND_KEY = "nsa_onnx.ascend_backend"

# All that 1.24.4 knows. It refuses others with a message that names no known one.
_OPTIONS = frozenset(
    (
        *("arena_extend_strategy", "device_id", "dump_graphs", "dump_om_model", "enable_cann_graph"),
        *("enable_cann_subgraph", "npu_mem_limit", "op_select_impl_mode", "optypelist_for_implmode"),
        "precision_mode",
    )
)

_INSTALL = "pip install onnxruntime-cann 'numpy<2' in an environment without onnxruntime"


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def import_problem() -> str | None:
    """What keeps onnxruntime-cann from being imported, where its own error would not say; None if nothing does."""
    numpy = _version("numpy")
    if _version(DISTRIBUTION) is None or numpy is None or int(numpy.split(".")[0]) < 2:
        return None
    return f"onnxruntime-cann needs numpy < 2, installed is {numpy}: pip install 'numpy<2'"


def _require_provider(onnxruntime: Any) -> None:
    if PROVIDER in onnxruntime.get_available_providers():
        return
    problem = f"onnxruntime {onnxruntime.__version__} has no {PROVIDER}: {_INSTALL}"
    if _version(DISTRIBUTION) is not None:
        problem = (
            "onnxruntime and onnxruntime-cann are both installed, share a folder, and the former came last: "
            f"pip uninstall both, then {_INSTALL}"
        )
    raise RuntimeError(problem)


def provider_options(given: Mapping[str, object] | None) -> dict[str, str]:
    """Options for the provider: ours, overridden by the given ones.

    Raises:
        ValueError: an option that the provider does not know, or one under which NSA nodes cannot run.
    """
    options = {"device_id": "0", "enable_cann_graph": "0"}
    for name, value in (given or {}).items():
        if name not in _OPTIONS:
            raise ValueError(
                f"provider option {name!r} is unknown; the CANN provider has {', '.join(sorted(_OPTIONS))}"
            )
        options[name] = str(int(value)) if isinstance(value, bool) else str(value)
    if _is_on(options["enable_cann_graph"]) and not _is_on(options.get("enable_cann_subgraph", "0")):
        raise ValueError(
            "enable_cann_graph=1 hands the whole model to CANN's ONNX parser, which does not know NSA nodes: "
            "leave it 0, or add enable_cann_subgraph=1 (NSA nodes then run on the CPU between CANN's graphs)"
        )
    return options


def in_graph_mode(options: Mapping[str, str]) -> bool:
    """Whether CANN compiles graphs of its own, between which NSA nodes run on the CPU."""
    return _is_on(options["enable_cann_graph"])


def _is_on(value: str) -> bool:
    return value.lower() in ("1", "true")


def create_session(
    onnxruntime: Any,
    source: str | bytes,
    options: SessionOptions,
    provider_options: Mapping[str, str],
) -> InferenceSession:
    """A session whose NSA nodes are on the CANN provider, or an error that says why there is none.

    Args:
        onnxruntime: the imported module.
        source: path or bytes of the model.
        options: with our library registered; changed in place.
        provider_options: of the CANN provider.

    Raises:
        RuntimeError: the provider cannot be used here, or the nodes would have run elsewhere.
    """
    _require_provider(onnxruntime)
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    try:
        # Without fallback: it would make a new session on the CPU now, and again when a run fails.
        session: InferenceSession = onnxruntime.InferenceSession(
            source, options, providers=[(PROVIDER, dict(provider_options))], enable_fallback=0
        )
    except Exception as error:
        if reason := _loading_problem(onnxruntime):
            raise RuntimeError(f"the CANN provider cannot be loaded: {reason}") from error
        # The classes that onnxruntime has for what providers and our backends throw; a bad model is another one.
        if type(error).__name__ in ("RuntimeException", "EPFail"):
            raise RuntimeError(str(error)) from error
        raise
    if PROVIDER not in session.get_providers():
        reason = _loading_problem(onnxruntime) or "onnxruntime has written the reason to stderr"
        raise RuntimeError(f"the CANN provider cannot be used: {reason}")
    _require_placement(session, "CPUExecutionProvider" if in_graph_mode(provider_options) else PROVIDER)
    return session


def _loading_problem(onnxruntime: Any) -> str | None:
    """Which library the provider's own library lacks; None if it can be loaded."""
    path = Path(onnxruntime.__file__).parent / "capi" / "libonnxruntime_providers_cann.so"
    try:
        # It takes its symbols from this one, which onnxruntime loads before.
        ctypes.CDLL(str(path.with_name("libonnxruntime_providers_shared.so")), ctypes.RTLD_GLOBAL)
        ctypes.CDLL(str(path))
    except OSError as error:
        return f"{error}. Is CANN installed, and its set_env.sh sourced in this shell?"
    return None


def placement(session: InferenceSession) -> dict[str, str] | None:
    """Provider of each NSA node by the node's name; None if this onnxruntime does not tell."""
    tell = getattr(session, "get_provider_graph_assignment_info", None)
    if tell is None:
        return None
    nodes = [(node, part.ep_name) for part in tell() for node in part.get_nodes()]
    return {f"{node.op_type} {node.name!r}": provider for node, provider in nodes if node.domain == DOMAIN}


def _require_placement(session: InferenceSession, provider: str) -> None:
    where = placement(session)
    if where is None:
        warnings.warn("this onnxruntime does not tell where nodes run: placement is not checked", stacklevel=4)
        return
    elsewhere = [f"{node} is on {other}" for node, other in where.items() if other != provider]
    if elsewhere:
        raise RuntimeError(f"NSA nodes must be on {provider}: {'; '.join(elsewhere)}")


# --------------------------------------------------------------------------------------------------
# For the doctor


@dataclass(frozen=True)
class Run:
    """One operator on the device against the CPU kernel, on random positive numbers.

    Attributes:
        name: operator, element type and backend.
        ulp: largest distance in units in the last place; the contract allows 1. None if it did not run.
        difference: largest absolute difference.
        milliseconds: median of a few runs with inputs on the device, the copy of the result to the host included.
        error: why it did not run.
        absent: whether that is because the backend does not have the operator, which is no fault of the machine.
    """

    name: str
    ulp: int | None = None
    difference: float | None = None
    milliseconds: float | None = None
    error: str = ""
    absent: bool = False

    @property
    def ok(self) -> bool:
        return self.absent or (not self.error and self.ulp is not None and self.ulp <= 1)

    def to_text(self) -> str:
        if self.absent:
            return f"the backend {_ABSENT}"
        if self.error:
            return self.error
        verdict = "ok" if self.ok else "WRONG"
        return (
            f"{verdict}, on {PROVIDER}, max difference from the CPU {self.difference:.3g} ({self.ulp} ulp), "
            f"{self.milliseconds:.2f} ms"
        )


@dataclass(frozen=True)
class Diagnosis:
    """What `diagnose` found out.

    Attributes:
        cann: version of the CANN toolkit that the environment points to, or why it is unknown.
        soc: name of the chip, empty if no session could be made.
        simulated: whether the CANN in use is the simulator of this project's tests, which is no proof of anything.
        backends: who could compute our nodes, best first: ``ok`` or what it lacks.
        problem: why nothing can run on Ascend; empty if something can.
        runs: of each operator, element type and usable backend.
    """

    cann: str
    soc: str
    simulated: bool
    backends: dict[str, str]
    problem: str
    runs: tuple[Run, ...]

    @property
    def ok(self) -> bool:
        """Whether everything ran on the device and gave the expected result."""
        return not self.problem and bool(self.runs) and all(run.ok for run in self.runs)

    def rows(self) -> list[tuple[str, str]]:
        """Fact by fact, for a table."""
        rows = [("CANN", self.cann + (" (SIMULATED: this is not an Ascend device)" if self.simulated else ""))]
        rows.append(("chip", self.soc or "unknown"))
        rows.extend((f"backend {name}", state) for name, state in self.backends.items())
        if self.problem:
            rows.append(("ascend", self.problem))
        return rows + [(f"run: {run.name}", run.to_text()) for run in self.runs]


def diagnose(onnxruntime: Any, make: Any) -> Diagnosis:
    """Run the operators on the device and compare them with the CPU. Raises nothing: what fails is in the result.

    Args:
        onnxruntime: the imported module.
        make: ``nsa_onnx.create_session``.
    """
    operators = list(OPERATORS.values())
    backends = native.ascend_backends()
    runs: list[Run] = []
    problem = ""
    usable = [name for name, state in backends.items() if state == "ok"]
    try:
        # Without a usable backend, this says what is missing, in the words that a user's own session would get.
        for backend in usable or ["auto"]:
            make(example_model(operators[0], operators[0].example), device="ascend", ascend_backend=backend)
    except Exception as error:  # the doctor reports, whatever it is
        problem = _first_line(error)
    else:
        cases = [(operator, dtype) for operator in operators for dtype in _ELEMENT_TYPES]
        runs = [_run(onnxruntime, make, *case, backend) for backend in usable for case in cases]
    chip, simulated = _chip() if not problem else ("", False)
    return Diagnosis(_cann_version(), chip, simulated, backends, problem, tuple(runs))


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _cann_version() -> str:
    home = os.environ.get("ASCEND_HOME_PATH") or os.environ.get("ASCEND_TOOLKIT_HOME")
    if not home:
        return "unknown: ASCEND_HOME_PATH is not set (set_env.sh sets it)"
    for path in sorted(Path(home).glob("*-linux/ascend_toolkit_install.info")):
        for line in path.read_text(errors="replace").splitlines():
            if line.startswith("version="):
                return f"{line.removeprefix('version=')} in {home}"
    return f"of unknown version in {home}"


def _chip() -> tuple[str, bool]:
    """Name of the chip, and whether it is simulated. Only after a session: asking needs CANN initialized."""
    library = ctypes.CDLL("libascendcl.so")
    library.aclrtGetSocName.restype = ctypes.c_char_p
    return (library.aclrtGetSocName() or b"").decode(errors="replace"), hasattr(library, "nsa_sim_calls")


_ELEMENT_TYPES = (TensorProto.FLOAT16, TensorProto.BFLOAT16)
_REPEATS = 5
_ABSENT = "does not have this operator"  # the library says so, device/cann/backend.cc

Bits = npt.NDArray[np.uint16]


def _run(onnxruntime: Any, make: Any, operator: Operator, dtype: int, backend: str) -> Run:
    name = f"{operator.op_type} {TensorProto.DataType.Name(dtype).lower()} {backend}"
    model = example_model(operator, operator.example, dtype)
    try:
        got, seconds = _measure(onnxruntime, make(model, device="ascend", ascend_backend=backend), model, dtype)
        want, _ = _measure(onnxruntime, make(model, device="cpu"), model, dtype)
    except Exception as error:
        return Run(name, error=_first_line(error), absent=_ABSENT in str(error))
    ulp, difference = 0, 0.0
    for output, mine, other in zip(operator.outputs, got, want, strict=True):
        # All numbers are positive: their bit patterns are ordered as they are.
        distance = np.abs(mine.astype(np.int64) - other.astype(np.int64))
        if output.type != T and distance.any():
            wrong = f"{np.count_nonzero(distance)} of {distance.size} elements"
            return Run(name, error=f"WRONG, {output.name} differs from the CPU's in {wrong}")
        if output.type == T:
            ulp = max(ulp, int(distance.max(initial=0)))
            apart = np.abs(_to_float(mine, dtype) - _to_float(other, dtype))
            difference = max(difference, float(apart.max(initial=0)))
    return Run(name, ulp, difference, 1e3 * seconds)


def _measure(
    onnxruntime: Any, session: InferenceSession, model: ModelProto, dtype: int
) -> tuple[list[npt.NDArray[Any]], float]:
    """The outputs (floats as bits) and the median seconds of a run. The same numbers for every session of a model."""
    generator = np.random.default_rng(0)
    binding = session.io_binding()
    # onnxruntime uses their memory and does not keep them alive.
    inputs: list[npt.NDArray[Any]] = []
    outputs: list[npt.NDArray[Any]] = []
    for info in (*model.graph.input, *model.graph.output):
        # In [0, 1): without cancellation, 1 ulp is a fair bound.
        kind = info.type.tensor_type
        numbers = generator.random([dim.dim_value for dim in kind.shape.dim], np.float32)
        own = kind.elem_type == dtype
        array = _to_bits(numbers, dtype) if own else numbers.astype(helper.tensor_dtype_to_np_dtype(kind.elem_type))
        value = onnxruntime.OrtValue.ortvalue_from_numpy_with_onnx_type(array, kind.elem_type)
        if len(inputs) < len(model.graph.input):
            inputs.append(array)
            binding.bind_ortvalue_input(info.name, value)
        else:
            outputs.append(array)
            binding.bind_ortvalue_output(info.name, value)
    times = []
    for _ in range(1 + _REPEATS):
        begin = time.perf_counter()
        session.run_with_iobinding(binding)
        times.append(time.perf_counter() - begin)
    return outputs, statistics.median(times[1:])  # the first run allocates


def _to_bits(numbers: npt.NDArray[np.float32], dtype: int) -> Bits:
    if dtype == TensorProto.FLOAT16:
        return numbers.astype(np.float16).view(np.uint16)
    return (numbers.view(np.uint32) >> 16).astype(np.uint16)


def _to_float(bits: Bits, dtype: int) -> npt.NDArray[np.float32]:
    if dtype == TensorProto.FLOAT16:
        return bits.view(np.float16).astype(np.float32)
    return (bits.astype(np.uint32) << 16).view(np.float32)
