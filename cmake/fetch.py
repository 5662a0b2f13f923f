"""Downloads one build dependency into a folder and prints its path: fetch.py {onnxruntime,highway} FOLDER.

It tries two sources, because a build machine often reaches only one of them: Debian's archive, through the mirror
that this machine's apt uses (nothing is installed, root is not needed), then GitHub. Debian's files are verified by
apt's signatures, GitHub's by the hashes below. What is in FOLDER already is used again.
"""

from __future__ import annotations

import hashlib
import http.client
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

# The first Debian release whose onnxruntime has API 21 and whose Highway rounds bfloat16 to nearest.
SUITE = "trixie"
TIMEOUT = 30  # seconds without an answer
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")

# Release 1.21.0. The hashes are of Debian's copy of that release, the licence's of the copy in PyPI's wheel of 1.21.1;
# GitHub's own bytes were not at hand to compare.
ONNXRUNTIME_URL = "https://raw.githubusercontent.com/microsoft/onnxruntime/v1.21.0/include/onnxruntime/core/session/"
ONNXRUNTIME_HEADERS = {
    "onnxruntime_c_api.h": "7783e9664bdb0b1b36145b5c8587dd1bc9a399aa000edf2e3dd03003cafc6882",
    "onnxruntime_cxx_api.h": "b3b27d6a6fced0725e3f188379cca008b1d7a456997684756374d4b388f2cf05",
    "onnxruntime_cxx_inline.h": "7f448e994c732eacd9e49900365fefa8f1ac998a6d6eb78e5f4aab1b8d9d8900",
    "onnxruntime_float16.h": "6c4db3d1954b266c4febe413351af86cac922e3448538e7e452e51d646e56a4a",
}
ONNXRUNTIME_LICENSE_URL = "https://raw.githubusercontent.com/microsoft/onnxruntime/v1.21.0/LICENSE"
ONNXRUNTIME_LICENSE_SHA256 = "2f07c72751aed99790b8a4869cf2311df85a860b22ded05fa22803587a48922c"

# Both sources have the same archive.
HIGHWAY_VERSION = "1.2.0"
HIGHWAY_URL = f"https://github.com/google/highway/archive/refs/tags/{HIGHWAY_VERSION}.tar.gz"
HIGHWAY_SHA256 = "7e0be78b8318e8bdbf6fa545d2ecb4c90f947df03f7aadc42c1967f019e63343"


class UnavailableError(Exception):
    """This source cannot give the files; the text says why."""


# --------------------------------------------------------------------------------------------------
# Debian


def os_release() -> dict[str, str]:
    path = Path("/etc/os-release")
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return {key: value.strip("\"'") for key, _, value in (line.partition("=") for line in lines)}


@dataclass(frozen=True)
class AptSource:
    uris: tuple[str, ...]
    suites: tuple[str, ...]
    components: tuple[str, ...]


def one_line_sources(text: str) -> Iterator[AptSource]:
    """Lines of a .list file: ``deb [options] uri suite component...``"""
    for line in text.splitlines():
        match = re.match(r"\s*deb\s+(?:\[[^]]*\]\s*)?(\S+)\s+(\S+)\s+([^#]+)", line)
        if match:
            yield AptSource((match[1],), (match[2],), tuple(match[3].split()))


def deb822_sources(text: str) -> Iterator[AptSource]:
    """Stanzas of a .sources file."""
    text = re.sub(r"^#.*\n?", "", text, flags=re.MULTILINE)
    for stanza in re.split(r"\n\s*\n", text):
        fields = {
            name.lower(): tuple(value.split())
            for name, value in re.findall(r"^([\w-]+):((?:.*)(?:\n[ \t].*)*)", stanza, re.MULTILINE)
        }
        if "deb" in fields.get("types", ()) and fields.get("enabled", ("yes",)) != ("no",):
            yield AptSource(fields.get("uris", ()), fields.get("suites", ()), fields.get("components", ()))


