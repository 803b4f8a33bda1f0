"""`python -m fastopt.bench`: the same as `fastopt bench`."""

import sys

from ..cli import Parser, execute
from . import cli


def main(arguments=None):
    parser = Parser(prog="python -m fastopt.bench", description=cli.__doc__)
    cli.add_arguments(parser)
    return execute(parser, cli.run, arguments)


if __name__ == "__main__":
    sys.exit(main())
