"""onnxruntime sessions that know our operators, and the doctor, which says what is wrong where they do not work.

onnxruntime is imported when it is first needed: checking graphs does not need it.
"""

from __future__ import annotations

import os
import platform
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from onnx import ModelProto

from ..graph.inference import infer, without_weights
from ..graph.outline import Outline, below
from ..graph.reading import load
from ..graph.writing import temporary_beside
from ..operators import OPERATORS
from ..operators.base import Operator
from ..operators.contract import DOMAIN
from ..operators.example import example_model
from ..operators.expand import expand
from ..operators.sampling import floats
from ..operators.schema import OUTPUT_RANKS, observing, violations
from . import cann, native

if TYPE_CHECKING:
    from onnxruntime import InferenceSession, SessionOptions

DEVICES = ("auto", "cpu", "ascend")
# The library's entry in session options that have it (ort_ext/custom_ops.cc): they cannot be asked for it.
_REGISTERED_KEY = "nsa_onnx.library_registered"


def onnxruntime_module() -> Any:
    if problem := cann.import_problem():
        raise RuntimeError(problem)
    try:
        import onnxruntime
    except ImportError as error:
        raise RuntimeError(f"onnxruntime cannot be imported ({error}): pip install onnxruntime") from error
    return onnxruntime


def get_library_path() -> str:
    """Path of the custom-op library, for ``SessionOptions.register_custom_ops_library``.

    Raises:
        RuntimeError: it is missing: this is the pure Python package, or a source tree that is not built. The message
            says what to do.
    """
    return str(native.library_path())


def session_options(base: SessionOptions | None = None) -> SessionOptions:
    """Session options with our operators registered.

    Args:
        base: options to add them to, changed in place; new ones if None. Those that have them stay as they are.

    Raises:
        RuntimeError: onnxruntime is not installed or cannot load the library, or the library is missing.
    """
    options = onnxruntime_module().SessionOptions() if base is None else base
    options.register_custom_ops_library(get_library_path())
    return options


def _entry(options: SessionOptions, key: str) -> str | None:
    try:
        value: str = options.get_session_config_entry(key)
    except RuntimeError:  # onnxruntime's answer for an entry that is not there
        return None
    return value


def _choose_backend(options: SessionOptions, backend: str) -> None:
    """Ask for a backend. The library reads the entry when it is registered, and not again."""
    chosen = _entry(options, cann.BACKEND_KEY)
    if _entry(options, _REGISTERED_KEY) is not None and chosen != backend:
        raise ValueError(f"these options have served with ascend_backend {chosen!r}: make new ones for {backend!r}")
    options.add_session_config_entry(cann.BACKEND_KEY, backend)


def _serialized(model: ModelProto) -> bytes:
    try:
        data: bytes = model.SerializeToString()
        return data
    except Exception as error:  # protobuf's own class
        raise ValueError(
            f"model does not fit into 2 GiB ({error}): save it with external data (onnx.save) and pass the path"
        ) from error


