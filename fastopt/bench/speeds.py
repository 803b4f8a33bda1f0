"""Each method's speed in that of torch's fastest path: `python -m fastopt.bench.speeds docs/speeds.json`.

Writes what the README's table of methods shows: for the elementwise methods two cases, for the others their own race;
best rounds, float32, one thread (Muon: the BLAS's threads). `python -m fastopt.table docs/speeds.json` prints the
table.
"""

import sys

from ..cli import Parser, Stop, execute, writing
from . import adafactor, lbfgs, muon, sparse
from .cases import parse
from .cli import TORCH, as_json, figures
from .machine import machine
from .rivals import rows, torch
from .runner import compare

CASES = ("100x64", "1x1000000")


def elementwise():
    for row in rows():
        if not row.options:
            comparisons = [compare(row, parse(name), 1, "float32") for name in CASES]
            yield row.name, [(name, min(comparison.ratios(rival)[0] for rival in TORCH
                                        if rival in comparison.measurements))
                             for name, comparison in zip(CASES, comparisons, strict=True)]


def races():
    yield "Adafactor", [("4096x4096", ahead(adafactor.measure(adafactor.steps((4096, 4096), False), 5)))]
    yield "Muon", [(f"{rows}x{columns}", ahead(muon.measure((rows, columns)))) for rows, columns in muon.SHAPES[:2]]
    yield "LBFGS", [(f"1x{lbfgs.ELEMENTS}", ahead(lbfgs.measure(lbfgs.ELEMENTS, lbfgs.HISTORY)))]
    steps = {"fastopt": sparse.of_fastopt("SparseAdam", {}), "torch": sparse.of_torch("SparseAdam", {})}
    yield "SparseAdam", [(f"{sparse.TOUCHED} rows of {sparse.COLUMNS}", ahead(sparse.race(steps)))]


def ahead(seconds):
    """torch's best time over fastopt's: `seconds` has those of each contender by its name."""
    ours = min(min(times) for name, times in seconds.items() if name.startswith("fastopt"))
    return min(min(times) for name, times in seconds.items() if name.startswith("torch")) / ours


def main(arguments=None):
    parser = Parser(prog="python -m fastopt.bench.speeds", description=__doc__.splitlines()[0])
    parser.add_argument("file", help="where to write, such as docs/speeds.json")
    return execute(parser, report, arguments)


def report(args):
    """Measures, prints and writes the speeds."""
    if torch() is None:
        raise Stop("torch is not installed: there is nothing to compare with")
    speeds = {}
    with writing(args.file) as write:
        for measured in (elementwise(), races()):
            for name, ratios in measured:
                speeds[name] = ", ".join(f"{figures(ratio)} x at {case}" for case, ratio in ratios)
                print(f"{name}: {speeds[name]}", flush=True)
        write(as_json({"machine": machine(), "speeds": speeds}))


if __name__ == "__main__":
    sys.exit(main())
