"""Measures fastopt beside its contenders (NumPy, Numba, torch, the machine's limits), interleaved in one process."""

import json
from contextlib import nullcontext

from ..cli import need_memory, positive, whole, writing
from . import (
    adafactor,
    averages,
    checkpoint,
    errors,
    lbfgs,
    muon,
    schedulers,
    sparse,
    speed,
    stages,
    steps,
    targets,
    threads_in_loop,
)
from .cases import FULL
from .machine import machine
from .race import installed
from .runner import RATES, TIMES, Unable, compare, table_head, table_line

RACES = {race.name: race for race in (
    steps.RACE, stages.WHOLE_STEP, stages.STAGE_BY_STAGE, averages.RACE, adafactor.RACE, muon.RACE, lbfgs.RACE,
    sparse.RACE, schedulers.SCHEDULER_RACE, schedulers.SCHEDULE_RACE,
)}
# name: (what takes the options and returns what was measured, for JSON; what it does)
REPORTS = {
    "targets": (targets.report, "measures what fastopt promises; the exit status is 1 if any of it fails"),
    "speed": (speed.report, "measures every method against the fastest path of torch, a line for each"),
    "import-time": (targets.report_import_time, "measures `import fastopt` in fresh processes"),
    "threads-in-loop": (threads_in_loop.report, "measures NumPy training loops with 1 and 2 optimizer threads"),
    "checkpoint": (checkpoint.report, "measures how fast a large state is written and read"),
    "errors": (errors.report, "shows how far float32 is from float64, for every method"),
}
FLAGS = ("targets", "speed", "import-time", "threads-in-loop")  # reports that are options too


def add_arguments(parser):
    """Adds the options of `fastopt bench` to a parser."""
    lines = [f"{name} ({race.about.rstrip('.')})" for name, race in RACES.items()]
    lines += [f"{name} ({about})" for name, (_, about) in REPORTS.items()]
    parser.add_argument("what", nargs="*", metavar="WHAT", help=f"what to measure (default: steps): {'; '.join(lines)}")
    for name in FLAGS:
        parser.add_argument(f"--{name}", action="append_const", dest="flags", const=name, help=f"the same as {name}")
    parser.add_argument("--method", nargs="+", metavar="NAME", help="methods, or other rows of a race (default: all)")
    parser.add_argument("--case", nargs="+", metavar="NAME",
                        help="cases: <arrays>x<elements>, such as 100x64 or 1x30M, where a race is over arrays, or a "
                             "shape such as 1024x1024 (default: those of the race)")
    parser.add_argument("--contender", nargs="+", metavar="NAME",
                        help="contenders whose names have this in them, such as torch or numba (default: all but those "
                             "that take minutes: torch compiled)")
    parser.add_argument("--full", action="store_true", help=f"also the case {FULL[-1]} of steps, which takes some 4 GB")
    parser.add_argument("--threads", nargs="+", type=whole(1), metavar="N",
                        help="numbers of threads (default: 1, and 2 from a million elements)")
    parser.add_argument("--dtype", choices=("float32", "float64"), help="(default: float32, where a race has it)")
    parser.add_argument("--rounds", type=whole(1), metavar="N", help="rounds of a case and method, at most")
    parser.add_argument("--seconds", type=positive, metavar="S",
                        help="budget of a case and method; 5 rounds are made in any case")
    parser.add_argument("--gigabytes", type=positive, default=1.0, metavar="X",
                        help="of state that checkpoint writes (default: %(default)s)")
    parser.add_argument("--folder", metavar="PATH",
                        help="where checkpoint writes (default: the system's for temporary files)")
    parser.add_argument("--json", metavar="FILE", help="also writes what was measured to this file")
    parser.set_defaults(refuse=parser.error)


def run(args):
    """Measures what the options ask for and prints it as Markdown. Returns the exit status."""
    names = [*args.what, *(args.flags or ())] or ["steps"]
    selected = [selection(args, name) for name in names]
    with nullcontext() if args.json is None else writing(args.json) as write:
        about = machine()
        print("\n".join(f"- {name}: {value}" for name, value in about.items()), end="\n\n", flush=True)
        results = []
        for number, report in enumerate(selected):
            print(end="\n" if number else "")
            results += report()
        if write is not None:
            write((json.dumps({"machine": about, "results": results}, indent=1) + "\n").encode())
    return int(any(result.get("met") is False for result in results))


def selection(args, name):
    """What is to be measured under a name, as a function without arguments; the options are checked here."""
    if name in REPORTS:
        return lambda: REPORTS[name][0](args)
    if name not in RACES:
        args.refuse(f"argument WHAT: there is no {name!r}; there are {', '.join([*RACES, *REPORTS])}")
    race = RACES[name]
    if args.dtype not in (None, *race.dtypes):
        args.refuse(f"argument --dtype: {name} is measured in {' or '.join(race.dtypes)}")
    rows = [row for one in args.method for row in rows_named(args, race, one)] if args.method else race.rows
    cases = [case_named(args, race, one)
             for one in args.case or (FULL if args.full and race is steps.RACE else race.cases)]
    contenders = contenders_named(args, race, args.contender) if args.contender else None
    return lambda: print_race(args, race, rows, cases, contenders)


def rows_named(args, race, name):
    """All rows of a method, or the one row of that name."""
    found = [row for row in race.rows if speed.matches(row, [name.lower()])]
    if not found:
        known = ", ".join(row.name for row in race.rows)
        args.refuse(f"argument --method: {race.name} has no {name!r}; it has {known}")
    return found


def case_named(args, race, name):
    """The case of a name; its arrays must fit into the memory that is free."""
    try:
        case = race.parse(name)
    except ValueError as error:
        args.refuse(f"argument --case: {error}")
    need_memory(case.memory)
    return case


def contenders_named(args, race, parts):
    """The names of contenders that have one of the parts in them."""
    found = {one.name for one in race.contenders for part in parts if part.lower() in one.name.lower()}
    if not found:
        args.refuse(f"argument --contender: {race.name} has no {parts[0]!r}; "
                    f"it has {', '.join(one.name for one in race.contenders)}")
    return found


def print_race(args, race, rows, cases, contenders):
    """Measures and prints rows and cases of a race; returns what was measured, for JSON."""
    missing = {one.needs for one in race.contenders if one.needs and not installed(one.needs)}
    for package in sorted(missing):
        print(f"{package} is not installed: its contenders are left out.", end="\n\n")
    columns = race.columns or TIMES | RATES
    print(table_head("case", "threads", "method", "contender", *columns), flush=True)
    results, notes = [], []
    for case in cases:
        for threads in args.threads or case.threads:
            for row in rows:
                try:
                    comparison = compare(race, row, case, threads, args.dtype, args.rounds, args.seconds, contenders)
                except Unable as reason:
                    notes.append(f"{case.name}, {row.name}: left out, {reason}.")
                    continue
                for name, one in comparison.measurements.items():
                    cells = (column(comparison, name) for column in columns.values())
                    print(table_line(case.name, threads, row.name, one.contender, *cells), flush=True)
                results += comparison.as_dicts()
    if notes:
        print("", *notes, sep="\n")
    return results
