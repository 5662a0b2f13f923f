"""The command line: nsa-onnx check | infer-shapes | expand | prepare | fuse | explain | with | doctor | demo | paths.

Exit status: 0 success; 1 something was found, or the command could not do its work; 2 wrong usage, or a file that
cannot be read or written. An error is one line on stderr that names the file.
"""

from __future__ import annotations

import argparse
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
from onnx import ModelProto
from onnx.shape_inference import infer_shapes

from . import __version__
from .analysis import Analysis, analyse
from .checker import TARGETS, UnreadableModelError, check
from .checker import command as check_command
from .console import PROGRAM, Parser, clean, finish, show, speaker, tell
from .explain import MAX_DRAWN_LENGTH
from .explain import explain as explain_page
from .fuse import command as fuse_command
from .graph.bounds import MAX_INFERRED_DIMS, inferred_dims, propagates_safely
from .graph.external import SMALL_BYTES, inside
from .graph.reading import load
from .graph.writing import NotWritableError, replace_file, require_no_weights, write_model
from .operators import OPERATORS
from .operators.contract import DOMAIN, listed, plural
from .operators.example import example_model
from .operators.expand import expand
from .operators.nsa_compress.call import nsa_compress
from .operators.nsa_compress.contract import OP_TYPE, compressed_length
from .operators.nsa_compress.example import example
from .operators.schema import OUTPUT_RANKS
from .runtime import native
from .runtime.everywhere import command_with
from .runtime.session import doctor, session_for_trial
from .targets import command as prepare_command

OK, FOUND, UNUSABLE = 0, 1, 2


class _CommandError(Exception):
    """A command that cannot be done; the message is for the user."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line, without the program's name; the process's own if None. Returns the exit status."""
    try:
        parser = _parser()
        if "_ARGCOMPLETE" in os.environ:  # a shell asks how the line could go on
            with suppress(ImportError):
                import argcomplete

                argcomplete.autocomplete(parser)
        arguments = parser.parse_args(argv)
        status: int = arguments.run(arguments)
    except BrokenPipeError:  # of --help, say: commands print with console.show
        status = OK
    except SystemExit as end:  # --help, or wrong usage
        raise SystemExit(_finished(int(end.code or OK))) from None
    except UnreadableModelError as error:
        status = _fail(error, UNUSABLE)
    except OSError as error:
        status = _fail(f"{error.filename}: {error.strerror}" if error.filename else error, UNUSABLE)
    except NotWritableError as error:
        status = _fail(error, UNUSABLE)
    except _CommandError as error:
        status = _fail(error, FOUND)
    except Exception:  # a fault of ours; the names in its text come from the model all the same
        for line in traceback.format_exc().splitlines():
            tell(line, kept=True)
        status = UNUSABLE
    return _finished(status)


def _finished(status: int) -> int:
    """The exit status, once everything is written."""
    try:
        finish()
    except BrokenPipeError:  # the reader has gone, which is its right; what was found stays found
        return status
    except OSError as error:
        return _fail(f"standard output: {error.strerror}", UNUSABLE)
    return status


def _fail(error: object, status: int) -> int:
    tell(error)
    return status


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog=PROGRAM, description="Check, convert and try models with NSA nodes.")
    parser.add_argument("--version", action="version", version=f"nsa-onnx {__version__}")
    parser.set_defaults(run=lambda _: _help(parser))
    commands = parser.add_subparsers(metavar="COMMAND")

    def command(name: str, run: Callable[[argparse.Namespace], int], text: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=text, description=text)
        added.set_defaults(run=run)
        return added

    check_command.add_arguments(command("check", _check, check_command.DESCRIPTION))
    for name, run, text in (
        ("infer-shapes", _infer_shapes, "Write a model with the shapes of all its values, T' included."),
        ("expand", _expand, "Write a model that also runs without our library: bodies in standard operators added."),
    ):
        converting = command(name, run, text)
        _add_files(converting)
    for name, target, text in (
        ("prepare", None, prepare_command.DESCRIPTION),
        ("prepare-atc", "atc", "Another name for prepare --target atc."),
    ):
        preparing = command(name, _prepare, text)
        _add_files(preparing)
        prepare_command.add_arguments(preparing, target)
    fusing = command("fuse", _fuse, fuse_command.DESCRIPTION)
    _add_files(fusing)
    fuse_command.add_arguments(fusing)
    explaining = command("explain", _explain, "Draw a model's NSA nodes, windows to scale, as one page of HTML.")
    explaining.add_argument("model", metavar="MODEL", help="an ONNX file")
    explaining.add_argument("--html", metavar="OUT", required=True, type=_file, help="the page")
    explaining.add_argument("--target", choices=TARGETS, default="cpu", help="what the model is meant for")
    explaining.add_argument(
        "--lengths", metavar="L,L,...", type=_lengths, help="sequences to draw where the model does not fix them"
    )
    _add_quiet(explaining)
    running = command("with", _with, "Run a program: every onnxruntime session of its Pythons has our operators.")
    running.add_argument("program", nargs=argparse.REMAINDER, metavar="-- PROGRAM", help="with its arguments")
    examining = command("doctor", _doctor, "Show versions, library and instruction set, and try them.")
    examining.add_argument("--ascend", action="store_true", help="also run the operators on the Ascend device")
    command("demo", _demo, "Build, check and serve a tiny model; compare with the eager call.")
    locating = command("paths", _paths, "Show where the files for C and C++ are (docs/cpp.md).")
    locating.add_argument("name", nargs="?", choices=native.PATHS, help="print this path and nothing else")
    return parser


