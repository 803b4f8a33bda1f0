"""Measures fastopt against NumPy, torch.optim and the memory's own limit, interleaved in one process."""

import argparse
import json
from contextlib import nullcontext
from dataclasses import asdict

from ..cli import positive, whole, writing
from . import targets, threads_in_loop
from .cases import CASES, FULL, case_named, parse
from .machine import machine
from .rivals import FASTOPT, FOREACH, FUSED, LOOP, rows, torch
from .runner import ROUNDS, SECONDS, Unable, compare

TORCH = (LOOP, FOREACH, FUSED)
SPEED_CASES = ("100x64", "1x100000", "1x1000000", "1x10000000")
NO_TORCH = "torch is not installed: its rivals are left out."


def add_arguments(parser):
    """Adds the options of `fastopt bench` to a parser."""
    parser.add_argument("--method", nargs="+", type=rows_named, metavar="NAME",
                        help=f"methods to measure (default: all): {', '.join(row.name for row in rows())}")
    parser.add_argument("--case", nargs="+", type=case_named, metavar="NAME",
                        help="cases <arrays>x<elements>, such as 100x64 or 1x30M "
                             f"(default: {', '.join(case.name for case in CASES)})")
    parser.add_argument("--full", action="store_true", help=f"also {FULL[-1].name}, which takes some 4 GB")
    parser.add_argument("--threads", nargs="+", type=whole(1), metavar="N",
                        help="numbers of threads (default: 1, and 2 from a million elements)")
    parser.add_argument("--dtype", choices=("float32", "float64"), default="float32")
    parser.add_argument("--rounds", type=whole(1), metavar="N",
                        help=f"rounds of a case and method, at most (default: {ROUNDS})")
    parser.add_argument("--seconds", type=positive, metavar="S",
                        help="budget of a case and method, 5 rounds in any case "
                             f"(default: {SECONDS:g}, with --targets {targets.SECONDS:g})")
    parser.add_argument("--json", metavar="FILE", help="also writes what was measured to this file")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--targets", action="store_true",
                      help="measures what fastopt promises; the exit status is 1 if any of it fails")
    what.add_argument("--speed", action="store_true",
                      help="measures every method against the fastest path of torch, a line for each")
    what.add_argument("--import-time", action="store_true",
                      help="measures `import fastopt` in fresh processes")
    what.add_argument("--threads-in-loop", action="store_true",
                      help="measures NumPy training loops with 1 and 2 optimizer threads")


def run(args):
    """Measures what the options ask for and prints it as Markdown. Returns the exit status."""
    with nullcontext() if args.json is None else writing(args.json) as write:
        about = machine()
        print("\n".join(f"- {name}: {value}" for name, value in about.items()), end="\n\n", flush=True)
        results = measured(args)
        if write is not None:
            write(as_json({"machine": about, "results": results}))
    return int(any(result.get("met") is False for result in results))


def measured(args):
    if args.threads_in_loop:
        return threads_in_loop.report(args.rounds or threads_in_loop.ROUNDS)
    if args.import_time:
        return print_verdicts([[targets.import_time()]])
    if args.speed:
        return print_speed(args)
    if args.targets:
        return print_verdicts(targets.measure(args.rounds or ROUNDS, args.seconds or targets.SECONDS))
    return print_cases(args)


def as_json(results):
    """The bytes of a file."""
    return (json.dumps(results, indent=1) + "\n").encode()


# ---- options -----------------------------------------------------------------------------------

def rows_named(name):
    """All rows of a method, or the one row of that name."""
    found = [row for row in rows() if name.lower() in (row.method.name.lower(), row.name.lower())]
    if not found:
        known = ", ".join(row.name for row in rows())
        raise argparse.ArgumentTypeError(f"no method {name!r}; there are {known}")
    return found


# ---- tables ------------------------------------------------------------------------------------

def print_cases(args):
    """Measures and prints every case and row; returns what was measured, for JSON."""
    if torch() is None:
        print(NO_TORCH, end="\n\n")
    print(table_head("case", "threads", "method", "rival", "best µs", "median µs", "fastopt is (best)",
                     "fastopt is (median)", "ns/element", "GB/s", "of the limit"), flush=True)
    results, notes = [], []
    selected = [row for found in args.method for row in found] if args.method else rows()
    for case in args.case or (FULL if args.full else CASES):
        for threads in args.threads or case.threads:
            for row in selected:
                try:
                    comparison = compare(row, case, threads, args.dtype, args.rounds or ROUNDS,
                                         args.seconds or SECONDS)
                except Unable as reason:
                    notes.append(f"{case.name}, {row.name}: left out, {reason}.")
                    continue
                print(*comparison_lines(comparison), sep="\n", flush=True)
                results += comparison.as_dicts()
    if notes:
        print("", *notes, sep="\n")
    return results


def print_speed(args):
    """Measures and prints each method's speed in torch's, case by case; returns what was measured, for JSON."""
    if torch() is None:
        print(NO_TORCH)
        return []
    heads = [f"{name}: best (median)" for name in SPEED_CASES]
    print(table_head("method", *heads, f"of the limit at {SPEED_CASES[-1]}"), flush=True)
    results = []
    for row in [row for found in args.method for row in found] if args.method else rows():
        cells = [row.name]
        for name in SPEED_CASES:
            comparison = compare(row, parse(name), 1, args.dtype, args.rounds or ROUNDS, args.seconds or SECONDS)
            ratios = [comparison.ratios(rival) for rival in TORCH if rival in comparison.measurements]
            best, middle = (min(column) for column in zip(*ratios, strict=True))
            cells.append(f"{figures(best)} x ({figures(middle)} x)")
            results += comparison.as_dicts()
        cells.append(f"{comparison.share_of_limit(FASTOPT):.0%}")
        print(f"| {' | '.join(cells)} |", flush=True)
    return results


def table_head(*names):
    return f"| {' | '.join(names)} |\n|{'---|' * len(names)}"


def comparison_lines(comparison):
    """The lines of a Markdown table: one for each rival."""
    for name, one in comparison.measurements.items():
        best, middle = comparison.ratios(name)
        share = comparison.share_of_limit(name)
        ratios = ("", "") if name == FASTOPT else (f"{best:.2f} x", f"{middle:.2f} x")
        cells = (one.case, one.threads, one.method, name, figures(one.best * 1e6), figures(one.median * 1e6),
                 *ratios, figures(one.nanoseconds_per_element), figures(one.gigabytes_per_second),
                 "" if share is None else f"{share:.1%}")
        yield f"| {' | '.join(map(str, cells))} |"


def figures(number):
    """Three significant digits, never in powers of ten."""
    return f"{number:.0f}" if number >= 100 else f"{number:.3g}"


def print_verdicts(groups):
    """Prints targets as they are measured; returns them, for JSON."""
    print(table_head("target", "step, µs", "best", "median", "verdict"), flush=True)
    results = []
    for group in groups:
        for verdict in group:
            best, middle = (amount(number, verdict.unit) for number in (verdict.best, verdict.median))
            step = "" if verdict.seconds is None else figures(verdict.seconds * 1e6)
            print(f"| {verdict.text} | {step} | {best} | {middle} | {verdict.word} |", flush=True)
            results.append(asdict(verdict))
    return results


def amount(number, unit):
    return "" if number is None else f"{number:.3f} {unit}" if number < 2 else f"{figures(number)} {unit}"
