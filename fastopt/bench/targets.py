"""What fastopt promises, and whether it holds here: `fastopt bench --targets`."""

import os
import subprocess
import sys
import tracemalloc
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from statistics import median

from ..cli import figures
from . import stages, steps
from .race import LIMIT, TORCH, Race
from .runner import Unable, compare, table_head, table_line
from .steps import DIVIDER, FUNCTIONAL_SAME, FUSED, IN_PLACE, NUMBA, SAME

SECONDS = 8.0  # of a row and case, unless asked otherwise: the largest need many rounds
ALLOCATED = 1_000  # bytes, at most, that a step after the first allocates at its peak
IMPORT_SECONDS = 0.060  # at most, for `import fastopt` after `import numpy`
IMPORT_TIMES = 10

IMPORT = """
from time import perf_counter
start = perf_counter()
import numpy
middle = perf_counter()
import fastopt
print(middle - start, perf_counter() - middle)
"""


@dataclass(frozen=True)
class Target:
    """A promise about one row and case of a race.

    Either the contender `over` takes at least `least` times as long as the contender `of` (None: the base of the race),
    or where `over` is None, `of` takes at most `most` seconds.
    """

    method: str
    case: str
    threads: int = 1
    over: str | None = None
    least: float = 0.0
    most: float = 0.0
    of: str | None = None
    dtype: str = "float32"
    race: Race = steps.RACE

    @property
    def key(self):
        """What is measured at once."""
        return self.race.name, self.method, self.case, self.threads, self.dtype

    @property
    def text(self):
        what = self.method if self.race is steps.RACE else f"{self.race.name}, {self.method}"
        dtype = "" if self.dtype == "float32" else f", {self.dtype}"
        of = "" if self.of is None else f" ({self.of})"
        where = f"{what} {self.case}{dtype}, {self.threads} thread{'s' * (self.threads > 1)}{of}"
        if self.over is None:
            return f"{where}: at most {self.most * 1e6:g} µs"
        if self.over in (LIMIT, DIVIDER):
            return f"{where}: at least {self.least:.0%} of the {self.over}"
        return f"{where}: at least {self.least:.3g} x {self.over}"

    def verdict(self, comparison):
        of = self.of or self.race.base
        fast = comparison.measurements[of]
        if self.over is None:
            return Verdict(self.text, fast.best * 1e6, fast.median * 1e6, "µs", fast.best <= self.most,
                           fast.median <= self.most, fast.best)
        if self.over not in comparison.measurements:
            needs = next(one.needs for one in self.race.contenders if one.name == self.over)
            return Verdict(f"{self.text} ({needs} is not installed)")
        best, middle = comparison.ratios(self.over, of)
        return Verdict(self.text, best, middle, "x", best >= self.least, middle >= self.least, fast.best)


@dataclass(frozen=True)
class Verdict:
    """What became of a target; without figures it could not be measured. `seconds`: of the best step."""

    text: str
    best: float | None = None
    median: float | None = None
    unit: str = ""
    met: bool | None = None
    median_met: bool | None = None
    seconds: float | None = None

    @property
    def word(self):
        """Decided by the best rounds; where the median of the rounds decides otherwise, it says so."""
        if self.met is None:
            return "not measured"
        word = "met" if self.met else "missed"
        if self.median_met in (None, self.met):
            return word
        return f"{word} (by the median {'missed' if self.met else 'met'})"


def adamw(case, threads, *targets):
    return [*(Target("AdamW", case, threads, **target) for target in targets),
            Target("AdamW", case, threads, IN_PLACE, 4.0)]


def whole_step(case, threads, *targets):
    return [Target("AdamW", case, threads, race=stages.WHOLE_STEP, **target) for target in targets]


DIVIDING = ("Adagrad", "RMSprop", "RAdam", "NAdam", "Adadelta")  # beside Adam and AdamW

