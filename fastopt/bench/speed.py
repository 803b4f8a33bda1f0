"""How many times fastopt's step torch's fastest path takes, for every method that torch has too.

The elementwise methods in the cases `CASES`, the others in their own races; float32, one thread (Muon: those of the
BLAS). What `--json` writes is what `python -m fastopt.table` makes the README's table of methods from.
"""

from ..cli import figures
from . import adafactor, lbfgs, muon, sparse, steps
from .race import torch
from .runner import compare, table_head, table_line

CASES = ("100x64", "1x100000", "1x1000000", "1x10000000")
# a race, the row of a method in it, and cases
OTHERS = (
    (adafactor.RACE, "Adafactor", ("4096x4096",)),
    (muon.RACE, "Muon", ("1024x1024", "768x3072")),
    (lbfgs.RACE, "LBFGS", ("1x1000000",)),
    (sparse.RACE, "SparseAdam", ("4096x64",)),
)


def report(args):
    """Measures and prints the speeds; returns them, for JSON."""
    if torch() is None:
        print("torch is not installed: there is nothing to compare with.")
        return []
    wanted = None if args.method is None else [name.lower() for name in args.method]
    results = []

    def measured(race, row, name):
        case = race.parse(name)
        comparison = compare(race, row, case, case.threads[0], None, args.rounds, args.seconds)
        ratios = [comparison.ratios(one) for one in comparison.measurements if one.startswith("torch")]
        if not ratios:  # this torch lacks it
            return "", comparison
        best, middle = (min(column) for column in zip(*ratios, strict=True))
        results.append({"method": row.name, "case": case.name, "best": best, "median": middle})
        return f"{figures(best)} x ({figures(middle)} x)", comparison

    print(table_head("method", *(f"{name}: best (median)" for name in CASES), f"of the limit at {CASES[-1]}"))
    for row in steps.ROWS:
        if matches(row, wanted) and row.method.in_torch:
            cells, comparisons = zip(*(measured(steps.RACE, row, name) for name in CASES), strict=True)
            print(table_line(row.name, *cells, f"{comparisons[-1].share_of_limit(steps.NEW):.0%}"), flush=True)
    print(f"\n{table_head('method', 'case', 'best (median)')}")
    for race, method, names in OTHERS:
        for row in race.rows:
            if row.name == method and matches(row, wanted):
                for name in names:
                    print(table_line(row.name, name, measured(race, row, name)[0]), flush=True)
    return results


def matches(row, wanted):
    """Whether a row is meant by the name of the method or its own."""
    return wanted is None or row.name.lower() in wanted or row.name.split()[0].lower() in wanted
