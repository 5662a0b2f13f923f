"""``nsa-onnx explain``: one HTML page that shows what the NSA nodes of a model do.

`explain` makes the page. `facts`, `neighbours` and `layers` collect what it shows, `segments` and `pages` draw the two
kinds of pictures that operators have. `section` shows one node, `nodes` all of them, `fusable` what could be one,
`page` the whole. All of them build HTML with `markup`, which escapes every text that it did not make itself.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from ..analysis import Source
from ..checker import UnreadableModelError, examine
from ..operators.pictures import MAX_DRAWN_LENGTH
from .facts import subjects
from .page import render, title_of

__all__ = ["MAX_DRAWN_LENGTH", "explain"]


def explain(
    model: Source,
    *,
    target: str = "cpu",
    lengths: Sequence[int] | None = None,
    folder: str | os.PathLike[str] | None = None,
) -> str:
    """The page, as HTML text. Weights are not loaded; the page loads and sends nothing.

    Args:
        model: path of an ONNX file, the model itself, or its analysis.
        target: what the model is checked for; see `nsa_onnx.check`.
        lengths: lengths of the segments or sequences in tokens, to be drawn where the model does not fix them;
            without it, an example.
        folder: of the external data; the file's own for a path. Without it, none is read.

    Raises:
        UnreadableModelError: (a ValueError) the file cannot be read as a model.
        ValueError: the target is unknown, or a length is not in ``1 .. MAX_DRAWN_LENGTH``.
    """
    for index, length in enumerate(lengths or ()):
        if not 1 <= length <= MAX_DRAWN_LENGTH:
            raise ValueError(f"lengths[{index}] must be in [1, {MAX_DRAWN_LENGTH}], got {length}")
    seen, report = examine(model, target=target, folder=folder)
    title = title_of(seen.path) if seen.path else "model"
    try:
        found, others = subjects(seen, report, lengths)
        return render(title, seen, report, found, others)
    except UnicodeError as error:
        raise UnreadableModelError(f"{report.model or 'model'}: holds text that is not UTF-8") from error
