"""The command `fastopt`, and what it shares with every other command line of the package.

Each of them goes through `execute`: what goes wrong there costs one line on stderr and an exit code, never a traceback.
"""

import argparse
import codecs
import importlib
import math
import os
import stat
import sys
from contextlib import contextmanager
from pathlib import Path

from ._version import __version__
from .interrupts import uninterrupted

# name: (module with add_arguments(parser) and run(args) -> exit code, what the command does)
COMMANDS = {
    "demo": ("fastopt.demo", "train a network on handwritten digits and plot it"),
    "plot-schedule": ("fastopt.plot_schedule", "draw the values of schedules over the steps"),
    "bench": ("fastopt.bench.cli", "measure the optimizers on this machine"),
    "info": (None, "show version, compiler, SIMD level and threads"),
}
FAILED, INTERRUPTED, CLOSED = 1, 130, 141  # exit codes; the last two as a shell has them for SIGINT and SIGPIPE


class Stop(Exception):
    """Ends a command with a message for the user."""


def main(argv=None):
    """Runs the command line `argv` (default: that of the process); returns the exit code.

    Raises:
        SystemExit: as argparse does, with code 2 for wrong options and 0 after `--help` or `--version`.
    """
    argv = sys.argv[1:] if argv is None else list(argv)
    command = argv[0] if argv and argv[0] in COMMANDS else None
    return guarded(f"fastopt {command}" if command else "fastopt", lambda: dispatch(command, argv))


def dispatch(command, argv):
    # only the module of the command that was asked for is imported: the others may be heavy, or missing
    module = imported(command)
    parser = make_parser(command, module)
    args = parser.parse_args(argv)
    if args.command is None:
        parser.print_help()
        return 2
    check_environment()
    return module.run(args) if module else info()


def imported(command):
    name, _ = COMMANDS.get(command, (None, None))
    try:
        return importlib.import_module(name) if name else None
    except ModuleNotFoundError as error:
        if not (error.name or "").startswith("fastopt"):
            raise
        raise Stop(f"not part of this installation ({error})") from None


