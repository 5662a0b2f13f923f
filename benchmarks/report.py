"""The results of a run as text tables."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from . import compress_attention, decode_step, selected_attention
from .contenders import EAGER, NODE, PEERS

Record = dict[str, Any]
_IDLE = ("node", "sum", "over_sum", "identity", "plan")


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """Columns as wide as they need, the first `left` of them flush left."""
    lines = [list(columns), *map(list, rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(columns))]
    aligned = [[f"{text:{'<' if i < left else '>'}{widths[i]}}" for i, text in enumerate(line)] for line in lines]
    return "\n".join([title, *("  ".join(line).rstrip() for line in aligned)])


def head(machine: Record, threads: Sequence[int]) -> str:
    caches = ", ".join(f"{name} {size / 1024:.0f} KiB" for name, size in machine["caches"].items()) or "unknown"
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    return (
        f"{machine['processor']}, {machine['cores']} cores, caches {caches}; {machine['cpu_target']}; {versions}\n"
        + "; ".join(f"{n} threads: {machine['gflops'][str(n)]:.0f} Gflop/s" for n in threads)
    )


def reads(records: Sequence[Record]) -> str:
    """Which ways to read memory are fastest here."""
    rows = [
        [
            *(str(r["threads"]), "huge" if r["huge"] else "ordinary", f"{r['plain']:.1f}"),
            *(f"{of['gb_per_s']:.1f}  {of['name']}" for of in r["best"]),
        ]
        for r in records
    ]
    title = "The fastest ways to read memory, GB/s; plain: one stream, no prefetch"
    return table(title, ["threads", "pages", "plain", "read", "read 2", "read 3"], rows, left=6)


def prefill(records: Sequence[Record]) -> Iterator[str]:
    """Two tables per dtype and number of threads: speeds beside the limit, and our node over its peers."""
    for dtype, threads in dict.fromkeys((r["dtype"], r["threads"]) for r in records):
        some = [r for r in records if (r["dtype"], r["threads"]) == (dtype, threads)]
        yield _speeds(
            f"Prefill, {dtype}, threads: {threads}. GB/s, and speed over the fastest read (both: or computing)", some
        )
        with_peers = [r for r in some if len(r["contenders"]) > 6]
        if with_peers:
            yield _peers("Our node's speed over each peer's; in brackets the peer's GB/s", with_peers)

    yield from _scaling(records)


def _scaling(records: Sequence[Record]) -> Iterator[str]:
    """What more threads bring, to the node and to the read."""
    by_threads = {
        threads: {(r["dtype"], *_case(r)): r for r in records if r["threads"] == threads}
        for threads in sorted({r["threads"] for r in records})
    }
    if len(by_threads) < 2:
        return
    (few, alone), *_, (many, together) = by_threads.items()
    rows = []
    for key in alone.keys() & together.keys():
        before, after = alone[key]["contenders"], together[key]["contenders"]
        limits = (together[key]["limit"], alone[key]["limit"])
        read = after[limits[0]]["gb_per_s"] / before[limits[1]]["gb_per_s"]
        rows.append([*key, f"{after[NODE]['gb_per_s'] / before[NODE]['gb_per_s']:.2f}", f"{read:.2f}"])
    title = f"Speed with {many} threads over that with {few}"
    yield table(title, ["dtype", "L/S", "input", "MB", "node", "read"], sorted(rows), left=3)


def _case(record: Record) -> list[str]:
    where = f"[{record['tokens']}, {record['heads']}, {record['dim']}]"
    return [f"{record['block']}/{record['stride']}", where, f"{record['input_bytes'] / 1e6:.1f}"]


def _speeds(title: str, records: Sequence[Record]) -> str:
    rows = []
    for record in records:
        of = record["contenders"]
        ours = [f"{of[name]['gb_per_s']:.1f}" for name in (NODE, EAGER)]
        ratios = [f"{of[name]['of_limit']:.2f}" for name in (NODE, EAGER)]
        ratios.append(f"{record['of_both']:.2f}")
        limit, copy = f"{of[record['limit']]['gb_per_s']:.1f}", f"{of['copy']['gb_per_s']:.1f}"
        rows.append([*_case(record), limit, copy, *ours, *ratios, record["limit"], record["note"]])
    columns = [
        "L/S",
        "input",
        "MB",
        "read",
        "copy",
        "node",
        "eager",
        "node/read",
        "eager/read",
        "node/both",
        "fastest",
        "",
    ]
    return table(title, columns, rows, left=2)


def _peers(title: str, records: Sequence[Record]) -> str:
    names = [name for name in PEERS if any(name in record["contenders"] for record in records)]
    rows = []
    for record in records:
        cells = []
        for name in names:
            of = record["contenders"].get(name)
            cells.append(f"{of['node_over_it']:.1f}x ({of['gb_per_s']:.2f})" if of else "")
        rows.append([*_case(record), *cells, f"{record['peer_input_bytes'] / 1e6:.1f}"])
    return table(title, ["L/S", "input", "MB", *names, "peers' MB"], rows, left=2)


def eager(record: Record) -> Iterator[str]:
    rows = [
        [
            *(r["name"], str(r["threads"]), f"{r['ms']:.1f}", f"{r['over_node']:.2f}"),
            f"{100 * r['huge_share']:.0f}",
        ]
        for r in record["calls"]
    ]
    first = record["calls"][0]
    title = (
        f"Eager calls, float16, {first['block']}/{first['stride']}, a result of {first['result_bytes'] / 1e6:.1f} MB"
    )
    yield table(title, ["call", "threads", "ms", "over the node", "% in huge pages"], rows)


def decode(record: Record) -> Iterator[str]:
    growth = [
        [r["grows"], f"{r['cache_bytes'] / 2**20:.0f}", f"{r['pool_bytes'] / 2**20:.0f}", f"{r['us']:.1f}"]
        for r in record["growth"]
    ]
    if growth:
        first = record["growth"][0]
        title = f"Decode, {first['batch']} windows a step, cache in place, threads: {first['threads']}"
        yield table(title, ["grows", "cache MiB", "pages MiB", "us/step"], growth)
    rows = [
        [
            *(str(r["threads"]), str(r["windows"]), f"{r['node_us']:.0f}", f"{r['node_gb_per_s']:.1f}"),
            *(f"{r['limit_gb_per_s']:.1f}", f"{r['of_limit']:.2f}", f"{r['touched_bytes'] / 1e6:.0f}", r["note"]),
        ]
        for r in record["scattered"]
    ]
    title = "Decode, windows scattered over the pool, against a read of the same memory"
    yield table(title, ["threads", "windows", "us", "GB/s", "read", "node/read", "touched MB", ""], rows)
    rows = [
        [r["operator"], str(r["threads"]), str(r["sequences"]), *(f"{r[f'{kind}_us']:.1f}" for kind in _IDLE)]
        for r in record["idle"]
    ]
    title = "Decode, a step with nothing to do: us of a node, of a Sum of as many inputs, of an Identity; the plan"
    yield table(title, ["operator", "threads", "sequences", "node", "Sum", "node - Sum", "Identity", "plan"], rows)


def growth(record: Record) -> Iterator[str]:
    rows = [
        [
            *(r["sweep"], str(r["tokens"]), str(r["segments"]), f"{r['heads']}", f"{r['dim']}"),
            *(f"{r['block']}/{r['stride']}", f"{r['input_bytes'] / 1e6:.1f}"),
            *(f"{r['ns_per_byte']:.4f}", f"{r['read_ns_per_byte']:.4f}", f"{r['of_limit']:.2f}"),
        ]
        for r in record["points"]
    ]
    title = f"Growth, float16, threads: {record['threads']}. ns per byte read and written"
    columns = ["sweep", "T", "B", "N", "D", "L/S", "MB", "ns/byte", "read ns/byte", "of read"]
    yield table(title, columns, rows)
    plan = record["plan"]
    yield (
        f"Plan of {plan['segments']} ragged segments ({plan['tokens']} tokens, {plan['rows']} windows, "
        f"{plan['input_bytes'] / 1e6:.0f} MB): {plan['plan_ms']:.2f} ms of {plan['total_ms']:.1f} ms, "
        f"{100 * plan['share']:.1f} %"
    )


def figures(record: Record) -> Iterator[str]:
    demo = record["demo"]
    yield (
        f"The demo's decode step with {demo['cache_bytes'] / 1e6:.0f} MB of caches (docs/demo.md): "
        f"{demo['in_place_ms']:.2f} ms in place, {demo['own_outputs_ms']:.0f} ms with outputs of their own"
    )
    names = {"portable body": "Loop", "ort gather": "ReduceSum"}
    rows = [
        [
            *(f"{r['block']}/{r['stride']}", names[r["name"]], f"{r['ms']:.1f}"),
            *(f"{r['extra_kib'] / 1024:.0f}", str(r["ulps"])),
        ]
        for r in record["portable"]
    ]
    title = "The portable body (nsa_onnx/operators/bodies.py), [16384, 4, 128] float16, threads: 2"
    yield table(title, ["L/S", "form", "ms", "extra MiB", "ulps off"], rows, left=2)


def models(record: Record) -> Iterator[str]:
    """Commands of nsa-onnx on one large model."""
    commands = record["commands"]
    rows = [[r["command"], f"{r['ms_per_node']:.4f}", f"{r['over_onnx']:.1f}"] for r in commands]
    title = f"Commands on a model of {commands[0]['nodes']} nodes: processor time, over onnx's reading and inference"
    yield table(title, ["command", "ms/node", "over onnx"], rows)


def startup(record: Record) -> Iterator[str]:
    owners = list(record["programs"][0]["imports_ms"])
    rows = [
        [r["program"], f"{r['ms']:.0f}", *(f"{r['imports_ms'][owner]:.0f}" for owner in owners)]
        for r in record["programs"]
    ]
    columns = ["program", "ms", *(f"{owner}'s modules" for owner in owners)]
    yield table("Start-up: whole processes, and what they import (-X importtime, which slows it)", columns, rows)
    rows = [[r["stage"], f"{r['ms']:.2f}"] for r in record["session"]]
    yield table("Start-up: what a session's first run waits for, one after the other", ["stage", "ms"], rows)


def compressed(record: Record) -> Iterator[str]:
    yield from compress_attention.tables(record, table)


def selected(record: Record) -> Iterator[str]:
    yield from selected_attention.tables(record, table)


def step(record: Record) -> Iterator[str]:
    yield from decode_step.tables(record, table)


def full(run: Record) -> str:
    """The whole report."""
    parts = [head(run["machine"], run["threads"]), reads(run["machine"]["reads"])]
    writers: dict[str, Callable[[Any], Iterator[str]]] = {
        **{"prefill": prefill, "eager": eager, "decode": decode, "compressed": compressed},
        **{"selected": selected, "step": step},
        **{"growth": growth, "figures": figures, "models": models, "startup": startup},
    }
    for section, write in writers.items():
        if section in run:
            parts.extend(write(run[section]))
    return "\n\n".join(parts)
