"""A line search for the strong Wolfe conditions, with the rules of torch.optim.LBFGS.

Source: Nocedal and Wright 2006, Numerical Optimization, algorithms 3.5 (bracket) and 3.6 (zoom); the safeguards of
the zoom are those of minFunc (Schmidt 2005), which torch took over. A point where the loss or its slope is not finite
is too high, so that the search comes back from there, where torch goes on outwards.
"""

from collections.abc import Callable
from math import isfinite, sqrt
from typing import NamedTuple

import numpy as np

DECREASE, CURVATURE = 1e-4, 0.9  # c₁ and c₂ of the conditions
NEAR_END = 0.1  # of the bracket: a trial step nearer to an end than that is not trusted twice


class Point(NamedTuple):
    """The function at the step t along the direction: its loss, its slope gᵀd and its gradient g."""

    t: float
    loss: float
    slope: float
    grad: np.ndarray


# evaluate(t, *held): the point at t; the gradients of the held points are still needed
Evaluate = Callable[..., Point]


def strong_wolfe(evaluate: Evaluate, start: Point, t: float, reach: float, tolerance_change: float,
                 most: int) -> tuple[Point, int]:
    """Looks for a step that decreases the loss enough and flattens its slope.

    Args:
        evaluate: see `Evaluate`.
        start: the point at t = 0.
        t: the first step to try.
        reach: the largest magnitude in the direction.
        tolerance_change: a bracket over which no parameter changes by as much ends the search.
        most: evaluations after the first, at most.

    Returns:
        The point found, and the number of evaluations.
    """
    ends, count, done = bracket(evaluate, start, t, most)
    if done:
        return ends[0], count + 1
    point, count = zoom(evaluate, start, ends, reach, tolerance_change, count, most)
    return point, count + 1


def bracket(evaluate: Evaluate, start: Point, t: float, most: int) -> tuple[list[Point], int, bool]:
    """Lengthens the step until it fulfils the conditions, or two points enclose one that does (algorithm 3.5)."""
    previous, trial, count = start, evaluate(t, start), 0
    while count < most:
        if too_high(trial, start) or (count > 1 and trial.loss >= previous.loss):
            return [previous, trial], count, False
        if flat_enough(trial, start):
            return [trial, trial], count, True
        if trial.slope >= 0:
            return [previous, trial], count, False
        t = interpolate(previous, trial, trial.t + 0.01 * (trial.t - previous.t), trial.t * 10)
        previous, trial = trial, evaluate(t, start, trial)
        count += 1
    return [start, trial], count, False


def zoom(evaluate: Evaluate, start: Point, ends: list[Point], reach: float, tolerance_change: float, count: int,
         most: int) -> tuple[Point, int]:
    """Narrows the bracket until its lower end fulfils the conditions (algorithm 3.6)."""
    low, high = by_loss(ends)
    hesitated = done = False
    while not done and count < most and not abs(ends[1].t - ends[0].t) * reach < tolerance_change:
        t, hesitated = trial_step(ends, hesitated)
        trial = evaluate(t, start, *ends)
        count += 1
        if too_high(trial, start) or trial.loss >= ends[low].loss:
            ends[high] = trial
            low, high = by_loss(ends)
            continue
        done = flat_enough(trial, start)
        if not done and trial.slope * (ends[high].t - ends[low].t) >= 0:
            ends[high] = ends[low]
        ends[low] = trial
    return ends[low], count


def finite(point: Point) -> bool:
    """Whether the function exists there; a gradient that is not finite has no slope that is."""
    return isfinite(point.loss) and isfinite(point.slope)


def too_high(point: Point, start: Point) -> bool:
    return not finite(point) or point.loss > start.loss + DECREASE * point.t * start.slope


def flat_enough(point: Point, start: Point) -> bool:
    return abs(point.slope) <= -CURVATURE * start.slope


def by_loss(ends: list[Point]) -> tuple[int, int]:
    """Which end is the lower one, and which the higher."""
    if finite(ends[1]) and not (finite(ends[0]) and ends[0].loss <= ends[1].loss):
        return 1, 0
    return 0, 1


def trial_step(ends: list[Point], hesitated: bool) -> tuple[float, bool]:
    """The next step inside the bracket, and whether it is suspiciously close to one of its ends."""
    least, most = sorted((ends[0].t, ends[1].t))
    t = interpolate(ends[0], ends[1], least, most)
    margin = NEAR_END * (most - least)
    if not min(most - t, t - least) < margin:
        return t, False
    if hesitated or t >= most or t <= least:
        return (most - margin if abs(t - most) < abs(t - least) else least + margin), False
    return t, True


@np.errstate(all="ignore")
def interpolate(a: Point, b: Point, least: float, most: float) -> float:
    """The minimum of the cubic with the losses and slopes of two points; the middle where it has none."""
    x1, f1, g1, x2, f2, g2 = map(np.float64, (a.t, a.loss, a.slope, b.t, b.loss, b.slope))  # 1 / 0 is inf
    d1 = g1 + g2 - 3 * (f1 - f2) / (x1 - x2)
    square = d1 * d1 - g1 * g2
    if not square >= 0:
        return (least + most) / 2
    d2 = sqrt(square)
    if x1 <= x2:
        t = x2 - (x2 - x1) * ((g2 + d2 - d1) / (g2 - g1 + 2 * d2))
    else:
        t = x1 - (x1 - x2) * ((g1 + d2 - d1) / (g1 - g2 + 2 * d2))
    return (least + most) / 2 if t != t else float(min(max(t, least), most))
