"""Mutation testing: changes one place of a source file at a time, and asks the tests of that file whether they notice.

make test-mutants MUTANTS="nsa_onnx/operators/windows.py:91 plan" (files, lines of files, folders)

A mutant that no test notices is a survivor: a test is missing, code has no effect, or the change has none. parts.toml
has the tests of each file, and says of survivors that stay why they mean the same as the original. Other survivors are
printed as diffs, also to survivors.txt, and fail the run, and so does an explanation without a survivor.

Everything happens on a copy under build/mutants. The tests import its modules and its library: a file of it that
cannot be loaded must turn them red.
"""

import compileall
import contextlib
import difflib
import gc
import importlib
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from py_compile import PycInvalidationMode

import tomllib

ROOT = Path(__file__).resolve().parents[2]
FOLDER = Path(os.environ.get("MUTANTS_FOLDER", ROOT / "build" / "mutants"))  # runs side by side need one each
COPY = FOLDER / "copy"
SITE = FOLDER / "site"  # what an editable install has in site-packages, for the copy
LIBRARY = "libnsa_onnx_ort.so"
FINDER = "_editable_skbc_nsa_onnx"
MEMORY = 8 << 30  # bytes that a process of the tests may take: some mutants ask for more and more
BROKEN = {
    ".py": "raise SystemExit('mutant')\n",
    ".cc": "#include <cstdlib>\n__attribute__((constructor)) static void Stop() { std::_Exit(1); }\n",
}
PARTS = tomllib.loads(Path(__file__).with_name("parts.toml").read_text())

Change = tuple[str, str]  # the lines that a mutant has no more, and those that it has instead


def prepare() -> None:
    """The copy, and an environment in which it is imported instead of this checkout."""
    listed = subprocess.run(
        ["git", "ls-files", "-zco", "--exclude-standard"], cwd=ROOT, capture_output=True, check=True
    )
    shutil.rmtree(COPY, ignore_errors=True)
    for name in filter(None, listed.stdout.decode().split("\0")):
        if (ROOT / name).is_file():
            (COPY / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, COPY / name)
    # Imports compile what is mutated, and only that: a file of bytecode knows the hash of its source.
    compileall.compile_dir(COPY, quiet=2, invalidation_mode=PycInvalidationMode.CHECKED_HASH)
    (COPY / "build").mkdir()
    for name in ("sim", "venv-cann"):  # what tests on the simulated CANN run with
        (COPY / "build" / name).symlink_to(ROOT / "build" / name)
    finder = importlib.import_module(FINDER)
    text = Path(str(finder.__file__)).read_text().replace(repr(str(ROOT))[:-1], repr(str(COPY))[:-1])
    (SITE / "nsa_onnx").mkdir(parents=True, exist_ok=True)
    (SITE / f"{FINDER}.py").write_text(text)
    shutil.copy(Path(str(finder.__file__)).parent / "nsa_onnx" / LIBRARY, SITE / "nsa_onnx")


def build(source: str) -> bytes | None:
    """Compile a file of the copy and link the library with it; its code, None if it does not compile."""
    folder = next((ROOT / "build").glob("py3-none-*"))  # that of the editable install
    ninja = [str(Path(sys.executable).with_name("ninja")), "-C", str(folder), "--quiet", "-t", "commands", LIBRARY]
    commands = subprocess.run(ninja, capture_output=True, text=True, check=True).stdout.splitlines()
    known, new = f"CMakeFiles/nsa_plan.dir/{source}.o", str(FOLDER / "mutant.o")
    (compiling,) = (line for line in commands if line.endswith(f" -c {ROOT / source}"))
    compiling = compiling.replace(str(ROOT / source), str(COPY / source)).replace(known, new).replace("-O3", "-O1")
    if subprocess.run(compiling, shell=True, cwd=folder, capture_output=True, check=False).returncode:
        return None
    library = SITE / "nsa_onnx" / LIBRARY
    linking = commands[-1].replace(known, new).replace(f"-o {LIBRARY}", f"-o {library}.new")
    subprocess.run(linking, shell=True, cwd=folder, capture_output=True, check=True)
    os.replace(f"{library}.new", library)  # processes may have the old one mapped
    return (FOLDER / "mutant.o").read_bytes()


