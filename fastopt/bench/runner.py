"""The measurement: all contenders of a row and case, interleaved round by round in one process.

In a round every contender makes as many steps as take two milliseconds, first uncounted, so that it finds the
caches as its own steps leave them, then timed; by then the threads of the last one, which Numba may have from an
OpenMP runtime of its own, no longer spin. In the large cases other data fills the last-level cache before: what the
last contender has left there would help one and not another. The order changes from round to round. What slows the
machine for a while slows all of them: trust the ratios, and of the times the best.
"""

import gc
import random
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from itertools import cycle, islice, repeat
from statistics import median
from time import perf_counter

import numpy as np

from ..cli import figures
from ..kernels import threads as threading
from .race import LIMIT, ROUNDS, SECONDS, installed

LEAST = 2e-3  # seconds that a measurement lasts at least
SPACED = 8_000_000  # bytes: contenders of smaller cases find their data in caches of their own soon enough
SPACER = 64_000_000  # bytes, at least, of the other data
FEWEST = 5  # rounds, however little time there is


@dataclass(frozen=True)
class Measurement:
    """What one contender took.

    Attributes:
        contender: its label.
        elements: of all arrays; None where they are no measure.
        traffic: bytes that a step moves, None as well.
        seconds: per step, one number for each round.
    """

    contender: str
    elements: int | None
    traffic: float | None
    seconds: tuple[float, ...]

    @property
    def best(self):
        return min(self.seconds)

    @property
    def median(self):
        return median(self.seconds)

    @property
    def gigabytes_per_second(self):
        return self.traffic and self.traffic / self.best / 1e9

    @property
    def nanoseconds_per_element(self):
        return self.elements and self.best / self.elements * 1e9


@dataclass(frozen=True)
class Comparison:
    """The measurements of one row, case and number of threads, by the name of the contender."""

    race: str
    case: str
    threads: int
    method: str
    dtype: str
    base: str
    measurements: dict[str, Measurement] = field(default_factory=dict)

    def ratios(self, name, base=None):
        """(best, median): how many times the time of the base a contender took.

        The first compares the best round of each, the second is the median of the ratios within a round.
        """
        theirs, ours = self.measurements[name], self.measurements[base or self.base]
        return theirs.best / ours.best, median(a / b for a, b in zip(theirs.seconds, ours.seconds, strict=True))

    def share_of_limit(self, name):
        """The limit's time over the contender's: 1 is as fast as memory allows. None without a measured limit."""
        return self.ratios(LIMIT, name)[0] if LIMIT in self.measurements else None

    def as_dicts(self):
        """For JSON: one dict for each contender."""
        about = {name: getattr(self, name) for name in ("race", "case", "threads", "method", "dtype")}
        return [
            about | asdict(one) | {
                "best": one.best,
                "median": one.median,
                "gigabytes_per_second": one.gigabytes_per_second,
                "nanoseconds_per_element": one.nanoseconds_per_element,
                "share_of_limit": self.share_of_limit(name),
            } | dict(zip(("best_ratio", "median_ratio"), self.ratios(name), strict=True))
            for name, one in self.measurements.items()
        ]


# ---- the columns of a table: functions of a comparison and the name of a contender ---------------

def microseconds(which):
    return lambda comparison, name: figures(getattr(comparison.measurements[name], which) * 1e6)


def times(which):
    """How many times the time of the base a contender took; nothing for the base itself."""
    return lambda comparison, name: "" if name == comparison.base else f"{comparison.ratios(name)[which]:.2f} x"


def share(comparison, name):
    found = comparison.share_of_limit(name)
    return "" if found is None else f"{found:.1%}"


TIMES = {
    "best µs": microseconds("best"),
    "median µs": microseconds("median"),
    "fastopt is (best)": times(0),
    "fastopt is (median)": times(1),
}
RATES = {
    "ns/element": lambda comparison, name: figures(comparison.measurements[name].nanoseconds_per_element),
    "GB/s": lambda comparison, name: figures(comparison.measurements[name].gigabytes_per_second),
    "of the limit": share,
}


def table_head(*names):
    """The first two lines of a Markdown table."""
    return f"{table_line(*names)}\n|{'---|' * len(names)}"


def table_line(*cells):
    return f"| {' | '.join(map(str, cells))} |"


# ---- measuring ---------------------------------------------------------------------------------

class Unable(Exception):
    """This machine or process cannot run the case; the message says why."""


