"""Runs every command and the Python API on files that are not trusted, each in a process of its own.

``python hostile_commands.py`` serves requests, one JSON object a line: a model's path, commands, and the seconds that
each may take. It has imported everything, and forks for each file: a command takes milliseconds, starts as if nothing
had been before it, and may crash, hang or fill the memory. `Commands` is the other side of that pipe.
"""

from __future__ import annotations

import contextlib
import faulthandler
import gc
import json
import os
import re
import resource
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import onnx
from explain_page import Page

MEMORY = 2_500 * 2**20  # address space; onnxruntime and its threads take up to 1 GB of it before they do anything
GROWTH = 400 * 2**20  # of resident memory, by one command on a small file
SLOW_SECONDS = 10  # of the processor; what one command on a small file must not take
HUNG_SECONDS = 180  # by the clock, for one that waits; with slack for a machine that is busy with something else

TARGETS = ("cpu", "portable", "cann", "cann-aclnn", "atc")
OUT = "hostile-out"
FORMATS = ("text", "json", "sarif", "junit", "github")
FORMS = [f"--format={name}={OUT}.{name}" for name in FORMATS]
MODEL_WRITERS = {
    "infer-shapes": ["infer-shapes"],
    "expand": ["expand"],
    "prepare cann": ["prepare", "--target=cann"],
    "prepare cann-aclnn": ["prepare", "--target=cann-aclnn"],
    "prepare atc": ["prepare", "--target=atc"],
    "prepare-atc converter": ["prepare-atc", "--converter-only"],
    "fuse": ["fuse"],
    "fuse rounding": ["fuse", "--allow-rounding", "--verify"],
}
# Command lines by name; the model's name follows.
LINES = {
    **{f"check {target}": ["check", f"--target={target}"] for target in TARGETS},
    "check github": ["check", "--format=github", "--target=cann"],
    "check json": ["check", "--format=json", "--min-nodes=1"],
    "run": ["check", "--run", "--format=text", *FORMS[1:]],
    **{name: [*words, f"-o={OUT}"] for name, words in MODEL_WRITERS.items()},
    "explain": ["explain", f"--html={OUT}"],
    "explain cann": ["explain", f"--html={OUT}", "--target=cann", "--lengths=1,40,100"],
}
IN_PLACE = {f"{name} in place": words for name, words in MODEL_WRITERS.items()}
PYTHON = ("check", "plugin", "explain", "candidates", "fuse", "expand", "prepare_atc", "prepare cann")
COMMANDS = (*LINES, *IN_PLACE, *(f"python {name}" for name in PYTHON))

# Words of a fault of ours; the last one is of Python's own errors about text.
FAULTS = (
    "Traceback",
    "cannot be checked (",
    "MemoryError",
    "bad_alloc",
    "RecursionError",
    "AssertionError",
    "codec can",
)


# --------------------------------------------------------------------------------------------------
# In the process of one file


def wrong_text(text, github=False):
    """What is wrong with text that a command has printed or written; empty if nothing is."""
    bad = [char for char in text if not char.isprintable() and char != "\n"]
    if bad:
        return f"the control character {bad[0]!r}: {text[:300]!r}"
    if "##[" in text or "##vso[" in text:
        return f"a command to Azure's runner: {text[:300]!r}"
    for line in text.splitlines():
        if line.lstrip().startswith("::") and not (github and re.match(r"::(error|warning|notice) [^:]*::", line)):
            return f"a command to GitHub's runner: {line[:300]!r}"
    for word in FAULTS:
        if word in text:
            return repr(text[-1500:])
    return ""


def wrong_file(path):
    """What is wrong with a file that a command says it has written."""
    data = path.read_bytes()
    if path.suffix in (".json", ".sarif"):
        json.loads(data.decode("ascii"))
    elif path.suffix == ".junit":
        ElementTree.fromstring(data)
    elif data.startswith(b"<!"):
        page = Page(data.decode())
        names = {name.lower() for _, attributes, _ in page.elements for name in attributes}
        links = {value for tag, attributes, _ in page.elements for key, value in attributes.items() if key == "href"}
        if page.named("script") or any(name.startswith("on") for name in names):
            return "the page has a script"
        if strange := [link for link in links if not link.startswith(("#", "data:,"))]:
            return f"the page leads to {strange[0]!r}"
        return wrong_text(data.decode().replace("##", "# #"))  # nobody prints a page
    elif path.suffix not in (".text", ".github"):
        onnx.ModelProto.FromString(data)
        return ""
    return wrong_text(data.decode(), github=path.suffix == ".github")