def create_session(
    model: str | os.PathLike[str] | bytes | ModelProto,
    *,
    device: str = "auto",
    options: SessionOptions | None = None,
    providers: Sequence[Any] | None = None,
    ascend_backend: str | None = None,
    provider_options: Mapping[str, object] | None = None,
) -> InferenceSession:
    """An onnxruntime session that runs NSA nodes.

    With ``device="ascend"`` every NSA node is on the CANN provider when this returns, and stays there: nothing
    falls back to the CPU, neither now nor when a run fails. Other nodes go where onnxruntime sees fit; some of the
    CANN provider's own kernels are wrong, see docs/ascend.md.

    Without the native library (the pure Python package), a model whose NSA nodes have portable bodies runs by these,
    on the CPU and with a warning; `export` with ``portable=True`` and ``nsa-onnx expand`` write bodies.

    Args:
        model: path of the file, its bytes, or the model itself.
        device: ``cpu``, ``ascend``, or ``auto``: Ascend where onnxruntime-cann is installed, with a warning and
            the CPU if it cannot be used, and the CPU elsewhere.
        options: session options, changed in place, for one session or several (see `session_options`); new ones if
            None.
        providers: execution providers as onnxruntime takes them; they win over ``device``.
        ascend_backend: who computes on Ascend: ``auto``, ``ascend_kernels`` or ``aclnn``. If None, the entry
            ``nsa_onnx.ascend_backend`` of the options or the variable NSA_ONNX_ASCEND_BACKEND says it.
        provider_options: of the CANN provider, beside ``enable_cann_graph=0`` and ``device_id=0``. With
            ``enable_cann_graph=1, enable_cann_subgraph=1`` CANN compiles the graphs between the NSA nodes, which
            then run on the CPU.

    Raises:
        ValueError: the device, the backend or a provider option is unknown, or an option keeps NSA nodes from running;
            a model that is no file is larger than 2 GiB.
        RuntimeError: onnxruntime is not installed or cannot load the library; the library is missing and an NSA node
            has no body; the device is ``ascend`` and the CANN
            provider, CANN or a backend cannot be used, or a node would have run elsewhere.
    """
    if device not in DEVICES:
        raise ValueError(f"device must be one of {', '.join(DEVICES)}, got {device!r}")
    if ascend_backend is not None and ascend_backend not in cann.BACKENDS:
        raise ValueError(f"ascend_backend must be one of {', '.join(cann.BACKENDS)}, got {ascend_backend!r}")
    for name, given in (("ascend_backend", ascend_backend), ("provider_options", provider_options)):
        if given is not None and (device != "ascend" or providers is not None):
            raise ValueError(f"{name} is for device 'ascend' without providers, got {given!r}")
    onnxruntime = onnxruntime_module()
    source = _serialized(model) if isinstance(model, ModelProto) else model
    source = source if isinstance(source, bytes) else os.fspath(source)
    options = onnxruntime.SessionOptions() if options is None else options
    if ascend_backend is not None:
        _choose_backend(options, ascend_backend)
    if native.is_here() or device == "ascend":
        session_options(options)
    elif _entry(options, _REGISTERED_KEY) is None:
        _require_bodies(source)
        device = "cpu"
    if device == "ascend" and providers is None:
        cann_options = cann.provider_options(provider_options)
        return cann.create_session(onnxruntime, source, options, cann_options)
    if device == "auto" and providers is None and cann.PROVIDER in onnxruntime.get_available_providers():
        try:
            return cann.create_session(onnxruntime, source, options, cann.provider_options(None))
        except RuntimeError as error:
            warnings.warn(f"device 'auto' takes the CPU: {error}", RuntimeWarning, stacklevel=2)
    chosen = ["CPUExecutionProvider"] if providers is None else list(providers)
    try:
        session: InferenceSession = onnxruntime.InferenceSession(source, options, providers=chosen)
    except Exception as error:  # onnxruntime has classes of its own
        reason = _reason(source)
        if not reason or reason in str(error):
            raise
        raise type(error)(f"{reason}; onnxruntime says: {error}") from error
    return session


def require_trial_sessions() -> None:
    """RuntimeError, with what is missing, if `session_for_trial` cannot work here."""
    onnxruntime_module()
    if native.is_here():
        session_options()


