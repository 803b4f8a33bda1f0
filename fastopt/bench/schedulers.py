"""`step()` of every scheduler against torch's, and every schedule.

The optimizers of the schedulers have one group and do not step, so that only the schedulers are timed; what a changed
rate costs in the next step of an optimizer is the difference of the last two rows. torch's twin of GreedyLR is that of
transformers.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

import fastopt

from ..schedules import table
from .race import FASTOPT, TORCH, Contender, Race, Row, Step, installed, torch
from .runner import TIMES, microseconds

TOTAL = 10_000_000  # steps, more than are made
PREVIEWED = 1_000_000
CALL, PREVIEW = "a call", f"preview of {PREVIEWED:,} steps"
PLAIN, SCHEDULED = "AdamW.step", "AdamW.step, StepLR.step"


def inverse(step):
    return 1.0 / (1.0 + step)


def one(step):
    return 1.0


SCHEDULERS: dict[str, Callable[[Any, Any], Any]] = {
    "LambdaLR": lambda of, opt: of.LambdaLR(opt, inverse),
    "MultiplicativeLR": lambda of, opt: of.MultiplicativeLR(opt, one),
    "StepLR": lambda of, opt: of.StepLR(opt, 1000),
    "MultiStepLR": lambda of, opt: of.MultiStepLR(opt, [1000, 2000]),
    "ConstantLR": lambda of, opt: of.ConstantLR(opt),
    "LinearLR": lambda of, opt: of.LinearLR(opt, total_iters=TOTAL),
    "ExponentialLR": lambda of, opt: of.ExponentialLR(opt, 0.99999),
    "PolynomialLR": lambda of, opt: of.PolynomialLR(opt, TOTAL),
    "CosineAnnealingLR": lambda of, opt: of.CosineAnnealingLR(opt, TOTAL),
    "CosineAnnealingWarmRestarts": lambda of, opt: of.CosineAnnealingWarmRestarts(opt, 1000),
    "CyclicLR": lambda of, opt: of.CyclicLR(opt, 0.01, 0.1),
    "CyclicLR, no momentum": lambda of, opt: of.CyclicLR(opt, 0.01, 0.1, cycle_momentum=False),
    "OneCycleLR": lambda of, opt: of.OneCycleLR(opt, 0.1, TOTAL),
    "OneCycleLR, no momentum": lambda of, opt: of.OneCycleLR(opt, 0.1, TOTAL, cycle_momentum=False),
    "SWALR": lambda of, opt: of.SWALR(opt, 0.01, TOTAL),
    "ReduceLROnPlateau": lambda of, opt: of.ReduceLROnPlateau(opt),
    "GreedyLR": lambda of, opt: of.GreedyLR(opt),
    "SequentialLR of 2": lambda of, opt: of.SequentialLR(
        opt, [of.LinearLR(opt), of.CosineAnnealingLR(opt, TOTAL)], [5]),
    "ChainedScheduler of 2": lambda of, opt: of.ChainedScheduler(
        [of.LinearLR(opt), of.CosineAnnealingLR(opt, TOTAL)]),
}


@dataclass(frozen=True)
class Single:
    """The only case."""

    name: str
    threads = (1,)
    memory = 0


@dataclass(frozen=True)
class Work:
    row: Any
    case: Single
    dtype: str = "float64"
    threads: int = 1
    bytes = 0


def parse_single(name):
    def parse(given):
        if given != name:
            raise ValueError(f"the only case is {name!r}, got {given!r}")
        return Single(name)

    return parse


def stepping(row, of, optimizer, arguments=()):
    """A scheduler's step, after one of its optimizer, without which it warns."""
    scheduler = SCHEDULERS[row.name](of, optimizer)
    optimizer.step(*arguments)
    return Step(scheduler.step, (1.0,) if row.name in ("ReduceLROnPlateau", "GreedyLR") else None)


def with_fastopt(work):
    if work.row.name in SCHEDULERS:
        return stepping(work.row, fastopt.lr_scheduler, fastopt.SGD([np.zeros(1)], lr=0.1, momentum=0.9), [[None]])
    gradients = [np.ones(1)]
    optimizer = fastopt.AdamW([np.zeros(1)])
    optimizer.step(gradients)
    if work.row.name == PLAIN:
        return Step(optimizer.step, (gradients,))
    scheduler = fastopt.lr_scheduler.StepLR(optimizer, 1, 0.99999)

    def step(gradients):
        optimizer.step(gradients)
        scheduler.step()

    return Step(step, (gradients,))


def with_torch(work):
    if work.row.name not in SCHEDULERS:
        return None
    of = torch().optim.lr_scheduler
    if work.row.name == "SWALR":
        of = torch().optim.swa_utils
    elif work.row.name == "GreedyLR":
        of = getattr(installed("transformers"), "optimization", None)
    return of and stepping(work.row, of, torch().optim.SGD([torch().zeros(1)], lr=0.1, momentum=0.9))


def schedule(work):
    return work.row.make(**work.row.examples(PREVIEWED)[0])


SCHEDULER_RACE = Race(
    "schedulers", "Steps of learning-rate schedulers.", tuple(map(Row, [*SCHEDULERS, PLAIN, SCHEDULED])), ("1 group",),
    parse_single("1 group"), Work,
    (Contender(FASTOPT, with_fastopt), Contender(TORCH, with_torch, needs="torch")),
    base=FASTOPT, columns=TIMES, dtypes=("float64",), seconds=0.5,
)
SCHEDULE_RACE = Race(
    "schedules", "Calls of schedules.", tuple(table.ROWS), ("1 step",), parse_single("1 step"), Work,
    (
        Contender(CALL, lambda work: Step(schedule(work), (PREVIEWED // 3,))),
        Contender(PREVIEW, lambda work: Step(schedule(work).preview, (PREVIEWED,))),
    ),
    base=CALL, columns={"best µs": microseconds("best"), "median µs": microseconds("median")}, dtypes=("float64",),
    rounds=10, seconds=0.3,
)
