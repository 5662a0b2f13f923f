"""`pip install .` and `pip install -e .` both give the package, its exporters and its library."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy
import pytest
from library_build import library_build

ROOT = Path(__file__).parents[1]
FOR_C_AND_CPP = ("include/nsa_onnx.h", "cmake/nsa_onnx-config.cmake", "pkgconfig/nsa_onnx.pc")
SITE_PACKAGES = Path(numpy.__file__).parents[1]

# Run where the source tree is not in sight, so that only what was installed can be found.
USE = """
import pathlib, sys
import numpy as np
import nsa_onnx, nsa_onnx.exporters, nsa_onnx.runtime.native
x = np.ones((64, 2, 16), np.float16)
y = nsa_onnx.nsa_compress(x, np.ones((32, 2), np.float16), 32, 16, actual_seq_len=[64])
assert y.shape == (3, 2, 16) and (y == 32).all()
assert nsa_onnx.__version__ == nsa_onnx.runtime.native.version()
assert pathlib.Path(nsa_onnx.get_library_path()).is_file()
print(pathlib.Path(nsa_onnx.__file__).resolve())
"""


def _python(*arguments, cwd, path=(), flags=()):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, path))}
    return subprocess.run(
        [sys.executable, *flags, *arguments], cwd=cwd, env=environment, check=True, capture_output=True, text=True
    ).stdout.strip()


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    command = ["-m", "pip", "wheel", "-q", "--no-build-isolation", "--no-deps", "-w", str(folder), str(ROOT)]
    with library_build():
        _python(*command, cwd=folder)
    (path,) = folder.glob("*.whl")
    return path


def test_one_wheel_serves_every_python_3(wheel):
    assert wheel.name.startswith("nsa_onnx-")
    assert wheel.name.split("-")[2:4] == ["py3", "none"]
    names = zipfile.ZipFile(wheel).namelist()
    assert {"nsa_onnx/libnsa_onnx_ort.so", "nsa_onnx/py.typed", "nsa_onnx/exporters/__init__.py"} <= set(names)
    assert {"nsa_onnx/explain/page.css", "nsa_onnx/runtime/hook/sitecustomize.py"} <= set(names)
    assert {f"nsa_onnx/{name}" for name in FOR_C_AND_CPP} <= set(names)
    strangers = [n for n in names if not n.startswith(("nsa_onnx/", "nsa_onnx-"))]
    assert not strangers, "the wheel must not put anything else into site-packages"


def test_an_installed_wheel_works_without_the_source_tree(wheel, tmp_path):
    target = tmp_path / "site"
    _python("-m", "pip", "install", "-q", "--no-deps", "--target", str(target), str(wheel), cwd=tmp_path)
    # -S: without site, the editable install's finder is not there to answer first.
    where = _python("-c", USE, cwd=tmp_path, path=(target, SITE_PACKAGES), flags=("-S",))
    assert Path(where).is_relative_to(target)


def test_python_in_a_checkout_works_after_an_ordinary_install(wheel, tmp_path):
    """The sources there come first; what they lack is found."""
    target, checkout = tmp_path / "site", tmp_path / "checkout"
    _python("-m", "pip", "install", "-q", "--no-deps", "--target", str(target), str(wheel), cwd=tmp_path)
    for folder in ("nsa_onnx", "exporters"):
        shutil.copytree(ROOT / folder, checkout / folder, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "CMakeLists.txt", checkout)
    where = _python("-c", USE, cwd=checkout, path=(target, SITE_PACKAGES), flags=("-S",))
    assert Path(where).is_relative_to(checkout)
    code = "import nsa_onnx.exporters; print(nsa_onnx.exporters.__file__); print(nsa_onnx.get_library_path())"
    exporters, library = _python("-c", code, cwd=checkout, path=(target, SITE_PACKAGES), flags=("-S",)).splitlines()
    assert Path(exporters).is_relative_to(checkout)
    assert Path(library).is_relative_to(target)
    # Tools walk packages: nothing in the checkout but the package itself belongs to it.
    code = "import pkgutil, nsa_onnx; print(*(m.name for m in pkgutil.walk_packages(nsa_onnx.__path__, 'nsa_onnx.')))"
    names = _python("-c", code, cwd=checkout, path=(target, SITE_PACKAGES), flags=("-S",)).split()
    assert "nsa_onnx.graph.reading" in names and not [name for name in names if name.startswith("nsa_onnx.nsa_onnx")]


def test_the_editable_install_works(tmp_path):
    where = _python("-c", USE, cwd=tmp_path)
    assert Path(where) == ROOT / "nsa_onnx" / "__init__.py"


def test_the_library_exports_its_interface_and_nothing_else():
    path = _python("-c", "import nsa_onnx; print(nsa_onnx.get_library_path())", cwd="/")
    listed = subprocess.run(["nm", "-D", "--defined-only", path], check=True, capture_output=True, text=True).stdout
    names = {line.split()[-1].split("@")[0] for line in listed.splitlines() if line.split()[-2] != "A"}
    assert "RegisterCustomOps" in names
    assert {n for n in names if not n.startswith("nsa_")} == {"RegisterCustomOps"}
