"""Schedules that go from one value to another along one curve."""

import math
from typing import Annotated, Any

from ..checks import flag, nonnegative, positive
from .core import Delay, Steps, Value, optional, schedule, value

Flag = Annotated[bool, flag]
Positive = Annotated[float, positive]
Rate = Annotated[float, nonnegative]


@schedule
def polynomial_schedule(m: Any, init_value: Value, end_value: Value, power: Positive, transition_steps: Steps,
                        transition_begin: Delay = 0, cycle: Flag = False):
    """From one value to another along a power: `(init - end) (1 - clip((t - b) / T, 0, 1))**power + end`.

    Args:
        init_value: the value up to `transition_begin`.
        end_value: the value from `transition_begin + transition_steps` on.
        power: 1 is a straight line; more falls steeply first.
        transition_steps: T.
        transition_begin: b.
        cycle: when the end is reached, begin again with T twice, three times, ... as long, at the value that this
            longer schedule has then (Keras's PolynomialDecay).

    >>> polynomial_schedule(1.0, 0.0, 2, 10).preview(11)[[0, 5, 10]]
    array([1.  , 0.25, 0.  ])
    """
    ceil, minimum, maximum = m.ceil, m.minimum, m.maximum

    def once(step):
        left = (1.0 - minimum(maximum(step - transition_begin, 0), transition_steps) / transition_steps) ** power
        return init_value * left + end_value * (1.0 - left)

    def again(step):
        passed = maximum(step - transition_begin, 0) / transition_steps
        left = (1.0 - passed / maximum(ceil(passed), 1)) ** power
        return init_value * left + end_value * (1.0 - left)

    return again if cycle else once


@schedule
def exponential_decay(m: Any, init_value: Value, transition_steps: Steps, decay_rate: Rate,
                      transition_begin: Delay = 0, staircase: Flag = False,
                      end_value: Annotated[float | None, optional(value)] = None):
    """The value times `decay_rate`, once in `transition_steps` steps: `init * decay_rate**(max(t - b, 0) / T)`.

    Args:
        init_value: the value up to `transition_begin`.
        transition_steps: T.
        decay_rate: above 1 the value grows.
        transition_begin: b.
        staircase: rounds the exponent down, so that the value falls in stairs.
        end_value: the value never falls below it, or with `decay_rate` above 1 never grows above it.

    >>> exponential_decay(1.0, 10, 0.5)(20)
    0.25
    >>> exponential_decay(1.0, 10, 0.5, staircase=True)(19)
    0.5
    """
    minimum, maximum = m.minimum, m.maximum

    if staircase:
        def exponent(step):
            return maximum(step - transition_begin, 0) // transition_steps
    else:
        def exponent(step):
            return maximum(step - transition_begin, 0) / transition_steps

    if end_value is None:
        return lambda step: init_value * decay_rate ** exponent(step)
    clip = maximum if decay_rate < 1.0 else minimum
    most = 600.0 / math.log(decay_rate) if decay_rate > 1.0 else math.inf  # e**600: beyond any end, and no overflow
    return lambda step: clip(init_value * decay_rate ** minimum(exponent(step), most), end_value)


