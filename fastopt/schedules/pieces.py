"""Schedules made of pieces: steps of values, schedules one after another, warm-up before any of them."""

import itertools
import math
import operator
from typing import Annotated, Any

from ..checks import nonnegative, one_of
from .core import (
    AnySchedule,
    Delay,
    Steps,
    Value,
    as_schedule,
    each,
    optional,
    schedule,
    scheduled,
    steps_of,
    value,
)
from .decays import Flag, Positive, Rate, cosine_decay_schedule, exponential_decay


def boundaries_of(name, given):
    """A mapping of steps to scales, in the order of the steps; None is an empty one."""
    if given is None:
        return {}
    if not hasattr(given, "items"):
        raise TypeError(f"{name} must be a mapping of steps to scales, got {given!r}")
    step = steps_of(0)
    checked = {step(f"{name}: a step", at): nonnegative(f"{name}[{at!r}]", scale) + 0.0 for at, scale in given.items()}
    return dict(sorted(checked.items()))


def cycles_of(name, given):
    """Arguments of `warmup_cosine_decay_schedule`, several times, all of them named."""
    def arguments(name, given):
        if not hasattr(given, "keys"):
            raise TypeError(f"{name} must be a mapping of arguments, got {given!r}")
        return warmup_cosine_decay_schedule(**given)._arguments

    return each(arguments, "mappings")(name, given)


def increasing(name, given):
    steps = each(steps_of(0), "steps")(name, given)
    if any(first >= second for first, second in itertools.pairwise(steps)):
        raise ValueError(f"{name} must increase, got {given!r}")
    return steps


Boundaries = Annotated[dict[int, float] | None, boundaries_of]


@schedule
def piecewise_constant_schedule(m: Any, init_value: Value, boundaries_and_scales: Boundaries = None):
    """The value times every scale whose step is reached: `init` times the product of the scales of steps <= t.

    Args:
        init_value: the value before the first boundary.
        boundaries_and_scales: step -> scale, scales of at least 0.

    >>> piecewise_constant_schedule(1.0, {2: 0.5, 4: 0.1}).preview(5)
    array([1.  , 1.  , 0.5 , 0.5 , 0.05])
    """
    boundaries, values = products(init_value, boundaries_and_scales)
    bisect, boundaries, values = m.bisect, m.table(boundaries), m.table(values)
    return lambda step: values[bisect(boundaries, step)]


def products(init_value, boundaries_and_scales):
    """The boundaries, and the values before, between and after them."""
    scales = boundaries_and_scales.values()
    return list(boundaries_and_scales), list(itertools.accumulate(scales, operator.mul, initial=init_value))


@schedule
def multistep_schedule(m: Any, init_value: Value, milestones: Annotated[Any, each(steps_of(0), "steps")],
                       gamma: Value = 0.1):
    """The value times `gamma` for every milestone that is reached: `init gamma**#{milestones <= t}`.

    Args:
        init_value: the value before the first milestone.
        milestones: steps; one that is named twice counts twice.
        gamma: the factor.

    >>> multistep_schedule(1.0, [2, 4], gamma=0.5).preview(5)
    array([1.  , 1.  , 0.5 , 0.5 , 0.25])
    """
    bisect, reached = m.bisect, m.table(sorted(milestones))
    values = m.table([init_value * gamma**i for i in range(len(milestones) + 1)])
    return lambda step: values[bisect(reached, step)]


def interpolated(m, kind, times, values):
    """From value to value along lines or half cosines, then constant. A piece of no length has no part in it."""
    bisect, bounds, cos = m.bisect, m.table(times[1:]), m.cos
    starts, firsts = m.table(times), m.table(values)
    lengths = m.table([*map(operator.sub, times[1:], times), math.inf])
    lasts = m.table([*values[1:], values[-1]])

    def line(step):
        piece = bisect(bounds, step)
        gone = (step - starts[piece]) / lengths[piece]
        return firsts[piece] * (1.0 - gone) + lasts[piece] * gone

    def half_cosine(step):
        piece = bisect(bounds, step)
        left = 0.5 + 0.5 * cos(math.pi * ((step - starts[piece]) / lengths[piece]))
        return firsts[piece] * left + lasts[piece] * (1.0 - left)

    return line if kind == "linear" else half_cosine


@schedule
def piecewise_interpolate_schedule(m: Any, interpolate_type: Annotated[str, one_of("linear", "cosine")],
                                   init_value: Value, boundaries_and_scales: Boundaries = None):
    """As `piecewise_constant_schedule`, but from value to value along lines or half cosines.

    Args:
        interpolate_type: "linear" or "cosine".
        init_value: the value at step 0.
        boundaries_and_scales: step -> scale; at the step, the value is the last one times the scale.

    >>> piecewise_interpolate_schedule("linear", 1.0, {2: 0.5, 4: 0.1}).preview(6)
    array([1.   , 0.75 , 0.5  , 0.275, 0.05 , 0.05 ])
    """
    boundaries, values = products(init_value, boundaries_and_scales)
    return interpolated(m, interpolate_type, [0, *boundaries], values)