def session_for_trial(model: ModelProto | Path, options: SessionOptions | None = None) -> InferenceSession:
    """A CPU session to try a model in. Without the native library, its NSA nodes are computed by portable bodies.

    Args:
        model: a model, or a file, beside which another one may be written for a moment.

    Raises: as `create_session` and `expand`.
    """
    if native.is_here():
        return create_session(model, device="cpu", options=options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # whoever calls this knows
        if isinstance(model, ModelProto):
            return create_session(expand(model), device="cpu", options=options)
        # A file again: its external data lies in the same folder.
        with temporary_beside(model) as (expanded, file):
            file.write(expand(load(model)).SerializeToString())
            file.flush()
            return create_session(expanded, device="cpu", options=options)


def _read(source: str | bytes) -> ModelProto | None:
    """The model without its external data; None if it is none, which is for onnxruntime to say."""
    try:
        return ModelProto.FromString(source) if isinstance(source, bytes) else load(Path(source))
    except Exception:  # protobuf's own class, among others
        return None


def _require_bodies(source: str | bytes) -> None:
    """RuntimeError if an NSA node has no portable body; a warning if nodes have them and these will run."""
    model = _read(source)
    if model is None:
        return
    outline = Outline.of(model)
    called = outline.called()
    functions = [steps for one, steps in outline.functions if (one.domain, one.name) in called]
    ops = {step.op for top in (outline.main, *functions) for step in below(top)}
    used = {op_type for domain, op_type in ops if domain == DOMAIN and op_type in OPERATORS}
    without = sorted(used - {function.name for function in model.functions if function.domain == DOMAIN})
    if without:
        try:
            get_library_path()
        except RuntimeError as error:
            raise RuntimeError(
                f"{', '.join(without)} cannot run without the native library: {error}. Or give the model bodies in "
                "standard operators, which run in any session: `nsa-onnx expand`, or export(portable=True)"
            ) from error
    if used:
        warnings.warn(
            "the native library is missing: NSA nodes are computed by their portable bodies, which takes several times "
            "as long (nsa_onnx.get_library_path() says what to do)",
            RuntimeWarning,
            stacklevel=3,
        )


def _reason(source: str | bytes) -> str:
    """What is wrong with a node of ours in a model that onnxruntime refuses, in the contract's words; or nothing.

    onnxruntime checks the types of a node's inputs itself, before our library sees it, and gives no way out.
    """
    model = _read(source)
    if model is None:
        return ""
    folder = None if isinstance(source, bytes) else Path(source).parent
    _, seen, _ = infer(without_weights(model, folder), Outline.of(model), OUTPUT_RANKS, observing)
    found = (f"{facts.op_type}: {violation.message}" for _, facts in seen for violation in violations(facts))
    return next(found, "")


# --------------------------------------------------------------------------------------------------
# The doctor

_WORKS = (
    "check, fuse, explain, expand, prepare, infer-shapes, export; eager calls, computed in NumPy with the same bits; "
    "sessions of portable models"
)
_NEEDS = "sessions of other models with NSA nodes, nsa-onnx with, check --run, Ascend, and speed"

# Distributions that matter, by what they are imported as; the first that is installed counts.
_DISTRIBUTIONS = {
    "numpy": ("numpy",),
    "onnx": ("onnx",),
    "onnxruntime": ("onnxruntime", "onnxruntime-cann", "onnxruntime-gpu"),
    "onnxscript": ("onnxscript",),
    "torch": ("torch",),
    "torch_npu": ("torch_npu",),
}


@dataclass(frozen=True)
class Diagnosis:
    """What `doctor` found out.

    Attributes:
        versions: by package; None if it is not installed. Nothing is imported to learn them.
        library: path of the native library, or why there is none.
        library_version: equal to nsa_onnx's own if the installation is sound; empty without a library.
        cpu_target: instruction set that the kernels use; empty without a library.
        cpu_targets: those that this machine can run, best first.
        providers: execution providers of the installed onnxruntime. That one is listed does not mean that it works.
        runs: outcome of a tiny computation by whom it was done: ``ok``, or what went wrong.
        ascend: what was found out about the Ascend device, if that was asked for.
        cpu_target_wanted: the variable NSA_ONNX_CPU_TARGET; empty if it is not set.
        pure: whether there is no native library, so that eager calls are computed in NumPy.
    """

    versions: dict[str, str | None]
    library: str
    library_version: str
    cpu_target: str
    cpu_targets: tuple[str, ...]
    providers: tuple[str, ...]
    runs: dict[str, str]
    ascend: cann.Diagnosis | None = None
    cpu_target_wanted: str = ""
    pure: bool = False

    @property
    def ok(self) -> bool:
        """Whether all runs gave the expected result, on the instruction set that was asked for if one was."""
        well = all(outcome == "ok" for outcome in self.runs.values()) and (self.ascend is None or self.ascend.ok)
        return well and self._has_wanted_target

    @property
    def _has_wanted_target(self) -> bool:
        return self.cpu_target_wanted in ("", "auto", self.cpu_target)

    def to_text(self) -> str:
        """For people: one line per fact."""
        rows = [(name, version or "not installed") for name, version in self.versions.items()]
        missing = "MISSING: " if self.pure else ""
        rows.append(("library", f"{missing}{self.library} {self.library_version}".strip()))
        if self.pure:
            rows.extend((("  works without", _WORKS), ("  needs it", _NEEDS)))
        rows.append(("cpu target", f"{self.cpu_target or 'unknown'} (of {', '.join(self.cpu_targets) or 'none'})"))
        if self.cpu_target_wanted:
            advice = "as asked for" if self._has_wanted_target else "not in use: name one of those above, or auto"
            rows.append(("  wanted", f"{native.TARGET_VARIABLE}={self.cpu_target_wanted!r}, {advice}"))
        rows.append(("providers", ", ".join(self.providers) or "none"))
        rows.extend((f"run: {name}", outcome) for name, outcome in self.runs.items())
        rows.extend(self.ascend.rows() if self.ascend else [])
        width = max(17, *(len(name) for name, _ in rows))
        return "\n".join(f"{name:<{width}} {value}" for name, value in rows)


def doctor(*, ascend: bool = False) -> Diagnosis:
    """Look at the installation and compute something small with it. Raises nothing: what fails is in the result.

    Args:
        ascend: also run the operators on the Ascend device, and compare them with the CPU.
    """
    versions: dict[str, str | None] = {"nsa_onnx": _version("nsa_onnx"), "python": platform.python_version()}
    versions |= {name: next(filter(None, map(_version, names)), None) for name, names in _DISTRIBUTIONS.items()}
    library = library_version = target = ""
    targets: tuple[str, ...] = ()
    try:
        library = get_library_path()
        library_version, target, targets = native.version(), native.cpu_target(), tuple(native.cpu_targets())
    except (OSError, RuntimeError) as error:
        library = f"{library} ({error})" if library else str(error)
    providers: tuple[str, ...] = ()
    runs = {"eager": _outcome(_run_eager)}
    pure = not native.is_here()
    if versions["onnxruntime"] is not None:
        runs["onnxruntime"] = "needs the native library" if pure else _outcome(_run_onnxruntime)
        if pure:
            runs["portable"] = _outcome(_run_onnxruntime)
        try:
            providers = tuple(onnxruntime_module().get_available_providers())
        except RuntimeError as error:
            runs["onnxruntime"] = str(error)
    found = _diagnose_ascend() if ascend else None
    wanted = os.environ.get(native.TARGET_VARIABLE, "")
    return Diagnosis(versions, library, library_version, target, targets, providers, runs, found, wanted, pure)


def _diagnose_ascend() -> cann.Diagnosis:
    try:
        return cann.diagnose(onnxruntime_module(), create_session)
    except (OSError, RuntimeError) as error:
        return cann.Diagnosis("unknown", "", False, {}, str(error), ())


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _outcome(compute: Callable[[Operator, Mapping[str, Any]], Sequence[Any]]) -> str:
    """Whether an example of each operator gives what its float64 reference says; ``ok`` or what is wrong."""
    try:
        right = all(_is_right(operator, compute) for operator in OPERATORS.values())
    except Exception as error:  # the doctor reports, whatever it is
        return (str(error).splitlines() or [type(error).__name__])[0]
    return "ok" if right else "computes a wrong result"


def _is_right(operator: Operator, compute: Callable[[Operator, Mapping[str, Any]], Sequence[Any]]) -> bool:
    example, dtype = operator.example, "float16"
    given = floats(example.shapes, dtype)
    results = compute(operator, {name: values.astype(dtype) for name, values in given.items()})
    wanted = operator.reference({**given, **example.indices}, example.attributes)
    return not any(
        one.judge(output.name, np.asarray(got).astype(np.float64), output.dtype(dtype)).problem
        for output, got, one in zip(operator.outputs, results, wanted, strict=True)
    )


def _run_eager(operator: Operator, given: Mapping[str, Any]) -> Sequence[Any]:
    values = {**given, **operator.example.indices}
    return operator.call([values.get(name) for name in operator.input_names], operator.example.attributes)


def _run_onnxruntime(operator: Operator, given: Mapping[str, Any]) -> Sequence[Any]:
    options = onnxruntime_module().SessionOptions()
    options.log_severity_level = 4  # what fails is told by the exception
    session = session_for_trial(example_model(operator, operator.example), options)
    outputs: Sequence[Any] = session.run(None, given)
    return outputs
