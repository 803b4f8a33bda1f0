"""What fastopt promises, and whether it holds here: `fastopt bench --targets`."""

import os
import subprocess
import sys
import tracemalloc
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from statistics import median

from .cases import parse
from .rivals import FASTOPT, FUSED, IN_PLACE, LIMIT, Workspace, rows
from .runner import Unable, compare

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
    """A promise about the public `step(grads)` of one row and case in float32.

    Either the rival takes at least `least` times as long, or without a rival a step takes at most `most`
    seconds.
    """

    method: str
    case: str
    threads: int = 1
    rival: str | None = None
    least: float = 0.0
    most: float = 0.0

    @property
    def text(self):
        where = f"{self.method} {self.case}, {self.threads} thread{'s' * (self.threads > 1)}"
        if self.rival is None:
            return f"{where}: at most {self.most * 1e6:g} µs"
        if self.rival == LIMIT:
            return f"{where}: at least {self.least:.0%} of the same-traffic limit"
        return f"{where}: at least {self.least:g} x {self.rival}"

    def verdict(self, comparison):
        fast = comparison.measurements[FASTOPT]
        if self.rival is None:
            return Verdict(self.text, fast.best * 1e6, fast.median * 1e6, "µs", fast.best <= self.most,
                           fast.median <= self.most, fast.best)
        if self.rival not in comparison.measurements:
            return Verdict(f"{self.text} (torch is not installed)")
        best, middle = comparison.ratios(self.rival)
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
    own = [Target("AdamW", case, threads, **target) for target in targets]
    return [*own, Target("AdamW", case, threads, IN_PLACE, 4.0)]


def near_limit(method, *cases):
    return [Target(method, case, 1, LIMIT, 0.95) for case in cases]


TARGETS = (
    *adamw("1000x16", 1, {"rival": FUSED, "least": 100.0}),
    *adamw("100x64", 1, {"rival": FUSED, "least": 50.0}),
    *adamw("1x64", 1, {"rival": FUSED, "least": 10.0}, {"most": 2e-6}),
    *adamw("1x100000", 1, {"rival": FUSED, "least": 2.5}),
    *adamw("1x1000000", 1, {"rival": FUSED, "least": 1.1}, {"rival": LIMIT, "least": 0.95}),
    *adamw("1x30000000", 1, {"rival": LIMIT, "least": 0.95}, {"rival": FUSED, "least": 1.0}),
    *adamw("1x30000000", 2, {"rival": LIMIT, "least": 0.95}, {"rival": FUSED, "least": 1.0}),
    *near_limit("Adagrad", "1x1000000", "1x30000000"),
    *near_limit("RMSprop", "1x1000000", "1x30000000"),
    *near_limit("SGD", "1x1000000", "1x30000000"),
    *near_limit("SGD momentum=0.9", "1x1000000", "1x30000000"),
)


def measure(rounds, seconds):
    """Measures every target: yields the verdicts of each row and case, then those of the whole library."""
    named = {row.name: row for row in rows()}
    for (method, case, threads), group in groupby(TARGETS, lambda one: (one.method, one.case, one.threads)):
        group = list(group)
        names = {target.rival for target in group} - {None}
        try:
            comparison = compare(named[method], parse(case), threads, "float32", rounds, seconds, names)
        except Unable as reason:
            yield [Verdict(f"{target.text} ({reason})") for target in group]
        else:
            yield [target.verdict(comparison) for target in group]
    yield [allocation()]
    yield [import_time()]


def allocation(case="1x1000000"):
    """The memory that a step allocates at its peak: the largest figure of all rows."""
    text = f"{case}, every method: a step after the first allocates less than {ALLOCATED} bytes"
    peaks = [allocated(Workspace(row, parse(case))) for row in rows()]
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

