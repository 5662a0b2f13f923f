"""Draws docs/images/layer.svg: what one query of an NSA layer reads, branch by branch.

python docs/generate_layer.py    # writes the picture
"""

from html import escape
from pathlib import Path

TARGET = Path(__file__).parent / "images" / "layer.svg"

BLOCK, STRIDE, SELECT, COUNT, LATEST = 32, 16, 64, 4, 128
TOKENS = 512  # the query is the last of them
WINDOWS = (TOKENS - BLOCK) // STRIDE + 1
BLOCKS = TOKENS // SELECT
# Attention of the query to each compressed token: made up, with a place of interest in block 2.
ATTENTION = [1.0 / (1 + abs(window - 10) ** 1.5) + 0.08 + 0.25 * (window > 26) for window in range(WINDOWS)]

WIDTH, HEIGHT = 880, 424
LEFT, CELL = 212, 0.92  # the first token, and the width of one
BLUE, GREEN, BROWN, GREY = "#2563eb", "#0f766e", "#b45309", "#d1d5db"
STYLE = """
text { font: 14px system-ui, -apple-system, "Segoe UI", "DejaVu Sans", sans-serif; fill: #1f2937 }
.head { font-weight: 600; font-size: 16px }
.small { font-size: 12px; fill: #4b5563 }
.code { font: 13px ui-monospace, "DejaVu Sans Mono", monospace }
.way { stroke: #4b5563; stroke-width: 1.5; fill: none; marker-end: url(#tip) }
"""


def scores() -> list[float]:
    """Of each block, as the nodes count them (docs/from-the-paper.md, step 3)."""
    m, n = SELECT // STRIDE, BLOCK // STRIDE
    windows = dict(enumerate(ATTENTION))
    return [
        sum(min(i + 1, n, m + n - 1 - i) * windows.get(m * (s + 1) - i, 0.0) for i in range(m + n - 1))
        for s in range(BLOCKS)
    ]


def chosen() -> list[int]:
    """As a decode step chooses: the first and the last two blocks, and then by score."""
    forced = [0, BLOCKS - 2, BLOCKS - 1]
    others = sorted((s for s in range(BLOCKS) if s not in forced), key=lambda s: -scores()[s])
    return [*forced, *others][:COUNT]


def text(x: float, y: float, words: str, kind: str = "", anchor: str = "start") -> str:
    return f'<text x="{x:g}" y="{y:g}" class="{kind}" text-anchor="{anchor}">{escape(words)}</text>'


def tokens(first: float, count: float, y: float, color: str, height: float = 20, more: str = "") -> str:
    """Some of the tokens, as a bar."""
    x, width = LEFT + CELL * first, CELL * count - 1.5
    return f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" fill="{color}" {more}/>'


def way(points: str) -> str:
    return f'<path class="way" d="{points}"/>'


def rows() -> list[str]:
    right = LEFT + CELL * TOKENS
    top = max(scores())
    drawn = [
        text(24, 34, f"What one query reads: the last of {TOKENS} tokens", "head"),
        text(24, 73, "tokens, in blocks"),
        *(tokens(SELECT * s, SELECT, 58, GREY) for s in range(BLOCKS)),
        *(text(LEFT + CELL * SELECT * (s + 0.5), 73, str(s), "small", "middle") for s in range(BLOCKS)),
        tokens(TOKENS - 3, 4.5, 54, "#111827", 28),
        text(right - 1, 48, "query", "small", "end"),
        # Compressed tokens: one per window, drawn where the window begins; darker is more attention.
        text(24, 123, "branch cmp"),
        text(24, 139, f"all {WINDOWS} compressed tokens", "small"),
        *(
            tokens(STRIDE * w, STRIDE, 112, BLUE, 20, f'fill-opacity="{0.15 + 0.8 * min(1, a):.2f}"')
            for w, a in enumerate(ATTENTION)
        ),
        text(24, 187, "scores of the blocks"),
        text(24, 203, "the attention to their windows", "small"),
        *(
            tokens(
                SELECT * s + 8, SELECT - 16, 208 - 50 * score / top, BLUE if s in chosen() else GREY, 50 * score / top
            )
            for s, score in enumerate(scores())
        ),
        way(f"M{LEFT + CELL * 168:g} 134 V152"),
        text(24, 257, "branch slc"),
        text(24, 273, f"{COUNT} chosen blocks", "small"),
        *(tokens(SELECT * s, SELECT, 246, GREEN if s in chosen() else "#f3f4f6") for s in range(BLOCKS)),
        *(way(f"M{LEFT + CELL * SELECT * (s + 0.5):g} 212 V240") for s in chosen()),
        *(
            text(LEFT + CELL * SELECT * (s + 0.5), 281, why, "small", "middle")
            for s, why in ((0, "the first"), (chosen()[-1], "by score"))
        ),
        text(LEFT + CELL * SELECT * (BLOCKS - 1), 281, "the last two", "small", "middle"),
        text(24, 327, "branch win"),
        text(24, 343, f"the latest {LATEST} tokens", "small"),
        tokens(0, TOKENS - LATEST, 316, "#f3f4f6"),
        tokens(TOKENS - LATEST, LATEST, 316, BROWN),
    ]
    for y, name in ((122, "gate_cmp"), (256, "gate_slc"), (326, "gate_win")):
        drawn += [way(f"M{right + 6:g} {y} H{right + 24:g}"), text(right + 30, y + 5, f"x {name}", "code")]
    drawn += [
        *(way(f"M{right + 112:g} {y} H{right + 136:g}") for y in (122, 256, 326)),
        f'<path d="M{right + 138:g} 112 V336" stroke="#4b5563" stroke-width="3"/>',
        text(right + 156, 229, "+", "head", "middle"),
        way(f"M{right + 138:g} 336 V372"),
        text(right + 164, 392, "result of the layer", "", "end"),
        text(24, 392, f"read: {WINDOWS} + {COUNT * SELECT} + {LATEST} rows of keys and values"),
    ]
    return drawn


def svg() -> str:
    tip = (
        '<marker id="tip" viewBox="0 0 8 8" refX="6" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        '<path d="M0 0 L8 4 L0 8 z" fill="#4b5563"/></marker>'
    )
    title = (
        f"A query of {TOKENS} tokens reads all {WINDOWS} compressed tokens, {COUNT} blocks that it chooses by its "
        f"attention to them, and the latest {LATEST} tokens; gates weigh the three results, which are added."
    )
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img">',
            f"<title>{title}</title>",
            f"<style>{STYLE}</style>",
            f"<defs>{tip}</defs>",
            f'<rect x="0" y="0" width="{WIDTH}" height="{HEIGHT}" rx="10" fill="#ffffff"/>',
            *rows(),
            "</svg>\n",
        ]
    )


if __name__ == "__main__":
    TARGET.write_text(svg(), encoding="utf-8")
