"""What C and C++ users get: nsa_onnx.h, the CMake package, pkg-config's file, and the two examples."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from nsa_models import lengths, model, node, value

import nsa_onnx
from nsa_onnx import cli
from nsa_onnx.runtime import native

ROOT = Path(__file__).resolve().parents[1]
BIN = Path(sys.executable).parent  # cmake and nsa-onnx are there
WARNINGS = ["-Wall", "-Wextra", "-Werror", "-pedantic"]
# The means of the tokens' numbers, 32 at a time, 16 apart; windows do not cross token 40.
MEANS = "15.5\n55.5\n71.5\n87.5\n103.5\n"
# The language's option, a file's name, the compiler.
LANGUAGES = {"C99": ("-std=c99", "user.c", "gcc"), "C++": ("-std=c++11", "user.cc", "g++")}


def run(*command, **environment):
    done = subprocess.run(
        [str(part) for part in command],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    """A copy of what is installed, elsewhere: nothing in it may know where it was."""
    folder = tmp_path_factory.mktemp("elsewhere") / "nsa_onnx"
    shutil.copytree(native.path_of("library").parent, folder)
    return folder


@pytest.fixture(scope="module")
def onnxruntime_headers():
    """The headers that the library was built with; None: those of the system, which compilers find."""
    built = sorted((ROOT / "build" / "_deps").glob("onnxruntime-*/onnxruntime_cxx_api.h"))
    given = os.environ.get("ONNXRUNTIME_INCLUDE_DIR")
    return Path(given) if given else built[-1].parent if built else None


@pytest.fixture(scope="module")
def onnxruntime_library(tmp_path_factory):
    """libonnxruntime.so of the wheel, under the names that the linker and the loader look for."""
    (library,) = (Path(onnxruntime.__file__).parent / "capi").glob("libonnxruntime.so.*")
    folder = tmp_path_factory.mktemp("onnxruntime")
    for name in ("libonnxruntime.so", "libonnxruntime.so.1"):
        (folder / name).symlink_to(library)
    return folder / "libonnxruntime.so"


# --------------------------------------------------------------------------------------------------
# nsa_onnx.h


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("before", ["", "#include <onnxruntime_c_api.h>\n"])
def test_the_header_compiles_alone_and_beside_onnxruntime_s(tmp_path, package, onnxruntime_headers, language, before):
    """After onnxruntime's header the declarations of its types must agree."""
    standard, name, compiler = LANGUAGES[language]
    use = "int main(void) { return RegisterCustomOps(0, 0) != 0; }\n"
    for order in (f"{before}#include <nsa_onnx.h>\n", f"#include <nsa_onnx.h>\n{before}"):
        (tmp_path / name).write_text(order + use)
        headers = ["-isystem", onnxruntime_headers] if onnxruntime_headers else []
        include = f"-I{package / 'include'}"
        run(compiler, standard, *WARNINGS, *headers, include, "-c", tmp_path / name, "-o", tmp_path / "user.o")


def test_the_header_declares_what_the_library_exports(package):
    """Every operator's function is in it without a list of operators anywhere."""
    text = (package / "include" / "nsa_onnx.h").read_text()
    declared = re.findall(r"^NSA_EXPORT [^(]*?\b(\w+)\(", text, re.MULTILINE)
    listed = run("nm", "-D", "--defined-only", package / "libnsa_onnx_ort.so")
    exported = [line.split()[-1].split("@")[0] for line in listed.splitlines() if line.split()[-2] != "A"]
    assert sorted(declared) == sorted(exported)
    assert len(declared) > 5
    assert 'c_api.h"' not in text  # nothing that only the source tree has


AT_EXIT = """
#include <nsa_onnx.h>
#include <stdio.h>
#include <stdlib.h>
static const char* kept;
static void late(void) { printf("%d%d", kept == nsa_ascend_backends(), kept == NULL); fputs(kept, stdout); }
int main(void) { return atexit(late) || !(kept = nsa_ascend_backends()) || !fputs(kept, stdout); }
"""


def test_strings_stay_until_the_process_has_ended(tmp_path, package):
    (tmp_path / "user.c").write_text(AT_EXIT)
    flags = run("pkg-config", "--cflags", "--libs", "nsa_onnx", PKG_CONFIG_PATH=str(package / "pkgconfig")).split()
    run("gcc", "-std=c99", *WARNINGS, tmp_path / "user.c", *flags, "-o", tmp_path / "user")
    before, after = run(tmp_path / "user").split("10")
    assert before == after and "aclnn" in before


# --------------------------------------------------------------------------------------------------
# The packages


