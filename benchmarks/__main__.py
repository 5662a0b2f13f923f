"""Compares the CPU kernel with the speed of memory and with other implementations (peers), all in one run.

    python -m benchmarks [--quick] [--sections prefill,decode,...] [--json FILE] [--plots FOLDER]

Sections: prefill (our kernel, peers and the memory limit, on inputs larger than the caches and one that fits L2),
eager (calls that allocate their result), decode (NsaCompressInfer, and the fixed cost of every decode step),
compressed and selected (the compress and the selected attentions), step (a whole decode step against attention to all
tokens), growth (cost over the size of the work), figures (two comparisons that the documentation quotes), models (what
check, fuse and other commands cost per node of a model), startup (what is waited for before work begins).
docs/performance.md explains the tables.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, astuple
from pathlib import Path
from typing import Any

from nsa_onnx.graph.writing import replace_file
from nsa_onnx.operators.nsa_compress.contract import shape_violations
from nsa_onnx.runtime import native

from . import (
    compress_attention,
    contenders,
    decode_step,
    growth,
    limits,
    machine,
    memory,
    prefill,
    report,
    selected_attention,
)
from .contenders import Case
from .worker import Worker, WorkerError

SECTIONS = ("prefill", "eager", "decode", "compressed", "selected", "step", "growth", "figures", "models", "startup")
# block/stride, or block/stride@heads x dim: at 4x128 with all peers, elsewhere without.
SHAPES = ("32/16", "64/32", "32/32", "64/16", "128/16", "32/16@1x16", "32/16@32x16", "32/16@1x128")
QUICK_SHAPES = ("32/16", "128/16@4x64")
HEADS, DIM = 4, 128
FEWEST_TOKENS = 1024  # of a peer's input, whatever else is asked for
MOST_PEER_PROMPT = 8192
ALWAYS = (*contenders.LIMITS, *contenders.OURS)


def _shape(text: str) -> tuple[int, int, int, int]:
    window, _, sizes = text.partition("@")
    try:
        block, stride = map(int, window.split("/"))
        heads, dim = map(int, sizes.split("x")) if sizes else (HEADS, DIM)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not BLOCK/STRIDE or BLOCK/STRIDE@HEADSxDIM") from None
    for violation in shape_violations((None, heads, dim), (block, heads), block, stride):
        raise argparse.ArgumentTypeError(violation.message)
    return block, stride, heads, dim


def _listed(choices: Any, kind: Callable[[str], Any] = str) -> Callable[[str], list[Any]]:
    def parse(text: str) -> list[Any]:
        values = [kind(part) for part in text.split(",")]
        wrong = [value for value in values if choices is not None and value not in choices]
        if wrong:
            raise argparse.ArgumentTypeError(f"{wrong[0]!r} is none of {', '.join(choices)}")
        return values

    return parse


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a number of at least 1, got {text!r}")
    return int(text)


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    threads = sorted({1, native.default_threads()})
    add("--quick", action="store_true", help="a rough picture in less than a minute")
    add("--sections", type=_listed(SECTIONS), default=list(SECTIONS), metavar="NAMES", help=", ".join(SECTIONS))
    add("--shapes", type=_listed(None, _shape), metavar="L/S[@NxD],...", help=f"default: {','.join(SHAPES)}")
    add("--dtype", choices=(*memory.DTYPES, "both"), help="default: both; float16 with --quick")
    add("--threads", type=_listed(None, _positive), default=threads, metavar="N,...", help=f"default: {threads}")
    add("--rounds", type=_positive, help="default: 11; 5 with --quick")
    add("--megabytes", type=_positive, help="input of prefill; default: 512 MiB, 128 with --quick")
    add("--peer-megabytes", type=_positive, help="at most so much for the peers; default: 128 MiB, 64 with --quick")
    peers = ", ".join(contenders.PEERS)
    add("--peers", type=_listed(contenders.PEERS), metavar="NAMES", help=f"default: all of {peers}; decode has none")
    add("--no-peers", dest="peers", action="store_const", const=[], help="only our kernel and the limits")
    add("--json", type=Path, metavar="FILE", help="write the figures here")
    add("--plots", type=Path, metavar="FOLDER", help="write roofline.png, growth.png and step.png here")
    arguments = parser.parse_args(argv)
    quick = {"dtype": "float16", "rounds": 5, "megabytes": 128, "peer_megabytes": 64}
    usual = {"dtype": "both", "rounds": 11, "megabytes": 512, "peer_megabytes": 128}
    for name, value in (quick if arguments.quick else usual).items():
        if getattr(arguments, name) is None:
            setattr(arguments, name, value)
    arguments.shapes = arguments.shapes or [_shape(text) for text in (QUICK_SHAPES if arguments.quick else SHAPES)]
    arguments.peers = list(contenders.PEERS) if arguments.peers is None else arguments.peers
    return arguments


def _plans(arguments: argparse.Namespace) -> Iterator[prefill.Plan]:
    """The cases of prefill. One that fits L2 comes last: half a cache, so that the output fits as well."""
    dtypes = list(memory.DTYPES) if arguments.dtype == "both" else [arguments.dtype]
    peers = tuple(name for name in contenders.PEERS if name in arguments.peers)
    in_l2 = machine.cache_bytes().get(2, 1 << 20) // 2
    sizes = [(shape, arguments.megabytes << 20) for shape in arguments.shapes]
    sizes.append(((32, 16, HEADS, DIM), min(in_l2, arguments.megabytes << 20)))
    for dtype in dtypes:
        for threads in arguments.threads:
            for (block, stride, heads, dim), size in sizes:
                tokens = max(size // (heads * dim * 2), block)
                case = Case(block, stride, heads, dim, dtype, tokens, threads)
                few = (arguments.peer_megabytes << 20) // case.token_bytes
                # Peers take long to prepare: other N and D say nothing new about them, nor a second size in a hurry.
                without = (heads, dim) != (HEADS, DIM) or (arguments.quick and size == in_l2)
                names = ALWAYS + (() if without else peers)
                name = f"{dtype} {block}/{stride} [{tokens}, {heads}, {dim}] x{threads}"
                yield prefill.Plan(name, case, names, min(tokens, max(few, FEWEST_TOKENS)))


class Progress:
    """A bar on a terminal, nothing elsewhere."""

    def __init__(self, total: int) -> None:
        self._bar = None
        if sys.stderr.isatty():
            from tqdm import tqdm

            self._bar = tqdm(total=total, unit="step", leave=False, dynamic_ncols=True)

    def tick(self, what: str) -> None:
        if self._bar is not None:
            self._bar.set_description(what, refresh=False)
            self._bar.update()

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()


@contextmanager
def _progress(total: int) -> Iterator[prefill.Tick]:
    progress = Progress(total)
    try:
        yield progress.tick
    finally:
        progress.close()


def _calls(arguments: argparse.Namespace) -> dict[str, list[tuple[str, dict[str, Any]]]]:
    """What the other sections ask their workers for: function and arguments."""
    quick, rounds = arguments.quick, arguments.rounds
    small = arguments.megabytes < 16  # a test: sizes that say nothing about speed
    most = max(arguments.threads)
    base = 1 << (14 if small else 17 if quick else 19)
    sweep = [asdict(point) for point in growth.points(base, base if small else 4 * base)]
    nodes = 600 if small else 10_000 if quick else 60_000
    segments = 1000 if small else 20_000 if quick else 100_000
    caches = [1, 2] if small else [1, 16, 256] if quick else [1, 4, 16, 64, 256, 1024]
    pool = 64 if small else 512 if quick else 1024
    each = [{"threads": threads, "rounds": rounds} for threads in arguments.threads]
    figures = [(name, block) for block in ((32,) if quick or small else (32, 128)) for name in contenders.EXACT[2:]]
    figures += [("ort gather", block) for _, block in figures]
    return {
        "eager": [("eager:results", {**some, "megabytes": 8 if small else 768}) for some in each[-1 if small else 0 :]],
        "decode": [
            ("decode:growth", {"threads": most, "rounds": rounds, "megabytes": caches}),
            *(("decode:scattered", {**some, "megabytes": pool}) for some in each),
            *(("decode_cost:idle", some) for some in each),
        ],
        **_attention_calls(arguments, small, most),
        "growth": [
            ("growth:measure", {"sweep": sweep, "threads": most, "rounds": rounds}),
            ("growth:plan_time", {"segments": segments, "threads": most, "rounds": rounds}),
        ],
        "figures": [
            ("figures:decode_in_place", {"megabytes": 8 if small else 361, "rounds": rounds}),
            *(("figures:portable", {"name": n, "block": b, "stride": 16, "rounds": rounds}) for n, b in figures),
        ],
        "models": [("models:commands", {"nodes": nodes, "rounds": min(rounds, 3)})],
        "startup": [(f"startup:{name}", {"rounds": 1 if small else rounds}) for name in ("programs", "session")],
    }


def _attention_calls(arguments: argparse.Namespace, small: bool, threads: int) -> dict[str, Any]:
    """Those of the attention stages: of a prompt with few rounds, since it takes seconds."""
    quick, rounds = arguments.quick, arguments.rounds
    tokens = 256 if small else 4096 if quick else 16384
    heads = [1] if small or quick else [1, 4]
    few = {"threads": threads, "rounds": min(rounds, 3)}
    prompts = [{"tokens": tokens, "kv_heads": n, **few} for n in heads]
    # torch's attention to all tokens keeps the logits of all heads: 24 GiB are too few for more.
    if tokens > MOST_PEER_PROMPT:
        prompts.insert(0, {"tokens": MOST_PEER_PROMPT, "kv_heads": heads[0], **few})
    peers = [name for name in selected_attention.PEERS if arguments.peers and not (small and "flex" in name)]
    dense_peers = list(compress_attention.PEERS) if arguments.peers else []
    context, sequences = (2048, 2) if small else (65536, 4 if quick else 32)
    steps = [(1, 16)] if small or quick else [(1, 16), (1, 4), (1, 1), (4, 16), (4, 4)]
    lengths = [512, 1024] if small else [4096, 65536] if quick else [4096, 8192, 16384, 32768, 65536]
    dense = list(decode_step.PEERS) if arguments.peers else []
    usual = {"threads": threads, "rounds": rounds}

    def calls(module: str, names: list[str]) -> list[tuple[str, dict[str, Any]]]:
        step = {"tokens": context, "sequences": sequences, **usual}
        return [
            *((f"{module}:prefill", prompt) for prompt in prompts),
            *((f"{module}:peer", {"name": name, **prompt}) for name in names for prompt in prompts[:1]),
            *((f"{module}:decode", {**step, "kv_heads": n, "group": g}) for n, g in steps),
        ]

    return {
        "compressed": calls("compress_attention", dense_peers),
        "selected": calls("selected_attention", peers),
        "step": [
            ("decode_step:sparse", {"tokens": lengths, **usual}),
            *(("decode_step:dense", {"name": name, "tokens": lengths, **usual}) for name in dense),
        ],
    }


def _shaped(section: str, arguments: argparse.Namespace, results: list[Any]) -> dict[str, Any]:
    """The results of a section's calls, in their order, as its record."""
    if section == "eager":
        return {"calls": [row for rows in results for row in rows]}
    if section == "startup":
        return {"programs": results[0], "session": results[1]}
    if section == "decode":
        count = len(arguments.threads)
        return {
            "growth": results[0],
            "scattered": results[1 : 1 + count],
            "idle": [row for rows in results[1 + count :] for row in rows],
        }
    if section in ("compressed", "selected"):
        kinds = {"prefill": "of_limit", "peers": "name", "decode": "of_read"}  # a field that only they have
        found = {name: [of for of in results if field in of] for name, field in kinds.items()}
        return {**found, "prefill": [of for of in found["prefill"] if "of_read" not in of]}
    if section == "step":
        return {"sparse": results[0], "dense": [point for points in results[1:] for point in points]}
    if section == "growth":
        return {"threads": max(arguments.threads), "points": results[0], "plan": results[1]}
    if section == "figures":
        return {"demo": results[0], "portable": results[1:]}
    return {"commands": results[0]}