@schedule
def join_schedules(m: Any, schedules: Annotated[Any, each(scheduled, "schedules")],
                   boundaries: Annotated[Any, increasing]):
    """Schedules one after another, each from its own step 0: `schedules[i](t - boundaries[i - 1])`.

    Args:
        schedules: schedules, numbers or functions of the step.
        boundaries: the steps at which the second, the third, ... begins: increasing, one fewer than the schedules.

    >>> join_schedules([0.1, cosine_decay_schedule(1.0, 2)], [2]).preview(5)
    array([0.1, 0.1, 1. , 0.5, 0. ])
    """
    if len(boundaries) != len(schedules) - 1:
        raise ValueError(f"join_schedules: boundaries must be one fewer than the {len(schedules)} schedules, "
                         f"got {len(boundaries)}")
    return joined(m, [m.of(piece) for piece in schedules], boundaries)


def joined(m, pieces, boundaries):
    """Formulas one after another; of two boundaries at one step the later counts."""
    bisect, switch, bounds, starts = m.bisect, m.switch, m.table(boundaries), m.table([0, *boundaries])

    def formula(step):
        piece = bisect(bounds, step)
        return switch(piece, pieces, step - starts[piece])

    return formula


@schedule
def sgdr_schedule(m: Any, cosine_kwargs: Annotated[Any, cycles_of]):
    """`warmup_cosine_decay_schedule` again and again, each time with other arguments.

    Args:
        cosine_kwargs: the arguments of each cycle, mappings; `decay_steps` is its length.

    Source: Loshchilov and Hutter 2017, arXiv 1608.03983.

    >>> first = dict(init_value=0.0, peak_value=1.0, warmup_steps=1, decay_steps=3)
    >>> sgdr_schedule([first, {**first, "peak_value": 0.5}]).preview(6)
    array([0.  , 1.  , 0.5 , 0.  , 0.5 , 0.25])
    """
    lengths = itertools.accumulate(arguments["decay_steps"] for arguments in cosine_kwargs)
    cycles = [m.of(warmup_cosine_decay_schedule(**arguments)) for arguments in cosine_kwargs]
    return joined(m, cycles, list(lengths)[:-1])


# ---- warm-up before anything, and decay, along a shape

SHAPES = ("linear", "cosine", "1-sqrt", "power", "exponential")
Shape = Annotated[str, one_of(*SHAPES)]


def curve(m, shape, power, low, high):
    """A rise along a shape from `low` to `high`, a function of the part that is gone; a decay is one backwards."""
    cos, sqrt = m.cos, m.sqrt
    if shape == "exponential":
        return lambda gone: low * (high / low) ** gone
    risen = {
        "linear": lambda gone: gone,
        "cosine": lambda gone: 0.5 - 0.5 * cos(math.pi * gone),
        "1-sqrt": lambda gone: 1.0 - sqrt(1.0 - gone),
        "power": lambda gone: gone**power,
    }[shape]

    def rise(gone):
        part = risen(gone)
        return low * (1.0 - part) + high * part

    return rise


def check_curve(shape, argument, low, high):
    if shape == "exponential" and not (low > 0.0 and high > 0.0):
        raise ValueError(f"{argument} must be above 0, as the other end, for the exponential shape, "
                         f"got {low!r} and {high!r}")


@schedule
def warmup(m: Any, schedule: AnySchedule, warmup_steps: Delay, init_value: Value = 0.0, shape: Shape = "linear",
           power: Positive = 2.0):
    """A rise before any schedule: `init + (schedule(0) - init) shape(t / w)` up to step w, then `schedule(t - w)`.

    With p = t / w, shape(p) is p ("linear"), ½ - ½ cos(π p) ("cosine"), 1 - sqrt(1 - p) ("1-sqrt") or p**power
    ("power"); "exponential" is `init (schedule(0) / init)**p`, which multiplies by the same at every step. To warm up
    while the schedule runs, multiply: `linear_schedule(0.0, 1.0, warmup_steps) * schedule`.

    Args:
        schedule: a schedule, a number or a function of the step.
        warmup_steps: w; 0 is no warm-up.
        init_value: the value at step 0; for "exponential" above 0.
        shape: "linear", "cosine", "1-sqrt", "power" or "exponential".
        power: for "power".

    >>> warmup(cosine_decay_schedule(1.0, 2), 4).preview(7)
    array([0.  , 0.25, 0.5 , 0.75, 1.  , 0.5 , 0.  ])
    >>> warmup(1.0, 2, init_value=0.01, shape="exponential").preview(3)
    array([0.01, 0.1 , 1.  ])
    """
    first = as_schedule(schedule)(0)
    check_curve(shape, "warmup: init_value", init_value, first)
    rise = curve(m, shape, power, init_value, first)
    return joined(m, [lambda step: rise(step / warmup_steps), m.of(schedule)], [warmup_steps])