def make_parser(command, module):
    """The parser; of the commands only `command` gets its options, from `module`."""
    parser = Parser(prog="fastopt", description="Fused optimizers on the CPU.")
    parser.add_argument("--version", action="version", version=f"fastopt {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="command")
    for name, (_, purpose) in COMMANDS.items():
        subparser = commands.add_parser(name, help=purpose, description=f"{purpose[0].upper()}{purpose[1:]}.")
        if name == command and module is not None:
            module.add_arguments(subparser)
    return parser


def info():
    from .config import show_config

    show_config()
    return 0


# ---- how a command runs and ends

class Parser(argparse.ArgumentParser):
    """argparse's, but an error while it writes is an error in every version of Python."""

    def _print_message(self, message, file=None):
        print(message or "", end="", file=file or sys.stderr)


def execute(parser, run, argv=None):
    """Parses `argv` (default: that of the process) and calls `run(args)`; returns the exit code."""
    def parsed():
        args = parser.parse_args(argv)
        check_environment()
        return run(args)

    return guarded(parser.prog, parsed)


def guarded(name, function):
    """The exit code of a command: of `function()`, or of what stopped it, which is reported in one line."""
    for stream in ("stdout", "stderr"):
        if getattr(sys, stream) is None:  # closed when the process began
            setattr(sys, stream, open(os.devnull, "w", encoding="utf-8"))
    with plain_text():
        try:
            try:
                return function() or 0
            finally:
                sys.stdout.flush()
        except BrokenPipeError:
            return CLOSED
        except KeyboardInterrupt:
            message, code = "interrupted", INTERRUPTED
        except Stop as stop:
            message, code = stop, FAILED
        except MemoryError as error:
            message, code = f"not enough memory{f': {error}' if str(error) else ''}", FAILED
        except OSError as error:
            what = "the output" if error.filename is None else error.filename
            message, code = f"cannot read or write {what}: {error.strerror or error}", FAILED
        finally:
            drop_unwritten()
        try:
            print(f"{name}: {message}", file=sys.stderr)
        except OSError:
            pass
        finally:
            drop_unwritten()
        return code


@contextmanager
def plain_text():
    """Lets stdout and stderr take any text, whatever their encoding."""
    codecs.register_error("fastopt", in_ascii)
    streams = [stream for stream in (sys.stdout, sys.stderr) if hasattr(stream, "reconfigure")]
    before = [stream.errors for stream in streams]
    for stream in streams:
        stream.reconfigure(errors="fastopt")
    try:
        yield
    finally:
        for stream, errors in zip(streams, before, strict=True):
            stream.reconfigure(errors=errors)


def in_ascii(error):
    """Writes what an encoding lacks in ASCII."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    written = error.object[error.start:error.end].translate(ASCII)
    return written.encode("ascii", "backslashreplace").decode(), error.end


ASCII = str.maketrans({"µ": "u", "·": "*", "×": "x", "–": "-", "—": "-", "…": "...", "“": '"', "”": '"', "’": "'"})


def drop_unwritten():
    """Lets nothing be left in a stream that cannot be written, which Python would report when it ends."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            try:
                os.dup2(nowhere, stream.fileno())
            finally:
                os.close(nowhere)


def check_environment():
    """Raises Stop where an environment variable of the library has a wrong value."""
    from .kernels import simd, threads

    try:
        simd.level(), threads.get_num_threads()
    except ValueError as error:
        raise Stop(error) from None


def figures(number):
    """Three significant digits, never in powers of ten; nothing for None."""
    return "" if number is None else f"{number:.0f}" if number >= 100 else f"{number:.3g}"


# ---- what options are checked with

def whole(least, most=None):
    """A check of an integer option."""
    allowed = f"of at least {least}" if most is None else f"from {least} to {most}"

    def check(text):
        try:
            value = int(text)
        except ValueError:
            value = None
        if value is None or value < least or (most is not None and value > most):
            raise argparse.ArgumentTypeError(f"must be an integer {allowed}, got {text!r}")
        return value

    return check


def positive(text):
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"must be a finite number greater than 0, got {text!r}")
    return value


def picture(text):
    path = Path(text)
    if path.is_dir() or not path.name:
        raise argparse.ArgumentTypeError(f"must be a file for a PNG, got the directory {text!r}")
    if not path.parent.is_dir():
        raise argparse.ArgumentTypeError(f"must be in a directory that exists, got {text!r}")
    if path.suffix.lower() not in ("", ".png"):
        raise argparse.ArgumentTypeError(f"must end in .png, got {text!r}")
    return path


# ---- what is asked before the work begins

@contextmanager
def writing(path):
    """Opens the file that the work in this block is for; gives the function that replaces its contents by bytes.

    What the file held stays until then, and a file that was made and not written goes away.

    Raises:
        Stop: the file cannot be written.
    """
    made = not os.path.lexists(path)
    file, written = None, False

    def write(data):
        nonlocal written
        try:
            if stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                file.truncate(0)
            while data:
                data = data[file.write(data):]
        except OSError as error:
            raise Stop(f"cannot write {path}: {error.strerror}") from None
        written = True

    try:
        try:
            with uninterrupted():
                file = os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o666), "wb", 0)
        except OSError as error:
            raise Stop(f"cannot write {path}: {error.strerror}") from None
        with file:
            yield write
    finally:
        with uninterrupted():
            if made and file is not None and not written:
                Path(path).unlink(missing_ok=True)


def need_memory(size):
    """Raises Stop where `size` bytes are more than the memory that is free."""
    free = free_memory()
    if size > free:
        raise Stop(f"not enough memory: it takes some {size / 1e9:,.1f} GB, {free / 1e9:.1f} GB are free")


def free_memory():
    """Bytes; infinite where the system does not say."""
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            return next(int(line.split()[1]) * 1024 for line in file if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        return math.inf
