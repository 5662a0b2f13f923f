"""Threads, forks and the end of Python: results keep their bits, and no process dies or hangs."""

import subprocess
import sys
from pathlib import Path

import concurrency_cases
import pytest

import nsa_onnx

FILE = Path(concurrency_cases.__file__)


def python(*arguments):
    """What a Python process prints. It must end well and say nothing else."""
    command = [sys.executable, "-X", "faulthandler", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=2 * concurrency_cases.SECONDS)
    assert (done.returncode, done.stderr) == (0, ""), (done.returncode, done.stdout[-2000:], done.stderr[-4000:])
    return done.stdout


@pytest.mark.parametrize("name", concurrency_cases.CASES)
def test_case(name):
    at_exit = "checked at exit\n" if name == "sessions_and_eager_calls_work_at_exit" else ""
    assert python(FILE, name) == "passed\n" + at_exit


FIRST_IMPORT = """
import sys, threading
sys.setswitchinterval(1e-6)
names, missing = sys.argv[1:], []
barrier = threading.Barrier(len(names))

def use(name):
    barrier.wait()
    import nsa_onnx
    try:
        getattr(nsa_onnx, name)
    except BaseException as error:
        missing.append((name, error))

threads = [threading.Thread(target=use, args=(name,)) for name in names]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print(missing)
"""


def test_several_threads_may_be_the_first_to_import_us():
    assert python("-c", FIRST_IMPORT, *nsa_onnx.__all__) == "[]\n"


SUB_INTERPRETER = """
import sys, warnings
try:
    import _interpreters as interpreters  # Python 3.13
except ImportError:
    import _xxsubinterpreters as interpreters
if sys.argv[1] == "used":
    import nsa_onnx.runtime.session
code = '''
import warnings
warnings.simplefilter("ignore")
try:
    import nsa_onnx
    nsa_onnx.register()
except ImportError as error:
    print(type(error).__name__, error)
'''
interpreters.run_string(interpreters.create(), code)
"""


@pytest.mark.parametrize("who", ["used", "unused"])
def test_a_sub_interpreter_gets_an_import_error_whether_or_not_the_main_one_uses_us(who):
    """In the second case it would wait for ever otherwise."""
    said = python("-c", SUB_INTERPRETER, who)
    assert said.startswith("ImportError")
    assert who == "used" or "nsa_onnx needs Python's main interpreter" in said or "subinterpreter" in said
