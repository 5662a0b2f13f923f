"""What `make wheels` left in dist/: its tags and contents, and that it runs where its name says; `make test-wheels`."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from email.parser import Parser
from importlib import metadata
from pathlib import Path

import numpy
import onnx
import pytest
from onnx import TensorProto, helper

import nsa_onnx
from nsa_onnx.runtime import native

ROOT = Path(__file__).parents[2]
SITE_PACKAGES = Path(numpy.__file__).parents[1]
# Of `make wheels`: ziglang, auditwheel and, through it, pyelftools.
TOOLS = ROOT / "build" / "venv-wheels" / "bin"
LIBRARY = "nsa_onnx/libnsa_onnx_ort.so"
GLIBC = (2, 17)
ARCHITECTURES = ("x86_64", "aarch64")
PLATFORMS = {arch: f"manylinux_2_17_{arch}" for arch in ARCHITECTURES} | {"pure": "any"}
C_LIBRARY = {"libc", "ld", "libpthread", "libdl", "libm"}
EXPORTS = {
    *("RegisterCustomOps", "nsa_version", "nsa_ascend_backends"),
    *("nsa_compress", "nsa_compress_attention", "nsa_selected_attention"),
    *("nsa_compress_infer", "nsa_compress_attention_infer", "nsa_selected_attention_infer"),
    *("nsa_cpu_target", "nsa_cpu_targets", "nsa_set_cpu_target"),
}
# Emulated processors and what the library offers on them.
NEON = ("neon", "neon_without_aes", "scalar")
EMULATED = {
    "cortex-a76": NEON,  # as Kunpeng 920: no SVE
    "max,sve-max-vq=1": ("sve2_128", "sve2", "sve", *NEON),  # 128 bits
    "max,sve-max-vq=2": ("sve_256", "sve2", "sve", *NEON),
    "max,sve-max-vq=4": ("sve2", "sve", *NEON),
}
SYSROOT = "/usr/aarch64-linux-gnu"  # of libc6-arm64-cross


_SPEC = importlib.util.spec_from_file_location("nsa_onnx_fetch", ROOT / "cmake" / "fetch.py")
fetch = importlib.util.module_from_spec(_SPEC)
sys.modules[_SPEC.name] = fetch  # dataclasses looks its module up by name
_SPEC.loader.exec_module(fetch)


def run(*command, env=None, **options):
    done = subprocess.run(
        [str(part) for part in command],
        env=None if env is None else {**os.environ, **env},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=900,
        **options,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def only(pattern):
    (path,) = ROOT.glob(pattern)
    return path


@pytest.fixture(scope="module")
def wheels():
    return {kind: only(f"dist/nsa_onnx-*-py3-none-{platform}.whl") for kind, platform in PLATFORMS.items()}


@pytest.fixture(scope="module")
def libraries(wheels, tmp_path_factory):
    """The native libraries of the two wheels, unpacked."""
    folders = {arch: tmp_path_factory.mktemp(arch) for arch in ARCHITECTURES}
    return {arch: Path(zipfile.ZipFile(wheels[arch]).extract(LIBRARY, folder)) for arch, folder in folders.items()}


@pytest.fixture(scope="module")
def calls(tmp_path_factory):
    """calls.cc for each architecture, compiled as the libraries are."""
    zig = run(TOOLS / "python", "-c", "import ziglang; print(ziglang.__path__[0] + '/zig')").strip()
    cache = str(ROOT / "build" / "zig")
    programs = {}
    for arch in ARCHITECTURES:
        programs[arch] = tmp_path_factory.mktemp(arch) / "calls"
        flags = ("-std=c++17", "-O2", "-Wall", "-Wextra", "-Werror", "-s", "-I", ROOT / "ort_ext")
        source = ROOT / "tests" / "wheels" / "calls.cc"
        target = f"{arch}-linux-gnu.{'.'.join(map(str, GLIBC))}"
        caches = {"ZIG_GLOBAL_CACHE_DIR": cache, "ZIG_LOCAL_CACHE_DIR": cache}
        run(zig, "c++", "-target", target, *flags, source, "-o", programs[arch], "-ldl", env=caches)
    return programs


@pytest.fixture(scope="module")
def bits_of_gcc(calls):
    """What calls.cc prints with this environment's own library, which GCC compiled."""
    return run(calls["x86_64"], nsa_onnx.get_library_path())