def compare(race, row, case, threads=1, dtype=None, rounds=None, seconds=None, names=None):
    """Measures the contenders of a row and case.

    Args:
        dtype, rounds, seconds: None for the race's own; see `interleave`.
        names: contenders to measure beside the base, None for all but those that want to be asked for.

    Raises:
        Unable: fewer than `threads` threads can be used.
    """
    dtype = dtype or race.dtypes[0]
    with threads_of_all(threads, {one.needs for one in race.contenders}):
        work = race.work(row, case, dtype, threads)
        steps = race.enter(work, names)
        samples = interleave(list(steps.values()), rounds or race.rounds, seconds or race.seconds, spacer(work.bytes))
    elements, traffic = getattr(work, "elements", None), getattr(work, "traffic", None)
    return Comparison(race.name, case.name, threads, row.name, dtype, race.base, {
        name: Measurement(step.label or name, elements, traffic if step.traffic is None else step.traffic, tuple(times))
        for (name, step), times in zip(steps.items(), samples, strict=True)
    })


@contextmanager
def threads_of_all(threads, packages=("torch", "numba")):
    """Gives NumPy's BLAS, and torch and Numba if named, as many threads as fastopt has.

    Without threadpoolctl the BLAS keeps its own.

    Raises:
        Unable: fewer can be used here.
    """
    # torch is imported first, see `installed`, and set last: when Numba's threads start they change OpenMP's settings
    torch, numba = (installed(name) if name in packages else None for name in ("torch", "numba"))
    most = threading.most() if threads > 1 else 1
    if most < threads:
        raise Unable(f"{threads} threads: at most {most} can be used here")
    with ExitStack() as stack:
        if numba:
            if numba.config.NUMBA_NUM_THREADS < threads:
                raise Unable(f"{threads} threads: Numba has {numba.config.NUMBA_NUM_THREADS}")
            stack.callback(numba.set_num_threads, numba.get_num_threads())
            numba.set_num_threads(threads)
        if pools := installed("threadpoolctl"):
            stack.enter_context(pools.threadpool_limits(threads, user_api="blas"))
        if torch:
            stack.callback(torch.set_num_threads, torch.get_num_threads())
            torch.set_num_threads(threads)
        yield


@contextmanager
def no_garbage_collection():
    was = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


def spacer(size):
    """A function that fills the last-level cache with other data, for contenders over `size` bytes."""
    if size < SPACED:
        return lambda: None
    other = np.ones(max(size, SPACER) // 4, np.float32)
    return lambda: np.negative(other, other)


def interleave(steps, rounds=ROUNDS, seconds=SECONDS, between=lambda: None):
    """Measures steps round by round: returns for each a list with its seconds in every round.

    Args:
        rounds: at most this many.
        seconds: when they have passed no round begins, but at least 5 are made (fewer if `rounds` is less).
        between: called before each measurement.
    """
    samples = [[] for _ in steps]
    order = list(range(len(steps)))
    shuffle = random.Random(0).shuffle
    with no_garbage_collection():
        repeats = [calibrated(step) for step in steps]
        end = perf_counter() + seconds
        done = 0
        while done < rounds and (done < FEWEST or perf_counter() < end):
            shuffle(order)
            for i in order:
                between()
                timed(steps[i], repeats[i])
                samples[i].append(timed(steps[i], repeats[i]) / (repeats[i] * steps[i].steps))
            done += 1
    return samples


def calibrated(step):
    """How many calls take `LEAST` seconds; it makes the first ones of a step, which nobody counts."""
    timed(step, max(1, len(step.arguments or ())))
    repeats = 1
    while (took := timed(step, repeats)) < LEAST:
        repeats = max(2 * repeats, int(1.1 * repeats * LEAST / max(took, 1e-9)))
    return repeats


def timed(step, calls):
    """Seconds of so many calls, without what does not count."""
    if step.aside is not None:
        step.aside()
    took = 0.0
    if step.before is None:
        took = seconds_of(step.step, calls, step.arguments and islice(cycle(step.arguments), calls))
    else:
        while calls > 0:
            few = min(calls, step.batch)
            took += seconds_of(step.step, few, step.before(few))
            calls -= few
    return took - step.aside() if step.aside is not None else took


def seconds_of(function, calls, arguments):
    start = perf_counter()
    if arguments is None:
        for _ in repeat(None, calls):
            function()
    else:
        for argument in arguments:
            function(argument)
    return perf_counter() - start