@schedule
def inverse_time_decay(m: Any, init_value: Value, transition_steps: Steps, decay_rate: Rate,
                       transition_begin: Delay = 0, staircase: Flag = False):
    """The value over a line: `init / (1 + decay_rate max(t - b, 0) / T)` (Keras's InverseTimeDecay).

    Args:
        init_value: the value up to `transition_begin`.
        transition_steps: T.
        decay_rate: how much is added to the divisor in T steps.
        transition_begin: b.
        staircase: rounds `(t - b) / T` down, so that the value falls in stairs.

    >>> inverse_time_decay(1.0, 10, 0.5).preview(21)[[0, 10, 20]]
    array([1.        , 0.66666667, 0.5       ])
    """
    maximum = m.maximum
    if staircase:
        return lambda step: init_value / (
            1.0 + decay_rate * (maximum(step - transition_begin, 0) // transition_steps))
    return lambda step: init_value / (1.0 + decay_rate * (maximum(step - transition_begin, 0) / transition_steps))


@schedule
def inverse_sqrt_schedule(m: Any, init_value: Value, timescale: Steps,
                          shift: Annotated[float | None, optional(positive)] = None):
    """The value over a root: `init / sqrt((t + shift) / timescale)`.

    Behind a warm-up it is the schedule of fairseq, big_vision and Hugging Face: `warmup(inverse_sqrt_schedule(rate, w),
    w)` rises in w steps and is `rate sqrt(w / t)` after them.

    Args:
        init_value: the value where `t + shift` is `timescale`.
        timescale: the larger, the slower it falls.
        shift: added to the step; `timescale` where it is None, so that the schedule begins with `init_value`.

    >>> inverse_sqrt_schedule(1.0, 100)(300)
    0.5
    """
    sqrt, shift = m.sqrt, timescale if shift is None else shift
    return lambda step: init_value / sqrt((step + shift) / timescale)


@schedule
def noam_schedule(m: Any, model_size: Steps, warmup_steps: Steps, scale: Value = 1.0):
    """The Transformer's: `scale model_size**-0.5 min(t**-0.5, t warmup_steps**-1.5)`.

    The paper counts steps from 1: there, `noam_schedule(...).shift(-1)`. Here step 0 has the value 0.

    Args:
        model_size: d, the width of the model.
        warmup_steps: the steps of the linear rise.
        scale: of the whole.

    Source: Vaswani et al. 2017, arXiv 1706.03762.

    >>> round(noam_schedule(512, 4000)(4000), 12)
    0.000698771243
    """
    maximum, minimum = m.maximum, m.minimum
    peak = scale * model_size**-0.5
    slope = warmup_steps**-1.5
    return lambda step: peak * minimum(step * slope, maximum(step, warmup_steps) ** -0.5)


@schedule
def cosine_decay_schedule(m: Any, init_value: Value, decay_steps: Steps, alpha: Value = 0.0,
                          exponent: Positive = 1.0):
    """Half a cosine, then constant: `init ((1 - alpha) (½ + ½ cos(π min(t, T) / T))**exponent + alpha)`.

    Args:
        init_value: the value at step 0.
        decay_steps: T.
        alpha: the part of `init_value` at which it ends.
        exponent: of the cosine.

    Source: Loshchilov and Hutter 2017, arXiv 1608.03983.

    >>> cosine_decay_schedule(1.0, 10, alpha=0.1).preview(11)[[0, 10]]
    array([1. , 0.1])
    """
    cos, minimum, turn = m.cos, m.minimum, math.pi / decay_steps
    end_value = alpha * init_value

    def decay(step):
        left = (0.5 + 0.5 * cos(turn * minimum(step, decay_steps))) ** exponent
        return init_value * left + end_value * (1.0 - left)

    return decay


@schedule
def cosine_annealing_schedule(m: Any, init_value: Value, decay_steps: Steps, end_value: Value = 0.0):
    """A cosine between two values, for ever: `end + (init - end) (½ + ½ cos(π t / T))`, torch's CosineAnnealingLR.

    Args:
        init_value: the value at steps 0, 2 T, 4 T, ...
        decay_steps: T, half a period.
        end_value: the value at steps T, 3 T, ...

    >>> cosine_annealing_schedule(1.0, 10).preview(21)[[0, 10, 20]]
    array([1., 0., 1.])
    """
    cos, period = m.cos, 2 * decay_steps

    def anneal(step):
        left = 0.5 + 0.5 * cos(math.pi * (step % period / decay_steps))
        return init_value * left + end_value * (1.0 - left)

    return anneal


@schedule
def cosine_k_decay_schedule(m: Any, init_value: Value, decay_steps: Steps, k: Positive, end_value: Value = 0.0):
    """Half a cosine of a power of the step, then constant: `end + (init - end) (½ + ½ cos(π (min(t, T) / T)**k))`.

    Args:
        init_value: the value at step 0.
        decay_steps: T.
        k: 1 is the plain cosine; more stays high longer.
        end_value: the value from T on.

    Source: Zhang and Li 2020, arXiv 2004.05909.

    >>> cosine_k_decay_schedule(1.0, 10, k=2.0).preview(11)[[0, 5, 10]].round(6)
    array([1.      , 0.853553, 0.      ])
    """
    cos, minimum = m.cos, m.minimum

    def decay(step):
        left = 0.5 + 0.5 * cos(math.pi * (minimum(step, decay_steps) / decay_steps) ** k)
        return init_value * left + end_value * (1.0 - left)

    return decay


@schedule
def tanh_decay_schedule(m: Any, init_value: Value, decay_steps: Steps, end_value: Value = 0.0,
                        lower: Value = -6.0, upper: Value = 3.0):
    """A hyperbolic tangent, then constant: `end + (init - end) (½ - ½ tanh(lower (1 - r) + upper r))`.

    r is min(t, T) / T. The schedule begins and ends close to the two values, not exactly at them: by default 0.25 % of
    the way is left at r = 1.

    Args:
        init_value: the value that it falls from.
        decay_steps: T.
        end_value: the value that it falls towards.
        lower: where on the tangent it begins.
        upper: where on the tangent it ends, more than `lower`.

    Source: Hsueh et al. 2019, arXiv 1806.01593.

    >>> tanh_decay_schedule(1.0, 9).preview(10)[[0, 6, 9]].round(4)
    array([1.    , 0.5   , 0.0025])
    """
    if lower >= upper:
        raise ValueError(f"tanh_decay_schedule: lower must be less than upper ({upper!r}), got {lower!r}")
    tanh, minimum, slope = m.tanh, m.minimum, (upper - lower) / decay_steps

    def decay(step):
        left = 0.5 - 0.5 * tanh(lower + slope * minimum(step, decay_steps))
        return init_value * left + end_value * (1.0 - left)

    return decay


@schedule
def rex_schedule(m: Any, init_value: Value, decay_steps: Steps, end_value: Value = 0.0):
    """Reflected exponential, then constant: `end + (init - end) (1 - r) / (1 - r / 2)`, r = min(t, T) / T.

    Args:
        init_value: the value at step 0.
        decay_steps: T.
        end_value: the value from T on.

    Source: Chen, Wolfe and Kyrillidis 2021, arXiv 2107.04197.

    >>> rex_schedule(1.0, 10).preview(11)[[0, 5, 10]].round(6)
    array([1.      , 0.666667, 0.      ])
    """
    minimum = m.minimum

    def decay(step):
        gone = minimum(step, decay_steps) / decay_steps
        left = (1.0 - gone) / (1.0 - 0.5 * gone)
        return init_value * left + end_value * (1.0 - left)

    return decay