def test_the_c_example_is_built_with_pkg_config(tmp_path, package):
    flags = run("pkg-config", "--cflags", "--libs", "nsa_onnx", PKG_CONFIG_PATH=str(package / "pkgconfig")).split()
    assert f"-I{package}/pkgconfig/../include" in flags
    run("gcc", "-std=c99", *WARNINGS, ROOT / "examples/c/compress.c", *flags, "-o", tmp_path / "compress")
    assert run(tmp_path / "compress") == MEANS
    version = run("pkg-config", "--modversion", "nsa_onnx", PKG_CONFIG_PATH=str(package / "pkgconfig"))
    assert version.strip() == nsa_onnx.__version__


@pytest.fixture(scope="module")
def serve(tmp_path_factory, package, onnxruntime_headers, onnxruntime_library):
    build = tmp_path_factory.mktemp("serve")
    options = {
        "nsa_onnx_DIR": package / "cmake",
        "ONNXRUNTIME_LIBRARY": onnxruntime_library,
        "CMAKE_CXX_FLAGS": " ".join(WARNINGS),
    }
    if onnxruntime_headers:
        options["ONNXRUNTIME_INCLUDE_DIR"] = onnxruntime_headers
    defined = [f"-D{name}={setting}" for name, setting in options.items()]
    run(BIN / "cmake", "-S", ROOT / "examples" / "cpp", "-B", build, *defined)
    run(BIN / "cmake", "--build", build)
    return build / "serve"


def served_model(path, seq):
    inputs = [value("kv", np.float16, (128, 4, 64)), value("weight", np.float16, (32, 4))]
    compress = node(inputs=("kv", "weight", "seq"))
    onnx.save(model([compress], inputs, [value("y", np.float16, ("R", 4, 64))], [lengths(seq)]), path)
    return path


def test_the_cpp_example_serves_a_model(tmp_path, serve):
    assert run(serve, served_model(tmp_path / "compress.onnx", [40, 128])) == MEANS


def test_the_cpp_example_says_what_is_wrong(tmp_path, serve):
    wrong = served_model(tmp_path / "wrong.onnx", [0, 128])
    done = subprocess.run([serve, wrong], capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stdout) == (1, "")
    assert "actual_seq_len" in done.stderr


def test_a_project_in_cmake_finds_version_and_path(tmp_path, package):
    """Also through CMAKE_PREFIX_PATH, as builds have it that search site-packages."""
    (tmp_path / "CMakeLists.txt").write_text(
        "cmake_minimum_required(VERSION 3.16)\n"
        "project(user LANGUAGES CXX)\n"
        "find_package(nsa_onnx 0.1 REQUIRED)\n"
        "find_package(nsa_onnx 0.1 REQUIRED)\n"
        "file(GENERATE OUTPUT path.txt CONTENT $<TARGET_FILE:nsa_onnx::nsa_onnx>)\n"
        "find_package(nsa_onnx 9 QUIET)\n"
        'file(WRITE ${CMAKE_BINARY_DIR}/found.txt "${nsa_onnx_VERSION} ${nsa_onnx_FOUND}")\n'
    )
    for number, option in enumerate((f"-Dnsa_onnx_DIR={package / 'cmake'}", f"-DCMAKE_PREFIX_PATH={package.parent}")):
        build = tmp_path / str(number)
        run(BIN / "cmake", "-S", tmp_path, "-B", build, option)
        assert (build / "path.txt").read_text() == str(package / "libnsa_onnx_ort.so")
        assert (build / "found.txt").read_text().endswith(" 0")


def refused(*command):
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode != 0, done.stdout
    return " ".join(done.stderr.split())


def test_a_project_in_cmake_is_told_that_the_library_is_missing(tmp_path, package):
    copy = shutil.copytree(package, tmp_path / "nsa_onnx")
    (copy / "libnsa_onnx_ort.so").unlink()
    project = tmp_path / "user" / "CMakeLists.txt"
    project.parent.mkdir()
    project.write_text("cmake_minimum_required(VERSION 3.16)\nproject(user NONE)\nfind_package(nsa_onnx REQUIRED)\n")
    command = [BIN / "cmake", "-S", project.parent, "-B", tmp_path / "build", f"-Dnsa_onnx_DIR={copy / 'cmake'}"]
    assert f"{copy}/libnsa_onnx_ort.so is missing: nsa-onnx doctor says why" in refused(*command)
    project.write_text(project.read_text().replace(" REQUIRED", "") + 'message(STATUS "found: ${nsa_onnx_FOUND}")\n')
    assert "-- found: 0" in run(*command).replace("FALSE", "0")