TARGETS = (
    Target("AdamW", "1x32768", 1, DIVIDER, 0.274 / 0.30),  # in an L2 of 1 MB
    *adamw("1000x16", 1, {"over": FUSED, "least": 150.0}),
    *adamw("100x64", 1, {"over": FUSED, "least": 50.0},
           {"of": FUNCTIONAL_SAME, "over": SAME, "least": 1 / 1.2}),
    *adamw("1x64", 1, {"over": FUSED, "least": 10.0}, {"most": 1e-6}, {"of": FUNCTIONAL_SAME, "most": 2e-6}),
    *adamw("1x100000", 1, {"over": FUSED, "least": 2.7}, {"over": NUMBA, "least": 1.05}),
    Target("AdamW", "1x100000", 2, NUMBA, 1.05),
    *adamw("1x1000000", 1, {"over": FUSED, "least": 1.1}, {"over": LIMIT, "least": 0.95},
           {"over": NUMBA, "least": 1.05}),
    Target("AdamW", "1x1000000", 2, NUMBA, 1.05),
    *adamw("1x30000000", 1, {"over": LIMIT, "least": 0.95}, {"over": FUSED, "least": 1.0}),
    *adamw("1x30000000", 2, {"over": LIMIT, "least": 0.95}, {"over": FUSED, "least": 1.0}),
    *(Target(method, "1x100000", 1, over, least) for method in (*DIVIDING, "Rprop")
      for over, least in ((NUMBA, 1.0), (DIVIDER, 1 / 1.1)) if (method, over) != ("Rprop", DIVIDER)),
    *(Target(method, "1x1000000", 1, NUMBA, 1.0, dtype="float64")
      for method in ("Adam", "AdamW", *DIVIDING, "Rprop")),
    *(Target(method, case, 1, LIMIT, 0.95) for method in ("Adagrad", "RMSprop", "SGD", "SGD momentum=0.9")
      for case in ("1x1000000", "1x30000000")),
    *whole_step("1000x16", 1, {"over": TORCH, "least": 100.0}),
    *whole_step("1x1000000", 1, {"over": TORCH, "least": 1.7}),
    *whole_step("1x30000000", 1, {"over": TORCH, "least": 1.45}, {"over": LIMIT, "least": 0.95}),
    *whole_step("1x30000000", 2, {"over": TORCH, "least": 1.45}, {"over": LIMIT, "least": 0.95}),
)


def report(args):
    """Measures every target and prints its verdict; returns them, for JSON."""
    return print_verdicts(measured(args.rounds, args.seconds or SECONDS))


def report_import_time(args):
    return print_verdicts([[import_time()]])


def measured(rounds, seconds):
    """Yields the verdicts of each row and case, then those of the whole library."""
    for _, group in groupby(TARGETS, lambda one: one.key):
        group = list(group)
        first = group[0]
        names = {name for target in group for name in (target.over, target.of) if name is not None}
        try:
            row = next(row for row in first.race.rows if row.name == first.method)
            comparison = compare(first.race, row, first.race.parse(first.case), first.threads, first.dtype, rounds,
                                 seconds, names)
        except Unable as reason:
            yield [Verdict(f"{target.text} ({reason})") for target in group]
        else:
            yield [target.verdict(comparison) for target in group]
    yield [allocation()]
    yield [import_time()]


def print_verdicts(groups):
    """Prints targets as they are measured; returns them, for JSON."""
    print(table_head("target", "step, µs", "best", "median", "verdict"), flush=True)
    results = []
    for group in groups:
        for verdict in group:
            best, middle = (amount(number, verdict.unit) for number in (verdict.best, verdict.median))
            step = "" if verdict.seconds is None else figures(verdict.seconds * 1e6)
            print(table_line(verdict.text, step, best, middle, verdict.word), flush=True)
            results.append(asdict(verdict))
    return results


def amount(number, unit):
    return "" if number is None else f"{number:.3f} {unit}" if number < 2 else f"{figures(number)} {unit}"


def allocation(case="1x1000000"):
    """The memory that a step allocates at its peak: the largest figure of all rows."""
    text = f"{case}, every method without norms: a step after the first allocates less than {ALLOCATED} bytes"
    peaks = [allocated(steps.Work(row, steps.parse(case))) for row in steps.ROWS if not row.method.layerwise]
    return Verdict(text, max(peaks), None, "bytes", max(peaks) < ALLOCATED)


def allocated(work):
    """Bytes that a step allocates at its peak, NumPy's arrays included."""
    step, grads = work.optimizer.step, list(work.grads)
    tracemalloc.start()
    try:
        step(grads)
        tracemalloc.reset_peak()
        before = tracemalloc.get_traced_memory()[0]
        step(grads)
        return tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()


def import_time():
    """How long `import fastopt` takes in a fresh process that has imported NumPy."""
    seconds = import_seconds()
    best, middle = min(seconds), median(seconds)
    text = f"import fastopt after import numpy: at most {IMPORT_SECONDS * 1e3:.0f} ms"
    return Verdict(text, best * 1e3, middle * 1e3, "ms", best <= IMPORT_SECONDS, middle <= IMPORT_SECONDS)


def import_seconds(times=IMPORT_TIMES):
    """Seconds that `import fastopt` took in each of so many fresh processes."""
    root = str(Path(__file__).parents[2])
    paths = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
    seconds = []
    for _ in range(times):
        done = subprocess.run([sys.executable, "-c", IMPORT], env=os.environ | {"PYTHONPATH": paths},
                              capture_output=True, text=True, check=True)
        seconds.append(float(done.stdout.split()[1]))
    return seconds

