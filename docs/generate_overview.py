"""Draws docs/images/overview.svg: windows that become tokens, and the way of a model from PyTorch to where it runs.

python docs/generate_overview.py    # writes the picture
"""

from html import escape
from pathlib import Path

TARGET = Path(__file__).parent / "images" / "overview.svg"

BLOCK, STRIDE, TOKENS = 32, 16, 80
STARTS = range(0, TOKENS - BLOCK + 1, STRIDE)
COLORS = ("#2563eb", "#0f766e", "#b45309", "#a21caf")

CALLS = "compress", "compress_attention", "select_attention"
NODES = "Compress", "CompressAttention", "SelectedAttention"

WIDTH, HEIGHT = 880, 506
LEFT, CELL = 130, 9  # the first token, and the width of one
STYLE = """
text { font: 14px system-ui, -apple-system, "Segoe UI", "DejaVu Sans", sans-serif; fill: #1f2937 }
.head { font-weight: 600; font-size: 16px }
.small { font-size: 12px; fill: #4b5563 }
.code { font: 13px ui-monospace, "DejaVu Sans Mono", monospace }
.box { fill: #f3f4f6; stroke: #9ca3af }
.file { fill: #dbeafe; stroke: #2563eb }
.way { stroke: #4b5563; stroke-width: 1.5; fill: none; marker-end: url(#tip) }
"""


def text(x: float, y: float, words: str, kind: str = "", anchor: str = "start") -> str:
    return f'<text x="{x:g}" y="{y:g}" class="{kind}" text-anchor="{anchor}">{escape(words)}</text>'


def rect(x: float, y: float, width: float, height: float, more: str) -> str:
    return f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" {more}/>'


def way(x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<path class="way" d="M{x1:g} {y1:g} L{x2:g} {y2:g}"/>'


def windows() -> list[str]:
    """Tokens, the windows over them, and the row that each becomes."""
    rows = [
        text(24, 34, f"Compression: each window of {BLOCK} tokens, {STRIDE} apart, becomes one token", "head"),
        text(24, 73, f"{TOKENS} tokens"),
        *(rect(LEFT + CELL * token, 58, CELL - 1.5, 22, 'fill="#9ca3af"') for token in range(TOKENS)),
    ]
    for number, (start, color) in enumerate(zip(STARTS, COLORS, strict=True)):
        x, width, y = LEFT + CELL * start, CELL * BLOCK - 1.5, 92 + 24 * number
        middle = x + width / 2
        rows += [
            rect(x, y, width, 18, f'rx="3" fill="{color}" fill-opacity="0.18" stroke="{color}"'),
            text(middle, y + 13.5, f"window {number}: weighted sum", "small", "middle"),
            f'<path d="M{middle:g} {y + 18:g} V196" stroke="{color}" stroke-width="1.5"/>',
            rect(middle - 15, 196, 30, 22, f'rx="3" fill="{color}"'),
        ]
    return [*rows, text(24, 212, f"{len(STARTS)} tokens")]


def box(x: float, y: float, width: float, lines: list[tuple[str, str]], kind: str = "box") -> list[str]:
    height = 16 + 19 * len(lines)
    words = [text(x + width / 2, y + 22 + 19 * index, *line, "middle") for index, line in enumerate(lines)]
    return [rect(x, y, width, height, f'rx="6" class="{kind}"'), *words]


def path() -> list[str]:
    """Export, check, serve."""
    uses = [
        [("nsa-onnx check model.onnx", "code"), ("finds mistakes, by hand or in CI", "small")],
        [("nsa_onnx.create_session(...)", "code"), ("onnxruntime on any CPU", "small")],
        [("onnxruntime-cann", "code"), ("Ascend; so far tried on a simulated one only", "small")],
        [("nsa-onnx expand model.onnx", "code"), ("standard operators: any other runtime", "small")],
    ]
    drawn = [
        text(24, 262, "The way of a model", "head"),
        *box(24, 331, 228, [("PyTorch model", ""), *((f"nsa_{name}(...)", "code") for name in CALLS)]),
        *box(314, 331, 190, [("model.onnx", ""), *((f"Nsa{name}", "code") for name in NODES)], "file"),
        way(252, 376, 308, 376),
        text(280, 366, "export", "small", "middle"),
    ]
    for index, lines in enumerate(uses):
        y = 250 + 63 * index
        drawn += [*box(560, y, 296, lines), way(504, 376, 554, y + 27)]
    return drawn


def svg() -> str:
    tip = (
        '<marker id="tip" viewBox="0 0 8 8" refX="6" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        '<path d="M0 0 L8 4 L0 8 z" fill="#4b5563"/></marker>'
    )
    title = (
        f"{TOKENS} tokens become {len(STARTS)}: windows of {BLOCK} tokens, {STRIDE} apart, are summed with weights. "
        "Below: a PyTorch model is exported to model.onnx, which is checked, run on CPUs and Ascend, or expanded."
    )
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img">',
            f"<title>{title}</title>",
            f"<style>{STYLE}</style>",
            f"<defs>{tip}</defs>",
            rect(0, 0, WIDTH, HEIGHT, 'rx="10" fill="#ffffff"'),  # readable on a dark page, too
            *windows(),
            *path(),
            "</svg>\n",
        ]
    )


if __name__ == "__main__":
    TARGET.write_text(svg(), encoding="utf-8")