def run_line(words, model, outputs):
    """What is wrong with one command line; `outputs` are the files that it may write."""
    import nsa_onnx.cli

    folder, before = model.parent, model.read_bytes()
    for path in outputs:
        if path != model:
            path.write_bytes(b"old")
    there = {path.name for path in folder.iterdir()}
    status, said = None, {}
    with captured(said):
        try:
            status = nsa_onnx.cli.main(words)
        except BaseException as error:  # SystemExit, too: the command line is right
            return f"raised {type(error).__name__}: {str(error)[:300]}"
    for name, text in said.items():
        if wrong := wrong_text(text, github="--format=github" in words):
            return f"{name}: {wrong}"
    if status not in (0, 1, 2):
        return f"exit status {status}"
    if status == 2 and not said["stderr"]:
        return "exit status 2 without a word on stderr"
    if (model not in outputs or status) and model.read_bytes() != before:
        return "the model has changed"
    if new := {path.name for path in folder.iterdir()} - there:
        return f"left {sorted(new)}"
    for path in outputs:
        old = before if path == model else b"old"
        if words[0] == "check" or not status:
            if path != model and path.read_bytes() == old:
                return f"exit status {status}, and {path.name} is not written"
            if wrong := wrong_file(path):
                return f"{path.name}: {wrong}"
        elif path.read_bytes() != old:
            return f"exit status {status}, and {path.name} is written"
    return ""


@contextlib.contextmanager
def captured(said):
    """What is written to the standard streams meanwhile, by C++ code, too."""
    files = {"stdout": sys.stdout, "stderr": sys.stderr}
    kept = {name: os.dup(file.fileno()) for name, file in files.items()}
    taken = {name: os.memfd_create(name) for name in files}
    for name, file in files.items():
        file.flush()
        os.dup2(taken[name], file.fileno())
    try:
        yield
    finally:
        for name, file in files.items():
            file.flush()
            os.dup2(kept[name], file.fileno())
            os.close(kept[name])
            os.lseek(taken[name], 0, os.SEEK_SET)
            with os.fdopen(taken[name], "rb") as written:
                said[name] = written.read().decode("utf-8", "surrogateescape")


def run_python(name, path):
    """A Python function, on a model that has been parsed: nothing but the errors that it promises."""
    import nsa_onnx
    from nsa_onnx import fuse, pytest_plugin
    from nsa_onnx.explain import explain
    from nsa_onnx.operators import expand
    from nsa_onnx.targets import atc, cann

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = onnx.load(path, load_external_data=False)
    except Exception:  # no model: there is nothing to give to the functions
        return ""
    call = {
        "check": lambda: [nsa_onnx.check(model).to_json(), nsa_onnx.check(path, target="atc", run=True).to_text()],
        "plugin": lambda: pytest_plugin.assert_valid_nsa_model(path),
        "explain": lambda: explain(model),
        "candidates": lambda: fuse.candidates(model),
        "fuse": lambda: fuse.fuse(model, folder=Path(path).parent),
        "expand": lambda: expand.expand(model),
        "prepare_atc": lambda: atc.prepare_atc(model),
        "prepare cann": lambda: cann.prepare(model),
    }[name]
    said = {}
    with captured(said):
        try:
            call()
        except UnicodeError as error:  # a ValueError, but of Python's own making
            return f"raised {type(error).__name__}: {error}"
        except ValueError:
            return "raised a ValueError, and says that it never raises" if name == "candidates" else ""
        except AssertionError as error:
            return wrong_text(str(error)) if name == "plugin" else f"raised AssertionError: {error}"
        except Exception as error:
            return f"raised {type(error).__name__}: {str(error)[:300]}"
    return next((wrong for text in said.values() if (wrong := wrong_text(text))), "")


