"""Copies of the kernels and tilings with one line or one bound broken, compiled into one library.

A mutant is the text of one file of ascend_kernels/ with one place changed; the tests must notice each. All of them go
into one C++ file, each in a namespace of its own, so that the look-alike of Ascend C is compiled once. Number 0 changes
nothing.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import lookalike

KERNELS = lookalike.ROOT / "ascend_kernels"
OPS = {"compress": "nsa_compress", "infer": "nsa_compress_infer"}
KERNEL_CLASS = {"compress": "NsaCompressKernel", "infer": "NsaCompressInferKernel"}


@dataclass(frozen=True)
class Mutant:
    """`text` is what is left of file `path` (in ascend_kernels/) for operator `op`."""

    op: str
    path: str
    line: int
    change: str
    text: str

    @property
    def name(self) -> str:
        return f"{self.path}:{self.line}: {self.change}"


def _without_line(text: str, start: int) -> tuple[str, str]:
    """`text` without the statement that begins on the line at `start`, and that statement."""
    begin = text.rindex("\n", 0, start) + 1
    end = text.index(";", start) + 1
    statement = text[begin:end]
    # What an "if" guards goes with its semicolon left behind.
    return text[:begin] + " " * (len(statement) - 1) + ";" + text[end:], " ".join(statement.split())


def _call_arguments(text: str, start: int) -> tuple[list[str], int]:
    """The arguments of the call whose "(" is at `start`, and where it ends."""
    depth, parts, begin = 0, [], start + 1
    for i in range(start, len(text)):
        depth += (text[i] in "([{") - (text[i] in ")]}")
        if depth == 0:
            return [*parts, text[begin:i].strip()], i + 1
        if text[i] == "," and depth == 1:
            parts.append(text[begin:i].strip())
            begin = i + 1
    raise ValueError("unbalanced call")


STATEMENTS = (
    r"PipeBarrier<",
    r"SetFlag<",
    r"WaitFlag<",
    r"AwaitStore\(\);",
    r"\.EnQue\(",
    r"\.FreeTensor\(",
)
# Flags come in pairs; taking both away removes the synchronization without a dangling half.
FLAG_PAIR = re.compile(r"SetFlag<HardEvent::(\w+)>\(\w+\);[^\n]*\n\s*WaitFlag<HardEvent::\1>\(\w+\);")
GUARD = re.compile(r"if \(([^{}\n]*)\) (return|break)(?: -1| false)?;")
BOUND = re.compile(r"(?<![\w:])(?:std::)?(Min|Max|min|max)\(")
ROUNDING = (
    (r"CeilDiv\((\w+|\w+\.heads), (kBlock\w+)\) \* \2", r"\1"),
    (r"RoundUp\(([^,()]+), \w+\)", r"\1"),
    (r"CeilDiv\((block_), (stride_)\)", r"(\1 / \2)"),
    (r"DivUp\(([^,()]+|Word\(\w+\)|[^,]+), ((?:[^()]|\([^()]*\))+)\)", r"((\1) / (\2))"),
)


def _kernel_mutants(op: str) -> Iterator[Mutant]:
    path = f"{OPS[op]}/{OPS[op]}.h"
    text = (KERNELS / path).read_text(encoding="utf-8")

    def mutant(start: int, change: str, changed: str) -> Mutant:
        return Mutant(op, path, text.count("\n", 0, start) + 1, change, changed)

    for pattern in STATEMENTS:
        for match in re.finditer(pattern, text):
            if re.search(r"inline \S+ (\w+::)?$", text[: match.start()]) or "inline void" in _line_of(
                text, match.start()
            ):
                continue  # a declaration
            changed, statement = _without_line(text, match.start())
            yield mutant(match.start(), f"without {statement}", changed)
    for match in FLAG_PAIR.finditer(text):
        yield mutant(match.start(), f"without both flags {match[1]}", text[: match.start()] + text[match.end() :])
    yield from _bound_mutants(op, path, text)


def _line_of(text: str, at: int) -> str:
    return text[text.rindex("\n", 0, at) + 1 : text.index("\n", at)]


def _bound_mutants(op: str, path: str, text: str) -> Iterator[Mutant]:
    """Guards that never fire, minima and maxima that are one of their arguments, sizes that are not rounded up."""

    def mutant(start: int, change: str, changed: str) -> Mutant:
        return Mutant(op, path, text.count("\n", 0, start) + 1, change, changed)

    for match in GUARD.finditer(text):
        changed = text[: match.start()] + f"(void)({match[1]});" + text[match.end() :]
        yield mutant(match.start(), f"without {match[0]}", changed)
    for match in BOUND.finditer(text):
        arguments, end = _call_arguments(text, match.end() - 1)
        if len(arguments) != 2 or "I a" in arguments[0]:
            continue
        for argument in arguments:
            changed = text[: match.start()] + f"({argument})" + text[end:]
            yield mutant(match.start(), f"{argument} instead of {text[match.start() : end]}", changed)
    for pattern, replacement in ROUNDING:
        for match in re.finditer(pattern, text):
            changed = text[: match.start()] + match.expand(replacement) + text[match.end() :]
            yield mutant(match.start(), f"{match.expand(replacement)} instead of {match[0]}", changed)


def _tiling_mutants(op: str) -> Iterator[Mutant]:
    """Not of the cost model: it ranks tilings, and a wrong rank is no fault. Its refusals are bounds, though."""
    path = f"{OPS[op]}/tiling.cc"
    text = (KERNELS / path).read_text(encoding="utf-8")
    model = []  # the first and the last line of each of its functions
    for match in re.finditer(r"^double \w+\(", text, re.MULTILINE):
        model.append((text.count("\n", 0, match.start()), text.count("\n", 0, text.index("\n}\n", match.start())) + 1))
    for mutant in _bound_mutants(op, path, text):
        of_the_model = any(first <= mutant.line <= last for first, last in model)
        if not of_the_model or mutant.change.startswith("without"):
            yield mutant


def all_mutants() -> list[Mutant]:
    found = [Mutant("", "", 0, "nothing changed", "")]
    for op in OPS:
        found += _kernel_mutants(op)
        found += _tiling_mutants(op)
    return found


def _body(text: str) -> str:
    """`text` without its includes and include guard."""
    lines = text.splitlines()
    guard = next((line.split()[1] for line in lines if line.startswith("#ifndef")), None)
    keep = []
    for line in lines:
        directive = line.startswith("#")
        keep.append("" if directive and (line.startswith("#include") or (guard and guard in line)) else line)
    # The closing #endif of the guard, if there was one.
    return "\n".join("" if line.startswith("#endif") else line for line in keep)


HEAD = """// Generated by tests/sim/ascendc/mutants.py.
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

