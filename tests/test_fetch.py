"""cmake/fetch.py brings a complete, verified dependency or says why not. No network is needed here."""

import hashlib
import http.server
import importlib.util
import io
import os
import subprocess
import sys
import tarfile
import threading
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
_SPEC = importlib.util.spec_from_file_location("nsa_onnx_fetch", ROOT / "cmake" / "fetch.py")
fetch = importlib.util.module_from_spec(_SPEC)
sys.modules[_SPEC.name] = fetch  # dataclasses looks its module up by name
_SPEC.loader.exec_module(fetch)

BODY = b"#define ORT_API_VERSION 21\n" * 100
SHA256 = hashlib.sha256(BODY).hexdigest()


@pytest.fixture
def server():
    """The address of a server with /whole, /cut (it hangs up halfway) and nothing else."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200 if self.path in ("/whole", "/cut") else 404)
            self.send_header("Content-Length", str(len(BODY)))
            self.end_headers()
            self.wfile.write(BODY[: len(BODY) // 2 if self.path == "/cut" else None])

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")


def test_a_download_arrives_whole(server, tmp_path):
    fetch.download(f"{server}/whole", tmp_path / "file", SHA256)
    assert (tmp_path / "file").read_bytes() == BODY


@pytest.mark.parametrize(
    ("path", "sha256", "words"),
    [
        ("cut", SHA256, "IncompleteRead"),
        ("missing", SHA256, "404"),
        ("whole", "0" * 64, f"has SHA256 {SHA256}, expected {'0' * 64}"),
    ],
)
def test_a_download_that_is_cut_missing_or_another_file_is_a_reason_to_try_the_next_source(
    server, tmp_path, path, sha256, words
):
    with pytest.raises(fetch.UnavailableError, match=words):
        fetch.download(f"{server}/{path}", tmp_path / "file", sha256)


def test_another_archive_than_the_known_one_is_not_unpacked(tmp_path):
    archive = tmp_path / "highway.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        member = tarfile.TarInfo(f"highway-{fetch.HIGHWAY_VERSION}/hwy/ops/../../../stray")
        member.size = 1
        tar.addfile(member, io.BytesIO(b"#"))
    (tmp_path / "result").mkdir()
    with pytest.raises(fetch.UnavailableError, match="SHA256"):
        fetch.unpack_highway(archive, tmp_path / "result")
    assert sorted(tmp_path.rglob("*")) == [archive, tmp_path / "result"]


def fill(work, result):
    (result / "header.h").write_text("whole")


def fail_halfway(work, result):
    (result / "header.h").write_text("ha")
    raise fetch.UnavailableError("it hung up")


@pytest.fixture
def sources(monkeypatch):
    """Sets the sources of a dependency named "it"."""

    def set_sources(**functions):
        monkeypatch.setitem(fetch.DEPENDENCIES, "it", fetch.Dependency("it-1.0", "IT", "<folder>", functions))

    return set_sources


def test_what_a_failing_source_left_is_not_mixed_with_the_next_ones(sources, tmp_path):
    sources(first=fail_halfway, second=fill)
    target = fetch.fetch("it", tmp_path / "deps")
    assert [p.read_text() for p in target.iterdir()] == ["whole"]
    assert list((tmp_path / "deps").iterdir()) == [target], "nothing else is left"
    sources(first=fail_halfway)
    assert fetch.fetch("it", tmp_path / "deps") == target, "what is there is used again, offline too"


WAY_OUT = "Set as environment variables what this machine has:\n  IT=<folder>"


def test_a_dependency_that_no_source_has_names_each_reason_and_the_way_out(sources, tmp_path):
    sources(first=fail_halfway, second=fail_halfway)
    with pytest.raises(SystemExit) as stop:
        fetch.locate(["it"], tmp_path, offline=False)
    assert str(stop.value) == f"cannot get it; tried\n  first: it hung up\n  second: it hung up\n{WAY_OUT}"
    assert not list(tmp_path.iterdir())


def test_offline_uses_what_is_there_and_fetches_nothing(sources, tmp_path):
    sources(first=fill)
    with pytest.raises(SystemExit) as stop:
        fetch.locate(["it"], tmp_path, offline=True)
    assert str(stop.value).startswith(f"not in {tmp_path}: it-1.0\n{WAY_OUT}\nor NSA_ONNX_FETCH=1")
    assert not list(tmp_path.iterdir())
    target = fetch.fetch("it", tmp_path)
    assert fetch.locate(["it"], tmp_path, offline=True) == {"IT": target}


def test_a_build_that_was_not_asked_to_fetch_names_both_variables_in_one_message(tmp_path):
    asked = ("ONNXRUNTIME_INCLUDE_DIR", "HIGHWAY_SOURCE_DIR", "NSA_ONNX_FETCH")
    # Without a compiler's languages there is nothing to find out first, and no system header is found.
    (tmp_path / "CMakeLists.txt").write_text(
        "cmake_minimum_required(VERSION 3.25)\nproject(it LANGUAGES NONE)\n"
        f"set(CMAKE_SOURCE_DIR {ROOT})\nset(CMAKE_FIND_USE_CMAKE_SYSTEM_PATH OFF)\n"
        f"set(Python3_EXECUTABLE {sys.executable})\ninclude({ROOT}/cmake/dependencies.cmake)\n"
    )
    cmake = Path(sys.executable).parent / "cmake"
    done = subprocess.run(
        [cmake, "-S", tmp_path, "-B", tmp_path / "b", f"-DNSA_ONNX_DEPS_DIR={tmp_path}/d"],
        env={name: value for name, value in os.environ.items() if name not in asked},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert [name for name in asked if f"{name}=" in done.stderr] == list(asked)
    assert not (tmp_path / "d").exists()


def test_of_two_builds_at_once_the_slower_one_takes_what_the_faster_one_brought(sources, tmp_path):
    def slow(work, result):
        fill(work, result)
        (tmp_path / "it-1.0").mkdir()  # meanwhile, elsewhere
        (tmp_path / "it-1.0" / "header.h").write_text("the other build's")

    sources(first=slow)
    target = fetch.fetch("it", tmp_path)
    assert (target / "header.h").read_text() == "the other build's"
    assert list(tmp_path.iterdir()) == [target]


def test_a_folder_that_cannot_be_written_is_named_with_the_way_out(sources, tmp_path):
    sources(first=fill)
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemExit, match=r"(?s)cannot write to .*/file/deps: .*-DNSA_ONNX_DEPS_DIR=.* IT="):
        fetch.locate(["it"], tmp_path / "file" / "deps", offline=False)
