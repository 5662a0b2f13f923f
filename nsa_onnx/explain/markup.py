"""Builds HTML from elements. Text is escaped unless it was made here, because names in a model are not trusted."""

from __future__ import annotations

from html import escape

# The longest name or message that is printed whole; a model's names may be megabytes.
MAX_TEXT = 160
NOTHING = "\u2013"
"""A dash where there is no value."""

_VOID = frozenset({"link", "meta"})


class Html(str):
    """Text that is HTML already. Only `tag`, `join` and `raw` make it."""

    __slots__ = ()


Child = Html | str | int | float | None
Attribute = str | int | float | bool | None


def tag(element: str, /, *children: Child, **attributes: Attribute) -> Html:
    """An element. ``class_`` is the attribute class, ``data_x`` is data-x; None and False leave an attribute out."""
    parts = [f"<{element}"]
    for key, value in attributes.items():
        if value is None or value is False:
            continue
        key = key.rstrip("_").replace("_", "-")
        parts.append(f" {key}" if value is True else f' {key}="{escape(plain(value), quote=True)}"')
    parts.append(">")
    if element in _VOID:
        return Html("".join(parts))
    return Html("".join(parts) + join(*children) + f"</{element}>")


def join(*children: Child) -> Html:
    """Children one after the other; text among them is escaped, None is nothing."""
    return Html("".join(child if isinstance(child, Html) else escape(plain(child)) for child in children))


def raw(text: str) -> Html:
    """Our own files: the style sheet. Nothing from a model."""
    return Html(text)


def plain(value: Child | bool) -> str:
    """A number without needless digits, and text as it is."""
    if value is None:
        return ""
    return f"{value:.4f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)


def brief(text: str | bytes, limit: int = MAX_TEXT) -> str:
    """A name or message from a model as one line: control and direction marks made visible, the middle cut out."""
    if isinstance(text, bytes):  # protobuf's way to give text that is not UTF-8
        text = text.decode(errors="replace")
    if len(text) > limit:
        text = f"{text[: limit * 2 // 3]} … {text[-limit // 4 :]}"
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)


def code(text: str) -> list[Html | str]:
    """Text of ours, with what stands between backticks as code."""
    return [tag("code", part) if index % 2 else part for index, part in enumerate(text.split("`"))]


def number(value: int) -> str:
    return f"{value:,}"


def count(value: int, noun: str) -> str:
    return f"{value:,} {noun}{'' if value == 1 else 's'}"


def byte_size(value: int) -> str:
    """Bytes in the unit that people read: 16.8 MiB."""
    size = float(value)
    for unit in ("bytes", "KiB", "MiB", "GiB", "TiB", "PiB"):
        if size < 1024 or unit == "PiB":
            break
        size /= 1024
    return count(value, "byte") if unit == "bytes" else f"{size:,.1f} {unit}"