def run_tests(test: str, limit: int) -> tuple[int, float]:
    """Run a file of tests, or one, in a fork of this process, which has imported what they need: status and seconds.

    Seconds, also of ``limit``, are the processor's. The modules that they import from elsewhere are written to a file.
    """
    child = os.fork()
    if child == 0:
        os.setsid()
        resource.setrlimit(resource.RLIMIT_CPU, (limit, limit))
        resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
        signal.alarm(60 * limit)  # for what waits forever
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        os.dup2(null, 2)
        os.chdir(COPY)
        status = 1
        try:
            import pytest

            file, colons, one = test.partition("::")
            options = "-q -x -p no:cacheprovider --assert=plain --tb=no --hypothesis-profile=mutants"
            status = int(pytest.main([*options.split(), f"tests/{file}.py{colons}{one}"]))
            modules = {name: str(getattr(module, "__file__", "")) for name, module in sys.modules.items()}
            foreign = [name for name, file in modules.items() if "site-packages" in file and "nsa_onnx" not in name]
            (FOLDER / "imported").write_text("\n".join(foreign))
        finally:
            os._exit(status)
    _, status, used = os.wait4(child, 0)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)
    return status, used.ru_utime + used.ru_stime


def outcome(source: str, text: str, tests: dict[str, int], code: bytes | None) -> str:
    """What becomes of a mutant; the tests with the seconds that they may take."""
    path = COPY / source
    original = path.read_text()
    path.write_text(text)
    try:
        if code is not None:
            built = build(source)
            if built is None or built == code:
                return "not compiled" if built is None else "the same code"
        for test, limit in tests.items():
            status, _ = run_tests(test, limit)
            if status:
                return "timed out" if os.WIFSIGNALED(status) else "killed"
        return "survived"
    finally:
        path.write_text(original)


def change(original: str, mutant: str) -> Change:
    before, after = original.splitlines(), mutant.splitlines()
    lines = [line for line in difflib.ndiff(before, after) if line[0] in "-+"]
    removed, added = ("\n".join(line[2:].strip() for line in lines if line[0] == sign) for sign in "-+")
    return removed, added


def say(text: str) -> None:
    print(text, flush=True)
    with (FOLDER / "survivors.txt").open("a") as file:
        print(text, file=file)


def part(source: str, lines: str, names: list[str], equal: dict[Change, str]) -> bool:
    """Try all mutants of a file, or of a line; whether each survivor is explained, and each explanation needed."""
    original = (ROOT / source).read_text()
    code = build(source) if source.endswith(".cc") else None
    tests = {}
    for test in names:
        status, seconds = run_tests(test, 600)
        assert status == 0, f"{source}: {test} fails without a mutant"
        tests[test] = 10 + 3 * int(seconds)
        for name in sorted((FOLDER / "imported").read_text().split()):  # once, for all forks
            with contextlib.suppress(Exception):
                importlib.import_module(name)
    gc.freeze()  # else each fork's collections copy it all
    for test, limit in tests.items():
        broken = outcome(source, original + BROKEN[Path(source).suffix], {test: limit}, code)
        assert broken == "killed", f"{source}: {test} passes where it cannot be loaded, or does not import the copy"

    generator = ("build/venv-mutants/bin/python", "tests/mutants/generate.py", source)
    command = [str(ROOT / path) for path in generator] + [line for line in lines.split(",") if line]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
    counts: Counter[str] = Counter()
    unexplained, used = [], set()
    begin = time.monotonic()
    for number, text in enumerate(mutants := json.loads(done.stdout), 1):
        if sys.stderr.isatty():
            print(f"{number}/{len(mutants)}", end="\r", file=sys.stderr)
        result = outcome(source, text, tests, code)
        counts[result] += 1
        if result == "survived":
            if change(original, text) in equal:
                used.add(change(original, text))
            else:
                diff = difflib.unified_diff(original.splitlines(), text.splitlines(), source, source, n=2, lineterm="")
                unexplained.append("\n".join(diff))
                say(unexplained[-1])
    if code is not None:
        build(source)
    stale = [one for one in equal if one not in used] if not lines else []
    for removed, added in stale:
        say(f"{source}: explained in parts.toml, but no survivor: {removed!r} -> {added!r}")
    said = ", ".join(f"{number} {result}" for result, number in counts.items())
    seconds = time.monotonic() - begin
    say(f"{source}: {counts.total()} mutants in {seconds:.0f} s: {said}; {len(unexplained)} survivors unexplained")
    return not unexplained and not stale


def main(arguments: list[str]) -> int:
    if os.environ.get("PYTHONPATH") != str(SITE):
        prepare()
        # Once more, with the copy's finder in front of the checkout's: for this process and those that tests start.
        environment = os.environ | {"PYTHONPATH": str(SITE), "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
        os.execve(sys.executable, [sys.executable, *sys.argv], environment)
    (FOLDER / "survivors.txt").unlink(missing_ok=True)
    wanted = [argument.partition(":") for argument in arguments or [""]]
    results = []
    for source, names in PARTS["tests"].items():
        equal = {
            tuple(one): each["why"] for each in PARTS["equal"] if each["file"] == source for one in each["changes"]
        }
        results += [part(source, lines, names, equal) for file, _, lines in wanted if source.startswith(file)]
    return 0 if results and all(results) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