def debian_mirror() -> str:
    """The archive this machine installs its own release from; third parties' sources are no candidates."""
    release = os_release()
    codename = release.get("VERSION_CODENAME", "")
    if release.get("ID") != "debian" or not codename:
        raise UnavailableError("this machine is not a Debian release")
    if not shutil.which("apt-get"):
        raise UnavailableError("there is no apt-get")
    apt = Path("/etc/apt")
    for path in [apt / "sources.list", *sorted((apt / "sources.list.d").glob("*"))]:
        parse = {".list": one_line_sources, ".sources": deb822_sources}.get(path.suffix)
        if parse is None or not path.is_file():
            continue
        for source in parse(path.read_text(encoding="utf-8", errors="replace")):
            if codename in source.suites and "main" in source.components and source.uris:
                return source.uris[0]
    raise UnavailableError(f"no apt source of this machine offers its own release, {codename}")


def run(command: list[str], cwd: Path) -> None:
    try:
        subprocess.run(command, cwd=cwd, check=True, capture_output=True, text=True, timeout=20 * TIMEOUT)
    except subprocess.CalledProcessError as error:
        last = (error.stderr.strip().splitlines() or ["no message"])[-1]
        raise UnavailableError(f"{' '.join(command[:1] + command[-2:])}: {last}") from error
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UnavailableError(str(error)) from error


def apt_get(kind: str, command: list[str], folder: Path, suite: str = SUITE) -> None:
    """Run ``apt-get update`` and `command` in `folder`, with lists, cache and status of their own there.

    kind: "deb" for packages, "deb-src" for sources.
    """
    mirror = debian_mirror()
    signed = f"[signed-by={KEYRING}] " if KEYRING.exists() else ""
    (folder / "sources.list").write_text(f"{kind} {signed}{mirror} {suite} main\n", encoding="utf-8")
    for name in ("lists/partial", "cache/archives/partial"):
        (folder / name).mkdir(parents=True)
    options = {
        "Dir::State::lists": folder / "lists",
        "Dir::State::status": "/dev/null",
        "Dir::Cache": folder / "cache",
        "Dir::Etc::sourcelist": folder / "sources.list",
        "Dir::Etc::sourceparts": "-",
        "Acquire::Languages": "none",
        "Acquire::Retries": 1,
        "Acquire::http::Timeout": TIMEOUT,
        # Signatures count, whatever this machine is configured to do without.
        "Acquire::AllowInsecureRepositories": "false",
        "APT::Get::AllowUnauthenticated": "false",
        # As root, apt would change to a user that may not be allowed to enter this folder.
        "APT::Sandbox::User": "root",
    }
    apt = ["apt-get", "-q", *(f"-o{name}={value}" for name, value in options.items())]
    run([*apt, "update"], folder)
    run([*apt, *command], folder)


def only(folder: Path, pattern: str) -> Path:
    found = sorted(folder.glob(pattern))
    if len(found) != 1:
        raise UnavailableError(f"expected one {pattern} from {SUITE}, got {len(found)}")
    return found[0]


# --------------------------------------------------------------------------------------------------
# GitHub


def check_sha256(path: Path, wanted: str) -> None:
    got = hashlib.sha256(path.read_bytes()).hexdigest()
    if got != wanted:
        raise UnavailableError(f"{path.name} has SHA256 {got}, expected {wanted}")


def download(url: str, path: Path, sha256: str) -> None:
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT) as answer:
            path.write_bytes(answer.read())
    except (OSError, http.client.HTTPException) as error:  # the latter: the connection ended too early
        raise UnavailableError(f"{url}: {error}") from error
    check_sha256(path, sha256)


# --------------------------------------------------------------------------------------------------
# The two dependencies. A source is a function that fills an empty folder with the result.

Source = Callable[[Path, Path], None]


def onnxruntime_from_debian(work: Path, result: Path) -> None:
    apt_get("deb", ["download", "libonnxruntime-dev"], work)
    run(["dpkg-deb", "-x", str(only(work, "libonnxruntime-dev_*.deb")), "unpacked"], work)
    for name in ONNXRUNTIME_HEADERS:
        shutil.copy(only(work, f"unpacked/usr/include/onnxruntime/{name}"), result / name)
    shutil.copy(only(work, "unpacked/usr/share/doc/libonnxruntime-dev/copyright"), result / "LICENSE")


def onnxruntime_from_github(work: Path, result: Path) -> None:
    for name, sha256 in ONNXRUNTIME_HEADERS.items():
        download(ONNXRUNTIME_URL + name, result / name, sha256)
    download(ONNXRUNTIME_LICENSE_URL, result / "LICENSE", ONNXRUNTIME_LICENSE_SHA256)