@schedule
def warmup_stable_decay_schedule(m: Any, init_value: Value, peak_value: Value, warmup_steps: Delay,
                                 stable_steps: Delay, decay_steps: Delay, end_value: Value = 0.0,
                                 warmup_shape: Shape = "linear", decay_shape: Shape = "1-sqrt",
                                 power: Positive = 2.0):
    """A rise, a plateau and a decay (WSD): `warmup` to the peak, the peak, `end + (peak - end) shape(1 - r)`, the end.

    r is the part of the decay that is gone. A decay is a warm-up backwards in time: shape(1 - r) is 1 - r ("linear"),
    ½ + ½ cos(π r) ("cosine"), 1 - sqrt(r) ("1-sqrt") or (1 - r)**power ("power"); "exponential" multiplies by the same
    at every step.

    Args:
        init_value: the value at step 0.
        peak_value: the value of the plateau.
        warmup_steps: the length of the rise, from 0.
        stable_steps: the length of the plateau, from 0.
        decay_steps: the length of the decay, from 0.
        end_value: the value after it.
        warmup_shape: "linear", "cosine", "1-sqrt", "power" or "exponential".
        decay_shape: one of the same.
        power: for "power".

    Hugging Face's warmup_stable_decay has `min_lr_ratio` for `init_value` and `end_value`.

    Source: Hu et al. 2024, arXiv 2404.06395; Hägele et al. 2024, arXiv 2405.18392.

    >>> warmup_stable_decay_schedule(0.0, 1.0, 2, 2, 4, decay_shape="linear").preview(9)
    array([0.  , 0.5 , 1.  , 1.  , 1.  , 0.75, 0.5 , 0.25, 0.  ])
    """
    check_curve(warmup_shape, "warmup_stable_decay_schedule: init_value", init_value, peak_value)
    check_curve(decay_shape, "warmup_stable_decay_schedule: end_value", end_value, peak_value)
    rise = curve(m, warmup_shape, power, init_value, peak_value)
    left = curve(m, decay_shape, power, end_value, peak_value)
    pieces = [lambda step: rise(step / warmup_steps), lambda step: peak_value,
              lambda step: left(1.0 - step / decay_steps), lambda step: end_value]
    return joined(m, pieces, list(itertools.accumulate([warmup_steps, stable_steps, decay_steps])))


@schedule
def warmup_constant_schedule(m: Any, init_value: Value, peak_value: Value, warmup_steps: Delay):
    """A line to a value, then that value.

    Args:
        init_value: the value at step 0.
        peak_value: the value from `warmup_steps` on.
        warmup_steps: the length of the line.

    >>> warmup_constant_schedule(0.0, 1.0, 2).preview(4)
    array([0. , 0.5, 1. , 1. ])
    """
    return m.of(warmup(peak_value, warmup_steps, init_value))


@schedule
def warmup_cosine_decay_schedule(m: Any, init_value: Value, peak_value: Value, warmup_steps: Delay,
                                 decay_steps: Steps, end_value: Value = 0.0, exponent: Positive = 1.0):
    """A line to a peak, then half a cosine: `cosine_decay_schedule` behind a warm-up.

    Args:
        init_value: the value at step 0.
        peak_value: the value at `warmup_steps`.
        warmup_steps: the length of the line.
        decay_steps: the length of the whole, more than `warmup_steps`.
        end_value: the value from `decay_steps` on.
        exponent: of the cosine.

    >>> warmup_cosine_decay_schedule(0.0, 1.0, 2, 6, end_value=0.2).preview(7)[[0, 1, 2, 4, 6]]
    array([0. , 0.5, 1. , 0.6, 0.2])
    """
    if decay_steps <= warmup_steps:
        raise ValueError("warmup_cosine_decay_schedule: decay_steps, the length of the whole, must be more than "
                         f"warmup_steps ({warmup_steps!r}), got {decay_steps!r}")
    if peak_value == 0.0 != end_value:
        raise ValueError("warmup_cosine_decay_schedule: peak_value must not be 0 where end_value is not")
    alpha = end_value / peak_value if peak_value else 0.0
    decay = cosine_decay_schedule(peak_value, decay_steps - warmup_steps, alpha, exponent)
    return m.of(warmup(decay, warmup_steps, init_value))


@schedule
def warmup_exponential_decay_schedule(m: Any, init_value: Value, peak_value: Value, warmup_steps: Delay,
                                      transition_steps: Steps, decay_rate: Rate, transition_begin: Delay = 0,
                                      staircase: Flag = False,
                                      end_value: Annotated[float | None, optional(value)] = None):
    """A line to a peak, then `exponential_decay` from it.

    Args:
        init_value: the value at step 0.
        peak_value: the value at `warmup_steps`.
        warmup_steps: the length of the line.
        transition_steps: see `exponential_decay`, whose steps are counted from `warmup_steps`.
        decay_rate: see `exponential_decay`.
        transition_begin: see `exponential_decay`.
        staircase: see `exponential_decay`.
        end_value: see `exponential_decay`.

    >>> warmup_exponential_decay_schedule(0.0, 1.0, 2, 1, 0.5).preview(5)
    array([0.  , 0.5 , 1.  , 0.5 , 0.25])
    """
    decay = exponential_decay(peak_value, transition_steps, decay_rate, transition_begin, staircase, end_value)
    return m.of(warmup(decay, warmup_steps, init_value))
