"""`step()` of every scheduler against torch's, and every schedule: `python -m fastopt.bench.schedulers`.

First table: schedulers with one group. The optimizers do not step, so that only the schedulers are timed; what a
changed rate costs in the next step of the optimizer is the last row. torch, and transformers for GreedyLR, are left out
where they are missing. Second table: one call of each schedule, and the array of a million steps.
"""

import gc
import sys
import time
import warnings
from collections.abc import Callable
from functools import partial
from statistics import median
from typing import Any

import numpy as np

import fastopt

from ..cli import Parser, execute
from ..schedules import table
from .machine import machine

ROUNDS, STEPS = 40, 500
TOTAL = (ROUNDS + 1) * STEPS


def inverse(step):
    return 1.0 / (1.0 + step)


def one(step):
    return 1.0


CASES: dict[str, Callable[[Any, Any], Any]] = {
    "LambdaLR": lambda of, opt: of.LambdaLR(opt, inverse),
    "MultiplicativeLR": lambda of, opt: of.MultiplicativeLR(opt, one),
    "StepLR": lambda of, opt: of.StepLR(opt, 1000),
    "MultiStepLR": lambda of, opt: of.MultiStepLR(opt, [1000, 2000]),
    "ConstantLR": lambda of, opt: of.ConstantLR(opt),
    "LinearLR": lambda of, opt: of.LinearLR(opt, total_iters=TOTAL),
    "ExponentialLR": lambda of, opt: of.ExponentialLR(opt, 0.999),
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


def of_fastopt(case):
    return CASES[case](fastopt.lr_scheduler, fastopt.SGD([np.zeros(1)], lr=0.1, momentum=0.9)).step


def of_torch(case):
    try:
        import torch
    except ImportError:
        return None
    made = torch.optim.lr_scheduler
    if case == "SWALR":
        made = torch.optim.swa_utils
    if case == "GreedyLR":
        try:
            from transformers import optimization as made
        except ImportError:
            return None
    return CASES[case](made, torch.optim.SGD([torch.zeros(1)], lr=0.1, momentum=0.9)).step


def optimizer_step(schedule):
    """An AdamW step of one small array; with a scheduler, which is timed alone elsewhere, before each."""
    gradients = [np.ones(1)]
    optimizer = fastopt.AdamW([np.zeros(1)])
    optimizer.step(gradients)
    if schedule is None:
        return partial(optimizer.step, gradients)
    scheduler = schedule(optimizer)

    def step():
        optimizer.step(gradients)
        scheduler.step()

    return step


def race(steps, *arguments):
    """Microseconds of a step in each round for each contender, interleaved; the first round is not counted."""
    times = {who: [] for who in steps}
    gc.disable()
    try:
        for _ in range(ROUNDS + 1):
            for who, step in steps.items():
                start = time.perf_counter()
                for _ in range(STEPS):
                    step(*arguments)
                times[who].append((time.perf_counter() - start) / STEPS * 1e6)
    finally:
        gc.enable()
    return {who: each[1:] for who, each in times.items()}


def print_schedules():
    """The second table; each schedule with the first of its examples."""
    steps = 1_000_000
    print(f"\n| schedule | a call, best µs | preview of {steps:,} steps, best ms |")
    print("|---|---|---|")
    for row in table.ROWS:
        schedule = row.make(**row.examples(steps)[0])
        calls = race({"call": schedule}, steps // 3)["call"]
        previews = []
        for _ in range(min(5, ROUNDS)):
            start = time.perf_counter()
            schedule.preview(steps)
            previews.append(time.perf_counter() - start)
        print(f"| {row.name} | {min(calls):.2f} | {min(previews) * 1e3:.1f} |", flush=True)


def main(arguments=None):
    parser = Parser(prog="python -m fastopt.bench.schedulers", description=__doc__.split("\n\n")[0])
    return execute(parser, report, arguments)


def report(args):
    """Measures and prints the tables."""
    print(*(f"- {name}: {value}" for name, value in machine().items()), sep="\n", end="\n\n")
    warnings.simplefilter("ignore")  # that the optimizers do not step
    print(f"microseconds of one step() with one group: the best and the median of {ROUNDS} rounds of {STEPS}\n")
    print("| scheduler | fastopt, best | median | torch, best | median | ratio of medians |")
    print("|---|---|---|---|---|---|")
    for case in CASES:
        steps = {"fastopt": of_fastopt(case), "torch": of_torch(case)}
        metric = (1.0,) if case in ("ReduceLROnPlateau", "GreedyLR") else ()
        times = race({who: step for who, step in steps.items() if step}, *metric)
        mine, theirs = times["fastopt"], times.get("torch")
        row = f"| {case} | {min(mine):.2f} | {median(mine):.2f} |"
        if theirs:
            ratio = median(their / my for my, their in zip(mine, theirs, strict=True))
            row += f" {min(theirs):.2f} | {median(theirs):.2f} | {ratio:.1f} x |"
        print(row)
    times = race({"plain": optimizer_step(None),
                  "scheduled": optimizer_step(lambda optimizer: fastopt.lr_scheduler.StepLR(optimizer, 1, 0.9999)),
                  "alone": of_fastopt("StepLR")})
    plain, scheduled, alone = (median(times[who]) for who in ("plain", "scheduled", "alone"))
    print(f"\nAdamW.step of one number: {plain:.2f}; with StepLR, which changes the rate each time: {scheduled:.2f}; "
          f"reading the new rate costs {scheduled - plain - alone:.2f}")
    print_schedules()


if __name__ == "__main__":
    sys.exit(main())