def example_model():
    value = helper.make_tensor_value_info
    attributes = {"compress_block_size": 32, "compress_stride": 16}
    node = helper.make_node("NsaCompress", ["x", "w", "seq"], ["y"], domain="nsa_onnx", **attributes)
    graph = helper.make_graph(
        [node],
        "graph",
        [value("x", TensorProto.FLOAT16, [100, 2, 16]), value("w", TensorProto.FLOAT16, [32, 2])],
        [value("y", TensorProto.FLOAT16, [3, 2, 16])],
        [helper.make_tensor("seq", TensorProto.INT64, [2], [40, 100])],
    )
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("nsa_onnx", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


def without_target(lines):
    """The results, which must be the same for every instruction set."""
    return {line.split(" ", 1)[1] for line in lines.splitlines()}


# --------------------------------------------------------------------------------------------------
# Names and contents


@pytest.mark.parametrize("kind", PLATFORMS)
def test_a_wheels_tag_says_what_its_name_says(wheels, kind):
    archive = zipfile.ZipFile(wheels[kind])
    (name,) = [name for name in archive.namelist() if name.endswith(".dist-info/WHEEL")]
    fields = Parser().parsestr(archive.read(name).decode())
    assert fields.get_all("Tag") == [f"py3-none-{PLATFORMS[kind]}"]
    assert fields["Root-Is-Purelib"] == ("true" if kind == "pure" else "false")


def test_the_pure_wheel_has_everything_but_native_code_and_the_licences_of_others(wheels):
    names = {kind: set(zipfile.ZipFile(path).namelist()) for kind, path in wheels.items()}
    native = names["x86_64"] - names["pure"]
    assert names["x86_64"] == names["aarch64"] > names["pure"]
    assert {LIBRARY, *(f"nsa_onnx/licenses/{name}/LICENSE" for name in ("highway", "onnxruntime"))} <= native
    # And what C and C++ programs find it with.
    assert {name.split("/")[1] for name in native - {LIBRARY}} == {"licenses", "include", "cmake", "pkgconfig"}
    assert {"nsa_onnx/cli.py", "nsa_onnx/exporters/__init__.py", "nsa_onnx/explain/page.css"} <= names["pure"]


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_auditwheel_agrees_with_the_tag(wheels, arch):
    said = " ".join(run(TOOLS / "auditwheel", "show", wheels[arch]).split())
    assert f'is consistent with the following platform tag: "{PLATFORMS[arch]}"' in said


ELF = """
import sys
from elftools.elf.elffile import ELFFile
elf = ELFFile(open(sys.argv[1], "rb"))
print(elf.get_machine_arch())
for symbol in elf.get_section_by_name(".dynsym").iter_symbols():
    if symbol["st_shndx"] != "SHN_UNDEF" and symbol["st_info"]["bind"] != "STB_LOCAL":
        print("export", symbol.name)
for section in elf.iter_sections():
    if "debug" in section.name:
        print("debug", section.name)
for needed in elf.get_section_by_name(".dynamic").iter_tags("DT_NEEDED"):
    print("needed", needed.needed)
for _, versions in elf.get_section_by_name(".gnu.version_r").iter_versions():
    for version in versions:
        print("version", version.name)
"""


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_a_native_library_exports_its_interface_and_needs_an_old_c_library_only(libraries, arch):
    first, *lines = run(TOOLS / "python", "-c", ELF, libraries[arch]).splitlines()
    found = {"export": set(), "needed": set(), "version": set(), "debug": set()}
    for line in lines:
        kind, name = line.split()
        found[kind].add(name)
    assert first == {"x86_64": "x64", "aarch64": "AArch64"}[arch]
    assert found["export"] == EXPORTS
    assert not found["debug"], "ten times the size"
    assert {name.split(".so")[0].split("-")[0] for name in found["needed"]} <= C_LIBRARY
    versions = [tuple(map(int, name.removeprefix("GLIBC_").split("."))) for name in found["version"]]
    assert versions and max(versions) <= GLIBC


# --------------------------------------------------------------------------------------------------
# The same bits


def test_the_x86_64_library_gives_the_bits_of_gccs_on_every_instruction_set(libraries, calls, bits_of_gcc):
    assert run(calls["x86_64"], libraries["x86_64"]) == bits_of_gcc
    assert len(without_target(bits_of_gcc)) == 4  # two operators, two types


@pytest.mark.parametrize("cpu", EMULATED)
def test_the_aarch64_library_gives_the_same_bits_on_an_emulated_processor(libraries, calls, bits_of_gcc, cpu):
    # Both names that Debian has had for it.
    emulator = next(p for p in (Path("/usr/bin/qemu-aarch64"), Path("/usr/bin/qemu-aarch64-static")) if p.exists())
    command = (emulator, "-L", SYSROOT, "-cpu", cpu, calls["aarch64"], libraries["aarch64"], *EMULATED[cpu])
    assert without_target(run(*command)) == without_target(bits_of_gcc)


@pytest.fixture(scope="module")
def fresh(wheels, tmp_path_factory):
    """A new virtual environment with the x86-64 wheel and this environment's versions of what it needs."""
    folder = tmp_path_factory.mktemp("fresh") / "venv"
    run(sys.executable, "-m", "venv", folder)
    pins = [f"{name}=={metadata.version(name)}" for name in ("ml_dtypes", "numpy", "onnx", "onnxruntime")]
    run(folder / "bin" / "pip", "install", "-q", f"{wheels['x86_64']}[ort]", *pins)
    return folder


def computed(python, cwd, target):
    """What compute.py prints, without the name of the instruction set, which is checked."""
    script = ROOT / "tests" / "wheels" / "compute.py"
    first, rest = run(python, script, env={native.TARGET_VARIABLE: target}, cwd=cwd).split("\n", 1)
    assert first == target
    return rest


def test_the_x86_64_wheel_in_a_fresh_environment_gives_the_bits_of_this_one(fresh, tmp_path):
    python = fresh / "bin" / "python"
    where = run(python, "-c", "import nsa_onnx; print(nsa_onnx.get_library_path())", cwd=tmp_path).strip()
    assert Path(where).is_relative_to(fresh)
    here = computed(sys.executable, tmp_path, "scalar")
    assert "served" in here
    for target in native.cpu_targets():
        assert computed(python, tmp_path, target) == here, target


def unpack_debian(suite, package, work, root):
    """A package of an older Debian with all that it depends on, verified by apt, unpacked rather than installed."""
    fetch.apt_get("deb", ["install", "--download-only", "--yes", "--no-install-recommends", package], work, suite)
    for path in work.glob("cache/archives/*.deb"):
        fetch.run(["dpkg-deb", "-x", str(path), str(root)], work)


def test_the_x86_64_wheel_is_installed_and_runs_on_debian_11(wheels, calls, bits_of_gcc, tmp_path):
    """Its Python is too old for the package, not for the library."""
    system = tmp_path / "debian"
    unpack_debian("bullseye", "python3-pip", tmp_path, system)
    for path in (wheels["x86_64"], calls["x86_64"]):
        shutil.copy(path, system)
    (system / "dev").mkdir()
    (system / "dev" / "null").touch()  # pip opens it
    # A root directory of our own needs no root user where user namespaces are allowed.
    inside = ("unshare", "--map-root-user", "--root", system)
    python = (*inside, "/usr/bin/python3.9")
    assert run(*python, "-c", "import platform; print(*platform.libc_ver())") == "glibc 2.31\n"
    pip = ("-m", "pip", "install", "-q", "--no-index", "--no-deps", "--ignore-requires-python", "--target", "/site")
    run(*python, *pip, f"/{wheels['x86_64'].name}")
    assert run(*inside, "/calls", f"/site/{LIBRARY}") == bits_of_gcc


def test_the_pure_wheel_checks_models_without_native_code(wheels, tmp_path):
    site, model = tmp_path / "site", tmp_path / "model.onnx"
    run(sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", site, wheels["pure"])
    onnx.save(example_model(), model)
    # -S: without site, the editable install's finder is not there to answer first.
    environment = {"PYTHONPATH": f"{site}{os.pathsep}{SITE_PACKAGES}"}
    use = "import sys, nsa_onnx.cli; print(nsa_onnx.__file__); sys.exit(nsa_onnx.cli.main(sys.argv[1:]))"
    said = run(sys.executable, "-S", "-c", use, "check", model, env=environment, cwd=tmp_path)
    assert said.startswith(str(site)) and "1 NSA node" in said


# --------------------------------------------------------------------------------------------------
# The sdist


def test_the_sdist_has_what_the_build_takes_from_others_and_their_licences():
    with tarfile.open(only("dist/nsa_onnx-*.tar.gz")) as archive:
        names = {name.split("/", 1)[-1] for name in archive.getnames()}
    for dependency in fetch.DEPENDENCIES.values():
        brought = ROOT / "build" / "_deps" / dependency.folder
        files = {str(path.relative_to(ROOT)) for path in brought.rglob("*") if path.is_file()}
        assert f"build/_deps/{dependency.folder}/LICENSE" in files
        assert files <= names
    assert {name.split("/")[1] for name in names if name.startswith("build/")} == {"_deps"}


def test_the_sdist_builds_a_native_wheel_without_network(tmp_path):
    """Unoptimized, which is quicker and needs the same files."""
    proxies = dict.fromkeys(("http_proxy", "https_proxy", "all_proxy"), "http://127.0.0.1:9")
    offline = ("unshare", "--map-root-user", "--net")
    connect = "import socket; socket.create_connection(('192.0.2.1', 80), 5)"
    with pytest.raises(AssertionError, match="unreachable"):
        run(*offline, sys.executable, "-c", connect)
    pip = (sys.executable, "-m", "pip", "wheel", "-q", "--no-index", "--no-build-isolation", "--no-deps")
    run(*offline, *pip, "-w", tmp_path, "-C", "cmake.build-type=Debug", only("dist/nsa_onnx-*.tar.gz"), env=proxies)
    (wheel,) = tmp_path.glob("*.whl")
    assert LIBRARY in zipfile.ZipFile(wheel).namelist()