#include "device.h"
#include "kernel_operator.h"
#include "nsa_compress/layout.h"
#include "nsa_compress_infer/layout.h"
#include "plan/nsa_compress.h"
#include "plan/nsa_compress_infer.h"
#include "run_kernel.h"

using Run = ascendc_sim::Counters (*)(const ascendc_sim::Tensors&, int, uint64_t);
using Tile = std::vector<int64_t> (*)(const int64_t* shape, const void* work, int64_t count, int64_t cores);
"""

# How a tiling looks from outside, whatever its types are: words of a shape in, words of a plan out.
TILE = {
    "compress": """
static std::vector<int64_t> Run(const int64_t* s, const void* work, int64_t count, int64_t cores) {
  nsa_ascend::Chip chip;
  chip.cores = cores;
  const nsa_ascend::CompressShape shape{s[0] != 0, s[1], s[2], s[3], s[4], s[5]};
  return nsa_ascend::TileCompress(shape, static_cast<const nsa::compress::RowRun*>(work), count, chip);
}""",
    "infer": """
static std::vector<int64_t> Run(const int64_t* s, const void* work, int64_t count, int64_t cores) {
  nsa_ascend::Chip chip;
  chip.cores = cores;
  const nsa_ascend::DecodeShape shape{s[1], s[2], s[3], s[4], s[5], s[6]};
  return nsa_ascend::TileDecode(shape, static_cast<const nsa::compress_decode::SlotWrite*>(work), count, chip);
}""",
}

TAIL = """
static std::string message;

static int64_t HandOut(const std::vector<int64_t>& words, int64_t* plan, int64_t capacity) {
  if (plan && capacity >= static_cast<int64_t>(words.size())) std::memcpy(plan, words.data(), words.size() * 8);
  return static_cast<int64_t>(words.size());
}