def _help(parser: argparse.ArgumentParser) -> int:
    """Without a command. A script that has lost its arguments must not look successful."""
    parser.print_help(sys.stderr)
    return UNUSABLE


def _add_files(parser: argparse.ArgumentParser) -> None:
    """What every command takes that writes a model."""
    parser.add_argument("model", metavar="MODEL", help="an ONNX file")
    parser.add_argument(
        "-o", "--output", metavar="OUT", required=True, type=_file, help="where the result goes; may be MODEL"
    )
    _add_quiet(parser)


def _add_quiet(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--quiet", action="store_true", help="do not say what was done; errors are said all the same")


def _check(arguments: argparse.Namespace) -> int:
    return check_command.run(arguments, __version__)


def _load(arguments: argparse.Namespace) -> ModelProto:
    model = load(Path(arguments.model))
    if not model.HasField("graph"):
        raise UnreadableModelError(f"{arguments.model}: the model has no graph")
    return model


def _analysis(arguments: argparse.Namespace) -> Analysis:
    seen = analyse(arguments.model)
    if not seen.proto.HasField("graph"):
        raise UnreadableModelError(f"{arguments.model}: the model has no graph")
    return seen


def _infer_shapes(arguments: argparse.Namespace) -> int:
    seen = _analysis(arguments)
    model = seen.proto
    if seen.inference_error:
        raise _CommandError(f"{arguments.model}: {seen.inference_error}")
    in_one_file = ModelProto()
    in_one_file.CopyFrom(model)
    for tensor in in_one_file.graph.initializer:
        tensor.CopyFrom(inside(tensor, seen.folder, SMALL_BYTES))  # inference reads no other file
    # With the weights, which the analysis leaves out: one of them may be a shape of a million dims.
    if inferred_dims(in_one_file, seen.outline, OUTPUT_RANKS) > MAX_INFERRED_DIMS:
        raise _CommandError(f"{arguments.model}: shapes may have more than {MAX_INFERRED_DIMS} dims in all")
    safely = propagates_safely(in_one_file, seen.outline, OUTPUT_RANKS, seen.inferred)
    try:
        # Strict: what onnx would leave out without a word is an error here.
        result = infer_shapes(in_one_file, strict_mode=True, data_prop=safely)
    except Exception as error:  # onnx raises classes of its own, and others for broken models
        raise _CommandError(f"{arguments.model}: {error}") from error
    for tensor, original in zip(result.graph.initializer, model.graph.initializer, strict=True):
        tensor.CopyFrom(original)
    write_model(result, Path(arguments.model), Path(arguments.output))
    values = (*result.graph.value_info, *result.graph.output)
    shaped = {value.name for value in values if value.type.tensor_type.HasField("shape")}
    speaker(arguments.quiet)(f"wrote {arguments.output}: the shapes of {plural(len(shaped), 'value')}")
    return OK


def _expand(arguments: argparse.Namespace) -> int:
    try:
        result = expand(_load(arguments))
    except UnreadableModelError:
        raise
    except ValueError as error:
        raise _CommandError(f"{arguments.model}: {error}") from error
    write_model(result, Path(arguments.model), Path(arguments.output))
    bodies = [function.name for function in result.functions if function.domain == DOMAIN]
    added = f"{listed(bodies)} in standard operators" if bodies else "nothing added, there is no NSA node"
    speaker(arguments.quiet)(f"wrote {arguments.output}: {added}")
    return OK


def _prepare(arguments: argparse.Namespace) -> int:
    model = _load(arguments)
    try:
        return prepare_command.run(arguments, model)
    except UnreadableModelError as error:
        return _fail(f"{arguments.model}: {error}", UNUSABLE)


def _explain(arguments: argparse.Namespace) -> int:
    source, target = Path(arguments.model), Path(arguments.html)
    if os.path.realpath(source) == os.path.realpath(target):
        raise NotWritableError(f"{target}: is the model")
    seen = analyse(source)
    page = explain_page(seen, target=arguments.target, lengths=arguments.lengths)
    if target.is_file():
        require_no_weights(seen.proto, source, target)
    replace_file(target, page.encode())
    speaker(arguments.quiet)(f"wrote {target}: {plural(len(seen.nodes), 'NSA node')} of {source}")
    return OK


def _file(text: str) -> str:
    if text == "-":  # many programs' word for standard output, where these print what they did
        raise argparse.ArgumentTypeError("must be a file, not standard output; a file of that name is ./-")
    return text


def _lengths(text: str) -> list[int]:
    lengths = [int(part) if part.isdecimal() and len(part) < 14 else 0 for part in text.split(",")]
    if not all(1 <= length <= MAX_DRAWN_LENGTH for length in lengths):
        raise argparse.ArgumentTypeError(f"must be numbers in [1, {MAX_DRAWN_LENGTH}], as in 40,100")
    return lengths


def _fuse(arguments: argparse.Namespace) -> int:
    try:
        return fuse_command.run(arguments, _analysis(arguments))
    except UnicodeError as error:
        raise UnreadableModelError(f"{arguments.model}: holds text that is not UTF-8") from error
    except (UnreadableModelError, NotWritableError):
        raise
    except ValueError as error:
        raise _CommandError(f"{arguments.model}: {error}") from error


def _with(arguments: argparse.Namespace) -> int:
    words = arguments.program[1:] if arguments.program[:1] == ["--"] else arguments.program
    try:
        native.library_path()
        program, words, environment = command_with(words, os.environ)
    except (RuntimeError, ValueError) as error:
        return _fail(error, UNUSABLE)
    finish()
    os.execve(program, words, environment)  # its exit status is ours, and so is the signal that ends it


def _doctor(arguments: argparse.Namespace) -> int:
    diagnosis = doctor(ascend=arguments.ascend)
    for line in diagnosis.to_text().splitlines():
        show(clean(line))
    return OK if diagnosis.ok else FOUND


def _paths(arguments: argparse.Namespace) -> int:
    try:
        paths = {name: native.path_of(name) for name in native.PATHS}
    except RuntimeError as error:  # there is no library
        raise _CommandError(error) from error
    if arguments.name:
        show(str(paths[arguments.name]))
    else:
        for name, path in paths.items():
            show(f"{name:12} {path}")
    return OK


def _demo(arguments: argparse.Namespace) -> int:
    block, stride, heads, dim, seq = 32, 16, 4, 64, (40, 100, 100, 230)
    model = example_model(OPERATORS[OP_TYPE], example(block, stride, seq, heads, dim))
    report = check(model)
    generator = np.random.default_rng(0)
    x = generator.standard_normal((seq[-1], heads, dim)).astype(np.float16)
    w = generator.random((block, heads)).astype(np.float16)
    try:
        (got,) = session_for_trial(model).run(None, {"input": x, "weight": w})
        want = nsa_compress(x, w, block, stride, actual_seq_len=seq)
    except Exception as error:  # onnxruntime has classes of its own
        raise _CommandError(error) from error
    same = np.array_equal(np.asarray(got).view(np.uint16), want.view(np.uint16))
    rows = compressed_length(seq, block, stride)
    show(f"model        one {OP_TYPE}, windows of {block} tokens, {stride} apart")
    for line in report.to_text().splitlines():
        show(f"check        {line}")
    show(f"segments     prefix sums {', '.join(map(str, seq))}")
    show(f"compressed   {list(x.shape)} -> {list(np.shape(got))} (T' = {rows}), {x.nbytes} -> {want.nbytes} bytes")
    show(f"onnxruntime  {'the same bits as' if same else 'DIFFERS FROM'} the eager call")
    return OK if same and report.ok else FOUND


if __name__ == "__main__":
    sys.exit(main())
