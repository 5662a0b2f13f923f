"""What commands print. Text from outside is cleaned, and a closed or full output is an error without a traceback.

Names from models and from the command line are not trusted: `say` and `tell` clean them. `show` prints what a format
has made safe already (colours, JSON). Nothing else in the package prints.
"""

from __future__ import annotations

import argparse
import difflib
import json
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, NoReturn, TextIO

PROGRAM = "nsa-onnx"
OK, FOUND, UNUSABLE = 0, 1, 2
"""Exit statuses: success; something was found, or the command could not do its work; wrong usage or files."""


class CommandError(Exception):
    """A command that cannot be done; the message is for the user."""


def clean(text: str) -> str:
    """The text as one line that steers no terminal, forges no line and commands no CI runner."""
    # Azure Pipelines and GitHub's runner take "##[" and "##vso[" for commands, wherever in a line.
    text = re.sub("#(?=#)", "# ", text)
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)


def path_text(path: str) -> str:
    """A path at the start of a line, where GitHub's runner would take "::" for a command."""
    text = clean(path)
    return f"./{text}" if text.lstrip().startswith("::") else text


def to_json(data: object) -> str:
    """JSON text that is ASCII and holds no "##": the same data to who reads it, no command to a CI runner."""
    return json.dumps(data, indent=2).replace("##", "#\\u0023")  # "#" is in strings only


def wants_color(stream: TextIO | None) -> bool:
    """Colour is for terminals, if the user does not mind (no-color.org)."""
    minded = os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb"
    return stream is not None and stream.isatty() and not minded


def show(text: str) -> None:
    """Print text that is safe as it is, if the reader is still there. An OSError names standard output."""
    try:
        _print(text, sys.stdout)
    except BrokenPipeError:
        pass
    except OSError as error:
        raise OSError(error.errno, error.strerror, "standard output") from error


def say(line: str) -> None:
    """Print one line on standard output, cleaned. OSError if that takes it not."""
    show(path_text(line))


def speaker(quiet: bool) -> Callable[[str], None]:
    """`say`, or what says nothing: for commands with ``--quiet``."""
    return (lambda line: None) if quiet else say


def tell(message: object, kept: bool = False) -> None:
    """Print one line on standard error, cleaned. Whoever closed that or filled its disk does not want to know more.

    Line breaks and runs of spaces become one space; ``kept`` leaves them, cleaned.
    """
    text = str(message)
    with suppress(OSError):
        _print(f"{PROGRAM}: {clean(text if kept else ' '.join(text.split()))}", sys.stderr)


def _print(text: str, stream: TextIO | None) -> None:
    if stream is None:  # closed by the caller
        return
    encoding = stream.encoding or "utf-8"
    stream.write(text.encode(encoding, "backslashreplace").decode(encoding) + "\n")


def finish() -> None:
    """Write out what is still in memory. OSError if standard output takes it not; Python would answer with 120."""
    for stream in (sys.stderr, sys.stdout):
        if stream is None:
            continue
        try:
            stream.flush()
        except OSError:
            # Python tries again when it ends, and must not fail again.
            with suppress(OSError, ValueError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
            if stream is sys.stdout:
                raise


@contextmanager
def progress(line: str, shown: bool) -> Iterator[None]:
    """Say on a terminal what is being worked on, and leave no trace of it."""
    stream = sys.stderr
    if not shown or stream is None or not stream.isatty() or os.environ.get("TERM") == "dumb":
        yield
        return
    width = shutil.get_terminal_size().columns - 1
    stream.write(f"\r{clean(line)[:width]}\x1b[K")
    stream.flush()
    try:
        yield
    finally:
        stream.write("\r\x1b[K")
        stream.flush()


class Parser(argparse.ArgumentParser):
    """A parser that does not repeat a command line's control characters, and suggests what may have been meant."""

    _given: Sequence[str] = ()

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        self._given = tuple(sys.argv[1:] if args is None else args)
        known, unknown = super().parse_known_args(args, namespace)
        if (
            unknown and self.prog != PROGRAM
        ):  # here its options are known; the program's own parser would refuse it, too
            self.error(f"unrecognized arguments: {' '.join(unknown)}")
        return known, unknown

    def error(self, message: str) -> NoReturn:
        with suppress(OSError):
            self.print_usage(sys.stderr)
        message += _suggestion(message) or self._suggested_option(message)
        tell(message if self.prog == PROGRAM else f"{self.prog.removeprefix(PROGRAM).strip()}: {message}")
        raise SystemExit(2)

    def _suggested_option(self, message: str) -> str:
        """The option that comes close to a mistyped one, also where the message is that the right one is missing."""
        for word in self._given:
            name = word.partition("=")[0]
            if name == "--":
                break
            if not name.startswith("--") or len(name) > 64 or any(one.startswith(name) for one in self._options):
                continue
            close = difflib.get_close_matches(name, self._options, n=1)
            if close:
                return f"; did you mean {close[0]!r}{'' if word in message else f', not {name!r}'}?"
        return ""

    @property
    def _options(self) -> list[str]:
        return [name for name in self._option_string_actions if name.startswith("--")]


def _suggestion(message: str) -> str:
    """The choice that comes close to a mistyped one. argparse has this since Python 3.14 (``suggest_on_error``)."""
    found = re.search(r"'([^']{1,64})' \(choose from (.*)\)$", message)
    close = found and difflib.get_close_matches(found[1], re.findall(r"[\w-]+", found[2]), n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


def add_files(parser: argparse.ArgumentParser) -> None:
    """What every command takes that writes a model."""
    parser.add_argument("model", metavar="MODEL", help="an ONNX file")
    parser.add_argument(
        "-o", "--output", metavar="OUT", required=True, type=output_file, help="where the result goes; may be MODEL"
    )
    add_quiet(parser)


def add_quiet(parser: argparse.ArgumentParser) -> None:
    """For commands that say what they did."""
    parser.add_argument("--quiet", action="store_true", help="do not say what was done; errors are said all the same")


def output_file(text: str) -> str:
    """A file's name, as an argument."""
    if text == "-":  # many programs' word for standard output, where these print what they did
        raise argparse.ArgumentTypeError("must be a file, not standard output; a file of that name is ./-")
    return text
