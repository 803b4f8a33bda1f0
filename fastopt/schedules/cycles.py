"""Schedules that return: cycles, restarts, one cycle."""

import math
from typing import Annotated, Any

from ..checks import closed_fraction, one_of
from .core import Steps, Value, optional, schedule, steps_of
from .decays import Flag, Positive
from .pieces import interpolated

Fraction = Annotated[float, closed_fraction]


@schedule
def cyclic_schedule(m: Any, init_value: Value, peak_value: Value, up_steps: Steps,
                    down_steps: Annotated[float | None, optional(steps_of(1))] = None,
                    mode: Annotated[str, one_of("triangular", "triangular2", "exp_range")] = "triangular",
                    gamma: Positive = 1.0):
    """Triangles for ever: `init + (peak - init) x scale`, x in a line from 0 to 1 and back in each cycle.

    Args:
        init_value: the value at the feet of the triangles.
        peak_value: the value at the top of the first.
        up_steps: how long it rises.
        down_steps: how long it falls; None is as long.
        mode: "triangular": all triangles are alike; "triangular2": each is half as high as the last (`scale` is
            `0.5**cycle`); "exp_range": `scale` is `gamma**t`.
        gamma: for "exp_range".

    It is torch's CyclicLR; its momentum is the schedule from `max_momentum` to a peak of `base_momentum`.

    Source: Smith 2017, arXiv 1506.01186.

    >>> cyclic_schedule(0.0, 1.0, 2, mode="triangular2").preview(9)
    array([0.  , 0.5 , 1.  , 0.5 , 0.  , 0.25, 0.5 , 0.25, 0.  ])
    """
    down = up_steps if down_steps is None else down_steps
    period, height, minimum = up_steps + down, peak_value - init_value, m.minimum

    def triangle(step):
        at = step % period
        return height * minimum(at / up_steps, (period - at) / down)

    if mode == "triangular":
        return lambda step: init_value + triangle(step)
    if mode == "triangular2":
        return lambda step: init_value + triangle(step) * 0.5 ** (step // period)
    return lambda step: init_value + triangle(step) * gamma**step


@schedule
def cosine_restarts_schedule(m: Any, init_value: Value, decay_steps: Steps,
                             t_mul: Positive = 1.0, m_mul: Positive = 1.0,
                             end_value: Value = 0.0):
    """Half cosines again and again: `end + (init - end) m_mul**i (½ + ½ cos(π r))` where a part r of cycle i is gone.

    Cycle i = 0, 1, ... is `T t_mul**i` steps long. torch's CosineAnnealingWarmRestarts at whole steps and at fractions,
    and Keras's CosineDecayRestarts, whose `alpha` is `end / init`.

    Args:
        init_value: the value at step 0.
        decay_steps: T, the length of the first cycle.
        t_mul: how many times longer each cycle is than the last, at least 1.
        m_mul: how many times higher above `end_value` each cycle begins than the last.
        end_value: the value that every cycle falls to.

    Source: Loshchilov and Hutter 2017, arXiv 1608.03983.

    >>> cosine_restarts_schedule(1.0, 2, t_mul=2, m_mul=0.5).preview(7).round(3)
    array([1.   , 0.5  , 0.5  , 0.427, 0.25 , 0.073, 0.25 ])
    """
    if t_mul < 1:
        raise ValueError(f"cosine_restarts_schedule: t_mul must be at least 1, got {t_mul!r}")
    cos, floor, log = m.cos, m.floor, m.log
    height = init_value - end_value

    def wave(cycle, passed):
        return end_value + height * m_mul**cycle * (0.5 + 0.5 * cos(math.pi * passed))

    if t_mul == 1:
        return lambda step: wave(step // decay_steps, step % decay_steps / decay_steps)
    more, growth = t_mul - 1.0, math.log(t_mul)

    def restarts(step):
        grown = 1.0 + step * more / decay_steps  # t_mul**cycle where a cycle begins
        cycle = floor(log(grown) / growth + 1e-9)  # a logarithm rounded down does not put off a restart by a step
        length = t_mul**cycle
        return wave(cycle, (grown - length) / (length * more))

    return restarts


@schedule
def onecycle_schedule(m: Any, peak_value: Value, total_steps: Steps, pct_start: Fraction = 0.3,
                      anneal_strategy: Annotated[str, one_of("cos", "linear")] = "cos",
                      div_factor: Positive = 25.0, final_div_factor: Positive = 1e4,
                      three_phase: Flag = False):
    """From `peak / div_factor` to `peak` to `peak / (div_factor final_div_factor)` along half cosines or lines (torch).

    The peak is at `pct_start T - 1`, the end at `T - 1`; in three phases it is back at `peak / div_factor` at
    `2 pct_start T - 2`. After `T - 1` the value stays, where torch's goes on for one step, below zero if linear.
    The momentum of torch's OneCycleLR is the schedule with `base_momentum` as its peak, `div_factor` of
    `base_momentum / max_momentum` and `final_div_factor` of 1.

    Args:
        peak_value: the peak.
        total_steps: T.
        pct_start: the part of the steps in which it rises; at most 0.5 in three phases.
        anneal_strategy: "cos" or "linear".
        div_factor: the peak over the first value.
        final_div_factor: the first value over the last.
        three_phase: back to the first value in as many steps as it rose, before the last phase.

    Source: Smith and Topin 2018, arXiv 1708.07120.

    >>> onecycle_schedule(1.0, 11, pct_start=0.6, anneal_strategy="linear", div_factor=10).preview(11)[[0, 10]]
    array([1.e-01, 1.e-05])
    """
    if three_phase and pct_start > 0.5:
        raise ValueError(f"onecycle_schedule: pct_start must be at most 0.5 in three phases, got {pct_start!r}")
    first, last = peak_value / div_factor, peak_value / div_factor / final_div_factor
    rise = pct_start * total_steps - 1.0
    if three_phase:
        times, values = [0.0, rise, 2.0 * rise, total_steps - 1.0], [first, peak_value, first, last]
    else:
        times, values = [0.0, rise, total_steps - 1.0], [first, peak_value, last]
    return interpolated(m, "cosine" if anneal_strategy == "cos" else "linear", times, values)


@schedule
def cosine_onecycle_schedule(m: Any, transition_steps: Steps, peak_value: Value, pct_start: Fraction = 0.3,
                             div_factor: Positive = 25.0, final_div_factor: Positive = 1e4):
    """From `peak / div_factor` to `peak` to `peak / (div_factor final_div_factor)` along half cosines (optax).

    The peak is at `floor(pct_start T)`, the end at T. `onecycle_schedule` has torch's steps.

    Args:
        transition_steps: T.
        peak_value: the peak.
        pct_start: the part of the steps in which it rises.
        div_factor: the peak over the first value.
        final_div_factor: the first value over the last.

    Source: Smith and Topin 2018, arXiv 1708.07120.

    >>> cosine_onecycle_schedule(10, 1.0, div_factor=10).preview(11)[[0, 3, 10]]
    array([1.e-01, 1.e+00, 1.e-05])
    """
    first = peak_value / div_factor
    times = [0, int(pct_start * transition_steps), transition_steps]
    return interpolated(m, "cosine", times, [first, peak_value, first / final_div_factor])


@schedule
def linear_onecycle_schedule(m: Any, transition_steps: Steps, peak_value: Value, pct_start: Fraction = 0.3,
                             pct_final: Fraction = 0.85, div_factor: Positive = 25.0,
                             final_div_factor: Positive = 1e4):
    """From `peak / div_factor` to `peak`, back, and to `peak / (div_factor final_div_factor)` along lines (optax).

    The peak is at `floor(pct_start T)`, it is back at `floor(pct_final T)`, the end is at T. `onecycle_schedule` has
    torch's steps.

    Args:
        transition_steps: T.
        peak_value: the peak.
        pct_start: the part of the steps in which it rises.
        pct_final: the part of the steps after which it is back; more than `pct_start`.
        div_factor: the peak over the first value.
        final_div_factor: the first value over the last.

    Source: Smith and Topin 2018, arXiv 1708.07120.

    >>> linear_onecycle_schedule(20, 1.0, div_factor=10).preview(21)[[0, 6, 17, 20]]
    array([1.e-01, 1.e+00, 1.e-01, 1.e-05])
    """
    if pct_final <= pct_start:
        raise ValueError(
            f"linear_onecycle_schedule: pct_final must be more than pct_start ({pct_start!r}), got {pct_final!r}")
    first = peak_value / div_factor
    times = [0, int(pct_start * transition_steps), int(pct_final * transition_steps), transition_steps]
    return interpolated(m, "linear", times, [first, peak_value, first, first / final_div_factor])