def unpack_highway(archive: Path, result: Path) -> None:
    check_sha256(archive, HIGHWAY_SHA256)  # so its members are known, and safe to unpack
    with tarfile.open(archive) as tar:
        top = f"highway-{HIGHWAY_VERSION}/"
        for member in tar.getmembers():
            # The library's own sources and its licence; not the tests, examples and documentation.
            if member.isfile() and re.match(rf"{top}(hwy/[^/]+\.(cc|h)|hwy/ops/|LICENSE)", member.name):
                member.name = member.name[len(top) :]
                tar.extract(member, result)


def highway_from_debian(work: Path, result: Path) -> None:
    apt_get("deb-src", ["source", "--download-only", "--tar-only", "highway"], work)
    unpack_highway(only(work, "highway_*.orig.tar.*"), result)


def highway_from_github(work: Path, result: Path) -> None:
    archive = work / "highway.tar.gz"
    download(HIGHWAY_URL, archive, HIGHWAY_SHA256)
    unpack_highway(archive, result)


@dataclass(frozen=True)
class Dependency:
    folder: str  # name under FOLDER; it exists only once it is complete
    variable: str  # of CMake or of the environment, for a path that the user has
    wanted: str  # what that path must be
    sources: dict[str, Source]


DEPENDENCIES = {
    "onnxruntime": Dependency(
        "onnxruntime-1.21.0-headers",
        "ONNXRUNTIME_INCLUDE_DIR",
        "<folder of onnxruntime_cxx_api.h, API 21 or newer>",
        {"Debian": onnxruntime_from_debian, "GitHub": onnxruntime_from_github},
    ),
    "highway": Dependency(
        f"highway-{HIGHWAY_VERSION}",
        "HIGHWAY_SOURCE_DIR",
        f"<unpacked source of Google Highway {HIGHWAY_VERSION} or newer>",
        {"Debian": highway_from_debian, "GitHub": highway_from_github},
    ),
}


def fetch(name: str, folder: Path) -> Path:
    """The folder with dependency `name`, brought there if it is not yet."""
    dependency = DEPENDENCIES[name]
    target = folder / dependency.folder
    if target.is_dir():
        return target
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:  # a read-only source tree, perhaps
        raise UnavailableError(
            f"cannot write to {folder}: {error}\nPass -DNSA_ONNX_DEPS_DIR=<another folder>"
        ) from error
    failures = []
    for source, bring in dependency.sources.items():
        with tempfile.TemporaryDirectory(dir=folder, prefix=f".{name}-") as temporary:
            work, result = Path(temporary) / "work", Path(temporary) / "result"
            work.mkdir()
            result.mkdir()
            try:
                bring(work, result)
            except UnavailableError as error:
                failures.append(f"  {source}: {error}")
                continue
            try:
                result.rename(target)  # in one step: a build that was interrupted leaves nothing half done
            except OSError:
                if not target.is_dir():  # else another build was faster
                    raise
            return target
    raise UnavailableError(f"cannot get {name}; tried\n" + "\n".join(failures))


def locate(names: Sequence[str], folder: Path, offline: bool) -> dict[str, Path]:
    """Variable and path of each dependency. SystemExit, with every way out, if one of them cannot be had."""
    paths, missing, reasons = {}, [], []
    for name in names:
        dependency = DEPENDENCIES[name]
        paths[dependency.variable] = folder / dependency.folder
        if offline and not paths[dependency.variable].is_dir():
            missing.append(dependency)
        elif not offline:
            try:
                fetch(name, folder)
            except UnavailableError as error:
                missing.append(dependency)
                reasons.append(str(error))
    if missing:
        lines = reasons or [f"not in {folder}: {', '.join(d.folder for d in missing)}"]
        lines += ["Set as environment variables what this machine has:"]
        lines += [f"  {dependency.variable}={dependency.wanted}" for dependency in missing]
        if offline:
            lines += ["or NSA_ONNX_FETCH=1, to fetch the rest from Debian's archive or GitHub."]
        raise SystemExit("\n".join(lines))
    return paths


def main() -> None:
    arguments = [a for a in sys.argv[1:] if a != "--offline"]
    if len(arguments) < 2 or not DEPENDENCIES.keys() >= set(arguments[1:]):
        raise SystemExit(__doc__)
    folder, *names = arguments
    for variable, path in locate(names, Path(folder).resolve(), "--offline" in sys.argv).items():
        print(f"{variable}={path}")


if __name__ == "__main__":
    main()