extern "C" {
int64_t mutant_plan(int m, int infer, const int64_t* shape, const void* work, int64_t count, int64_t cores,
                    int64_t* plan, int64_t capacity) {
  return HandOut((infer ? kTileInfer : kTileCompress)[m](shape, work, count, cores), plan, capacity);
}
const char* mutant_run(int m, int infer, int bfloat16, uint8_t* input, uint8_t* weight, uint8_t* output,
                       uint8_t* plan, int blocks, uint64_t* shortest_burst) {
  message.clear();
  try {
    const Run run = infer ? kInfer[m][bfloat16] : kCompress[m][bfloat16];
    const auto counters = run({input, weight, output, plan}, blocks, 1);
    *shortest_burst = counters.read.count("input") ? counters.read.at("input").shortest_burst : 0;
  } catch (const std::exception& problem) {
    message = problem.what();
  }
  return message.c_str();
}
}
"""


def _tiling(op: str, name: str, text: str) -> str:
    """The tiling `text` of an operator and the headers it needs, in namespace `name`."""
    headers = [(KERNELS / path).read_text(encoding="utf-8") for path in ("tiling.h", f"{OPS[op]}/tiling.h")]
    parts = [f"namespace {name} {{ namespace nsa_ascend {{ using namespace ::nsa_ascend; }}"]
    return "\n".join([*parts, *map(_body, headers), _body(text), TILE[op], "}"])


def _kernel(name: str, text: str) -> str:
    opening = f"namespace {name} {{ namespace nsa_ascend {{ using namespace ::nsa_ascend; }}"
    return "\n".join([opening, _body(text), "}"])


def source(mutants: list[Mutant]) -> str:
    """The C++ file with all of them."""
    parts = [HEAD]
    for op, folder in OPS.items():
        parts.append(_kernel(f"{op}_kernel_0", (KERNELS / folder / f"{folder}.h").read_text(encoding="utf-8")))
        parts.append(_tiling(op, f"{op}_tiling_0", (KERNELS / folder / "tiling.cc").read_text(encoding="utf-8")))
    kernels: dict[str, list[str]] = {op: [] for op in OPS}
    tilings: dict[str, list[str]] = {op: [] for op in OPS}
    for index, mutant in enumerate(mutants):
        is_tiling = mutant.path.endswith("tiling.cc")
        if mutant.path:
            name = f"{mutant.op}_{'tiling' if is_tiling else 'kernel'}_{index}"
            parts.append(_tiling(mutant.op, name, mutant.text) if is_tiling else _kernel(name, mutant.text))
        for op in OPS:
            changed = index if mutant.op == op else 0
            run = f"ascendc_sim::RunKernel<{op}_kernel_{0 if is_tiling else changed}::nsa_ascend::{KERNEL_CLASS[op]}<"
            kernels[op].append(f"{{{run}half>>, {run}bfloat16_t>>}}")
            tilings[op].append(f"{op}_tiling_{changed if is_tiling else 0}::Run")
    for op in OPS:
        parts.append(f"static const Run k{op.capitalize()}[][2] = {{{', '.join(kernels[op])}}};")
        parts.append(f"static const Tile kTile{op.capitalize()}[] = {{{', '.join(tilings[op])}}};")
    return "\n".join([*parts, TAIL])


def build(mutants: list[Mutant]) -> Path:
    """Compile them, unless this very text has been compiled already; the library."""
    text = source(mutants)
    look_alike = "".join(path.read_text(encoding="utf-8") for path in sorted(lookalike.HERE.glob("machine.cc")))
    look_alike += "".join(path.read_text(encoding="utf-8") for path in sorted(lookalike.HERE.glob("*.h")))
    shared = "".join(path.read_text(encoding="utf-8") for path in sorted(KERNELS.rglob("*.h")))
    key = hashlib.sha256((text + look_alike + shared).encode()).hexdigest()[:16]
    folder = lookalike.BUILD / "mutants"
    library = folder / f"mutants-{key}.so"
    if library.exists():
        return library
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    (folder / "mutants.cc").write_text(text, encoding="utf-8")
    includes = (lookalike.HERE, KERNELS, lookalike.ROOT, lookalike.BUILD / "generated")
    command = [
        # Not optimized: the compiler would take longer than all runs together.
        *("g++", "-std=c++17", "-O0", "-w", "-ffp-contract=off", "-shared", "-fPIC"),
        *(f"-I{folder}" for folder in includes),
        *(str(folder / "mutants.cc"), str(lookalike.BUILD / "libascendc_machine.a"), "-o", str(library)),
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr[:20000]}")
    return library
