"""Worker processes that take turns: each sleeps on its pipe until it is told to prepare or to run.

A peer has a process of its own, so that caches of compiled code, allocators and thread pools of others do not disturb
it. Our kernel and the limits share one, because they must read the same memory.

    python -m benchmarks.worker     requests as JSON lines on stdin, answers on stdout
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import traceback
from typing import IO, Any

from .limits import ROOT

# What a measured call should last at least, in seconds: far longer than the clock and a wake-up take.
_LEAST_SECONDS = 2e-3
_SHORT_SECONDS = 0.1
# A first run as long as this is not slowed down by what else happens in it, unless something is compiled.
_LONG_SECONDS = 0.5


class WorkerError(RuntimeError):
    """A worker answered with an error, or is gone."""


class Worker:
    """The parent's end."""

    def __init__(self) -> None:
        command = [sys.executable, "-m", "benchmarks.worker"]
        environment = {**os.environ, "TORCH_DEVICE_BACKEND_AUTOLOAD": "0"}
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, cwd=ROOT, env=environment)

    def send(self, function: str, **arguments: Any) -> None:
        """Ask for `function`, "module:name" of this package, and do not wait."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps([function, arguments]) + "\n")
        self._process.stdin.flush()

    def receive(self) -> Any:
        """What the function asked for last gave. WorkerError if it raised."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise WorkerError(f"a worker ended with exit code {self._process.wait()}")
        answer = json.loads(line)
        if "error" in answer:
            raise WorkerError(answer["error"])
        return answer["result"]

    def call(self, function: str, **arguments: Any) -> Any:
        self.send(function, **arguments)
        return self.receive()

    def close(self) -> None:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait()

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


# --------------------------------------------------------------------------------------------------
# In the worker: the contenders of one case

_inputs: dict[Any, Any] = {}
_made: dict[str, Any] = {}
_repeats: dict[str, int] = {}
_short: dict[str, bool] = {}


def prepare(name: str, case: dict[str, Any]) -> float:
    """Make a contender, run it once to warm up; the seconds of one run."""
    from . import contenders, memory

    of = contenders.Case(**case)
    key = of.heads, of.dim, of.dtype, of.tokens
    if key not in _inputs:
        forget()
        _inputs[key] = memory.Tokens(of.heads, of.dim, of.dtype).fill(of.tokens)
    _made.pop(name, None)  # its memory goes before the new one asks for some
    made = contenders.MAKERS[name](of, _inputs[key], memory.weights(of.block, of.heads, of.dtype))
    _made[name] = made
    seconds = made.run(1)  # compiles, allocates, starts threads
    if made.compiles or seconds < _LONG_SECONDS:
        seconds = made.run(1)
    _short[name] = seconds < _SHORT_SECONDS
    _repeats[name] = max(1, int(_LEAST_SECONDS / max(seconds, 1e-9)))
    return seconds


def run(name: str) -> float:
    """Seconds of one run.

    A core that has slept is slow for about a millisecond: what is short enough to notice runs once before. (Slow
    starts would favour us: the limit is the shorter run.)
    """
    if _short[name]:
        _made[name].run(_repeats[name])
    return float(_made[name].run(_repeats[name])) / _repeats[name]


def output_rows(name: str, rows: list[int]) -> list[Any] | None:
    """Some rows of the last output as numbers, None if there is no output."""
    import numpy as np

    output = _made[name].output()
    return None if output is None else output[rows].astype(np.float32).tolist()


def forget() -> None:
    """Free all memory of the last case."""
    _made.clear()
    _inputs.clear()


def _serve(requests: IO[str], answers: IO[str]) -> None:
    for line in requests:
        function, arguments = json.loads(line)
        try:
            module, name = function.split(":")
            called = getattr(sys.modules[__name__] if module == "worker" else _module(module), name)
            answer = {"result": called(**arguments)}
        except Exception:
            answer = {"error": traceback.format_exc()}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def _module(name: str) -> Any:
    return importlib.import_module(f"benchmarks.{name}")


if __name__ == "__main__":
    with os.fdopen(os.dup(1), "w") as answers:
        os.dup2(2, 1)  # what libraries print is no answer
        _serve(sys.stdin, answers)