def run(command, model):
    """What is wrong with how a command takes a model; empty if nothing is."""
    for path in model.parent.glob(f"{OUT}*"):
        path.unlink()
    try:
        if command.startswith("python "):
            return run_python(command.removeprefix("python "), model)
        if command in IN_PLACE:
            copy = shutil.copyfile(model, model.with_name(f"{OUT}.onnx"))
            return run_line([*IN_PLACE[command], "-o", f"./{copy.name}", f"./{copy.name}"], copy, [copy])
        words = LINES[command]
        named = [re.search(rf"{OUT}[.\w]*$", word) for word in words]
        outputs = [model.with_name(match[0]) for match in named if match]
        # A name that begins with "-" would be an option; one that begins with "::" is to be met as it is.
        name = f"./{model.name}" if model.name.startswith("-") else model.name
        return run_line([*words, name], model, outputs)
    except Exception as error:  # of a look at what was written
        return f"{type(error).__name__}: {error}"


def peak_memory():
    return int(re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024


def work(request, answers, trace):
    """Run the commands on a file in this process, which is made for that, and say of each what is wrong."""
    model = Path(request["model"])
    os.chdir(model.parent)
    os.fsync = lambda file: None  # files need not survive a power cut, which would take most of the time
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    faulthandler.enable(trace)
    faulthandler.register(signal.SIGXCPU, trace, all_threads=False, chain=True)
    for command in request["commands"]:
        begin, memory = time.process_time(), peak_memory()
        resource.setrlimit(resource.RLIMIT_CPU, (int(begin) + request["seconds"], resource.RLIM_INFINITY))
        wrong = run(command, model)
        grown = peak_memory() - memory
        if not wrong and grown > GROWTH:
            wrong = f"took {grown >> 20} MB"
        os.write(answers, f"{json.dumps({'command': command, 'wrong': wrong, 'memory': grown})}\n".encode())


# --------------------------------------------------------------------------------------------------
# The process that forks


def answer(request):
    """What is wrong, for each command that did something wrong: (command, text)."""
    found, left = [], list(request["commands"])
    while left:
        with tempfile.TemporaryFile() as trace:
            reader, writer = os.pipe()
            child = os.fork()
            if child == 0:
                try:
                    os.close(reader)
                    work({**request, "commands": left}, writer, trace)
                finally:
                    os._exit(0)
            os.close(writer)
            lines = [json.loads(line) for line in _read_all(reader, child).splitlines()]
            _, status = os.waitpid(child, 0)
            found += [(line["command"], line["wrong"]) for line in lines if line["wrong"]]
            left = left[len(lines) :]
            if left:
                trace.seek(0)
                code = os.waitstatus_to_exitcode(status)
                end = signal.Signals(-code).name if code < 0 else f"status {code}"
                traced = trace.read().decode(errors="replace")
                found.append((left.pop(0), f"the process ended with {end}\n{traced[-3000:]}"))
    return found


def _read_all(reader, child):
    """All that the child writes until it ends. One that does nothing for long is killed."""
    data = b""
    with os.fdopen(reader, "rb", buffering=0) as file:
        while True:
            if not select.select([file], [], [], HUNG_SECONDS)[0]:
                os.kill(child, signal.SIGABRT)  # faulthandler says where it was
            part = file.read(65536)
            if not part:
                return data
            data += part


def serve():
    import nsa_onnx.cli
    import nsa_onnx.pytest_plugin  # noqa: F401
    from nsa_onnx.runtime import session

    with contextlib.suppress(RuntimeError):
        session.require_trial_sessions()  # imports onnxruntime; no session is opened, so there are no threads yet
    gc.freeze()  # what children would copy otherwise
    for line in sys.stdin:
        print(json.dumps(answer(json.loads(line))), flush=True)


# --------------------------------------------------------------------------------------------------
# The other side


@dataclass
class Commands:
    """A process that runs commands on files, to be used in a ``with``."""

    environment: dict | None = None

    def __enter__(self):
        self.process = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONIOENCODING": "utf-8", **(self.environment or {})},
        )
        return self

    def __exit__(self, *_):
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()

    def wrong_with(self, model, commands=COMMANDS, seconds=SLOW_SECONDS):
        """(command, what is wrong) for each command that takes the file badly."""
        request = {"model": str(model), "commands": list(commands), "seconds": seconds}
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        return [tuple(one) for one in json.loads(self.process.stdout.readline())]


if __name__ == "__main__":
    serve()
