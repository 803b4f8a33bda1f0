"""`python -m fastopt.bench`: the same as `fastopt bench`."""

import argparse
import sys

from . import cli


def main():
    parser = argparse.ArgumentParser(prog="python -m fastopt.bench", description=cli.__doc__)
    cli.add_arguments(parser)
    return cli.run(parser.parse_args())


if __name__ == "__main__":
    sys.exit(main())
