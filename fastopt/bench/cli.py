"""Measures fastopt against NumPy, torch.optim and the memory's own limit, interleaved in one process."""

import argparse
import json
import os
import platform
from dataclasses import asdict

import numpy as np

from .._version import __version__
from ..kernels import cpu, simd
from . import targets, threads_in_loop
from .cases import CASES, FULL, parse
from .rivals import rows, torch
from .runner import ROUNDS, SECONDS, Unable, compare


def add_arguments(parser):
    """Adds the options of `fastopt bench` to a parser."""
    names = ", ".join(row.name for row in rows())
    parser.add_argument("--method", nargs="+", type=selected, metavar="NAME",
                        help=f"methods to measure (default: all): {names}")
    parser.add_argument("--case", nargs="+", type=case, metavar="NAME",
                        help=f"cases <arrays>x<elements>, such as 100x64 or 1x30M "
                             f"(default: {', '.join(one.name for one in CASES)})")
    parser.add_argument("--full", action="store_true", help=f"also {FULL[-1].name}: takes some 4 GB")
    parser.add_argument("--threads", nargs="+", type=positive, metavar="N",
                        help="numbers of threads (default: 1, and 2 from a million elements)")
    parser.add_argument("--dtype", choices=("float32", "float64"), default="float32")
    parser.add_argument("--rounds", type=positive, default=ROUNDS, metavar="N",
                        help="rounds of a case and method, at most (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=SECONDS, metavar="S",
                        help="budget of a case and method; 5 rounds are always made (default: %(default)s)")
    parser.add_argument("--json", metavar="FILE", help="also writes everything that was measured to this file")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--targets", action="store_true",
                      help="measures what fastopt promises and prints what is met; the exit status is 1 if any is not")
    what.add_argument("--import-time", action="store_true", help="measures `import fastopt` in fresh processes")
    what.add_argument("--threads-in-loop", action="store_true",
                      help="measures a training loop with a BLAS on 1 and 2 optimizer threads")


def run(args):
    """Measures what the options ask for and prints it as Markdown. Returns the exit status."""
    if args.threads_in_loop:
        # a NumPy training loop as its users have it: without torch and its OpenMP runtime
        about, measured, status = machine(with_torch=False), threads_in_loop.report, 0
    else:
        about, status = machine(), 0
    print(header(about), flush=True)
    if args.threads_in_loop:
        results = measured()
    elif args.targets:
        results, status = run_targets(args)
    elif args.import_time:
        results = run_verdicts([[targets.import_time()]])
    else:
        results = run_cases(args)
    if args.json:
        with open(args.json, "w", encoding="utf-8") as file:
            json.dump({"machine": about, "results": results}, file, indent=1)
            file.write("\n")
    return status