def _reads(arguments: argparse.Namespace, target: str) -> list[dict[str, Any]]:
    """The fastest ways to read memory, in huge pages and in ordinary ones; chooses the former for the whole run."""
    size = max(2, min(arguments.megabytes, 256))
    reads, found = [], {}
    for threads in arguments.threads:
        for huge in (True, False):
            with Worker() as worker:
                ranked = worker.call("limits:search", target=target, threads=threads, megabytes=size, huge=huge)
            if huge:
                found[threads] = ranked
            plain = next(of for of in ranked if of["way"] == list(astuple(limits.Way())))
            reads.append({"threads": threads, "huge": huge, "best": ranked[:3], "plain": plain["gb_per_s"]})
    limits.choose(found)
    return reads


def measure(arguments: argparse.Namespace, run: dict[str, Any]) -> None:
    """Fills the record of a run, section by section."""
    limits.build()
    run |= {"machine": machine.describe(), "threads": arguments.threads, "rounds": arguments.rounds}
    target = native.cpu_target()
    operations = {str(n): limits.operations_per_second(target, n) / 1e9 for n in arguments.threads}
    run["machine"]["gflops"] = operations
    run["machine"]["reads"] = _reads(arguments, target)
    plans = list(_plans(arguments)) if "prefill" in arguments.sections else []
    calls = {name: of for name, of in _calls(arguments).items() if name in arguments.sections}
    with _progress(prefill.steps(plans, arguments.rounds) + sum(map(len, calls.values()))) as tick:
        if plans:
            with prefill.Team() as team:
                run["prefill"] = [
                    prefill.measure(plan, team, arguments.rounds, tick, operations[str(plan.case.threads)])
                    for plan in plans
                ]
        for section, of in calls.items():
            results = []
            for function, given in of:
                tick(function)
                with Worker() as worker:  # a fresh one: memory that others used up would be in the figures
                    results.append(worker.call(function, **given))
            run[section] = _shaped(section, arguments, results)


def main(argv: list[str] | None = None) -> int:
    arguments = _arguments(argv)
    run: dict[str, Any] = {}
    try:
        measure(arguments, run)
    except (WorkerError, AssertionError) as error:
        if "reads" in run.get("machine", {}):
            print(report.full(run))  # of what came before: it may have taken long
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(report.full(run))
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        replace_file(arguments.json, f"{json.dumps(run, indent=1)}\n".encode())
    if arguments.plots:
        from . import plots

        if "prefill" in run:
            plots.roofline(run, arguments.plots / "roofline.png")
        if "growth" in run:
            plots.growth(run["growth"], arguments.plots / "growth.png")
        if "step" in run:
            plots.step(run["step"], arguments.plots / "step.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