@pytest.mark.parametrize(
    "include", ['#include "c_api/c_api.h"\n', '#include "c_api/c_api.h"\n\n#include "plan/dtype.h"\n']
)
def test_a_header_that_cannot_be_joined_stops_the_build(tmp_path, include):
    """nsa_onnx.h would include a file that users do not have."""
    shutil.copytree(ROOT / "cmake", tmp_path / "cmake")
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    shutil.copytree(ROOT / "ort_ext", tmp_path / "ort_ext")
    (tmp_path / "CMakeLists.txt").write_text(
        "cmake_minimum_required(VERSION 3.25)\nproject(joined NONE)\ninclude(cmake/package.cmake)\n"
    )
    command = [BIN / "cmake", "-S", tmp_path, "-B", tmp_path / "build"]
    run(*command)
    header = sorted(tmp_path.glob("ort_ext/operators/*/c_api.h"))[0]
    header.write_text(header.read_text().replace('#include "c_api/c_api.h"\n\n', include))
    assert f'{header} must include "c_api/c_api.h", nothing else of ours' in refused(*command)


# --------------------------------------------------------------------------------------------------
# What onnxruntime hands over, from a node that only a stand-in for it can have

ATTRIBUTE = r"""
#include <cstdio>
#include <limits>

#include "ort/common.h"

float given;
OrtStatus* Give(const OrtKernelInfo*, const char*, float* value) noexcept { *value = given; return nullptr; }

int main() {
  using Limits = std::numeric_limits<float>;
  OrtApi api{};
  api.KernelInfoGetAttribute_float = Give;
  api.ReleaseStatus = [](OrtStatus*) noexcept {};
  Ort::InitApi(&api);
  for (float value : {0.125f, Limits::quiet_NaN(), Limits::infinity(), -Limits::infinity(), Limits::max()}) {
    given = value;
    try {
      std::printf("%g\n", static_cast<double>(nsa::ort::FloatAttribute(nullptr, "NsaAny", "scale")));
    } catch (const Ort::Exception& error) {
      std::printf("%s\n", error.what());
    }
  }
}
"""


def test_a_float_attribute_is_finite(tmp_path, onnxruntime_headers):
    (tmp_path / "attribute.cc").write_text(ATTRIBUTE)
    headers = ["-isystem", onnxruntime_headers] if onnxruntime_headers else []
    includes = ["-I", ROOT, "-I", ROOT / "ort_ext", *headers]
    run(
        *("g++", "-std=c++17", "-Wall", "-Wextra", "-Werror", *includes),
        *(tmp_path / "attribute.cc", ROOT / "ort_ext/ort/common.cc", "-pthread", "-o", tmp_path / "attribute"),
    )
    refusal = "NsaAny: scale must be a finite float32, got "
    assert run(tmp_path / "attribute").splitlines() == [
        *("0.125", f"{refusal}nan", f"{refusal}inf", f"{refusal}-inf", "3.40282e+38")
    ]


# --------------------------------------------------------------------------------------------------
# The command, the page


def test_the_command_says_where_the_files_are():
    command = [sys.executable, "-m", "nsa_onnx.cli", "paths"]
    shown = dict(line.split(maxsplit=1) for line in run(*command).splitlines())
    assert list(shown) == list(native.PATHS)
    assert shown["library"] == nsa_onnx.get_library_path()
    for name, path in shown.items():
        assert run(*command, name) == f"{path}\n"
        assert Path(path).exists()


def test_without_the_library_the_command_says_so(monkeypatch, capsys):
    monkeypatch.setattr(native, "LIBRARY_NAME", "libmissing.so")
    assert cli.main(["paths", "include"]) == 1
    out, error = capsys.readouterr()
    assert out == ""
    assert "libmissing.so is not at " in error


def test_the_page_s_commands_work_and_print_what_it_says(
    tmp_path, monkeypatch, onnxruntime_headers, onnxruntime_library
):
    """docs/cpp.md as printed, with an onnxruntime elsewhere than in /opt."""
    page = (ROOT / "docs" / "cpp.md").read_text(encoding="utf-8")
    commands = "".join(re.findall(r"```sh\n(.*?)```", page, re.DOTALL))
    assert commands.count("/opt/onnxruntime") == 1
    prefix = tmp_path / "opt"
    prefix.mkdir()
    (prefix / "lib").symlink_to(onnxruntime_library.parent)
    if onnxruntime_headers:
        (prefix / "include").symlink_to(onnxruntime_headers)
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    (tmp_path / "model-folder").mkdir()
    served_model(tmp_path / "compress.onnx", [40, 128])
    monkeypatch.chdir(tmp_path)
    script = commands.replace("/opt/onnxruntime", str(prefix))
    out = run("bash", "-euc", script, PATH=f"{BIN}:{os.environ['PATH']}")
    assert f"```text\n{MEANS}```" in page
    assert out.endswith(MEANS + MEANS)
    assert (tmp_path / "model-folder" / native.LIBRARY_NAME).is_file()


def test_the_cpp_example_is_short():
    assert len((ROOT / "examples" / "cpp" / "serve.cc").read_text(encoding="utf-8").splitlines()) <= 60
