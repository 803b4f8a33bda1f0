"""The command `fastopt`."""

import argparse
import importlib
import sys

from ._version import __version__

# name: (module with add_arguments(parser) and run(args) -> exit code, what the command does)
COMMANDS = {
    "demo": ("fastopt.demo", "train a network on handwritten digits and plot it"),
    "plot-schedule": ("fastopt.plot_schedule", "draw the values of schedules over the steps"),
    "bench": ("fastopt.bench.cli", "measure the optimizers on this machine"),
    "info": (None, "show version, compiler, SIMD level and threads"),
}


def main(argv=None):
    """Runs the command line `argv` (default: that of the process); returns the exit code.

    Raises:
        SystemExit: as argparse does, with code 2 for wrong options and 0 after `--help` or `--version`.
    """
    argv = sys.argv[1:] if argv is None else list(argv)
    try:
        # only the module of the command that was asked for is imported: the others may be heavy, or missing
        module = imported(argv[0]) if argv else None
        parser = make_parser(argv[0] if argv else None, module)
        args = parser.parse_args(argv)
        if args.command is None:
            parser.print_help()
            return 2
        return module.run(args) if module else info()
    except ModuleNotFoundError as error:
        if not (error.name or "").startswith("fastopt"):
            raise
        print(f"fastopt {argv[0]}: not part of this installation ({error})", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def imported(command):
    name, _ = COMMANDS.get(command, (None, None))
    return importlib.import_module(name) if name else None


def make_parser(command, module):
    """The parser; of the commands only `command` gets its options, from `module`."""
    parser = argparse.ArgumentParser(prog="fastopt", description="Fused optimizers on the CPU.")
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
