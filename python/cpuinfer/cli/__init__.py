"""The command line: finds the command, runs it, and turns what goes wrong into one line and an exit code.

A command is a module of this package with HELP, add_arguments(parser) and run(args) -> exit code, or with HELP and
SUBCOMMANDS, which are such objects by name.  Only the command asked for is imported.
"""

from __future__ import annotations

import argparse
import errno
import os
import sys
import traceback
import warnings
from collections.abc import Sequence
from importlib import import_module
from itertools import takewhile
from pathlib import Path
from typing import Any, NoReturn, TextIO

from cpuinfer import __version__
from cpuinfer.errors import CpuInferError

COMMANDS = {
    "run": "run",
    "pull": "pull",
    "list": "listing",  # a submodule named list would hide the builtin here
    "rm": "rm",
    "show": "show",
    "bench": "bench",
    "eval": "eval",
    "quantize": "quantize",
    "doctor": "doctor",
}
"""Name: module."""
ALIASES = {"ls": "list"}

USAGE_ERROR, INTERNAL_ERROR = 2, 1
INTERRUPTED, BROKEN_PIPE = 130, 141  # 128 + SIGINT, 128 + SIGPIPE, as a shell reports them


class UsageError(CpuInferError):
    """A command line that does not parse."""


class Parser(argparse.ArgumentParser):
    """argparse with errors of one line, raised instead of printed."""

    def __init__(self, prog: str, description: str) -> None:
        formatter = argparse.RawDescriptionHelpFormatter
        super().__init__(prog=prog, description=description, formatter_class=formatter, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        """Raise UsageError."""
        raise UsageError(f"{message} (see `{self.prog} --help`)")


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line and return its exit code: 0, or 2 for a fault of the input, 130 for Ctrl-C."""
    try:
        _open_missing_streams()
        _accept_any_text()
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning
            code = _dispatch(list(sys.argv[1:] if argv is None else argv))
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        _silence(sys.stdout)
        return BROKEN_PIPE
    except KeyboardInterrupt:
        return INTERRUPTED
    except Exception as error:
        if os.environ.get("CPUINFER_DEBUG") == "1":
            traceback.print_exc()
        code, message = _explain(error)
        if _is_full_stdout(error):
            _silence(sys.stdout)
        try:
            print(f"cpuinfer: error: {message}", file=sys.stderr, flush=True)
        except OSError:
            _silence(sys.stderr)
        return code


def _dispatch(argv: list[str]) -> int:
    name = ALIASES.get(argv[0], argv[0]) if argv else ""
    try:
        if name in COMMANDS:
            return _run(_module(name), f"cpuinfer {name}", argv[1:])
        if name and not name.startswith("-"):
            raise UsageError(f"no command {name!r}, expected one of {', '.join(COMMANDS)}")
        parser = Parser("cpuinfer", "Run language models on the CPU you already own.")
        parser.add_argument("--version", action="version", version=f"cpuinfer {__version__}")
        return _help(parser, argv, _overview())
    except SystemExit as done:  # --help and --version
        return int(done.code or 0)


def _run(command: Any, title: str, argv: list[str]) -> int:
    """Run a command, or that of its subcommands which the first argument names."""
    parser = Parser(title, command.HELP)
    subcommands = getattr(command, "SUBCOMMANDS", None)
    if subcommands is None:
        _check_values(argv)
        command.add_arguments(parser)
        # Intermixed, so that flags may stand between positionals; it does not know "--".
        parse = parser.parse_args if "--" in argv else parser.parse_intermixed_args
        return int(command.run(parse(argv)))
    if argv and argv[0] in subcommands:
        return _run(subcommands[argv[0]], f"{title} {argv[0]}", argv[1:])
    if argv and not argv[0].startswith("-"):
        raise UsageError(f"no command {title.partition(' ')[2]} {argv[0]!r}, expected one of {', '.join(subcommands)}")
    lines = [f"  {name:<11} {subcommand.HELP}" for name, subcommand in subcommands.items()]
    return _help(
        parser, argv, "\n".join(["commands:", *lines, *([command.EPILOG] if hasattr(command, "EPILOG") else [])])
    )


def _help(parser: Parser, argv: list[str], epilog: str) -> int:
    """Of what has commands: print its help if that is asked for, or nothing is."""
    parser.usage = f"{parser.prog} COMMAND [ARGUMENTS]"
    if not argv or {"-h", "--help"} & set(argv):
        parser.epilog = epilog
        parser.print_help()
        return 0
    parser.parse_args(argv)
    return 0


def _check_values(argv: Sequence[str]) -> None:
    """Refuse `--flag=--`, of which argparse before Python 3.13 makes an empty list, past the flag's type."""
    for word in takewhile(lambda word: word != "--", argv):
        flag, _, value = word.partition("=")
        if flag.startswith("-") and value == "--":
            raise UsageError(f"argument {flag}: '--', expected a value")


def _module(name: str) -> Any:
    return import_module(f"cpuinfer.cli.{COMMANDS[name]}")


def _overview() -> str:
    aliases = {name: alias for alias, name in ALIASES.items()}
    lines = ["commands:"]
    for name in COMMANDS:
        title = f"{name}, {aliases[name]}" if name in aliases else name
        lines.append(f"  {title:<10} {_module(name).HELP}")
    return "\n".join([*lines, "", 'examples:\n  cpuinfer run "Why is the sky blue?"\n  cpuinfer run --help'])


def _explain(error: Exception) -> tuple[int, str]:
    """(exit code, one line)."""
    if isinstance(error, CpuInferError):
        code, message = USAGE_ERROR, str(error)
    elif isinstance(error, OSError) and error.strerror:
        where = error.filename or ("standard output" if _is_full_stdout(error) else None)
        code, message = USAGE_ERROR, f"{where}: {error.strerror}" if where else error.strerror
    elif isinstance(error, MemoryError):
        code, message = USAGE_ERROR, "out of memory"
    else:
        kind = type(error).__name__
        code, message = INTERNAL_ERROR, f"internal: {kind}: {error} (CPUINFER_DEBUG=1 shows where)"
    return code, _one_line(message)


def _is_full_stdout(error: Exception) -> bool:
    """Only standard output is written without a file's name in the error."""
    full = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    return isinstance(error, OSError) and error.errno in full and error.filename is None


def _show_warning(message: Warning | str, *_: object, **__: object) -> None:
    """One line, as errors are, without the place in the code."""
    print(f"cpuinfer: warning: {_one_line(str(message))}", file=sys.stderr)


def _one_line(message: str) -> str:
    return "".join(c if c.isprintable() else " " for c in " ".join(message.split()))


def _open_missing_streams() -> None:
    """A stream that was closed (`2>&-`) is None here, and a print to None goes to standard output."""
    if sys.stderr is None:
        sys.stderr = Path(os.devnull).open("w")  # noqa: SIM115 open until the process ends
    if sys.stdout is None:
        sys.stdout = Path(os.devnull).open("w")  # noqa: SIM115
        raise UsageError("standard output is closed")


def _accept_any_text() -> None:
    """Print models' text in UTF-8, or with replacements where a terminal has another encoding, but never fail on it."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(encoding=None if stream.isatty() else "utf-8", errors="replace")


def _silence(stream: TextIO) -> None:
    """Let the interpreter's own last flush of a broken pipe or a full disk succeed."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, stream.fileno())
    os.close(null)
