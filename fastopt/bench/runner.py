"""The measurement: all rivals of a row and case, interleaved round by round in one process.

In a round every rival makes as many steps as take two milliseconds, first uncounted, so that it finds the
caches as its own steps leave them, then timed. In the large cases other data fills the last-level cache
before: what the last rival has left there would help one and not another. The order changes from round to
round. What slows the machine for a while slows all of them: trust the ratios, and of the times the best.
"""

import gc
import random
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from itertools import cycle, islice
from statistics import median
from time import perf_counter

import numpy as np

from ..kernels import threads as threading
from .rivals import FASTOPT, LIMIT, Workspace, rivals, torch

LEAST = 2e-3  # seconds that a measurement lasts at least
SPACED = 8_000_000  # bytes: rivals of smaller cases find their data in caches of their own soon enough
SPACER = 64_000_000  # bytes, at least, of the other data
FEWEST = 5  # rounds, however little time there is
ROUNDS, SECONDS = 60, 2.0  # of a comparison, unless asked otherwise


@dataclass(frozen=True)
class Measurement:
    """What one rival took.

    Attributes:
        seconds: per step, one number for each round.
        elements: of all arrays.
        traffic: bytes that a step moves.
    """

    case: str
    threads: int
    method: str
    rival: str
    elements: int
    traffic: int
    seconds: tuple[float, ...]

    @property
    def best(self):
        return min(self.seconds)

    @property
    def median(self):
        return median(self.seconds)

    @property
    def gigabytes_per_second(self):
        return self.traffic / self.best / 1e9

    @property
    def nanoseconds_per_element(self):
        return self.best / self.elements * 1e9

    def best_ratio(self, other):
        """How many times `other` this took: the best round of each."""
        return self.best / other.best

    def median_ratio(self, other):
        """How many times `other` this took: the median over the rounds of the ratio within a round."""
        return median(mine / theirs for mine, theirs in zip(self.seconds, other.seconds, strict=True))


@dataclass(frozen=True)
class Comparison:
    """The measurements of one row, case and number of threads, by rival."""

    case: str
    threads: int
    method: str
    measurements: dict[str, Measurement] = field(default_factory=dict)

    def ratios(self, rival):
        """(best, median): how many times the time of fastopt's `step(grads)` a rival took."""
        fast = self.measurements[FASTOPT]
        return self.measurements[rival].best_ratio(fast), self.measurements[rival].median_ratio(fast)

    def share_of_limit(self, rival):
        """The limit's time over the rival's: 1 is as fast as memory allows. None without a measured limit."""
        if LIMIT not in self.measurements:
            return None
        return self.measurements[LIMIT].best_ratio(self.measurements[rival])

    def as_dicts(self):
        """For JSON: one dict for each rival."""
        return [
            asdict(one) | {
                "best": one.best,
                "median": one.median,
                "gigabytes_per_second": one.gigabytes_per_second,
                "nanoseconds_per_element": one.nanoseconds_per_element,
                "share_of_limit": self.share_of_limit(name),
            } | dict(zip(("best_ratio", "median_ratio"), self.ratios(name), strict=True))
            for name, one in self.measurements.items()
        ]


class Unable(Exception):
    """This machine or process cannot run the case; the message says why."""


def compare(row, case, threads=1, dtype="float32", rounds=ROUNDS, seconds=SECONDS, names=None):
    """Measures the rivals of a row and case.

    Args:
        names: rivals to measure beside fastopt's `step(grads)`, None for all.
        rounds, seconds: see `interleave`.

    Raises:
        Unable: fewer than `threads` threads can be used, or torch cannot be made to use that many.
    """
    with torch_threads(threads):
        if threads > 1 and threading.most() < threads:
            raise Unable(f"{threads} threads: at most {threading.most()} can be used here")
        work = Workspace(row, case, dtype, threads)
        entries = rivals(work, None if names is None else {FASTOPT, *names})
        samples = interleave(entries, rounds, seconds, spacer(work.bytes))
    itemsize = work.dtype.itemsize
    return Comparison(case.name, threads, row.name, {
        rival.name: Measurement(case.name, threads, row.name, rival.name, case.total,
                                row.traffic(itemsize) * case.total, tuple(times))
        for rival, times in zip(entries, samples, strict=True)
    })


@contextmanager
def torch_threads(threads):
    """Lets torch use as many threads as fastopt; imports it before fastopt's start, see `rivals.torch`."""
    if torch() is None:
        yield
        return
    before = torch().get_num_threads()
    torch().set_num_threads(threads)
    try:
        yield
    finally:
        torch().set_num_threads(before)


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
    """A function that fills the last-level cache with other data, for rivals over `size` bytes."""
    if size < SPACED:
        return lambda: None
    other = np.ones(max(size, SPACER) // 4, np.float32)
    return lambda: np.negative(other, other)


def interleave(entries, rounds=ROUNDS, seconds=SECONDS, between=lambda: None):
    """Measures rivals round by round: returns for each a list with its seconds per step in every round.

    Args:
        rounds: at most so many.
        seconds: when they have passed no round begins, but at least 5 are made (fewer if `rounds` is less).
        between: called before each measurement.
    """
    samples = [[] for _ in entries]
    order = list(range(len(entries)))
    shuffle = random.Random(0).shuffle
    with no_garbage_collection():
        repeats = [calibrated(rival) for rival in entries]
        end = perf_counter() + seconds
        done = 0
        while done < rounds and (done < FEWEST or perf_counter() < end):
            shuffle(order)
            for i in order:
                between()
                timed(entries[i], repeats[i])
                samples[i].append(timed(entries[i], repeats[i]) / repeats[i])
            done += 1
    return samples


def calibrated(rival):
    """How many steps take `LEAST` seconds; it makes the first calls of a rival, which nobody counts."""
    rival.step(rival.arguments[-1])
    repeats = 1
    while (took := timed(rival, repeats)) < LEAST:
        repeats = max(2 * repeats, int(1.1 * repeats * LEAST / took))
    return repeats


def timed(rival, repeats):
    step = rival.step
    arguments = islice(cycle(rival.arguments), repeats)
    if rival.before is not None:
        return sum(alone(rival, argument) for argument in arguments)
    start = perf_counter()
    for argument in arguments:
        step(argument)
    return perf_counter() - start


def alone(rival, argument):
    """Seconds of one step, without what comes before it."""
    rival.before()
    start = perf_counter()
    rival.step(argument)
    return perf_counter() - start
